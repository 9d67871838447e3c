"""ARC: adversarial relativistic-contrastive post-training, which makes a flow model generate in a few steps (arXiv:2505.08175).

The generator turns noisy latents into clean ones in one step. The discriminator compares a real item and a generated one, made
noisy in the same way (relativistic, arXiv:1807.00734), and real items under their own and under another item's conditions
(contrastive). Even train steps are the generator's and odd ones the discriminator's, as in upstream.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.diffusion.objectives import RectifiedFlow, parse_objective
from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.diffusion.timesteps import parse_timestep_sampler
from stable_audio_tools.models.conditioners import INPAINT_IDS, Condition
from stable_audio_tools.models.conditioners.base import unwrap
from stable_audio_tools.models.conditioners.routing import as_condition
from stable_audio_tools.models.config import BaseDiffusionCondModel, DiffusionCondInpaintModel, DiffusionCondModel
from stable_audio_tools.models.denoisers.dit import DiTConfig
from stable_audio_tools.models.discriminators.arc import ARC_HEADS, ArcDiscriminator, BaseHeadConfig
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion
from stable_audio_tools.training.losses.terms import masked_mean
from stable_audio_tools.training.strategies.adversarial import frozen
from stable_audio_tools.training.strategies.base import LatentBatch, LossOutput, TrainingStrategy, Update
from stable_audio_tools.training.strategies.ode_warmup import OdeWarmup, OdeWarmupConfig

log = logging.getLogger(__name__)

PENALTY_NOISE = 0.05  # upstream's; standard deviation, where latents have about 1
MIN_TRIMMED_FRAMES = 128  # upstream's
LOGSNR_RANGE = {"min_logsnr": -6.0, "max_logsnr": 2.0}  # of logsnr_uniform; the range of the sampling steps
CONSTANT_LEVELS = {"one_shot": 1.0, "denoised": 0.0}

NoiseName = Literal["uniform", "logit_normal", "trunc_logit_normal", "one_shot", "denoised", "logsnr_uniform"]
ArcModel = Annotated[DiffusionCondModel | DiffusionCondInpaintModel, Field(discriminator="model_type")]
Path = tuple[str | int, ...]


class NoiseDistributions(StrictModel):
    """How noisy what each player sees is; one_shot is pure noise, denoised none, logsnr_uniform even in logSNR from -6 to 2."""

    generator: NoiseName = Field("uniform", description="levels that the generator starts from")
    discriminator: NoiseName = Field("uniform", description="levels at which real and generated items are compared")


class TrimConfig(StrictModel):
    """Shorten some batches, so that the discriminator also judges short clips."""

    trim_prob: float = Field(0.0, ge=0, le=1, description="share of batches, once the warm-up is over")
    type: Literal["random_item"] = Field("random_item", description="to the real frames of one item, at least 128")


class ArcConfig(StrictModel):
    """The `training.arc` section."""

    discriminator: Annotated[BaseHeadConfig, ARC_HEADS]
    teacher_model: ArcModel | None = Field(None, description="model config of the teacher of the warm-up")
    use_model_as_teacher: bool = Field(False, description="the teacher is a model of this config")
    teacher_model_ckpt: str | None = Field(None, description="its weights, a file of any kind; needed where there is a teacher")
    discriminator_base_model: ArcModel | None = Field(None, description="model config of the discriminator's backbone, a dit")
    use_model_as_discriminator: bool = Field(False, description="the backbone is a copy of the model in training")
    discriminator_base_ckpt: str | None = Field(
        None, description="its weights, a file of any kind; default: those that the model in training starts from, or fresh ones"
    )
    ode_warmup: OdeWarmupConfig | None = Field(None, description="learn a teacher's trajectories first; absent: no warm-up")
    noise_dist: NoiseDistributions = NoiseDistributions()
    sampling: Any = Field(None, description="accepted, no effect: generation has its own settings")

    @model_validator(mode="after")
    def _models_are_named(self) -> ArcConfig:
        if problems := [*self._teacher_problems(), *self._discriminator_problems()]:
            raise ConfigError(problems)
        return self

    @property
    def warms_up(self) -> bool:
        return self.ode_warmup is not None and self.ode_warmup.warmup_steps > 0

    def teacher_of(self, run: BaseDiffusionCondModel) -> BaseDiffusionCondModel | None:
        """The config of the teacher in a training of `run`."""
        return run if self.use_model_as_teacher else self.teacher_model

    def misfits(self, run: BaseDiffusionCondModel, *, inpaints: bool, trims: bool) -> Iterator[Problem]:
        """What of this section does not go with the model in training, with paths from the document's root.

        Args:
            inpaints: whether masks are made (`training.inpainting`).
            trims: whether batches are shortened (`training.trim_config`).
        """
        arc = ("training", "arc")
        models: list[tuple[Path, str, BaseDiffusionCondModel]] = [((), "model in training", run)]
        if self.teacher_model is not None:
            models.append(((*arc, "teacher_model"), "teacher", self.teacher_model))
        if self.discriminator_base_model is not None:
            models.append(((*arc, "discriminator_base_model"), "discriminator", self.discriminator_base_model))
        for path, name, model in models:
            yield from _flow_problems(path, model)
            yield from _trim_problems(path, model) if trims else ()
            if path:
                yield from _same_latents(path, name, model, run)
                yield from _mask_problems(path, name, model) if not inpaints else ()
        backbone_path = (*arc, "discriminator_base_model") if self.discriminator_base_model else ()
        yield from self._backbone_problems(backbone_path, self.discriminator_base_model or run, run)

    def _teacher_problems(self) -> Iterator[Problem]:
        named = self.use_model_as_teacher or self.teacher_model is not None
        if self.use_model_as_teacher and self.teacher_model is not None:
            yield Problem(("use_model_as_teacher",), "teacher_model names another teacher", "keep one of the two", on_key=True)
        if named and self.teacher_model_ckpt is None:
            message = "teacher_model_ckpt must be specified if teacher_model is specified"
            yield Problem(("teacher_model_ckpt",), message, "name the file of the teacher's weights")
        if not named and self.teacher_model_ckpt is not None:
            yield Problem(("teacher_model_ckpt",), "no effect without a teacher", "set use_model_as_teacher to true, or give teacher_model")
        if not named and self.warms_up:
            fix = "set use_model_as_teacher to true, or give teacher_model; and teacher_model_ckpt"
            yield Problem(("ode_warmup",), "the warm-up needs a teacher", fix, on_key=True)

    def _discriminator_problems(self) -> Iterator[Problem]:
        if self.use_model_as_discriminator and self.discriminator_base_model is not None:
            message = "discriminator_base_model names another backbone"
            yield Problem(("use_model_as_discriminator",), message, "keep one of the two", on_key=True)
        if not self.use_model_as_discriminator and self.discriminator_base_model is None:
            message = "the discriminator needs a backbone"
            yield Problem(("use_model_as_discriminator",), message, "set it to true, or give discriminator_base_model")

    def _backbone_problems(self, path: Path, model: BaseDiffusionCondModel, run: BaseDiffusionCondModel) -> Iterator[Problem]:
        head, head_path = self.discriminator, ("training", "arc", "discriminator")
        network = model.model.diffusion
        if not isinstance(network, DiTConfig):
            fix = "give a discriminator_base_model with one"
            yield Problem((*path, "model", "diffusion", "type"), f"the discriminator judges features of a dit, not of {network.type}", fix)
            return
        depth, width = network.config.depth, network.config.embed_dim
        if head.dit_hidden_layer >= depth:
            message = f"the backbone has {depth} layers"
            yield Problem((*head_path, "dit_hidden_layer"), message, f"use one of 0 to {depth - 1}", head.dit_hidden_layer)
        if problem := head.width_problem(width):
            yield Problem((*path, "model", "diffusion", "config", "embed_dim"), problem, "change it, or use the convnext head", width)
        tokens = _tokens(network, run.sample_size // run.model.downsampling_ratio)
        if tokens < head.min_tokens:
            message = f"the {head.type} head takes at least {head.min_tokens} tokens, and {run.sample_size} samples make {tokens}"
            frames = network.config.patch_size * (head.min_tokens - _tokens(network, 0))
            fix = f"raise sample_size to {frames * run.model.downsampling_ratio}, or use a head that shortens less"
            yield Problem(("sample_size",), message, fix, run.sample_size)
        yield from self._contrast_problems(head_path, model)

    def _contrast_problems(self, path: Path, model: BaseDiffusionCondModel) -> Iterator[Problem]:
        if not self.discriminator.contrastive:
            return
        used = _used_ids(model)
        if not used:
            message = "the discriminator has no conditions to exchange"
            yield Problem((*path, "contrastive"), message, "set it to false, or condition the model", on_key=True)
        for index, name in enumerate(self.discriminator.contrastive_ids or ()):
            if used and name not in used:
                message = f"{value_text(name)} is no condition of the discriminator"
                yield Problem((*path, "contrastive_ids", index), message, did_you_mean(name, used), name)


def _flow_problems(path: Path, model: BaseDiffusionCondModel) -> Iterator[Problem]:
    name = model.model.diffusion.diffusion_objective
    if not isinstance(parse_objective(name), RectifiedFlow):
        fix = 'use "rf_denoiser" or "rectified_flow"; a v model is trained as one of them first'
        yield Problem((*path, "model", "diffusion", "diffusion_objective"), f"arc trains flows, and this is {name}", fix, name)


def _same_latents(path: Path, name: str, model: BaseDiffusionCondModel, run: BaseDiffusionCondModel) -> Iterator[Problem]:
    pairs = {
        ("sample_rate",): (model.sample_rate, run.sample_rate),
        ("model", "io_channels"): (model.model.io_channels, run.model.io_channels),
        ("model", "pretransform"): (model.model.downsampling_ratio, run.model.downsampling_ratio),
    }
    for key, (theirs, ours) in pairs.items():
        if theirs != ours:
            what = "downsampling ratio" if key[-1] == "pretransform" else key[-1]
            message = f"{what} is {theirs}, but that of the model in training is {ours}"
            yield Problem((*path, *key), message, f"the {name} must work on the same latents")
    multiple = model.model.downsampling_ratio * model.model.diffusion.frame_multiple[1]
    if run.sample_size % multiple:
        message = f"the {name} takes multiples of {multiple} samples, which sample_size {run.sample_size} is not"
        yield Problem(("sample_size",), message, f"use a multiple of {multiple}", run.sample_size)


def _mask_problems(path: Path, name: str, model: BaseDiffusionCondModel) -> Iterator[Problem]:
    if any(condition in INPAINT_IDS for condition in model.model.diffusion.input_concat_ids):
        message = f"the {name} takes masked input, which only training with inpainting makes"
        yield Problem((*path, "model", "diffusion", "input_concat_ids"), message, 'add "inpainting": {} to training')


def _trim_problems(path: Path, model: BaseDiffusionCondModel) -> Iterator[Problem]:
    conditioning = model.model.conditioning
    for index, name in enumerate(model.model.diffusion.input_concat_ids):
        if conditioning and name in conditioning.ids and conditioning.form(name) in ("signal", None):
            message = f"{value_text(name)} is a signal over time, which is not trimmed"
            yield Problem((*path, "model", "diffusion", "input_concat_ids", index), message, "remove training.trim_config", name)


def _tokens(network: DiTConfig, frames: int) -> int:
    """The least number of tokens of that many frames, those in front included."""
    params = network.config
    front = params.global_cond_type == "prepend" and (params.timestep_cond_type == "global" or params.global_cond_dim > 0)
    return frames // params.patch_size + front + len(network.prepend_cond_ids)


def _used_ids(model: BaseDiffusionCondModel) -> tuple[str, ...]:
    conditioning, routes = model.model.conditioning, model.model.diffusion.routes
    return tuple(name for name in conditioning.ids if name in routes.tokens | routes.vectors) if conditioning else ()


class NoiseLevels(nn.Module):
    """Draws noise levels (B,) of one distribution; a module so that a sampler's position is part of the checkpoint."""

    def __init__(self, name: NoiseName):
        super().__init__()
        self.name = name
        self.start(seed=0, rank=0)

    def start(self, *, seed: int, rank: int) -> None:
        options = LOGSNR_RANGE if self.name == "logsnr_uniform" else {}
        constant = self.name in CONSTANT_LEVELS
        self.sampler = None if constant else parse_timestep_sampler(self.name, options, seed=seed, rank=rank)

    def draw(self, latents: Tensor) -> Tensor:
        """(B,) float32 on the device of `latents` (B, C, T)."""
        items, frames = len(latents), latents.shape[-1]
        if self.sampler is None:
            return torch.full((items,), CONSTANT_LEVELS[self.name], device=latents.device)
        return self.sampler.sample(items, length=frames).to(latents.device, torch.float32)

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.sampler is None else {"sampler": self.sampler.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if self.sampler is not None:
            self.sampler.load_state_dict(state["sampler"])


class AdversarialPostTraining(TrainingStrategy):
    """The two players' losses, after the warm-up where there is one.

    Args:
        config: the `training.arc` section.
        discriminator: its backbone works on the latents of the model in training.
        warmup: with its teacher; None: there is none.
        trim: the `training.trim_config` section; None: nothing is shortened.
        frame_multiple: the model in training takes multiples of that many frames.
        cfg_dropout_prob: share of items that the generator sees without conditions on its turn.
    """

    def __init__(
        self,
        config: ArcConfig,
        discriminator: ArcDiscriminator,
        *,
        warmup: OdeWarmup | None = None,
        trim: TrimConfig | None = None,
        frame_multiple: int = 1,
        cfg_dropout_prob: float = 0.0,
    ):
        super().__init__()
        self.config, self.trim, self.cfg_dropout_prob = config, trim, cfg_dropout_prob
        self.frame_multiple = math.lcm(frame_multiple, discriminator.patch_size)
        self.discriminator, self.warmup = discriminator, warmup
        self.generator_levels = NoiseLevels(config.noise_dist.generator)
        self.discriminator_levels = NoiseLevels(config.noise_dist.discriminator)
        self.seed = self.rank = 0
        self._said_no_contrast = False

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        parts = {"diffusion": model, "discriminator": self.discriminator}
        return {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}

    def start(self, *, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank
        self.generator_levels.start(seed=derive_seed(seed, 0), rank=rank)
        self.discriminator_levels.start(seed=derive_seed(seed, 1), rank=rank)
        if self.warmup is not None:
            self.warmup.rank = rank

    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seed = state["seed"]

    def warming_up(self, step: int) -> bool:
        return self.warmup is not None and step < self.warmup.config.warmup_steps

    def moves_model(self, step: int) -> bool:
        """Whether the train step after `step` others is one of the model in training."""
        return self.warming_up(step) or step % 2 == 0

    def updates(self, model: ConditionedDiffusion, batch: LatentBatch, step: int) -> Iterator[Update]:
        if self.warmup is not None and self.warming_up(step):
            yield Update("diffusion", self.warmup.loss(model, batch))
        elif self.moves_model(step):
            with frozen(self.discriminator):  # also while the host runs the backward pass, which may compute parts again
                yield Update("diffusion", self._generator_loss(model, batch))
        else:
            yield Update("discriminator", self._discriminator_loss(model, batch))

    def trimmed(self, batch: LatentBatch, step: int) -> LatentBatch:
        """The batch of a train step, shortened where it is this step's turn; conditions stay as they are."""
        if self.trim is None or self.warming_up(step) or self._share(step, 0) >= self.trim.trim_prob:
            return batch
        item = int(self._share(step, 1) * len(batch.metadata))
        total = batch.latents.shape[-1]
        real = int(batch.mask[item].sum()) if "padding_mask" in batch.metadata[item] else total
        least = max(real, MIN_TRIMMED_FRAMES, self._least_frames())
        frames = min(-(-least // self.frame_multiple) * self.frame_multiple, total)
        return replace(batch, latents=batch.latents[..., :frames], mask=batch.mask[:, :frames])

    def _share(self, step: int, index: int) -> float:
        """A random number in [0, 1) of this step and rank; no tensor, so that nothing waits for a device."""
        return derive_seed(self.seed, self.rank, step, index) / 2**63

    def _least_frames(self) -> int:
        """So many that the discriminator's head can judge them."""
        return self.config.discriminator.min_tokens * self.discriminator.patch_size

    def _generate(self, model: ConditionedDiffusion, batch: LatentBatch, *, cfg_dropout_prob: float = 0.0) -> Tensor:
        """(B, C, T): what the generator makes of the batch's latents, made noisy, in one step."""
        t = self.generator_levels.draw(batch.latents)
        x_t = model.objective.add_noise(batch.latents, torch.randn_like(batch.latents), t)
        output = model(x_t, t, cond=batch.conditions, cfg_dropout_prob=cfg_dropout_prob)
        return model.objective.denoised(x_t, output, t)

    def _generator_loss(self, model: ConditionedDiffusion, batch: LatentBatch) -> LossOutput:
        fake = self._generate(model, batch, cfg_dropout_prob=self.cfg_dropout_prob)
        t, noise = self.discriminator_levels.draw(fake), torch.randn_like(fake)
        add_noise = self.discriminator.backbone.objective.add_noise
        with torch.no_grad():
            conditions = self._conditions(batch)
            real_scores = self._scores(add_noise(batch.latents, noise, t), t, conditions)
        fake_scores = self._scores(add_noise(fake, noise, t), t, conditions)
        loss = self.config.discriminator.weights.generator * relativistic_loss(fake_scores, real_scores)
        return LossOutput(loss, {"loss": loss.detach(), "std_data": batch.latents.detach().std(), **_score_logs(real_scores, fake_scores)})

    def _discriminator_loss(self, model: ConditionedDiffusion, batch: LatentBatch) -> LossOutput:
        with torch.no_grad():
            fake = self._generate(model, batch)
        t, noise = self.discriminator_levels.draw(fake), torch.randn_like(fake)
        add_noise = self.discriminator.backbone.objective.add_noise
        real, fake = add_noise(batch.latents.detach(), noise, t), add_noise(fake, noise, t)
        conditions = self._conditions(batch)
        real_scores, fake_scores = self._scores(real, t, conditions), self._scores(fake, t, conditions)

        head = self.config.discriminator
        terms = {"relativistic": head.weights.discriminator * relativistic_loss(real_scores, fake_scores)}
        if head.contrastive and len(batch.latents) > 1:
            contrast = self._contrast(real, t, conditions, real_scores, batch.metadata)
            terms["contrastive"] = head.weights.discriminator * head.weights.contrastive * contrast
        elif head.contrastive and not self._said_no_contrast:
            log.warning("the contrastive loss is left out of batches of one item, which has no other to exchange conditions with")
            self._said_no_contrast = True
        if head.include_grad_penalties:
            pairs = {"penalty_real": (real, real_scores), "penalty_fake": (fake, fake_scores)}
            terms |= {name: 0.5 * self._roughness(x, t, conditions, scores) for name, (x, scores) in pairs.items()}
        loss = torch.stack(list(terms.values())).sum()
        logs = {"loss_discriminator": loss.detach(), **{f"loss_{name}": term.detach() for name, term in terms.items()}}
        return LossOutput(loss, logs | _score_logs(real_scores, fake_scores))

    def _conditions(self, batch: LatentBatch) -> dict[str, Any]:
        return self.discriminator.conditions(batch.metadata, batch.conditions or {}, batch.latents.device)

    def _scores(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        return self.discriminator(x, t, conditions).float()

    def _contrast(
        self, real: Tensor, t: Tensor, conditions: Mapping[str, Any], real_scores: Tensor, metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        """The relativistic loss between real items and the same under another item's conditions; 0 where all have the same ones."""
        names = self._exchanged(conditions)
        order, differs = exchange([self._identity(item, names) for item in metadata])
        index = torch.tensor(order, device=real.device)
        others = {name: _of_items(value, index) if name in names else value for name, value in conditions.items()}
        mask = torch.tensor(differs, device=real.device)[:, None, None]
        return masked_mean(F.softplus(self._scores(real, t, others) - real_scores), mask)

    def _exchanged(self, conditions: Mapping[str, Any]) -> tuple[str, ...]:
        """The conditions that contrast exchanges: all but those of inpainting, unless there is a prompt or the config names others."""
        named = self.config.discriminator.contrastive_ids
        if named is None:
            named = ("prompt",) if "prompt" in conditions else tuple(name for name in conditions if name not in INPAINT_IDS)
        return named

    def _identity(self, item: Mapping[str, Any], names: Sequence[str]) -> Hashable:
        """Equal for items whose conditions of these names are made of equal texts or numbers; other values are all different."""
        keys = self.discriminator.backbone.conditioner.default_keys
        values = [unwrap(item[name] if item.get(name) is not None else item.get(keys.get(name, name))) for name in names]
        return tuple(value if isinstance(value, str | int | float) else id(value) for value in values)

    def _roughness(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any], scores: Tensor) -> Tensor:
        """How much a little noise moves the scores: an approximate R1 or R2 penalty. Lin et al. 2025, arXiv:2501.08316."""
        moved = self._scores(x + PENALTY_NOISE * torch.randn_like(x), t, conditions)
        return (moved - scores).square().sum(dim=(1, 2)).mean()


def relativistic_loss(winner: Tensor, loser: Tensor) -> Tensor:
    """Mean softplus(loser - winner) over scores of one shape: small where `winner` scores higher, item by item. arXiv:1807.00734."""
    return F.softplus(loser - winner).mean()


def exchange(values: Sequence[Hashable]) -> tuple[list[int], list[bool]]:
    """Give each item another item's value, such that no item gets a value equal to its own, wherever that is possible.

    Returns:
        for each item the index of the one whose value it gets, a permutation; and whether that value differs from its own, which
        it does for all of them unless more than half have the same.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        groups[value].append(index)
    # Equal values stand in a row; a shift by the longest row takes every item out of its own.
    in_rows = [index for group in groups.values() for index in group]
    shift = max(map(len, groups.values()), default=0)
    order = [0] * len(values)
    for place, index in enumerate(in_rows):
        order[index] = in_rows[(place + shift) % len(in_rows)]
    return order, [values[index] != values[other] for index, other in enumerate(order)]


def _of_items(value: Any, index: Tensor) -> Condition:
    """The condition of other items (B,) of the batch."""
    tensor, mask, pooled, null = as_condition(value)
    return Condition(tensor[index], None if mask is None else mask[index], None if pooled is None else pooled[index], null)


def _score_logs(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    found = {"scores_real": real.detach(), "scores_fake": fake.detach()}
    means = {name: scores.mean() for name, scores in found.items()}
    return means | {f"{name}_std": scores.std(correction=0) for name, scores in found.items()}  # there may be a single score
