"""Conditional latent diffusion: a denoiser, the conditioners that feed it, the pretransform around it, and its objective.

B batch, C latent channels, T latent frames. Whatever the network predicts, what the model gives is the objective's velocity.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.diffusion.guidance import EVERYWHERE, Interval, Momentum, guided, in_interval, shaped
from stable_audio_tools.diffusion.known import Known, Told
from stable_audio_tools.diffusion.objectives import Objective, parse_objective, velocity_from_x0
from stable_audio_tools.diffusion.timesteps import DistributionShift

from .conditioners import INPAINT_IDS, ConditioningConfig, MultiConditioner
from .conditioners.routing import Conditions, Inputs, Routes, drop_inputs
from .conditioning_rules import RoutingRules
from .denoisers import Denoiser, DenoiserConfig
from .pretransforms import Pretransform, PretransformConfig, latent_problems

logger = logging.getLogger(__name__)

ROUTE_KEYS = ("cross_attention_cond_ids", "global_cond_ids", "input_concat_ids", "prepend_cond_ids")


class ConditionedDiffusionBody(StrictModel):
    """The `model` object of a conditional diffusion config."""

    io_channels: PositiveInt = Field(description="latent channels")
    diffusion: DenoiserConfig
    pretransform: PretransformConfig | None = Field(default=None, description="makes latents of audio; absent: the data are latents")
    conditioning: ConditioningConfig | None = Field(default=None, description="absent: the model knows no metadata")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        channels = latent_problems(self.pretransform) or [*self._channel_problems()]
        if problems := [*channels, *self._rules().problems()]:
            raise ConfigError(problems)
        return self

    @property
    def downsampling_ratio(self) -> int:
        """Audio samples per latent frame."""
        return 1 if self.pretransform is None else self.pretransform.downsampling_ratio

    def build(self, sample_rate: int) -> ConditionedDiffusion:
        routes = self.diffusion.routes
        conditioning = self.conditioning
        self._rules().report_idle()
        denoiser, pretransform = self.diffusion.build(), None if self.pretransform is None else self.pretransform.build(sample_rate)
        shared: Any = {"pretransform": pretransform, "sample_rate": sample_rate}
        return ConditionedDiffusion(
            denoiser,
            MultiConditioner({}) if conditioning is None else conditioning.build(routes.tokens, routes.vectors, **shared),
            pretransform,
            objective=parse_objective(self.diffusion.diffusion_objective),
            prediction=self.diffusion.prediction,
            dist_shift=self.diffusion.distribution_shift_options,
            routes=routes,
            io_channels=self.io_channels,
            sample_rate=sample_rate,
            min_input_length=self.downsampling_ratio * self.diffusion.frame_multiple[1],
        )

    def _channel_problems(self) -> Iterator[Problem]:
        ours, network = self.io_channels, self.diffusion.io_channels
        if network != ours:
            key = self.diffusion.io_channels_key
            message = f"diffusion.config.{key} is {network}, but the model's io_channels is {ours}"
            yield Problem(("diffusion", "config", key), message, "make them equal")
        if self.pretransform is not None and self.pretransform.encoded_channels != ours:
            encoded = self.pretransform.encoded_channels
            message = f"io_channels is {ours}, but the pretransform gives {encoded} latent channels"
            yield Problem(("io_channels",), message, f"set io_channels and diffusion.config.{self.diffusion.io_channels_key} to {encoded}")

    def _rules(self) -> RoutingRules:
        network = self.diffusion
        return RoutingRules(
            "diffusion",
            network.type,
            ids={key: getattr(network, key) for key in ROUTE_KEYS},
            widths=network.widths(),
            places=network.places(),
            conditioning=self.conditioning,
            made=dict(zip(INPAINT_IDS, (1, self.io_channels), strict=True)),
        )


class ConditionedDiffusion(nn.Module):
    """A denoiser that is asked in terms of conditions.

    model: the denoiser. conditioner: metadata to conditions. pretransform: audio to latents and back, or None.
    objective: noise path and velocity. prediction: what the denoiser itself predicts.
    dist_shift: shift of timesteps by length, or None. min_input_length: smallest number of audio samples; lengths are multiples.
    told: what it has learned to be told beside conditions, as far as its config says.
    """

    def __init__(
        self,
        model: Denoiser,
        conditioner: MultiConditioner,
        pretransform: Pretransform | None,
        *,
        objective: Objective,
        prediction: Literal["velocity", "x0"],
        dist_shift: DistributionShift | None,
        routes: Routes,
        io_channels: int,
        sample_rate: int,
        min_input_length: int,
    ):
        super().__init__()
        self.model = model
        self.conditioner = conditioner
        self.pretransform = pretransform
        self.objective, self.prediction, self.dist_shift = objective, prediction, dist_shift
        self.routes = routes
        self.io_channels, self.sample_rate, self.min_input_length = io_channels, sample_rate, min_input_length
        self.told = Told()
        self.reported = False

    @property
    def diffusion_objective(self) -> str:
        """The objective's name in configs."""
        return self.objective.name

    def get_conditioning_inputs(self, conditions: Conditions, negative: bool = False) -> Inputs:
        """The denoiser's keyword arguments; with `negative`, each name begins with "negative_".

        Raises:
            ValueError: a condition is missing, or its shape does not fit its route.
        """
        inputs = self.routes.inputs(conditions)
        return {f"negative_{name}": value for name, value in inputs.items()} if negative else inputs

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Conditions,
        *,
        cfg_scale: float = 1.0,
        negative_cond: Conditions | None = None,
        scale_phi: float | None = None,
        rescale_cfg: bool = False,
        cfg_interval: Interval = EVERYWHERE,
        apg_scale: float = 0.0,
        cfg_norm_threshold: float = 0.0,
        cfg_momentum: Momentum | None = None,
        batch_cfg: bool = True,
        cfg_dropout_prob: float = 0.0,
        mask: Tensor | None = None,
        known: Known | None = None,
        exit_layer_ix: int | None = None,
        info: dict[str, Any] | None = None,
    ) -> Tensor:
        """The velocity (B, C, T) at noisy latents x (B, C, T) and noise levels t (B,).

        Guidance moves away from what `routing.Routes.unconditional` describes. A model whose conditions have none of it
        (durations alone, say) cannot be guided; asking for it is reported once and changes nothing.

        Args:
            cond: conditions by id, as `conditioner` makes them.
            cfg_scale: strength of guidance; 1: none.
            negative_cond: conditions to move away from, on every route; default: the absence of conditions.
            scale_phi: share of the guided prediction's rescaling, 0 to 1; default: none.
            rescale_cfg: take the network's own share (`Denoiser.rescale_share`) where `scale_phi` is not given.
            cfg_interval: noise levels (sigma) where guidance acts, decided for each item.
            apg_scale, cfg_norm_threshold, cfg_momentum: shape what guidance adds; see `diffusion.guidance.shaped`.
            batch_cfg: run both predictions in one batch of 2 B, else one after the other.
            cfg_dropout_prob: in training, the probability that an item loses its conditions.
            mask: (B, T) bool, which frames are real; the others do not influence them.
            known: frames that are told and not made, which take the place of those of x, and references; what the velocity is
                there means nothing. The denoiser must be one that takes them (`Denoiser.takes_known`).
            exit_layer_ix: give the denoiser's features (B, N, D) behind this layer; without guidance only.
            info: filled with `hidden_states`, the features of each layer, and `uncond_output` where guidance asked for it.
        """
        inputs = self.routes.inputs(cond)
        known = known and known.whole(self.model.frames_per_token)
        if cfg_dropout_prob > 0 and self.routes.can_drop(cond):
            inputs = drop_inputs(inputs, self._unconditional(cond, inputs, None), cfg_dropout_prob)
        hidden: list[Tensor] | None = None
        if info is not None:
            info["hidden_states"] = hidden = []
        if exit_layer_ix is not None:
            if cfg_scale != 1 or known is not None:
                raise ValueError(
                    f"features of a layer are of the clip alone: exit_layer_ix goes with cfg_scale 1, got {cfg_scale}, and no known"
                )
            return self.model(x, t, **_in_precision_of(x, inputs), mask=mask, exit_layer_ix=exit_layer_ix, hidden=hidden)
        if not self._guides(t, cond, negative_cond, cfg_scale, cfg_interval):
            return self._velocity(x, t, inputs, mask, hidden, known)

        others = self._unconditional(cond, inputs, negative_cond)
        predict = self._in_one_batch if batch_cfg and _stackable(inputs, others) else self._in_turn
        conditional, unconditional = predict(x, t, inputs, others, mask, hidden, known)
        if info is not None:
            info["uncond_output"] = unconditional
        if apg_scale or cfg_norm_threshold or cfg_momentum is not None:
            x0, options = self.objective.denoised(x, conditional, t), {"apg_scale": apg_scale, "norm_threshold": cfg_norm_threshold}
            unconditional = shaped(conditional, unconditional, x0, self._sigma(t), momentum=cfg_momentum, **options)
        phi = scale_phi if scale_phi is not None else self.model.rescale_share if rescale_cfg else 0.0
        return guided(conditional, unconditional, self._sigma(t), scale=cfg_scale, phi=phi, interval=cfg_interval)

    def _unconditional(self, cond: Conditions, inputs: Inputs, negative: Conditions | None) -> Inputs:
        """What guidance moves away from. The audio that inpainting keeps is no matter of taste, so a negative need not name it."""
        if negative is not None:
            negative = {**{name: cond[name] for name in INPAINT_IDS if name in cond}, **negative}
        return self.model.with_null(inputs, self.routes.unconditional(cond, inputs, negative))

    def _guides(self, t: Tensor, cond: Conditions, negative: Conditions | None, scale: float, interval: Interval) -> bool:
        """Whether guidance changes anything for any item."""
        if scale == 1:
            return False
        if negative is None and not self.routes.can_drop(cond):
            if not self.reported:
                logger.warning("cfg_scale %g has no effect: the model has no condition that guidance could leave out", scale)
                self.reported = True
            return False
        return interval == EVERYWHERE or bool(in_interval(self._sigma(t), interval).any())

    def _sigma(self, t: Tensor) -> Tensor:
        return self.objective.alpha_sigma(t)[1]

    def _velocity(
        self, x: Tensor, t: Tensor, inputs: Inputs, mask: Tensor | None, hidden: list[Tensor] | None = None, known: Known | None = None
    ) -> Tensor:
        inputs = _in_precision_of(x, inputs)
        if known is None:
            output = self.model(x, t, **inputs, mask=mask, hidden=hidden)
        else:
            x = known.told(x)
            output = self.model.with_known(known, x, t, inputs, mask, hidden)
        return output if self.prediction == "velocity" else velocity_from_x0(self.objective, x, output, t)

    def _in_turn(
        self,
        x: Tensor,
        t: Tensor,
        inputs: Inputs,
        others: Inputs,
        mask: Tensor | None,
        hidden: list[Tensor] | None,
        known: Known | None,
    ) -> tuple[Tensor, Tensor]:
        return self._velocity(x, t, inputs, mask, hidden, known), self._velocity(x, t, others, mask, None, known)

    def _in_one_batch(
        self,
        x: Tensor,
        t: Tensor,
        inputs: Inputs,
        others: Inputs,
        mask: Tensor | None,
        hidden: list[Tensor] | None,
        known: Known | None,
    ) -> tuple[Tensor, Tensor]:
        both = {name: _stack(inputs[name], others[name]) for name in inputs}
        known = known and known.repeated(2)
        output = self._velocity(torch.cat((x, x)), torch.cat((t, t)), both, _stack(mask, mask), hidden, known)
        if hidden is not None:
            hidden[:] = [features.chunk(2)[0] for features in hidden]
        conditional, unconditional = output.chunk(2)
        return conditional, unconditional


def _in_precision_of(x: Tensor, inputs: Inputs) -> Inputs:
    """Conditions need not come from this model's own conditioner: finished tensors may be of any precision."""
    return {name: value.to(x.dtype) if value is not None and value.is_floating_point() else value for name, value in inputs.items()}


def _stackable(a: Inputs, b: Inputs) -> bool:
    """Whether the two are of one size; a negative prompt may be of another length."""
    return all(getattr(a[name], "shape", None) == getattr(b[name], "shape", None) for name in a)


def _stack(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Two batches as one."""
    return None if a is None or b is None else torch.cat((a, b))
