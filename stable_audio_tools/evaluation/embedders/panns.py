"""`panns`: the embedding of PANNs' Cnn14 (arXiv:1912.10211), from a local file of its authors such as Cnn14_mAP=0.431.pth.

The network is written out here, so that no package is needed. Its names are the file's. B batch, N frames, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.models.checkpoint_error import bad_file
from stable_audio_tools.models.checkpoints import match_weights
from stable_audio_tools.models.weight_files import read_weight_file

from .base import file_hash

SAMPLE_RATE = 32000
WINDOW, HOP = 1024, 320  # samples
BLOCKS = 6
FLOOR = 1e-10  # of mel power: -100 dB
SHORTEST = 2 ** (BLOCKS - 1) * HOP  # samples; fewer frames do not survive the pooling
PUBLISHED = (64, 128, 256, 512, 1024, 2048)  # channels of the blocks
BANDS = 64


class PANNsEmbedder:
    """The 2048 numbers before the tags, of all of a clip; a clip shorter than a third of a second is followed by silence.

    Args:
        path: the authors' checkpoint.

    Raises:
        CheckpointError: there is no such file, or it is no Cnn14.
    """

    name, sample_rate = "panns", SAMPLE_RATE

    def __init__(self, path: str, device: str = "cpu"):
        content = read_weight_file(path).content
        state = {key: value for key, value in content.get("model", content).items() if isinstance(value, Tensor)}
        first = [state.get(f"conv_block{block}.conv1.weight") for block in range(1, BLOCKS + 1)]
        widths = tuple(len(weight) for weight in first if weight is not None)
        self.network = Cnn14(widths if len(widths) == BLOCKS else PUBLISHED)
        own = self.network.state_dict()
        matched, report = match_weights({key: state[key] for key in own if key in state}, own, source=path)
        if report.missing or report.mismatched:
            raise bad_file(path, f"is no Cnn14: {report.counts}\n{report.details}", "name the authors' checkpoint of Cnn14 for 32 kHz")
        self.network.load_state_dict(matched)
        self.network.requires_grad_(False).eval().to(device)
        self.path, self.device = Path(path), device

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        return {"embedder": self.name, "hash": file_hash(self.path), "sample_rate": SAMPLE_RATE}

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        mono = to_channels(audio.detach().float(), 1)
        mono = F.pad(mono, (0, max(0, SHORTEST - mono.shape[-1])))
        return self.network(mono.to(self.device))[0].cpu()


class Cnn14(nn.Module):
    """arXiv:1912.10211, table 1, without its last layer. Only for inference.

    Args:
        widths: channels of the six blocks.
    """

    def __init__(self, widths: tuple[int, ...] = PUBLISHED):
        super().__init__()
        self.logmel_extractor = nn.ParameterDict({"melW": torch.zeros(WINDOW // 2 + 1, BANDS)})
        self.bn0 = nn.BatchNorm2d(BANDS)
        for block, (before, width) in enumerate(zip((1, *widths), widths, strict=False), 1):
            self.add_module(f"conv_block{block}", Block(before, width))
        self.fc1 = nn.Linear(widths[-1], widths[-1])

    def forward(self, audio: Tensor) -> Tensor:
        """(B, samples) at 32 kHz to (B, D)."""
        x = self.bn0(self._levels(audio)[..., None]).permute(0, 3, 2, 1)
        for block in range(1, BLOCKS + 1):
            x = self.get_submodule(f"conv_block{block}")(x)
            x = F.avg_pool2d(x, 2) if block < BLOCKS else x
        x = x.mean(3)
        return self.fc1(x.amax(2) + x.mean(2)).relu()

    def _levels(self, audio: Tensor) -> Tensor:
        """Decibels (B, bands, N)."""
        window = torch.hann_window(WINDOW, device=audio.device)
        power = torch.stft(audio, WINDOW, HOP, window=window, pad_mode="reflect", return_complex=True).abs().square()
        return 10 * (self.logmel_extractor["melW"].T @ power).clamp(min=FLOOR).log10()


class Block(nn.Module):
    """Two convolutions of 3 x 3, each normalised and rectified."""

    def __init__(self, before: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
