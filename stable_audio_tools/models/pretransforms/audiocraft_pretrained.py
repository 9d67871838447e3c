"""`audiocraft_pretrained`: EnCodec compression models (arXiv:2210.13438) with published weights, as tokens only.

Weights come as a folder of a hub repository (`config.json`, `model.safetensors`) or as a `compression_state_dict.bin`.
B batch, C audio channels, D latent channels, T samples or frames, Q codebooks of K entries.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import read_json, validate
from stable_audio_tools.models.autoencoders.seanet import SEANetDecoder, SEANetDecoderParams, SEANetEncoder, SEANetEncoderParams
from stable_audio_tools.models.bottlenecks.base import check_tokens
from stable_audio_tools.models.checkpoint_error import bad_file
from stable_audio_tools.models.checkpoints import LoadedWeights, load_into, load_weights
from stable_audio_tools.models.weight_files import read_weight_file
from stable_audio_tools.nn.exact import at_least_single, no_autocast

from .base import BasePretransformConfig, Pretransform
from .codec_files import LOCAL, hub_file, one_of, told_at

log = logging.getLogger(__name__)

HUB_CONFIG, HUB_WEIGHTS = "config.json", "model.safetensors"
EXPORT = "compression_state_dict.bin"

# The configs of the hub's models, as far as they differ from the defaults in `describe_hub_config`.
HUB_MODELS: dict[str, dict[str, Any]] = {
    "facebook/encodec_24khz": {},
    "facebook/encodec_32khz": {
        "codebook_size": 2048,
        "num_filters": 64,
        "sampling_rate": 32000,
        "target_bandwidths": [2.2],
        "upsampling_ratios": [8, 5, 4, 4],
        "use_causal_conv": False,
        "use_conv_shortcut": False,
    },
}

# Keys of the network that the two formats call differently, with the defaults of the hub's.
HUB_KEYS: dict[str, tuple[str, Any]] = {
    "channels": ("audio_channels", 1),
    "dimension": ("hidden_size", 128),
    "n_filters": ("num_filters", 32),
    "n_residual_layers": ("num_residual_layers", 1),
    "norm": ("norm_type", "weight_norm"),
    "kernel_size": ("kernel_size", 7),
    "last_kernel_size": ("last_kernel_size", 7),
    "residual_kernel_size": ("residual_kernel_size", 3),
    "dilation_base": ("dilation_growth_rate", 2),
    "causal": ("use_causal_conv", True),
    "pad_mode": ("pad_mode", "reflect"),
    "compress": ("compress", 2),
    "lstm": ("num_lstm_layers", 2),
}
EXPORT_DEFAULTS = {"norm": "none", "true_skip": True, "lstm": 0, "n_residual_layers": 3}  # where they differ from `SEANetParams`


@dataclass(frozen=True)
class EnCodecDescription:
    """What a codec is made of; `renormalize`: audio is brought to unit loudness first."""

    encoder: SEANetEncoderParams
    decoder: SEANetDecoderParams
    num_quantizers: int
    codebook_size: int
    sample_rate: int
    renormalize: bool


class AudiocraftPretrainedParams(StrictModel):
    """With `path` the files say what codec they hold; without, the hub's are downloaded when the model is built."""

    path: str | None = Field(
        default=None, description=f"a folder with {HUB_CONFIG} and {HUB_WEIGHTS}, or a {EXPORT} or its folder; absent: from the hub"
    )
    model_type: str = Field(default="facebook/encodec_32khz", description="name on the hub, or a local path")
    scale: float = Field(default=1.0, gt=0, description="accepted, no effect: tokens have no scale")
    quantize_on_decode: bool = Field(default=True, description="accepted, no effect: there are only tokens")

    @model_validator(mode="after")
    def _codec_is_known(self) -> Self:
        if self.local is None and self.model_type not in HUB_MODELS:
            message = f"no such path, and no known EnCodec of the hub: {', '.join(HUB_MODELS)}"
            fix = 'the pretransform "dac_pretrained" is for it' if self.model_type.startswith("dac_") else LOCAL
            raise ConfigError([Problem(("model_type",), message, fix, self.model_type)])
        told_at("model_type" if self.path is None else "path", lambda: self.codec)
        return self

    @property
    def local(self) -> Path | None:
        """Where the codec lies on this machine, if it does."""
        if self.path is not None:
            return Path(self.path)
        return Path(self.model_type) if Path(self.model_type).exists() else None

    @cached_property
    def codec(self) -> EnCodecDescription:
        """What codec it is."""
        if self.local is None:
            return describe_hub_config(HUB_MODELS[self.model_type], self.model_type)
        return describe_local(self.local)

    def weights(self) -> tuple[EnCodecDescription, LoadedWeights]:
        """The codec and its weights under the keys of `EnCodec`; downloads what is not there.

        Raises:
            ConfigError: they cannot be had.
        """
        if self.local is not None and not (self.local / HUB_CONFIG).is_file():
            return self.codec, read_export(self.local)[1]
        if self.local is not None:
            return self.codec, load_weights(one_of(self.local, (HUB_WEIGHTS, "pytorch_model.bin")))
        config, _ = read_json(hub_file(self.model_type, HUB_CONFIG))
        return describe_hub_config(config, self.model_type), load_weights(hub_file(self.model_type, HUB_WEIGHTS))


def describe_local(path: Path) -> EnCodecDescription:
    """The codec in a folder of the hub's format, or in an exported file or its folder.

    Raises:
        ConfigError: there is none.
    """
    if (path / HUB_CONFIG).is_file():
        return describe_hub_config(read_json(path / HUB_CONFIG)[0], str(path / HUB_CONFIG))
    return describe_export(read_export(path, header_only=True)[0], str(path))


def describe_hub_config(config: Mapping[str, Any], source: str) -> EnCodecDescription:
    """The codec that a `config.json` of the hub describes.

    Raises:
        ConfigError: it is no EnCodec, or one that codes audio in separate pieces.
    """
    if config.get("model_type", "encodec") != "encodec":
        raise ConfigError([Problem((), f"describes a {config['model_type']!r} model, not an EnCodec", LOCAL)], source)
    if config.get("chunk_length_s"):
        message = f"codes pieces of {config['chunk_length_s']} s and their loudness, which its tokens alone do not hold"
        raise ConfigError([Problem((), message, "choose a model without chunk_length_s, such as facebook/encodec_32khz")], source)
    settings = {ours: config.get(theirs, default) for ours, (theirs, default) in HUB_KEYS.items()}
    settings["true_skip"] = not config.get("use_conv_shortcut", True)
    ratios, rate = config.get("upsampling_ratios", [8, 5, 4, 2]), config.get("sampling_rate", 24000)
    size, bandwidth = config.get("codebook_size", 1024), config.get("target_bandwidths", [24.0])[-1]
    bits_per_second = math.ceil(rate / math.prod(ratios)) * math.ceil(math.log2(size))  # of one codebook
    halves = _halves(settings, {}, {"trim_right_ratio": config.get("trim_right_ratio", 1.0)}, ratios, source)
    return EnCodecDescription(*halves, int(1000 * bandwidth // bits_per_second), size, rate, bool(config.get("normalize", False)))


def describe_export(config: Mapping[str, Any], source: str) -> EnCodecDescription:
    """The codec that the training config of an exported model describes.

    Raises:
        ConfigError: it is no EnCodec of SEANet and residual quantizer.
    """
    codec, network, quantizer = (dict(config.get(key) or {}) for key in ("encodec", "seanet", "rvq"))
    kind = tuple(codec.get(key, default) for key, default in (("autoencoder", "seanet"), ("quantizer", "rvq")))
    if not (network and quantizer) or kind != ("seanet", "rvq"):
        raise ConfigError([Problem((), f"not an EnCodec of seanet and rvq, but of {kind[0]} and {kind[1]}", LOCAL)], source)
    if network.pop("disable_norm_outer_blocks", 0):
        raise ConfigError([Problem((), "its outer blocks have no norm (disable_norm_outer_blocks), which is not supported", LOCAL)], source)
    encoder, decoder = (network.pop(key, None) or {} for key in ("encoder", "decoder"))
    ratios = network.pop("ratios", [8, 5, 4, 2])
    halves = _halves({**EXPORT_DEFAULTS, **network}, encoder, decoder, ratios, source)
    sizes = quantizer.get("n_q", 8), quantizer.get("bins", 1024), codec.get("sample_rate", config.get("sample_rate"))
    return EnCodecDescription(*halves, *sizes, bool(codec.get("renormalize", False)))  # type: ignore[arg-type]


def _halves(
    shared: Mapping[str, Any], encoder: Mapping[str, Any], decoder: Mapping[str, Any], ratios: list[int], source: str
) -> tuple[SEANetEncoderParams, SEANetDecoderParams]:
    """Both networks; `ratios` run from the latents outwards, as both formats write them."""
    inner = validate(SEANetEncoderParams, {**shared, "ratios": ratios[::-1], **encoder}, f"encoder of {source}")
    return inner, validate(SEANetDecoderParams, {**shared, "ratios": ratios, **decoder}, f"decoder of {source}")


def read_export(path: Path, *, header_only: bool = False) -> tuple[dict[str, Any], LoadedWeights]:
    """Training config and weights of a `compression_state_dict.bin`, or of the folder with it.

    Raises:
        CheckpointError: it is not what it should be.
    """
    file = one_of(path, (EXPORT,))
    content = read_weight_file(file, header_only=header_only).content
    if "pretrained" in content:
        name = content["pretrained"]
        raise bad_file(file, f"holds no weights, but the name of another model, {name}", f'set model_type to "{name}", or {LOCAL}')
    text, state = content.get("xp.cfg"), content.get("best_state")
    if not isinstance(text, str) or not isinstance(state, dict):
        raise bad_file(file, 'holds no "best_state" with its "xp.cfg"', f"name a {EXPORT}, or a folder with {HUB_CONFIG}")
    return _resolved(text, file), LoadedWeights(state, "model", {}, source=str(file))


def _resolved(text: str, file: Path) -> dict[str, Any]:
    """A YAML mapping in which values such as ${seanet.channels} stand for others."""
    try:
        import yaml
    except ImportError:
        raise bad_file(file, "its xp.cfg is YAML, which needs the package pyyaml", 'pip install -e ".[codec]"') from None
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise bad_file(file, f"its xp.cfg is no YAML: {error}", LOCAL) from None
    if not isinstance(config, dict):
        raise bad_file(file, "its xp.cfg holds no keys", LOCAL)

    def resolve(value: Any, depth: int = 0) -> Any:
        if isinstance(value, dict):
            return {key: resolve(item, depth) for key, item in value.items()}
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference is None or depth > 8:  # chosen: more steps than any config takes; a circle ends here
            return value
        found: Any = config
        for key in reference[1].split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return resolve(found, depth + 1)

    return {key: resolve(config.get(key)) for key in ("encodec", "seanet", "rvq", "sample_rate")}


class AudiocraftPretrainedConfig(BasePretransformConfig):
    tokens_only = True

    type: Literal["audiocraft_pretrained"]
    config: AudiocraftPretrainedParams = Field(default_factory=AudiocraftPretrainedParams)
    enable_grad: Literal[False] = Field(False, description="accepted, no effect: tokens let no gradient through")

    @property
    def io_channels(self) -> int:
        return self.config.codec.encoder.channels

    @property
    def encoded_channels(self) -> int:
        return self.config.codec.encoder.dimension

    @property
    def downsampling_ratio(self) -> int:
        return math.prod(self.config.codec.encoder.ratios)

    @property
    def num_quantizers(self) -> int:
        return self.config.codec.num_quantizers

    @property
    def codebook_size(self) -> int:
        return self.config.codec.codebook_size

    def build(self, sample_rate: int) -> AudiocraftPretransform:
        """The codec with its weights; on the meta device without, and nothing is downloaded.

        Raises:
            ConfigError: the weights cannot be had, or do not fit.
        """
        if sample_rate != self.config.codec.sample_rate:
            log.warning("the model's sample_rate is %d Hz, but the codec was trained at %d Hz", sample_rate, self.config.codec.sample_rate)
        if torch.get_default_device().type == "meta":
            return AudiocraftPretransform(EnCodec(self.config.codec))
        description, weights = self.config.weights()
        codec = EnCodec(description)
        load_into(codec, replace(weights, state_dict=from_hub_names(weights.state_dict, codec)))
        return AudiocraftPretransform(codec)


def from_hub_names(state: Mapping[str, Tensor], codec: EnCodec) -> dict[str, Tensor]:
    """Weights under the keys of `codec`, where they have those of the hub's models."""
    names = {_hub_name(key): key for key in codec.state_dict()}
    return {names.get(key, key): value for key, value in state.items()}


def _hub_name(key: str) -> str:
    key = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", key)
    key = re.sub(r"\.(conv|convtr)\.\1\.", ".conv.", key)
    key = re.sub(r"\.(conv|convtr)\.norm\.", ".norm.", key)
    return key.replace("quantizer.vq.layers.", "quantizer.layers.").replace("._codebook.", ".codebook.")


class EnCodec(nn.Module):
    """Encoder, quantizer and decoder under the names of exported weights; `description` is kept."""

    def __init__(self, description: EnCodecDescription):
        super().__init__()
        self.description = description
        self.encoder = SEANetEncoder(description.encoder)
        self.decoder = SEANetDecoder(description.decoder)
        self.quantizer = FrozenResidualVQ(description.encoder.dimension, description.num_quantizers, description.codebook_size)


class FrozenResidualVQ(nn.Module):
    """Tokens of what the codebooks before left, each the nearest entry (arXiv:2107.03312, algorithm 1)."""

    def __init__(self, dim: int, num_quantizers: int, size: int):
        super().__init__()
        stages = [nn.ModuleDict({"_codebook": FrozenCodebook(dim, size)}) for _ in range(num_quantizers)]
        self.vq = nn.ModuleDict({"layers": nn.ModuleList(stages)})

    @property
    def codebooks(self) -> list[FrozenCodebook]:
        return [module for module in self.modules() if isinstance(module, FrozenCodebook)]

    def tokenize(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, Q, T) int64."""
        with no_autocast(x):
            residual, tokens = at_least_single(x.mT), []
            for codebook in self.codebooks:
                tokens.append(codebook.nearest(residual))
                residual = residual - codebook.embed[tokens[-1]]
        return torch.stack(tokens, dim=1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, q, T) tokens of the first q codebooks -> (B, D, T)."""
        entries = [codebook.embed[indices] for codebook, indices in zip(self.codebooks, tokens.unbind(1), strict=False)]
        return torch.stack(entries).sum(0).mT


class FrozenCodebook(nn.Module):
    """(K, D) entries, and what training kept beside them."""

    embed: Tensor

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.register_buffer("inited", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(size))
        self.register_buffer("embed", torch.zeros(size, dim))
        self.register_buffer("embed_avg", torch.zeros(size, dim))

    def nearest(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T)."""
        entries = at_least_single(self.embed)
        return (entries.square().sum(-1) - 2 * (x @ entries.mT)).argmin(-1)


class AudiocraftPretransform(Pretransform):
    """Audio (B, C, T) <-> tokens (B, Q, T / ratio), rounded up. Frozen.

    A codec that brings audio to unit loudness gives it back at that loudness: tokens do not hold it.
    """

    def __init__(self, codec: EnCodec):
        description = codec.description
        network = description.encoder
        super().__init__(io_channels=network.channels, encoded_channels=network.dimension, downsampling_ratio=math.prod(network.ratios))
        self.model = codec
        self.num_quantizers, self.codebook_size = description.num_quantizers, description.codebook_size
        self.requires_grad_(False).eval()

    def encode(self, audio: Tensor) -> NoReturn:
        raise ValueError("audiocraft_pretrained has no continuous latents: use tokenize and decode_tokens, as a model of type 'lm' does")

    def decode(self, latents: Tensor) -> NoReturn:
        raise ValueError("audiocraft_pretrained decodes no continuous latents: use decode_tokens")

    def tokenize(self, audio: Tensor) -> Tensor:
        if self.model.description.renormalize:
            audio = audio / (audio.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8)
        return self.model.quantizer.tokenize(self.model.encoder(audio.to(next(self.model.parameters()).dtype)))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.num_quantizers, self.codebook_size, fewer=True)
        return self.model.decoder(self.model.quantizer.lookup(tokens)).float()
