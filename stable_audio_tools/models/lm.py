"""Audio language model: a transformer that continues the tokens of a discrete pretransform, under conditions. arXiv:2306.05284.

B batch, K codebooks, T frames, S steps of the pattern, V vocabulary. Tokens are (B, K, T) int64. Masks are bool, True = real.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem

from .codebook_patterns import PatternName, PatternOptions, PatternTable, option_problems, pattern_table
from .conditioners import ConditioningConfig, MultiConditioner
from .conditioners.base import Condition
from .conditioners.routing import Conditions, Inputs, Routes, as_condition, drop_inputs
from .conditioning_rules import Ids, RoutingRules, Width
from .lm_backbone import CodebookTransformer, LMBackbone, LMParams
from .lm_prediction import NextStep, TokenNoise
from .pretransforms import Pretransform, PretransformConfig
from .token_sampling import Sampling, draw, probabilities

logger = logging.getLogger(__name__)

Metadata = Sequence[Mapping[str, Any]]
Progress = Callable[[int, int], None]
UNKNOWN = -1  # a token that generation has yet to choose


class LMConfig(StrictModel):
    """The `lm` section: which network, in which order it predicts, and which conditions reach it how."""

    type: Literal["continuous_transformer"]
    config: LMParams
    codebook_pattern: PatternName = Field(default="delay", description="in which order the codebooks of the frames are predicted")
    codebook_pattern_options: PatternOptions = Field(default_factory=PatternOptions, description="settings of the pattern")
    cross_attention_cond_ids: Ids = Field(default=(), description="conditions attended to, token by token")
    prepend_cond_ids: Ids = Field(default=(), description="conditions put in front of the sequence as tokens")
    global_cond_ids: Ids = Field(default=(), description="conditions that act on all steps alike, as one vector")

    @property
    def routes(self) -> Routes:
        return Routes(cross_attention=self.cross_attention_cond_ids, prepend=self.prepend_cond_ids, global_=self.global_cond_ids)


class AudioLMBody(StrictModel):
    """The `model` object of an `lm` config."""

    pretransform: PretransformConfig = Field(description="makes tokens of audio")
    lm: LMConfig
    conditioning: ConditioningConfig | None = Field(default=None, description="absent: the model knows no metadata")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if problems := [*self._token_problems(), *self._rules().problems()]:
            raise ConfigError(problems)
        return self

    @property
    def downsampling_ratio(self) -> int:
        """Audio samples per frame of tokens."""
        return self.pretransform.downsampling_ratio

    def build(self, sample_rate: int) -> AudioLanguageModel:
        routes, conditioning, sizes = self.lm.routes, self.conditioning, self.pretransform
        self._rules().report_idle()
        if self.lm.cross_attention_cond_ids and "causal_cross_attention" not in self.lm.config.model_fields_set:
            logger.warning(
                "step i attends to condition tokens 0 to i alone, as in published models: the first steps hear little of a prompt; "
                'for a new model, set "causal_cross_attention": false in lm.config'
            )
        pretransform = sizes.build(sample_rate)
        shared: Any = {"pretransform": pretransform, "sample_rate": sample_rate}
        global_dim = sum(conditioning.width(name) for name in self.lm.global_cond_ids) if conditioning else 0
        network = CodebookTransformer(
            LMBackbone(self.lm.config, global_cond_dim=global_dim),
            num_quantizers=sizes.num_quantizers,
            codebook_size=sizes.codebook_size,
        )
        return AudioLanguageModel(
            pretransform,
            network,
            MultiConditioner({}) if conditioning is None else conditioning.build(routes.tokens, routes.vectors, **shared),
            pattern=self.lm.codebook_pattern,
            pattern_options=self.lm.codebook_pattern_options,
            routes=routes,
            sample_rate=sample_rate,
        )

    def _token_problems(self) -> Iterator[Problem]:
        if not self.pretransform.is_discrete:
            message = "a language model predicts tokens, and this pretransform is continuous: it has none"
            yield Problem(("pretransform",), message, "use one with a quantizer, such as an autoencoder with the bottleneck dac_rvq")
            return
        if getattr(self.pretransform, "enable_grad", False):
            message = "no gradient reaches the pretransform: the model is trained on tokens"
            yield Problem(("pretransform", "enable_grad"), message, "remove it", True)
        name, options = self.lm.codebook_pattern, self.lm.codebook_pattern_options
        for problem in option_problems(name, options, self.pretransform.num_quantizers):
            yield Problem(("lm", "codebook_pattern_options", *problem.path), problem.message, problem.fix)

    def _rules(self) -> RoutingRules:
        params = self.lm.config
        widths = {
            "cross_attention_cond_ids": Width("cross_attn_cond_dim", params.cross_attn_cond_dim, summed=False),
            "prepend_cond_ids": Width("prepend_cond_dim", params.prepend_cond_dim, summed=False),
            "global_cond_ids": Width("global_cond_dim", params.global_cond_dim, summed=True),
        }
        ids = {key: getattr(self.lm, key) for key in widths}
        return RoutingRules("lm", self.lm.type, ids=ids, widths=widths, conditioning=self.conditioning)


class LMOutput(NamedTuple):
    """Logits (B, K, T, V) of each token given those before it, and the mask (B, K, T) of where there are any; elsewhere they are NaN."""

    logits: Tensor
    mask: Tensor


class CodebookLoss(NamedTuple):
    """loss: the mean over codebooks, with a graph. cross_entropy (K,): of each codebook, in nats, 0 where nothing counts; detached."""

    loss: Tensor
    cross_entropy: Tensor

    @property
    def perplexity(self) -> Tensor:
        """(K,)."""
        return self.cross_entropy.exp()


def codebook_cross_entropy(logits: Tensor, codes: Tensor, mask: Tensor, counted: Tensor | None = None) -> CodebookLoss:
    """Cross-entropy averaged over each codebook's tokens, then over the codebooks that have any, so that all weigh the same.

    Args:
        logits: (B, K, T, V); where the mask is False, they may be anything, NaN too.
        codes: (B, K, T), the tokens; the same holds.
        mask: (B, K, T), which tokens count: those predicted, and not padding.
        counted: (K,) what the sums over each codebook's tokens are divided by; default: how many they are here.
    """
    logits = logits.float().masked_fill(~mask[..., None], 0)  # before the loss, since NaN times zero is NaN
    each = F.cross_entropy(logits.flatten(0, 2), codes.where(mask, 0).flatten(), reduction="none").view_as(codes)
    counted = mask.sum(dim=(0, 2)) if counted is None else counted
    means = each.where(mask, 0).sum(dim=(0, 2)) / counted.where(counted > 0, 1)
    return CodebookLoss(means.sum() / (counted > 0).sum().clamp(min=1), means.detach())


class AudioLanguageModel(nn.Module):
    """A language model of a pretransform's tokens, asked in terms of conditions.

    pretransform: audio to tokens and back, frozen. lm: the network. conditioner: metadata to conditions.
    routes: which condition goes where. min_input_length: audio samples of a frame.
    """

    def __init__(
        self,
        pretransform: Pretransform,
        lm: CodebookTransformer,
        conditioner: MultiConditioner,
        *,
        pattern: PatternName,
        pattern_options: PatternOptions,
        routes: Routes,
        sample_rate: int,
    ):
        super().__init__()
        self.pretransform = pretransform
        self.lm = lm
        self.conditioner = conditioner
        self.pattern_name, self.pattern_options, self.routes = pattern, pattern_options, routes
        self.sample_rate, self.min_input_length = sample_rate, pretransform.downsampling_ratio

    @property
    def num_quantizers(self) -> int:
        return self.lm.num_quantizers

    @property
    def codebook_size(self) -> int:
        return self.lm.codebook_size

    def pattern(self, frames: int) -> PatternTable:
        """In which steps the tokens of so many frames are predicted."""
        return pattern_table(self.pattern_name, self.pattern_options, self.num_quantizers, frames)

    def get_conditioning_inputs(self, conditions: Conditions | None, negative: bool = False) -> Inputs:
        """The network's conditions; with `negative`, each name begins with "negative_".

        Raises:
            ValueError: a condition is missing, or its shape does not fit its route.
        """
        inputs = self._inputs(conditions or {})
        return {f"negative_{name}": value for name, value in inputs.items()} if negative else inputs

    def compute_logits(self, codes: Tensor, condition_tensors: Conditions | None = None, cfg_dropout_prob: float = 0.0) -> LMOutput:
        """Logits of all tokens (B, K, T) at once, each given those that its pattern puts before it.

        Args:
            condition_tensors: conditions by id, as `conditioner` makes them.
            cfg_dropout_prob: in training, the probability that an item loses its conditions.

        Raises:
            ValueError: the tokens are not this model's, or a condition is missing.
        """
        self._check_tokens(codes)
        conditions = condition_tensors or {}
        inputs = self._inputs(conditions)
        if cfg_dropout_prob > 0 and conditions:
            inputs = drop_inputs(inputs, self._inputs(nothing_said(conditions)), cfg_dropout_prob)
        pattern = self.pattern(codes.shape[2])
        sequence, _ = pattern.build(codes, self.lm.masked_token_id, trained=True)
        logits, mask = pattern.revert_logits(self.lm(sequence, inputs))
        return LMOutput(logits, mask.expand(len(codes), -1, -1))

    @torch.no_grad()
    def generate(
        self,
        max_gen_len: int = 256,
        batch_size: int | None = None,
        init_data: Tensor | None = None,
        conditioning: Metadata | None = None,
        conditioning_tensors: Conditions | None = None,
        callback: Progress | None = None,
        use_cache: bool = True,
        cfg_scale: float = 1.0,
        *,
        temp: float = 1.0,
        top_k: int = 250,
        top_p: float = 0.0,
        negative_conditioning: Metadata | None = None,
        negative_conditioning_tensors: Conditions | None = None,
        cross_attn_use_cfg: bool = True,
        prepend_use_cfg: bool = True,
        global_use_cfg: bool = True,
        batch_cfg: bool = True,
        seed: int | Sequence[int] | None = None,
    ) -> Tensor:
        """Generate tokens (B, K, max_gen_len).

        Args:
            max_gen_len: frames, those of `init_data` included.
            batch_size: number of items; default as many as `init_data` or conditions have, else 1.
            init_data: (B or 1, K, fewer frames) tokens to continue.
            conditioning: metadata of each item, or one for all.
            conditioning_tensors: instead of it, what `conditioner` made of it.
            callback: called with the steps done and their number.
            use_cache: keep keys and values of earlier steps: the same tokens, with one new step of work instead of all.
            cfg_scale: strength of guidance; 1: none.
            temp, top_k, top_p: see `token_sampling.Sampling`.
            negative_conditioning, negative_conditioning_tensors: what to guide away from; default: nothing said, which is the
                condition's learned null or zeros.
            cross_attn_use_cfg, prepend_use_cfg, global_use_cfg: whether guidance drops what takes this route.
            batch_cfg: run both predictions of guidance in one batch of 2 B, else one after the other.
            seed: of the draws; a sequence has one for each item. Item i of seed s is then the same in every batch and on every
                device, up to rounding. Default: the global generator.

        Raises:
            ValueError: the arguments do not fit each other or the model.
            ConfigError: metadata that do not suffice.
        """
        sampling = Sampling(temp, top_k, top_p)
        sampling.check()
        conditions = self._conditions(conditioning, conditioning_tensors, "conditioning")
        negative = self._conditions(negative_conditioning, negative_conditioning_tensors, "negative_conditioning")
        batch = _batch_size(batch_size, init_data, conditions, negative)
        inputs, away = self._inputs(conditions, batch), None
        if cfg_scale != 1 and conditions:
            away = self._inputs(negative or nothing_said(conditions), batch)
            fixed = {"cross_attn": not cross_attn_use_cfg, "prepend": not prepend_use_cfg, "global": not global_use_cfg}
            away |= {name: value for name, value in inputs.items() if any(fixed[route] for route in fixed if name.startswith(route))}
        elif cfg_scale != 1:
            logger.warning("cfg_scale %g has no effect: the model has no condition that guidance could leave out", cfg_scale)
        elif negative:
            raise ValueError("negative conditions have no effect with cfg_scale 1; raise it, or leave them out")

        codes, start = self._begun(init_data, batch, max_gen_len)
        pattern = self.pattern(max_gen_len)
        sequence, _ = pattern.build(codes, self.lm.masked_token_id)
        first, last = pattern.first_step(start), sequence.shape[-1]
        predict = NextStep(self.lm, inputs, away, scale=cfg_scale, capacity=last if use_cache else 0, batch_cfg=batch_cfg)
        noise = TokenNoise(seed, batch)
        for step in range(first, last):
            probs = probabilities(predict(sequence[..., :step]), sampling)
            here = sequence[..., step]
            sequence[..., step] = torch.where(here == UNKNOWN, draw(probs, noise(probs)), here)
            if callback is not None:
                callback(step - first + 1, last - first)
        return pattern.revert(sequence, UNKNOWN)[0]

    def generate_audio(self, *args: Any, **options: Any) -> Tensor:
        """Audio (B, C, samples) of the tokens that `generate` makes; the arguments are the same."""
        return self.decode_tokens(self.generate(*args, **options))

    @torch.no_grad()
    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, K, T) to audio (B, C, samples)."""
        return self.pretransform.decode_tokens(tokens)

    def _inputs(self, conditions: Conditions, batch: int | None = None) -> Inputs:
        """What the network takes, in its precision; for `batch` items where one condition is for all."""
        dtype = next(self.lm.parameters()).dtype
        inputs = self.routes.inputs(conditions)
        for name, value in inputs.items():
            if value is not None:
                value = value.to(dtype) if value.is_floating_point() else value
                inputs[name] = value if batch is None else value.expand(batch, *value.shape[1:])
        return inputs

    def _conditions(self, metadata: Metadata | None, tensors: Conditions | None, name: str) -> Conditions:
        if metadata is not None and tensors is not None:
            raise ValueError(f"give either {name} or {name}_tensors, not both")
        if metadata is not None:
            return self.conditioner(metadata, next(self.lm.parameters()).device)
        return tensors or {}

    def _begun(self, given: Tensor | None, batch: int, frames: int) -> tuple[Tensor, int]:
        """Tokens (B, K, frames) that begin with those given and are unknown from there on, and the frame where that is."""
        start = 0 if given is None else given.shape[-1]
        if not 0 <= start < frames:
            raise ValueError(f"max_gen_len must be more than the {start} frames that are there already, got {frames}")
        codes = torch.full((batch, self.num_quantizers, frames), UNKNOWN, device=next(self.lm.parameters()).device)
        if given is not None:
            self._check_tokens(given)
            if given.numel() and (given.min() < 0 or given.max() >= self.codebook_size):
                found = f"{int(given.min())} to {int(given.max())}"
                raise ValueError(f"init_data has tokens from {found}, expected 0 to {self.codebook_size - 1}")
            codes[..., :start] = given.to(codes.device)
        return codes, start

    def _check_tokens(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1] != self.num_quantizers or codes.dtype != torch.int64:
            wanted = f"(batch, {self.num_quantizers} codebooks, frames) of int64"
            raise ValueError(f"tokens have shape {tuple(codes.shape)} of {codes.dtype}, expected {wanted}")


def nothing_said(conditions: Conditions) -> dict[str, Condition]:
    """The same conditions with their learned nulls where they have one, else zeros, as a language model is guided and trained."""

    def null(condition: Condition) -> Condition:
        pooled = condition.pooled
        if pooled is not None:
            pooled = torch.zeros_like(pooled) if condition.null is None else condition.null.expand_as(pooled)
        return condition._replace(tensor=torch.zeros_like(condition.tensor), pooled=pooled)

    return {name: null(as_condition(value)) for name, value in conditions.items()}


def _batch_size(asked: int | None, init_data: Tensor | None, *conditions: Conditions) -> int:
    """The number of items; whatever has one item is for all.

    Raises:
        ValueError: the numbers differ.
    """
    counts = {f"condition {name}": len(as_condition(value).tensor) for each in conditions for name, value in each.items()}
    if init_data is not None:
        counts["init_data"] = len(init_data)
    batch = max(counts.values(), default=1) if asked is None else asked
    if batch < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch}")
    if wrong := [f"{name} has {count}" for name, count in counts.items() if count not in (1, batch)]:
        raise ValueError(f"{', '.join(wrong)} items for a batch of {batch}; give one for each item, or one for all")
    return batch
