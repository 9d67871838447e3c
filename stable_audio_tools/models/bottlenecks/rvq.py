"""`rvq` and `rvq_vae`: residual vector quantisation with codebooks that follow the encoder (arXiv:2107.03312)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn.quantize import Codebook, ResidualVQ, VectorQuantizer

from .base import BaseBottleneckConfig, Bottleneck, Info, check_tokens
from .continuous import draw_latents

# Keys of published code that this code reads at one value only, and what to do instead.
UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "heads": (1, "use more quantizers"),
    "separate_codebook_per_head": (False, "use more quantizers"),
    "layernorm_after_project_in": (False, "remove it: it had no effect behind a residual quantizer"),
    "channel_last": (True, "remove it"),
    "accept_image_fmap": (False, "remove it: audio is no image"),
    "straight_through": (False, "use stochastic_sample_codes alone"),
    "reinmax": (False, "use stochastic_sample_codes alone"),
    "freeze_codebook": (False, "set the bottleneck's requires_grad to false"),
    "sync_kmeans": (True, "set sync_codebook to false"),
    "distributed_replace_codes": (True, "set sync_codebook to false"),
    "codebook_diversity_loss_weight": (0.0, "use threshold_ema_dead_code"),
    "codebook_diversity_temperature": (100.0, "use threshold_ema_dead_code"),
    "affine_param": (False, "use codebook_dim"),
    "affine_param_batch_decay": (0.99, "use codebook_dim"),
    "affine_param_codebook_decay": (0.9, "use codebook_dim"),
    "sync_affine_param": (False, "use codebook_dim"),
    "sync_update_v": (0.0, "remove it"),
    "in_place_codebook_optimizer": (None, "remove it: the run's optimizer moves a learnable codebook"),
}


class RVQParams(StrictModel):
    dim: PositiveInt = Field(default=128, description="latent channels")
    codebook_size: PositiveInt = Field(default=1024, description="entries of a codebook")
    num_quantizers: PositiveInt = Field(default=8, description="codebooks, each for what those before it left")
    codebook_dim: PositiveInt | None = Field(default=None, description="width of the entries, by linear maps to and from it; default dim")
    decay: float = Field(default=0.99, ge=0, le=1, description="of the moving averages that entries are")
    eps: float = Field(default=1e-5, gt=0, description="added to the entries' counts")
    kmeans_init: bool = Field(default=True, description="cluster the first training batch; else entries start at random")
    kmeans_iters: PositiveInt = Field(default=50, description="rounds of kmeans_init")
    threshold_ema_dead_code: float = Field(
        default=2, ge=0, description="entries chosen less often, on average over steps, move to a vector of the batch; 0: never"
    )
    use_cosine_sim: bool = Field(default=False, description="compare directions instead of distances; entries have length one")
    shared_codebook: bool = Field(default=False, description="all quantizers use one codebook")
    commitment_weight: float = Field(default=1.0, ge=0, description="of the distance of latents to their entries, in quantizer_loss")
    commitment_use_cross_entropy_loss: bool = Field(default=False, description="the cross entropy of the choice in place of that distance")
    quantize_dropout: bool = Field(default=False, description="train with a random number of quantizers")
    quantize_dropout_cutoff_index: NonNegativeInt = Field(default=0, description="quantizers that are always used, less one")
    quantize_dropout_multiple_of: PositiveInt = Field(default=1, description="round the number of quantizers up to a multiple")
    stochastic_sample_codes: bool = Field(default=False, description="training draws the entry, nearer ones more often")
    sample_codebook_temp: float = Field(default=1.0, ge=0, description="of that draw; 0: always the nearest")
    ema_update: bool = Field(default=True, description="entries follow the latents that chose them")
    learnable_codebook: bool = Field(default=False, description="entries follow the commitment loss; needs ema_update false")
    orthogonal_reg_weight: float = Field(default=0.0, ge=0, description="of the mean squared cosine between entries, in quantizer_loss")
    orthogonal_reg_active_codes_only: bool = Field(default=False, description="between those entries only that the batch chose")
    orthogonal_reg_max_codes: PositiveInt | None = Field(default=None, description="between so many entries at most; default all")
    sync_codebook: bool | None = Field(default=None, description="false: every process follows its own latents; default: all of them")

    @model_validator(mode="before")
    @classmethod
    def _name_what_is_unsupported(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        found = {key: value[key] for key in UNSUPPORTED if key in value}
        if problems := [_unsupported(key, got) for key, got in found.items() if got != UNSUPPORTED[key][0]]:
            raise ConfigError(problems)
        return {key: item for key, item in value.items() if key not in found}

    @model_validator(mode="after")
    def _one_way_to_move_entries(self) -> Self:
        if self.learnable_codebook and self.ema_update:
            message = "learnable_codebook entries follow the gradient, but ema_update makes them follow the latents"
            raise ConfigError([Problem(("ema_update",), message, "set ema_update to false")])
        return self

    @model_validator(mode="after")
    def _dropout_leaves_something(self) -> Self:
        if self.quantize_dropout_cutoff_index >= self.num_quantizers:
            message = f"quantize_dropout_cutoff_index {self.quantize_dropout_cutoff_index} with {self.num_quantizers} quantizers"
            fix = f"choose 0..{self.num_quantizers - 1}"
            raise ConfigError([Problem(("quantize_dropout_cutoff_index",), message, fix, self.quantize_dropout_cutoff_index)])
        return self


def _unsupported(key: str, value: Any) -> Problem:
    return Problem((key,), f"{key} is not supported but as {UNSUPPORTED[key][0]!r}", UNSUPPORTED[key][1], value, on_key=True)


class BaseRVQConfig(BaseBottleneckConfig):
    config: RVQParams
    latent_key = "dim"

    @property
    def num_quantizers(self) -> int:
        return self.config.num_quantizers

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def latent_channels(self) -> int:
        return self.config.dim


class RVQConfig(BaseRVQConfig):
    """Every latent frame is the sum of one entry of each codebook."""

    loss_terms = ("quantizer",)

    type: Literal["rvq"]

    def make(self) -> RVQBottleneck:
        return RVQBottleneck(self.config, frozen=not self.requires_grad)


class RVQVAEConfig(BaseRVQConfig):
    """`rvq` behind the latents that `vae` draws."""

    loss_terms = ("kl", "quantizer")

    type: Literal["rvq_vae"]

    def encoder_channels(self, latent_dim: int) -> int:
        return 2 * latent_dim

    def make(self) -> RVQVAEBottleneck:
        return RVQVAEBottleneck(self.config, frozen=not self.requires_grad)


class RVQBottleneck(Bottleneck):
    """(B, C, T) -> sums of codebook entries (B, C, T); info `quantizer_indices`, the tokens, and `quantizer_loss`, 0 outside of training.

    In training the codebooks follow the latents, unless `frozen`; tokens are -1 where `quantize_dropout` left a quantizer out.
    """

    refines = True

    def __init__(self, params: RVQParams, *, frozen: bool = False):
        super().__init__()
        self.quantizer = build_quantizer(params, frozen=frozen)
        self.num_quantizers, self.codebook_size = params.num_quantizers, params.codebook_size

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        latents, tokens, loss = self.quantizer(x.mT)
        return latents.mT, {"quantizer_indices": tokens, "quantizer_loss": loss}

    def tokenize(self, x: Tensor, *, sample: bool = True) -> Tensor:
        return self.quantizer.tokenize(x.mT)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.num_quantizers, self.codebook_size, fewer=True)
        return self.quantizer.lookup(tokens).mT


class RVQVAEBottleneck(RVQBottleneck):
    """(B, 2 C, T) -> (B, C, T): drawn as by the VAE, then quantised; also `kl`."""

    def encode_with_info(self, x: Tensor, *, sample: bool) -> tuple[Tensor, Info]:
        latents, kl = draw_latents(x, sample=sample)
        quantized, info = super().encode_with_info(latents, sample=sample)
        return quantized, {"kl": kl, **info}

    def tokenize(self, x: Tensor, *, sample: bool = True) -> Tensor:
        return super().tokenize(draw_latents(x, sample=sample)[0])


def build_quantizer(params: RVQParams, *, frozen: bool) -> ResidualVQ:
    """The quantizer of `params`; `frozen` keeps its codebooks as they are."""
    width = params.codebook_dim or params.dim
    sync = params.sync_codebook is not False

    def codebook() -> Codebook:
        return Codebook(
            width,
            params.codebook_size,
            decay=params.decay,
            eps=params.eps,
            kmeans_iters=params.kmeans_iters if params.kmeans_init else None,
            dead_below=params.threshold_ema_dead_code,
            cosine=params.use_cosine_sim,
            temperature=params.sample_codebook_temp if params.stochastic_sample_codes else 0.0,
            learnable=params.learnable_codebook or params.orthogonal_reg_weight > 0,
            follows=params.ema_update,
            sync=sync,
        )

    def stage(book: Codebook) -> VectorQuantizer:
        return VectorQuantizer(
            book,
            commitment_weight=params.commitment_weight,
            entries_commit=params.learnable_codebook,
            cross_entropy_commitment=params.commitment_use_cross_entropy_loss,
            orthogonal_weight=params.orthogonal_reg_weight,
            orthogonal_active_only=params.orthogonal_reg_active_codes_only,
            orthogonal_max_codes=params.orthogonal_reg_max_codes,
        )

    books = [codebook()] * params.num_quantizers if params.shared_codebook else [codebook() for _ in range(params.num_quantizers)]
    return ResidualVQ(
        params.dim,
        width,
        [stage(book) for book in books],
        dropout=params.quantize_dropout,
        cutoff=params.quantize_dropout_cutoff_index,
        multiple_of=params.quantize_dropout_multiple_of,
        sync=sync,
        frozen=frozen,
    )
