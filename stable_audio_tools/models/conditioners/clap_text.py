"""`clap_text`: prompts through the text half of a pretrained CLAP (arXiv:2211.06687), as one vector or as tokens.

B batch, N = 77 tokens, D output width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.errors import ConfigError, Problem

from .base import BaseConditionerConfig, Condition, ConditionerParams, Form, ValueKind, vector_condition
from .clap_files import EMBEDDING, KEY, CLAPFile
from .frozen import Encoded, FrozenTextEncoder
from .pretrained_text import (
    PretrainedTextConditioner,
    Shared,
    Texts,
    folder_config,
    import_transformers,
    load_tokenizer,
    project,
    projection,
    tokenize,
)

logger = logging.getLogger(__name__)

MAX_LENGTH = 77  # tokens, of every published CLAP
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
"""roberta-base, where it differs from the defaults of transformers (arXiv:1907.11692)."""
CLAP_DEFAULTS = {**ROBERTA, "layer_norm_eps": 1e-12}
"""What a folder of transformers leaves out of its text_config."""
WIDTH = 768
AUDIO_WIDTHS = {"HTSAT-tiny": 768, "HTSAT-tiny-win-1536": 768, "HTSAT-base": 1024, "PANN-6": 512, "PANN-10": 1024}
LARGE_AUDIO_WIDTH = 2048  # of every other audio half that the authors' code names


class CLAPTextParams(ConditionerParams):
    clap_ckpt_path: str = Field(min_length=1, description="the authors' checkpoint, or a local folder of a CLAP from the hub")
    use_text_features: bool = Field(default=False, description="a layer's tokens; else one vector, which the audio half shares")
    feature_layer_ix: int = Field(
        default=-1,
        description="which hidden state of the text half, 0 the embeddings, -1 the last layer; no effect without use_text_features",
    )
    audio_model_type: str = Field(default="HTSAT-base", description="accepted, no effect on text: the audio half of this CLAP")
    enable_fusion: bool = Field(default=True, description="accepted, no effect on text: the audio half of this CLAP fuses long audio")
    project_out: bool = Field(default=False, description="a linear layer behind the CLAP even where the widths agree")
    finetune: bool = Field(default=False, description="train the text half as well: it is then loaded at once, and part of the checkpoint")
    tokenizer_name: str | None = Field(
        default=None, description="tokenizer of the text half, a hub name or folder; default: the one in the CLAP's folder, or roberta-base"
    )

    @model_validator(mode="after")
    def _layer_exists(self) -> Self:
        layers = self.text_config.get("num_hidden_layers", ROBERTA["num_hidden_layers"])
        if self.use_text_features and not -layers - 1 <= self.feature_layer_ix <= layers:
            message = f"feature_layer_ix is {self.feature_layer_ix}, but the text half has hidden states 0 to {layers}"
            fix = f"choose from {-layers - 1} to {layers}"
            raise ConfigError([Problem(("feature_layer_ix",), message, fix, self.feature_layer_ix)])
        return self

    @property
    def text_config(self) -> dict[str, Any]:
        """Of the folder, if it is one."""
        return (folder_config(self.clap_ckpt_path) or {}).get("text_config", {})

    @property
    def width(self) -> int:
        """Of what the CLAP gives."""
        if self.use_text_features:
            return self.text_config.get("hidden_size", WIDTH)
        return (folder_config(self.clap_ckpt_path) or {}).get("projection_dim", EMBEDDING)


class CLAPTextConfig(BaseConditionerConfig):
    """The text half of a pretrained CLAP reads the prompt."""

    type: Literal["clap_text"]
    config: CLAPTextParams
    reads: ClassVar[ValueKind] = "text"

    @property
    def form(self) -> Form:
        return "tokens" if self.config.use_text_features else "vector"

    @property
    def num_tokens(self) -> int | None:
        return MAX_LENGTH if self.config.use_text_features else 1

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> CLAPTextConditioner:
        return CLAPTextConditioner(self.width(cond_dim), self.config)


class CLAPTextConditioner(PretrainedTextConditioner):
    """The vector (B, D) of each prompt, or with use_text_features a layer's tokens (B, 77, D) and their mask.

    Tokens behind a prompt's end are as the network makes them, not zeros: published models were trained so. It runs in float32
    always.
    """

    def __init__(self, dim: int, params: CLAPTextParams):
        super().__init__(num_tokens=MAX_LENGTH if params.use_text_features else 1, width=params.width)
        self.params = params
        self.proj_out = projection(params.width, dim, always=params.project_out)
        if params.finetune:
            self.model = CLAPModule(load_text_half(params))
            self._tokenizer = Shared(partial(load_text_tokenizer, params))
            return
        if torch.get_default_device().type != "meta" and not Path(params.clap_ckpt_path).exists():
            logger.warning("the CLAP %s (%s) is not there; the first prompt will need it", params.clap_ckpt_path, KEY)
        self._frozen = FrozenTextEncoder(partial(CLAPTextReader.load, params))

    def forward(self, prepared: Texts) -> Condition:
        features, mask = self._features(prepared)
        out = project(self.proj_out, features)
        return Condition(out, mask) if self.params.use_text_features else vector_condition(out[:, 0])

    def _features(self, prepared: Texts) -> tuple[Tensor, Tensor]:
        if self.model is None:
            encoded = self._frozen.encode(prepared.texts, prepared.device)
            return torch.stack([row.features for row in encoded]), torch.stack([row.mask for row in encoded])
        ids, mask = (part.to(prepared.device) for part in tokenize(self._tokenizer(), prepared.texts, MAX_LENGTH))
        half: Any = self.model.model
        return half.read(ids, mask, self.params)


class CLAPModule(nn.Module):
    """The level of the authors' package that checkpoints of a fine-tuned text half have between conditioner and network."""

    def __init__(self, model: CLAPTextHalf):
        super().__init__()
        self.model = model


class CLAPTextHalf(nn.Module):
    """A RoBERTa and two linear layers.

    The other parts are there for the file format: the authors' network has them, and a fine-tuned one is saved with them.
    """

    def __init__(self, text_branch: nn.Module, *, width: int, embedding: int, audio_width: int):
        super().__init__()
        self.text_branch = text_branch
        self.text_projection = _two_layers(width, embedding)
        self.text_transform, self.audio_transform = _Transform(embedding), _Transform(embedding)
        self.audio_projection = _two_layers(audio_width, embedding)
        self.logit_scale_a, self.logit_scale_t = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def read(self, ids: Tensor, mask: Tensor, params: CLAPTextParams) -> tuple[Tensor, Tensor]:
        """Features (B, N, width) of the chosen layer, or the unit vector (B, 1, embedding), and their mask."""
        output = self.text_branch(input_ids=ids, attention_mask=mask, output_hidden_states=params.use_text_features)
        if params.use_text_features:
            return output.hidden_states[params.feature_layer_ix], mask
        return F.normalize(self.text_projection(output.pooler_output), dim=-1)[:, None], mask.new_ones(len(mask), 1)


class _Transform(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.sequential = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width))


@dataclass(frozen=True)
class CLAPTextReader:
    """Texts to what a frozen CLAP makes of them."""

    half: CLAPTextHalf
    tokenizer: Any
    params: CLAPTextParams

    @classmethod
    def load(cls, params: CLAPTextParams, device: torch.device) -> CLAPTextReader:
        half = load_text_half(params).requires_grad_(False).to(device)
        return cls(half, load_text_tokenizer(params), params)

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        device = self.half.logit_scale_a.device
        ids, mask = (part.to(device) for part in tokenize(self.tokenizer, texts, MAX_LENGTH))
        features, real = self.half.read(ids, mask, self.params)
        return [Encoded(*row) for row in zip(features, real, strict=True)]


def load_text_half(params: CLAPTextParams) -> CLAPTextHalf:
    """The text half in evaluation mode with its pretrained weights; on the meta device, its shapes alone."""
    transformers = import_transformers(KEY)
    file = None if torch.get_default_device().type == "meta" else CLAPFile.read(params.clap_ckpt_path)
    folder, given = folder_config(params.clap_ckpt_path) or {}, params.text_config
    known = {key: given[key] for key in transformers.RobertaConfig().to_dict() if key in given and key != "model_type"}
    config = transformers.RobertaConfig(**{**(CLAP_DEFAULTS if given else ROBERTA), **known})
    half = CLAPTextHalf(
        transformers.RobertaModel(config),
        width=config.hidden_size,
        embedding=folder.get("projection_dim", EMBEDDING),
        audio_width=folder.get("audio_config", {}).get("hidden_size", AUDIO_WIDTHS.get(params.audio_model_type, LARGE_AUDIO_WIDTH)),
    )
    if file is not None:
        file.load_text(half)
    return _trainable_where_used(half, params).eval()


def _trainable_where_used(half: CLAPTextHalf, params: CLAPTextParams) -> CLAPTextHalf:
    """Weights that no gradient reaches would stop distributed training: those behind the layer that is read, and the audio half's."""
    half.requires_grad_(False)
    half.text_branch.requires_grad_(True)
    if not params.use_text_features:
        half.text_projection.requires_grad_(True)
        return half
    roberta: Any = half.text_branch
    layers = roberta.encoder.layer
    read = range(len(layers) + 1)[params.feature_layer_ix]
    for unread in (roberta.pooler, *layers[read:]):
        unread.requires_grad_(False)
    return half


def load_text_tokenizer(params: CLAPTextParams) -> Any:
    """The tokenizer that `tokenizer_name` names, else the one in the checkpoint's folder, else RoBERTa's.

    Raises:
        ConfigError: it cannot be loaded.
    """
    in_folder = params.clap_ckpt_path if Path(params.clap_ckpt_path).is_dir() else "roberta-base"
    return load_tokenizer(params.tokenizer_name or in_folder, "tokenizer_name")


def _two_layers(width: int, embedding: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, embedding), nn.ReLU(), nn.Linear(embedding, embedding))
