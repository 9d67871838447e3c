"""The deterministic weights behind `tests/reference/`: recorded numbers of an implementation that is not ours.

A reference is three files: `<name>.json` (the model config), `<name>.statedict.json` (key -> [shape, dtype, param or buffer, rule])
and `<name>.safetensors` (`in.*` inputs, `out.*` outputs that no random draw touches). The outputs were computed with the weights
`fill` writes, in eval mode, float32, on a CPU. `k` in the rule is a key's place among all sorted keys:

    base[n] = cos(2 pi u / 1009),  u = (7 n^2 + 37 n + 101 k) mod 1009
    fan   = sqrt(2) base / sqrt(fan_in)    unit = 1 + base / 10    small = base / 10    code = base    one = 1    keep = as constructed
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "reference"
Table = dict[str, list[Any]]


@dataclass(frozen=True)
class Reference:
    """One recorded model: its config, its state_dict table, its tensors and the digest of the filled weights."""

    config: dict[str, Any]
    table: Table
    tensors: dict[str, Tensor]
    digest: str

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]


def load_reference(name: str) -> Reference:
    """Read `tests/reference/<name>.*`."""
    config, table = (json.loads((FOLDER / f"{name}{suffix}").read_text()) for suffix in (".json", ".statedict.json"))
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return Reference(config, table, {key: file.get_tensor(key) for key in file.keys()}, file.metadata()["weights_sha256"])  # noqa: SIM118


def rule_value(kind: str, like: Tensor, index: int) -> Tensor:
    """The values of one entry; `index` is its key's place among all sorted keys."""
    n = torch.arange(like.numel(), dtype=torch.int64)
    base = torch.cos(2 * math.pi * ((7 * n * n + 37 * n + 101 * index) % 1009).double() / 1009)
    if kind == "fan":
        base = math.sqrt(2) * base / math.sqrt(like.numel() / like.shape[0])
    elif kind == "unit":
        base = 1 + 0.1 * base
    elif kind == "small":
        base = 0.1 * base
    elif kind == "one":
        base = torch.ones_like(base)
    elif kind != "code":
        raise ValueError(f"unknown weight rule {kind!r}")
    return base.reshape(like.shape).to(like.dtype)


@torch.no_grad()
def fill(model: nn.Module, reference: Reference) -> None:
    """Write the rule's weights into `model` and check them against the recorded digest."""
    state, digest = model.state_dict(keep_vars=True), hashlib.sha256()
    for index, key in enumerate(sorted(reference.table)):
        kind = reference.table[key][3]
        if kind != "keep":
            state[key].data.copy_(rule_value(kind, state[key], index))
            digest.update(state[key].detach().contiguous().numpy().tobytes())
    assert digest.hexdigest() == reference.digest


def assert_same_layout(model: nn.Module, table: Table) -> None:
    """Keys, shapes and dtypes of the state_dict are exactly those of `table`."""
    got = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()}
    assert got == {key: entry[:2] for key, entry in table.items()}


def assert_matches(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    """Same shape, and max|got - want| <= tolerance * (1 + max|want|)."""
    assert got.shape == want.shape
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * (1 + float(want.abs().max())))
