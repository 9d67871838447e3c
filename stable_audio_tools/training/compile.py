"""torch.compile for the networks in training, in place: parameter names, checkpoints, EMA and demos are as without it."""

from __future__ import annotations

from stable_audio_tools.training.module import TrainingModule

NETWORKS = ("model", "diffusion", "encoder", "decoder", "lm")
"""Attributes that models of the several types have their networks in."""


def compile_networks(module: TrainingModule) -> None:
    """Compile what takes most of a train step, at its first call; averaged copies, for validation and demos, stay as they are."""
    for name in NETWORKS:
        network = getattr(module.model, name, None)
        if network is not None and any(parameter.requires_grad for parameter in network.parameters()):
            network.compile()
