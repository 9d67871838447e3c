"""The perceptual loss: distance of the features that a model of speech makes of sounds, HuBERT (arXiv:2106.07447) or one of its kind.

The network hears mono at 16 kHz. It is frozen, in eval mode always, and in no checkpoint; its weights are read when training starts.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.models.conditioners.pretrained_text import import_transformers, load_pretrained
from stable_audio_tools.nn.exact import at_least_single
from stable_audio_tools.nn.teacher import Teacher

log = logging.getLogger(__name__)

SAMPLE_RATE = 16000  # Hz, what all of these networks were trained with
BUNDLES = {"HUBERT_LARGE": "hubert_large", "WAVLM_LARGE": "wavlm_large", "WAV2VEC2_LARGE_LV60K": "wav2vec2_large_lv60k"}
"""torchaudio's name of the weights, and of the network that they are for. All have 24 layers and want normalised waveforms."""
FOLDER_TYPES = ("hubert", "wav2vec2", "wavlm")
LAYERS = 24
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of the convolutions in front; samples at 16 kHz
CONVOLUTIONS = (-1,)  # feature_ids of what the convolutions alone make
SMALLEST_SCALE = 1e-5  # as in upstream


class HubertParams(StrictModel):
    """Which network listens, and to which of its features."""

    feature_ids: tuple[int, ...] | None = Field(None, min_length=1, description="layers from 0; null: all; [-1]: only the convolutions")
    weight: float = Field(1.0, gt=0, description="a factor beside weights.hubert")
    model_name: str = Field("HUBERT_LARGE", description=f"{', '.join(BUNDLES)}, or a local folder of a transformers model")

    @property
    def folder(self) -> dict[str, Any] | None:
        """The config.json of a local folder; None where `model_name` is none."""
        path = Path(self.model_name) / "config.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def layers(self) -> int:
        folder = self.folder
        return LAYERS if folder is None else folder["num_hidden_layers"]

    @property
    def normalises(self) -> bool:
        """Whether the network wants waveforms of mean 0 and variance 1."""
        folder, path = self.folder, Path(self.model_name) / "preprocessor_config.json"
        if folder is None:
            return True
        if path.is_file():
            return bool(json.loads(path.read_text(encoding="utf-8")).get("do_normalize", True))
        return folder.get("feat_extract_norm") == "layer"

    @property
    def shortest(self) -> int:
        """Samples at 16 kHz that make one frame."""
        folder = self.folder or {}
        kernels, strides = folder.get("conv_kernel", KERNELS), folder.get("conv_stride", STRIDES)
        samples = 1
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def problems(self) -> list[Problem]:
        """Why this cannot listen; nothing is loaded."""
        try:
            folder = self.folder
        except ValueError as error:
            return [Problem(("model_name",), f"its config.json cannot be read: {error}", "save the model again", self.model_name)]
        if folder is None and self.model_name not in BUNDLES:
            what = f"{value_text(self.model_name)} is neither a known model nor a local folder with a config.json"
            return [Problem(("model_name",), what, did_you_mean(self.model_name, BUNDLES), self.model_name)]
        if folder is not None and folder.get("model_type") not in FOLDER_TYPES:
            what = f"the model in this folder is of type {value_text(folder.get('model_type'))}"
            return [Problem(("model_name",), what, f"use one of type {', '.join(FOLDER_TYPES)}", self.model_name)]
        return self._layer_problems()

    def _layer_problems(self) -> list[Problem]:
        ids, layers = self.feature_ids or (), self.layers
        if ids == CONVOLUTIONS:
            return []
        fix = f"use layers of 0 to {layers - 1}, or [-1] alone for the convolutions"
        wrong = [index for index, layer in enumerate(ids) if not 0 <= layer < layers]
        return [Problem(("feature_ids", index), f"the model has {layers} layers", fix, ids[index]) for index in wrong]


class HubertWeights(StrictModel):
    hubert: float = Field(ge=0, description="of the distance of features")


class HubertLossConfig(StrictModel):
    """Distance of what a model of speech hears in two sounds."""

    type: str | None = Field(None, description="accepted, no effect")
    config: HubertParams = HubertParams()
    weights: HubertWeights
    decay: float = Field(1.0, gt=0, le=1, description="factor on the weight with every train step")

    @model_validator(mode="after")
    def _the_network_can_listen(self) -> Self:
        problems = self.config.problems() if self.weights.hubert else []
        if problems:
            raise ConfigError([Problem(("config", *p.path), p.message, p.fix, p.value) for p in problems])
        return self

    def min_samples(self, sample_rate: int) -> int:
        """The shortest audio at `sample_rate` Hz, in samples, that makes a feature."""
        return math.ceil(self.config.shortest * sample_rate / SAMPLE_RATE) if self.weights.hubert else 1


class HubertDistance(nn.Module):
    """Mean over layers of the mean absolute difference of features, each in units of the original's standard deviation.

    Until `load` the network has its shape, on the meta device, and no weights.

    Args:
        sample_rate: Hz, of the sounds.
    """

    def __init__(self, params: HubertParams, sample_rate: int):
        super().__init__()
        self.params, self.sample_rate, self.normalises = params, sample_rate, params.normalises
        with torch.device("meta"):
            self.network = Teacher(_shape(params.model_name))

    def load(self) -> None:
        """Read the weights, unless they are here. A published name is downloaded by torchaudio where its cache has no such file.

        Raises:
            ConfigError: they cannot be read, or not be downloaded.
        """
        if next(self.network.module.parameters()).is_meta:
            self.network = Teacher(_load(self.params.model_name))

    def forward(self, target: Tensor, estimate: Tensor) -> Tensor:
        """Scalar distance of two (B, C, T)."""
        with torch.no_grad():
            wanted = self._features(target)
        return self.params.weight * torch.stack(list(map(_distance, self._features(estimate), wanted))).mean()

    def _features(self, audio: Tensor) -> list[Tensor]:
        """The chosen layers' (B, frames, D) of audio (B, C, T)."""
        from torchaudio.functional import resample

        heard = resample(at_least_single(audio).mean(1), self.sample_rate, SAMPLE_RATE)
        if self.normalises:
            heard = F.layer_norm(heard, heard.shape[-1:])
        network: Any = self.network.module
        heard = heard.to(next(network.parameters()).dtype)
        ids = self.params.feature_ids
        if ids == CONVOLUTIONS:
            return [network.feature_extractor(heard, None)[0]]
        layers, _ = network.extract_features(heard, num_layers=None if ids is None else max(ids) + 1)
        return layers if ids is None else [layers[layer] for layer in sorted(set(ids))]


def _distance(given: Tensor, wanted: Tensor) -> Tensor:
    given, wanted = at_least_single(given), at_least_single(wanted)
    return F.l1_loss(given, wanted) / (wanted.std() + SMALLEST_SCALE)


def _shape(name: str) -> nn.Module:
    import torchaudio

    if name in BUNDLES:
        return getattr(torchaudio.models, BUNDLES[name])()
    transformers = import_transformers("model_name")
    config = load_pretrained(transformers.AutoConfig.from_pretrained, name, "model_name")
    return _as_torchaudio(transformers.AutoModel.from_config(config))


def _load(name: str) -> nn.Module:
    return _downloaded(name) if name in BUNDLES else _as_torchaudio(_from_folder(name))


def _from_folder(name: str) -> nn.Module:
    transformers = import_transformers("model_name")
    log.info("the hubert loss reads its network from %s", name)
    return load_pretrained(transformers.AutoModel.from_pretrained, name, "model_name", local_files_only=True, dtype=torch.float32)


def _as_torchaudio(model: nn.Module) -> nn.Module:
    """The same network as torchaudio's class, which gives the layers' features as published code compares them."""
    from torchaudio.models.wav2vec2.utils import import_huggingface_model

    return import_huggingface_model(model)


def _downloaded(name: str) -> nn.Module:
    import torchaudio

    network = getattr(torchaudio.models, BUNDLES[name])()
    log.info("the hubert loss takes %s from torchaudio's cache in %s, or downloads it there (1.2 GB)", name, torch.hub.get_dir())
    try:
        # Nothing in a downloaded file is executed.
        bundle = getattr(torchaudio.pipelines, name).get_model(dl_kwargs={"weights_only": True})
    except OSError as error:
        fix = "check the network, copy the file into that cache, or name a local folder of a transformers model"
        raise ConfigError([Problem(("model_name",), f"{value_text(name)} cannot be downloaded: {error}", fix, name)], "hubert") from None
    network.load_state_dict(bundle.model.state_dict())
    return network
