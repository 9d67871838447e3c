"""Names that scripts for stable-audio-tools 0.0.x import: loading weights, and folding weight normalisation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from stable_audio_tools.models.checkpoints import LoadReport, load_weights, match_weights

log = logging.getLogger(__name__)


def load_ckpt_state_dict(ckpt_path: str | PathLike[str]) -> dict[str, Tensor]:
    """The model's weights in a file of any kind, under the model's own keys; averaged ones where a training checkpoint has them.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or holds no weights.
    """
    return load_weights(ckpt_path).state_dict


def copy_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copy the tensors that have the name and shape of one of the model's; warn of the rest and report it.

    `models.checkpoints.load_into` refuses a file that does not fit, which is what one wants more often.
    """
    wanted = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    matched, report = match_weights(state_dict, wanted, source="copied weights")
    model.load_state_dict(matched, strict=False)
    if not report.complete:
        log.warning("%s", report)
    return report


def remove_weight_norm_from_model(model: nn.Module) -> nn.Module:
    """Fold every weight normalisation into a plain weight, in place; outputs stay the same. Returns `model`.

    Our own layers do it themselves; layers of other packages may carry either of torch's two forms.
    """
    for module in list(model.modules()):
        own = getattr(module, "remove_weight_norm", None)
        if callable(own):
            own()
        elif parametrize.is_parametrized(module, "weight") and _is_weight_norm(module):
            parametrize.remove_parametrizations(module, "weight")
        elif any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):
            remove_weight_norm(module)
    return model


def _is_weight_norm(module: nn.Module) -> bool:
    return any(type(p).__name__ == "_WeightNorm" for p in module.parametrizations.weight)  # type: ignore[union-attr]
