"""`clap_audio`: audio through the audio half of a pretrained CLAP (arXiv:2211.06687), as one vector that its text half shares.

B batch, C channels, T samples at 48 kHz, N spectrogram frames, D output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.audio.resample import resample
from stable_audio_tools.configs.errors import value_text
from stable_audio_tools.models.pretransforms.base import BasePretransformConfig
from stable_audio_tools.nn.exact import no_autocast

from .base import BaseConditionerConfig, Condition, Conditioner, ConditionerParams, vector_condition
from .clap_files import EMBEDDING, KEY, CLAPFile
from .frozen import FrozenNetwork
from .pretrained_text import folder_config, import_transformers, project, projection

SAMPLE_RATE = 48000
CLIP = 480000  # samples that the network sees at once: 10 s
WINDOW, HOP, BANDS, LOWEST, HIGHEST = 1024, 480, 64, 50.0, 14000.0  # of the spectrogram, in samples, mel bands and Hz
CLIP_FRAMES = CLIP // HOP + 1
FLOOR = 1e-10  # power of -100 dB
SIZES = {"HTSAT-tiny": (96, (2, 2, 6, 2)), "HTSAT-base": (128, (2, 2, 12, 2)), "HTSAT-large": (256, (2, 2, 12, 2))}
"""Width of the first stage and depth of each, arXiv:2202.00874 and the authors' configs."""


class CLAPAudioParams(ConditionerParams):
    clap_ckpt_path: str = Field(min_length=1, description="the authors' checkpoint, or a local folder of a CLAP from the hub")
    audio_model_type: Literal["HTSAT-tiny", "HTSAT-base", "HTSAT-large"] = Field(
        default="HTSAT-base", description="size of the audio half; a folder's own config overrides it"
    )
    enable_fusion: bool = Field(
        default=True, description="see all of audio above 10 s, as the fused CLAPs do; else its middle. A folder's own config overrides it"
    )
    project_out: bool = Field(default=False, description="a linear layer behind the CLAP even where the widths agree")
    sample_rate: PositiveInt | None = Field(default=None, description="of the audio, Hz; default: the model's")

    @property
    def width(self) -> int:
        return (folder_config(self.clap_ckpt_path) or {}).get("projection_dim", EMBEDDING)

    @property
    def fuses(self) -> bool:
        folder = folder_config(self.clap_ckpt_path)
        return self.enable_fusion if folder is None else folder.get("audio_config", {}).get("enable_fusion", False)


class CLAPAudioConfig(BaseConditionerConfig):
    """The audio half of a pretrained CLAP hears the audio."""

    needs: ClassVar = ("sample_rate",)

    type: Literal["clap_audio"]
    config: CLAPAudioParams

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True, sample_rate: int | None = None) -> CLAPAudioConditioner:
        return CLAPAudioConditioner(self.width(cond_dim), self.config, sample_rate=sample_rate)

    def example(self, sample_rate: int, pretransform: BasePretransformConfig | None = None) -> Any:
        return torch.zeros(1, sample_rate)


class MelClips(NamedTuple):
    """What the network sees of a batch.

    mels: (B, 4, N, bands) decibels with fusion, the whole squeezed into one clip and three parts of it; (B, 1, N, bands) without.
    longer: (B,) bool, the audio is longer than a clip.
    """

    mels: Tensor
    longer: Tensor

    def to(self, device: torch.device | str) -> MelClips:
        return MelClips(self.mels.to(device), self.longer.to(device))


class CLAPAudioConditioner(Conditioner):
    """The unit vector of each item's audio (C, T) of any channels and length, as (B, D).

    Resampled to 48 kHz and mixed to mono. Up to 10 s are repeated to fill them. Of longer audio, a fused CLAP sees all of it at a
    coarser rate beside clips of its beginning, middle and end, any other its middle; the authors draw those places at random, here
    they are fixed, so that the same audio is always the same condition. Frozen, loaded at first use, no part of the checkpoint.
    """

    def __init__(self, dim: int, params: CLAPAudioParams, *, sample_rate: int | None = None):
        super().__init__()
        self.sample_rate, self.fuses = params.sample_rate or sample_rate or SAMPLE_RATE, params.fuses
        self.width = params.width
        self.proj_out = projection(params.width, dim, always=params.project_out)
        self._frozen = FrozenNetwork(partial(CLAPAudioReader.load, params))

    def parse(self, value: Any) -> MelClips:
        if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.is_floating_point() or not value.numel():
            shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else value_text(value)
            raise ValueError(f"expected audio as a tensor (channels, samples), got {shown}")
        audio = resample(to_channels(value if value.ndim == 2 else value[None], 1).float(), self.sample_rate, SAMPLE_RATE)
        return clip_fused(audio[0]) if self.fuses else clip_middle(audio[0])

    def collate(self, rows: Sequence[MelClips]) -> MelClips:
        return MelClips(torch.stack([row.mels for row in rows]), torch.stack([row.longer for row in rows]))

    def forward(self, prepared: MelClips) -> Condition:
        with self._frozen.on(prepared.mels.device) as read:
            vector = read(prepared)
        return vector_condition(project(self.proj_out, vector))

    def stand_in(self) -> None:
        width = self.width
        self._frozen = FrozenNetwork(lambda device: lambda clips: torch.zeros(len(clips.longer), width, device=device))


def clip_fused(audio: Tensor) -> MelClips:
    """(T,) audio for a CLAP with fusion, arXiv:2211.06687, section 3.3."""
    mel = log_mel(audio if len(audio) > CLIP else repeat_to_clip(audio), slaney=False)
    spare = len(mel) - CLIP_FRAMES
    if spare <= 0:
        return MelClips(mel.expand(4, -1, -1), torch.tensor(False))
    whole = F.interpolate(mel[None, None], (CLIP_FRAMES, BANDS), mode="bilinear", antialias=True)[0]
    parts = [mel[start : start + CLIP_FRAMES] for start in (spare // 6, spare // 2, spare - spare // 6)]  # the middles of three thirds
    return MelClips(torch.cat((whole, torch.stack(parts))), torch.tensor(True))


def clip_middle(audio: Tensor) -> MelClips:
    """(T,) audio for a CLAP without fusion."""
    start = max(len(audio) - CLIP, 0) // 2
    clip = audio[start : start + CLIP] if len(audio) > CLIP else repeat_to_clip(audio)
    return MelClips(log_mel(clip, slaney=True)[None], torch.tensor(len(audio) > CLIP))


def repeat_to_clip(audio: Tensor) -> Tensor:
    """(T,) to (CLIP,): whole repetitions, then silence."""
    repeated = audio.repeat(CLIP // len(audio))
    return F.pad(repeated, (0, CLIP - len(repeated)))


def log_mel(audio: Tensor, *, slaney: bool) -> Tensor:
    """(T,) to power in decibels (T / HOP + 1, bands), on the mel scale of HTK or Slaney, the latter with bands of equal area."""
    from torchaudio.functional import melscale_fbanks

    window = torch.hann_window(WINDOW)
    power = torch.stft(audio, WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True).abs().square()
    scale, norm = ("slaney", "slaney") if slaney else ("htk", None)
    bank = melscale_fbanks(WINDOW // 2 + 1, LOWEST, HIGHEST, BANDS, SAMPLE_RATE, norm=norm, mel_scale=scale)
    with no_autocast(power):
        mel = power.T @ bank
    return 10 * mel.clamp(min=FLOOR).log10()


@dataclass(frozen=True)
class CLAPAudioReader:
    """Clips to the unit vectors (B, width) of a frozen CLAP."""

    half: nn.Module

    @classmethod
    def load(cls, params: CLAPAudioParams, device: torch.device) -> CLAPAudioReader:
        transformers = import_transformers(KEY)
        file = CLAPFile.read(params.clap_ckpt_path)
        half = transformers.ClapAudioModelWithProjection(transformers.ClapAudioConfig(**_audio_config(params, file)))
        file.load_audio(half)
        return cls(half.requires_grad_(False).eval().to(device))

    def __call__(self, clips: MelClips) -> Tensor:
        return F.normalize(self.half(input_features=clips.mels, is_longer=clips.longer).audio_embeds, dim=-1)


def _audio_config(params: CLAPAudioParams, file: CLAPFile) -> dict[str, Any]:
    if given := file.config.get("audio_config"):
        return {**given, "projection_dim": params.width}
    width, depths = SIZES[params.audio_model_type]
    fusion = {"enable_fusion": True, "fusion_type": "aff_2d"} if params.enable_fusion else {}
    return {"patch_embeds_hidden_size": width, "depths": depths, "hidden_size": 8 * width, "projection_dim": EMBEDDING, **fusion}
