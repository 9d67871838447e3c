"""ODE warm-up: a student learns to reach the end of a teacher's trajectory from any of its points, in one step.

Before adversarial training, as in ARC (arXiv:2505.08175); cf. consistency distillation (arXiv:2303.01469).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.samplers import Step, find_sampler, make_field
from stable_audio_tools.models.conditioners import INPAINT_IDS, Condition, MultiConditioner
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.nn.teacher import Teacher
from stable_audio_tools.training.strategies.base import LatentBatch, LossOutput

Metadata = Mapping[str, Any]


class OdeWarmupConfig(StrictModel):
    """How long, and what trajectories of the teacher."""

    warmup_steps: NonNegativeInt = Field(0, description="train steps before adversarial training")
    refresh_rate: PositiveInt = Field(1, description="batches that are trained on the same trajectories before new ones are made")
    sampling_steps: PositiveInt = Field(20, description="the teacher's steps, of DPM-Solver++")
    cfg: float = Field(4.0, description="the teacher's guidance scale")


@dataclass(frozen=True)
class Trajectories:
    """What a teacher made of noise.

    x: (S, B, C, T) the states that its S steps start from. t: (S,) their noise levels. target: (B, C, T) where they end.
    metadata: of the B items, as far as conditioners read it. inpainting: the conditions that are not made of metadata.
    """

    x: Tensor
    t: Tensor
    target: Tensor
    metadata: tuple[Metadata, ...]
    inpainting: Mapping[str, Condition]

    def points(self) -> tuple[Tensor, Tensor]:
        """A random state (B, C, T) of each item and its noise level (B,); drawn from the global generator of the CPU."""
        items = self.x.shape[1]
        step = torch.randint(self.x.shape[0], (items,)).to(self.x.device)
        return self.x[step, torch.arange(items, device=self.x.device)], self.t[step]


class OdeWarmup(nn.Module):
    """The loss of the warm-up. The trajectories in use are part of the checkpoint, the teacher is not.

    Args:
        teacher: a flow in the student's latents.
        cfg_dropout_prob: share of items that the student sees without conditions.
    """

    def __init__(self, config: OdeWarmupConfig, teacher: ConditionedDiffusion, *, cfg_dropout_prob: float):
        super().__init__()
        self.config, self.cfg_dropout_prob = config, cfg_dropout_prob
        self.teacher: Teacher | None = Teacher(teacher)
        self.trajectories: Trajectories | None = None
        self.uses, self.rank = 0, 0

    def loss(self, model: ConditionedDiffusion, batch: LatentBatch) -> LossOutput:
        """Mean squared error between the clean latents that the student sees in a random state and the end of its trajectory."""
        if self.trajectories is None or self.uses >= self.config.refresh_rate:
            self.trajectories, self.uses = self._sample(model, batch), 0
            conditions: Mapping[str, Any] = batch.conditions or {}
        else:
            self.trajectories = _on(self.trajectories, batch.latents.device)
            conditions = {**model.conditioner(self.trajectories.metadata, batch.latents.device), **self.trajectories.inpainting}
        self.uses += 1
        x, t = self.trajectories.points()
        output = model(x, t, cond=conditions, cfg_dropout_prob=self.cfg_dropout_prob)
        loss = F.mse_loss(model.objective.denoised(x, output, t).float(), self.trajectories.target.float())
        return LossOutput(loss, {"loss_ode_warmup": loss.detach()})

    def end(self) -> None:
        """Let go of the teacher and what it made; there is no warm-up afterwards."""
        self.teacher = self.trajectories = None

    @torch.no_grad()
    def _sample(self, model: ConditionedDiffusion, batch: LatentBatch) -> Trajectories:
        assert self.teacher is not None
        teacher: ConditionedDiffusion = self.teacher.module  # type: ignore[assignment]
        inpainting = {name: condition for name, condition in (batch.conditions or {}).items() if name in INPAINT_IDS}
        conditions = {**teacher.conditioner(batch.metadata, batch.latents.device), **inpainting}
        states: list[Step] = []

        def ask(x: Tensor, t: Tensor) -> Tensor:
            return teacher(x, t, cond=conditions, cfg_scale=self.config.cfg)

        grid = schedule(teacher.objective, self.config.sampling_steps, length=batch.latents.shape[-1], shift=teacher.dist_shift)
        sampler = find_sampler("dpmpp", teacher.objective)
        target = sampler.sample(make_field(ask, teacher.objective), torch.randn_like(batch.latents), grid, callback=states.append)
        levels = torch.tensor([state.t for state in states], device=target.device)
        x = torch.stack([state.x for state in states])
        return Trajectories(x, levels, target, _read_by(model.conditioner, batch.metadata), inpainting)

    def get_extra_state(self) -> dict[str, Any]:
        now = self.trajectories
        if now is None:
            return {"uses": 0}
        inpainting = {name: condition.tensor for name, condition in now.inpainting.items()}
        kept = {"x": now.x, "t": now.t, "target": now.target, "metadata": [dict(item) for item in now.metadata]}
        return {"uses": self.uses, "rank": self.rank, **kept, "inpainting": inpainting}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.trajectories, self.uses = None, 0
        if "x" in state and state["rank"] == self.rank:  # a rank that the file has none of makes its own
            inpainting = {name: Condition(tensor, None) for name, tensor in state["inpainting"].items()}
            self.trajectories = Trajectories(state["x"], state["t"], state["target"], tuple(state["metadata"]), inpainting)
            self.uses = state["uses"]


def _read_by(conditioner: MultiConditioner, metadata: tuple[Metadata, ...]) -> tuple[Metadata, ...]:
    keys = {*conditioner.conditioners, *conditioner.default_keys.values()}
    return tuple({key: value for key, value in item.items() if key in keys} for item in metadata)


def _on(trajectories: Trajectories, device: torch.device) -> Trajectories:
    """On `device`; a checkpoint is read to the CPU."""
    if trajectories.x.device == device:
        return trajectories
    inpainting = {name: Condition(condition.tensor.to(device), None) for name, condition in trajectories.inpainting.items()}
    x, t, target = (tensor.to(device) for tensor in (trajectories.x, trajectories.t, trajectories.target))
    return Trajectories(x, t, target, trajectories.metadata, inpainting)
