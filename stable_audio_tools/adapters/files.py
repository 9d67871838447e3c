"""Adapter files, recognised by what is in them: those of peft, and of Stable Audio 3.

peft writes `base_model.model.<module>.lora_A.weight` beside an `adapter_config.json`. Stable Audio 3 writes
`<module>.parametrizations.weight.0.lora_A`, its settings in the header's `lora_config`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from torch import Tensor

from stable_audio_tools.adapters.low_rank import LowRankUpdate
from stable_audio_tools.models.checkpoint_error import bad_file
from stable_audio_tools.models.checkpoints import LoadedWeights, load_weights

PEFT_PREFIX = "base_model.model."
PEFT_KEY = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(?!bias$)\w+)*")
SA3_KEY = re.compile(r"(.+)\.parametrizations\.weight\.(\d+)\.(lora_A|lora_B|M_xs|magnitude|magnitude_r|magnitude_c|baked_vnorm_row)")
SA3_KINDS = tuple(f"{kind}{suffix}" for kind in ("lora", "dora", "dora-rows", "dora-cols", "bora") for suffix in ("", "-xs"))


@dataclass(frozen=True)
class Adapter:
    """The updates that a file holds.

    updates: by the name of the module whose `weight` moves; names may be those inside a part of the model.
    replacements: whole tensors that take the place of the model's, by their key: biases and modules that were trained along.
    kind: such as "lora" or "dora-rows".
    rank: of the updates; the largest where they differ.
    source: the file's name.
    """

    updates: Mapping[str, LowRankUpdate]
    replacements: Mapping[str, Tensor]
    kind: str
    rank: int
    source: str


def read_adapter(file: str | PathLike[str] | LoadedWeights) -> Adapter:
    """The adapter in a file.

    Raises:
        CheckpointError: there is no such file, it is damaged, no adapter, one of a kind that is not known here, or one that was
            never trained.
    """
    weights = file if isinstance(file, LoadedWeights) else load_weights(file)
    if weights.kind != "adapter":
        raise bad_file(weights.source, "no adapter: weights of a whole model", "load it as a model, and name the adapter's file here")
    if weights.settings is None:
        fix = "put the adapter_config.json that was saved with it beside it"
        raise bad_file(weights.source, "an adapter that does not say its scale (alpha)", fix)
    stacked = any(SA3_KEY.fullmatch(key) for key in weights.state_dict)
    adapter = _of_stable_audio_3(weights, weights.settings) if stacked else _of_peft(weights, weights.settings)
    _refuse_broken(adapter)
    return adapter


def _of_peft(weights: LoadedWeights, settings: Mapping[str, Any]) -> Adapter:
    kind = str(settings.get("peft_type", "LORA")).lower()
    if kind != "lora":
        fix = "merge it where it was made (merge_and_unload) and load the merged weights"
        raise bad_file(weights.source, f"an adapter of kind {kind}; of peft's, lora with its options is read", fix)
    parts: dict[str, dict[str, Tensor]] = {}
    replacements = {}
    for key, tensor in weights.state_dict.items():
        key = key.removeprefix(PEFT_PREFIX)
        if found := PEFT_KEY.fullmatch(key):
            parts.setdefault(found[1], {})[found[2]] = tensor
        elif ".lora_" in key:
            fix = "train without lora_bias, or merge it where it was made"
            raise bad_file(weights.source, f"holds {key}, which is not understood", fix)
        else:
            replacements[re.sub(r"\.(base_layer|modules_to_save(\.\w+)?)(?=\.)", "", key)] = tensor
    updates = {target: _peft_update(target, found, settings, weights.source) for target, found in parts.items()}
    kind = "dora" if settings.get("use_dora") else "rslora" if settings.get("use_rslora") else "lora"
    return _adapter(updates, replacements, kind, weights.source)


def _peft_update(target: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> LowRankUpdate:
    if "lora_embedding_A" in parts:  # an embedding's weight is (entries, width), the transpose of a linear layer's
        parts = {**parts, "lora_A": parts["lora_embedding_B"].T, "lora_B": parts["lora_embedding_A"].T}
    down, up = _pair(target, parts, source)
    alpha = _by_pattern(target, settings.get("alpha_pattern") or {}, settings.get("lora_alpha"))
    if alpha is None:
        raise bad_file(source, "its settings have no lora_alpha", "put the adapter_config.json that was saved with it beside it")
    scale = alpha / (math.sqrt(len(down)) if settings.get("use_rslora") else len(down))
    rows = parts.get("lora_magnitude_vector")
    return LowRankUpdate(down, up, scale, rows=None if rows is None else rows.flatten())


def _by_pattern(target: str, patterns: Mapping[str, float], default: float | None) -> float | None:
    """peft's rule: the first pattern that the end of the module's name matches."""
    return next((value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", target)), default)


def _of_stable_audio_3(weights: LoadedWeights, settings: Mapping[str, Any]) -> Adapter:
    kind = settings.get("adapter_type", "lora")
    if kind not in SA3_KINDS:
        raise bad_file(weights.source, f"an adapter of kind {kind!r}; known: {', '.join(SA3_KINDS)}", "merge it where it was made")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.state_dict.items():
        found = SA3_KEY.fullmatch(key)
        if found is None:
            raise bad_file(weights.source, f"holds {key}, which is no part of an adapter", "save the adapter alone")
        parts.setdefault(f"{found[1]}/{found[2]}", {})[found[3]] = tensor
    if len({name.rpartition("/")[2] for name in parts}) > 1:
        raise bad_file(weights.source, "holds several adapters at once", "save each in a file of its own")
    updates = {}
    for name, found_parts in parts.items():
        target = name.rpartition("/")[0]
        updates[target] = _sa3_update(target, found_parts, settings, weights.source)
    return _adapter(updates, {}, _sa3_kind(kind, parts), weights.source)


def _sa3_update(target: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> LowRankUpdate:
    core = parts.get("M_xs")
    down, up = (None, None) if core is not None else _pair(target, parts, source)
    rank = len(core if core is not None else down)  # type: ignore[arg-type]  # one of them is there
    scale = settings.get("alpha", rank) / settings.get("rank", rank)
    by_column = _sa3_kind(settings.get("adapter_type", "lora"), {target: parts}).startswith("dora-cols")
    one = parts.get("magnitude")
    rows, columns = (None, one) if by_column else (one, None)
    rows, columns = parts.get("magnitude_r", rows), parts.get("magnitude_c", columns)
    rows, columns = (None if vector is None else vector.flatten() for vector in (rows, columns))
    return LowRankUpdate(down, up, scale, core, rows, columns, parts.get("baked_vnorm_row"))


def _sa3_kind(kind: str, parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Early files say "dora" and show in the magnitude's shape, (1, in) or (out, 1), which of the two it is; later ones mean rows."""
    if not re.fullmatch("dora(-xs)?", kind):
        return kind
    magnitudes = [found["magnitude"] for found in parts.values() if "magnitude" in found]
    by_column = any(m.ndim == 2 and m.shape[0] == 1 for m in magnitudes)
    return kind.replace("dora", "dora-cols" if by_column else "dora-rows")


def _pair(target: str, parts: Mapping[str, Tensor], source: str) -> tuple[Tensor, Tensor]:
    """lora_A as (rank, in) and lora_B as (out, rank)."""
    if missing := [name for name in ("lora_A", "lora_B") if name not in parts]:
        raise bad_file(source, f"has no {missing[0]} for {target}", "it is not whole: copy it again")
    down, up = parts["lora_A"].flatten(1), parts["lora_B"].flatten(1)
    if len(down) != up.shape[1]:
        what = f"lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} of {target} differ in rank"
        raise bad_file(source, what, "save the adapter again")
    return down, up


def _adapter(updates: Mapping[str, LowRankUpdate], replacements: Mapping[str, Tensor], kind: str, source: str) -> Adapter:
    if not updates:
        raise bad_file(source, "an adapter without any update", "save it again after training")
    ranks = [len(update.down if update.down is not None else update.core) for update in updates.values()]  # type: ignore[arg-type]
    return Adapter(updates, replacements, kind, max(ranks), source)


def _refuse_broken(adapter: Adapter) -> None:
    tensors = [tensor for update in adapter.updates.values() for tensor in update.tensors]
    if any(not bool(tensor.isfinite().all()) for tensor in tensors):
        raise bad_file(adapter.source, "holds NaN or infinite numbers", "the training that wrote it had diverged: use an earlier one")
    deltas = [update.core if update.core is not None else update.up for update in adapter.updates.values()]
    if not any(bool(delta.any()) for delta in deltas if delta is not None):
        raise bad_file(adapter.source, "an adapter that changes nothing: all its updates are zero", "train it, or leave it out")
