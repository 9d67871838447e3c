"""The parts of a model in training, and how many parameters each has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from stable_audio_tools.training.module import TrainingModule


@dataclass(frozen=True)
class Part:
    """A part of the model: its parameters, and how many of them train."""

    name: str
    parameters: int
    trainable: int


def parts_of(module: TrainingModule) -> tuple[Part, ...]:
    """The model's parts that have parameters, and a discriminator where there is one."""
    named = dict(module.model.named_children())
    if isinstance(discriminator := getattr(module.strategy, "discriminator", None), nn.Module):
        named["discriminator"] = discriminator
    parts = (_part(name, part) for name, part in named.items())
    return tuple(part for part in parts if part.parameters)


def _part(name: str, module: nn.Module) -> Part:
    weights = list(module.parameters())
    return Part(name, sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.requires_grad))
