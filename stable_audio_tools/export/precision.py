"""A model's weights in half precision.

What rounding would turn into something else stays as it is: buffers, which are filters, rotary frequencies and codebook statistics,
and learned frequencies, which are multiplied by times and positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stable_audio_tools.models.checkpoint_error import bad_file
from stable_audio_tools.nn.embeddings import FourierFeatures, LearnedFrequencies

Precision = Literal["fp32", "fp16", "bf16"]

HALVES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
FREQUENCIES = (FourierFeatures, LearnedFrequencies)


def state_in(model: nn.Module, precision: Precision, source: str = "weights") -> dict[str, Tensor]:
    """The tensors of `model.state_dict()`; the model itself stays as it is.

    Args:
        precision: "fp32" leaves every tensor in the type that the model keeps it in.
        source: what the weights came from, for messages.

    Raises:
        CheckpointError: a weight is beyond what float16 can hold.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    if precision == "fp32":
        return state
    dtype, exact = HALVES[precision], _exact_names(model)
    halved = {name: tensor.to(dtype) if tensor.dtype == torch.float32 and name not in exact else tensor for name, tensor in state.items()}
    lost = [name for name, tensor in halved.items() if tensor.dtype != state[name].dtype and bool(tensor.isinf().any())]
    if lost:
        what = f"{len(lost)} of its tensors hold numbers beyond {torch.finfo(dtype).max:,.0f}, the largest of {precision}, first {lost[0]}"
        raise bad_file(source, what, "export it as bf16, whose range is that of fp32")
    return halved


def _exact_names(model: nn.Module) -> set[str]:
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    owners = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, FREQUENCIES)]
    return buffers | {f"{owner}.{name}" for owner in owners for name, _ in model.get_submodule(owner).named_parameters()}
