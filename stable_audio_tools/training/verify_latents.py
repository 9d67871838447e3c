"""Holding stored latents against the audio that they are of: what storing changed, and what the autoencoder loses."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.latent_shards import ShardFolder, open_shards
from stable_audio_tools.data.pre_encoded import drawn
from stable_audio_tools.data.types import ItemKey
from stable_audio_tools.inference.latents import SAME_LATENTS, SAME_TOKENS
from stable_audio_tools.nn.reconstruction import MultiResolutionSTFT, SpectralParams
from stable_audio_tools.training.pre_encode import Job

FFT_SIZES = (2048, 1024, 512, 256, 128)  # of the spectral distance, those that the shortest item is long enough for


@dataclass(frozen=True)
class Check:
    """One item.

    latent_error: of the stored latents against new ones, root mean square over that of the new ones; of tokens, the share that differs.
    snr_db: of the audio to what decoding the stored latents adds to it. mrstft: their spectral distance (arXiv:1910.11480).
    """

    path: str
    seconds_start: float
    latent_error: float
    snr_db: float
    mrstft: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verification:
    """tolerance: the latent error up to which latents count as the same."""

    checks: tuple[Check, ...]
    tolerance: float

    @property
    def passed(self) -> bool:
        return all(check.latent_error <= self.tolerance for check in self.checks)

    def lines(self) -> list[str]:
        """For people."""
        rows = [
            f"  {check.path} at {check.seconds_start:.3f} s: latents off by {check.latent_error:.2g}, "
            f"decoded audio SNR {check.snr_db:.1f} dB, MRSTFT {check.mrstft:.3f}"
            for check in self.checks
        ]
        result = "as the encoder makes them now" if self.passed else f"NOT as the encoder makes them now (more than {self.tolerance} off)"
        return [f"verified {len(self.checks)} items: the stored latents are {result}", *rows]


def verify(job: Job, count: int) -> Verification:
    """Encode and decode `count` items, evenly spread over the folder.

    Raises:
        ConfigError: the folder is not finished, or a file has gone meanwhile.
    """
    folder = open_shards(job.folder)
    chosen = torch.linspace(0, len(folder) - 1, min(count, len(folder))).round().long().tolist() if len(folder) else []
    checks = tuple(_check(job, folder, item) for item in chosen)
    return Verification(checks, SAME_TOKENS if folder.facts.tokens else SAME_LATENTS)


def _check(job: Job, folder: ShardFolder, item: int) -> Check:
    number, real = int(folder.places[item, 0]), folder.valid[item]
    sample = job.crops([number]).visit(ItemKey(0, 0, 0))
    if fault := sample.metadata.get("fault"):
        raise ConfigError(f"{fault.path}: {fault.cause}", str(job.folder))
    fresh = job.encoder.encode(sample.audio[None], job.stored)[0].cpu()
    fresh = drawn(fresh, job.source.seed, number) if job.stored == "sample" else fresh
    stored = folder.read(item, 0, folder.frames[item])
    means = stored.chunk(2)[0] if folder.facts.distribution else stored
    audio = job.encoder.decode(means[None], tokens=folder.facts.tokens).cpu()[0]
    length = min(sample.valid_length or sample.audio.shape[-1], audio.shape[-1])
    metadata = sample.metadata["metadata"]
    return Check(
        path=str(metadata.get("path", number)),
        seconds_start=float(metadata.get("seconds_start", 0.0)),
        latent_error=_error(stored[..., :real], fresh[..., :real], tokens=folder.facts.tokens),
        snr_db=_snr_db(sample.audio[:, :length], audio[:, :length]),
        mrstft=_mrstft(sample.audio[:, :length], audio[:, :length], job.source.sample_rate),
    )


def _error(stored: Tensor, fresh: Tensor, *, tokens: bool) -> float:
    if tokens:
        return float((stored != fresh).double().mean())
    stored, fresh = stored.double(), fresh.double()
    return float((stored - fresh).square().mean().sqrt() / fresh.square().mean().sqrt().clamp_min(1e-12))


def _snr_db(audio: Tensor, decoded: Tensor) -> float:
    noise = (audio.double() - decoded.double()).square().sum()
    return 10 * math.log10(max(float(audio.double().square().sum()), 1e-20) / max(float(noise), 1e-20))


def _mrstft(audio: Tensor, decoded: Tensor, sample_rate: int) -> float:
    """NaN for audio that is shorter than any transform."""
    sizes = tuple(size for size in FFT_SIZES if size // 2 < audio.shape[-1])
    if not sizes:
        return math.nan
    params = SpectralParams(fft_sizes=sizes, hop_sizes=tuple(size // 4 for size in sizes), win_lengths=sizes)
    return float(MultiResolutionSTFT(params, sample_rate)(audio[None], decoded[None])["mrstft"])
