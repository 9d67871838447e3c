"""Weights from any file into a model, and a model into a file.

Whatever the file, `load_weights` gives the state_dict of a model under the keys of this package: from exports, plain state_dicts,
and training checkpoints of ours and of upstream, where averaged (EMA) or online weights can be asked for. `load_into` puts them
into a model or a part of one and says what did not fit; by default nothing may be left over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stable_audio_tools.configs.parse import read_json
from stable_audio_tools.models.atomic_file import atomic_file
from stable_audio_tools.models.checkpoint_error import CheckpointError, bad_file
from stable_audio_tools.models.safetensors_file import write_safetensors
from stable_audio_tools.models.weight_files import WeightFile, read_weight_file
from stable_audio_tools.models.widening import misplaced_condition, widen

__all__ = [
    "CheckpointError",
    "LoadReport",
    "LoadedWeights",
    "load_into",
    "load_weights",
    "match_weights",
    "read_model_config",
    "save_model",
]

CONFIG_KEY = "model_config"
LIGHTNING_KEY = "pytorch-lightning_version"

# What Lightning checkpoints call the model in training, and where its averages belong in it.
HOSTS: dict[str, tuple[tuple[str, str], ...]] = {
    "diffusion.": (("diffusion_ema.ema_model.", "model."), ("conditioner_ema.ema_model.", "conditioner.")),
    "autoencoder.": (("autoencoder_ema.ema_model.", ""),),
    "diffae.": (("diffae_ema.ema_model.", ""),),
    "model.": (("model_ema.ema_model.", ""),),
}

# Other spellings of the same parameter, as (pattern, replacement); the only place where keys are renamed.
RENAMES = (
    (r"(^|\.)_orig_mod\.", r"\1"),  # torch.compile
    (r"^(_forward_module|module)\.", ""),  # DeepSpeed and DistributedDataParallel
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),  # torch's newer weight norm
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)

PRETRANSFORM = "pretransform.model."
ADAPTER_KEY = re.compile(r"(^|\.)(lora|ia3|hada|lokr|b?oft|vera)_")
ADAPTER_SETTINGS = ("adapter_config", "lora_config")


@dataclass(frozen=True)
class LoadedWeights:
    """The weights in a file.

    state_dict: tensors on the CPU under a model's own keys; backed by the file, so not to be written to.
    kind: "model" for plain weights, "training" for a Lightning checkpoint, "adapter" for an update of another model's weights.
    metadata: the texts of a safetensors header.
    averaged: whether averaged (EMA) weights took the place of the online ones.
    config: the model config that the file carries, if any.
    source: the file's name.
    settings: what an adapter file says of itself: its scale, its kind.
    """

    state_dict: dict[str, Tensor]
    kind: Literal["model", "training", "adapter"]
    metadata: dict[str, str]
    averaged: bool = False
    config: dict[str, Any] | None = None
    source: str = "weights"
    settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class LoadReport:
    """What became of the weights of a file; `str()` of it is for people.

    loaded: number of tensors that found their place.
    missing: keys of the model that the file does not have.
    unexpected: keys of the file that the model does not have.
    mismatched: key and difference in shape or type, where both have the key.
    widened: key and sizes, where the model has grown by conditions that the file does not know; zeros stand for them.
    source: what was loaded, in words.
    """

    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    source: str = "weights"
    widened: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched or self.widened)

    @property
    def counts(self) -> str:
        named = (
            (self.missing, "missing"),
            (self.unexpected, "unexpected"),
            (self.mismatched, "of another shape"),
            (self.widened, "widened by zeros"),
        )
        return ", ".join(f"{len(keys)} {what}" for keys, what in named if keys)

    @property
    def details(self) -> str:
        """A line for each kind of fault: its first key and how many more there are."""
        named = (("missing", self.missing), ("unexpected", self.unexpected), ("shape", self.mismatched), ("widened", self.widened))
        return "\n".join(f"{what:<12}{_first(keys)}" for what, keys in named if keys)

    def __str__(self) -> str:
        loaded = f"{self.source}: loaded {_tensor_count(self.loaded)}"
        return loaded if self.complete else "\n  ".join([f"{loaded}; {self.counts}", *self.details.splitlines()])


# from a file


def load_weights(path: str | PathLike[str], *, average: bool | None = None) -> LoadedWeights:
    """Read the weights in a file of any known kind.

    Args:
        average: of a training checkpoint: True for its averaged (EMA) weights, False for the online ones, None for the averaged
            ones where there are any.

    Raises:
        CheckpointError: there is no such file, it is damaged or unsafe, holds no weights, or no averages though asked for.
    """
    file = read_weight_file(path)
    inner = file.content.get("state_dict")
    state = _rename(_tensors(inner if isinstance(inner, Mapping) else file.content))
    if not state:
        raise bad_file(path, f"holds no weights; its entries are {_listed(file.content)}", "name a file of a model's weights")
    plain = LoadedWeights(state, "model", file.metadata, config=_config_in(file), source=str(path))
    settings = next((found for key in ADAPTER_SETTINGS if (found := _json_in(file, key)) is not None), None)
    if settings is not None or any(map(ADAPTER_KEY.search, state)):
        return replace(plain, kind="adapter", settings=_settings_beside(file.path) if settings is None else settings)
    host = _host(state, lightning=LIGHTNING_KEY in file.content)
    if host is None:
        return plain
    weights, averaged = _of_host(state, host, average=average is not False)
    if average and not averaged:
        raise bad_file(path, "holds no averaged (EMA) weights", "ask for the online weights")
    return replace(plain, state_dict=weights, kind="training", averaged=averaged)


def read_model_config(path: str | PathLike[str]) -> dict[str, Any]:
    """The model config of a weight file: from the file itself, else from `model_config.json` beside it.

    Raises:
        CheckpointError: the file is not there or damaged, or has no config.
        ConfigError: the config is no JSON.
    """
    file = read_weight_file(path, header_only=True)
    config = _config_in(file)
    if config is not None:
        return config
    if any(key in file.metadata for key in ADAPTER_SETTINGS) or _settings_beside(file.path) is not None:
        raise _adapter_alone(path)
    beside = Path(path).with_name(f"{CONFIG_KEY}.json")
    if beside.exists():
        return read_json(str(beside))[0]
    raise bad_file(path, "carries no model config", f"put its config beside it as {beside.name}")


def _adapter_alone(path: str | PathLike[str]) -> CheckpointError:
    fix = "name its base here; the adapter is a second --pretrained-ckpt-path of train, and --adapter of generate"
    return bad_file(path, "an adapter: it changes a model's weights and is none itself", fix)


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name; other entries, such as counters, are no weights."""
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def _host(state: Mapping[str, Tensor], *, lightning: bool) -> str | None:
    """The prefix of the model in training, or None for plain weights, in which it may be the name of a part."""
    for host in HOSTS:
        trained = any(key.startswith(host) for key in state)
        averaged = any(key.startswith(f"{host[:-1]}_ema.") for key in state)
        alone = all(key.startswith(host) for key in state)
        if trained and (averaged or (lightning and (alone or host != "model."))):  # plain diffusion models have a part `model`
            return host
    return None


def _of_host(state: Mapping[str, Tensor], host: str, *, average: bool) -> tuple[dict[str, Tensor], bool]:
    """The model's weights, and whether averages took the place of some."""
    weights = _part(state, host)
    averages = [{f"{target}{key}": value for key, value in _part(state, source).items()} for source, target in HOSTS[host]]
    if not average or not any(averages):
        return weights, False
    for found in averages:
        weights |= found
    return weights, True


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _config_in(file: WeightFile) -> dict[str, Any] | None:
    return _json_in(file, CONFIG_KEY)


def _json_in(file: WeightFile, key: str) -> dict[str, Any] | None:
    """The object that a file carries under `key`: as JSON text in a safetensors header, as it is in a torch file."""
    found = file.metadata.get(key, file.content.get(key))
    if not isinstance(found, str):
        return found if isinstance(found, dict) else None
    try:
        return json.loads(found)
    except ValueError as error:
        what = f"its {key.replace('_', ' ')} is no JSON: {error}"
        raise bad_file(file.path, what, "export the model again" if key == CONFIG_KEY else "save it again") from None


def _settings_beside(path: Path) -> dict[str, Any] | None:
    """What peft writes beside an adapter's weights."""
    beside = path.with_name(f"{ADAPTER_SETTINGS[0]}.json")
    return read_json(str(beside))[0] if beside.exists() else None


# into a model


def load_into(model: nn.Module, weights: LoadedWeights, *, allow_partial: bool = False, prefix: str = "") -> LoadReport:
    """Load `weights` into `model`, or into the part of it under `prefix`; nothing changes when this raises.

    A file of a whole model also serves where its pretransform alone is wanted. Weight-normalised and folded layers load each
    other's weights.

    Args:
        allow_partial: load what fits and report the rest, instead of refusing. Where the model has more conditions than the file
            knows, the weights for those it knows are kept, see `widening`.
        prefix: such as "pretransform.model." for weights of the autoencoder inside a latent diffusion model.

    Raises:
        CheckpointError: the weights do not fit, none of them fits, some are NaN, or they are an adapter.
    """
    if weights.kind == "adapter":
        raise _adapter_alone(weights.source)
    wanted = _part(_tensors(model.state_dict()), prefix)
    given = _best_part(weights.state_dict, wanted, prefix)
    source = weights.source + (" (averaged weights)" if weights.averaged else "")
    matched, report = match_weights(given, wanted, source=source, grown=allow_partial)
    if report.widened and (route := misplaced_condition(weights.config, model)):
        what = f"was trained with other first conditions in {route}, so its columns would act on the wrong ones"
        raise bad_file(weights.source, what, f"put the new conditions behind the trained ones in {route}")
    _refuse_nan(matched, weights.source)
    if not matched or (not report.complete and not allow_partial):
        raise _misfit(report, given, wanted, weights.source)
    model.load_state_dict({f"{prefix}{key}": value for key, value in matched.items()}, strict=False)
    return report


def match_weights(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, source: str = "weights", grown: bool = False
) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors of `given` that have a place in `wanted`, and the report on all of them; with `grown`, also in a widened one."""
    given = _with_weight_norm_of(given, wanted)
    matched: dict[str, Tensor] = {}
    mismatched: list[str] = []
    widened: list[str] = []
    for key, target in wanted.items():
        if key in given:
            tensor = given[key].reshape(target.shape) if given[key].numel() == target.numel() == 1 else given[key]  # () and (1,) are one
            if difference := _difference(tensor, target):
                wide = widen(key, tensor, target) if grown else None
                (mismatched if wide is None else widened).append(f"{key}: {difference}")
                matched |= {} if wide is None else {key: wide}
            else:
                matched[key] = tensor
    missing = tuple(key for key in wanted if key not in given)
    unexpected = tuple(key for key in given if key not in wanted)
    return matched, LoadReport(len(matched), missing, unexpected, tuple(mismatched), source, tuple(widened))


def _best_part(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """`state`, or the part of it that `wanted` names: the one that has most of the wanted keys."""
    candidates = [state, *(_part(state, part) for part in dict.fromkeys((prefix, PRETRANSFORM)) if part)]
    return max(candidates, key=lambda part: len(part.keys() & wanted.keys()))


def _with_weight_norm_of(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold w = g v / |v| into one weight, or take it apart (g = |w|, v = w), where the model has the other form."""
    given = dict(given)
    for key in [key for key in given if key.endswith(".weight_v")]:
        stem = key.removesuffix("_v")
        if stem in wanted and stem not in given and f"{stem}_g" in given:
            v, g = given.pop(key), given.pop(f"{stem}_g")
            given[stem] = torch._weight_norm(v.float(), g.float(), 0)
    for stem in [key for key in given if f"{key}_v" in wanted and f"{key}_g" in wanted and f"{key}_v" not in given]:
        given[f"{stem}_v"] = given.pop(stem)
        given[f"{stem}_g"] = torch.norm_except_dim(given[f"{stem}_v"].float(), 2, 0)
    return given


def _difference(tensor: Tensor, target: Tensor) -> str:
    """Why `tensor` cannot be copied to `target`; precisions may differ, numbers must stay numbers of their sort."""
    if tensor.shape != target.shape:
        return f"file {tuple(tensor.shape)}, model {tuple(target.shape)}"
    if (tensor.is_floating_point(), tensor.is_complex()) != (target.is_floating_point(), target.is_complex()):
        return f"file {str(tensor.dtype).removeprefix('torch.')}, model {str(target.dtype).removeprefix('torch.')}"
    return ""


def _refuse_nan(state: Mapping[str, Tensor], source: str) -> None:
    bad = [key for key, tensor in state.items() if tensor.is_floating_point() and bool(tensor.isnan().any())]
    if bad:
        what = f"{len(bad)} of {len(state)} tensors hold NaN, first {bad[0]}"
        raise bad_file(source, what, "the training that wrote it had diverged: use an earlier checkpoint")


def _misfit(report: LoadReport, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> CheckpointError:
    what = f"does not fit this model: {report.counts}\n{report.details}"
    if given and all(f"{PRETRANSFORM}{key}" in wanted for key in given):
        fix = "these are the weights of its pretransform alone: --pretransform-ckpt-path loads them"
    elif not report.loaded:
        fix = "not one tensor fits: build the model from the config that these weights were trained with"
    else:
        fix = f"Fine-tuning a changed architecture on purpose? --allow-partial loads what fits: {_tensor_count(report.loaded)}"
    return bad_file(source, what, fix)


def _tensor_count(number: int) -> str:
    return f"{number} tensor" if number == 1 else f"{number} tensors"


def _first(keys: tuple[str, ...]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (+{len(keys) - 1})"


def _listed(keys: Iterable[object], most: int = 6) -> str:
    names = [str(key) for key in keys]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"


# to a file


def save_model(
    path: str | PathLike[str],
    model: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights for inference as safetensors, with checksums; the file appears whole or not at all.

    Args:
        model: a module or its state_dict. Tensors that share memory are each written out, so every key is in the file.
        config: the model config; it goes into the header, so the file alone is enough to build the model.
        metadata: further texts for the header.

    Raises:
        OSError: no space, no permission and the like; what was at `path` stays.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    header = {**(metadata or {}), "format": "pt", CONFIG_KEY: json.dumps(config, ensure_ascii=False)}
    with atomic_file(Path(path)) as file:
        write_safetensors(file, _tensors(state), header)
