"""Train generative audio models from JSON configs. Public names are imported on first use, so that the command line starts fast.

What comments call upstream is Stability AI's stable-audio-tools 0.0.x, whose configs, weights and numbers are kept.
"""

from __future__ import annotations

import gc
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models.factory import create_model_from_config, load_model_config
    from .models.pretrained import get_pretrained_model

    __version__: str

_HOMES = {
    "create_model_from_config": ".models.factory",
    "load_model_config": ".models.factory",
    "get_pretrained_model": ".models.pretrained",
}

__all__ = ["__version__", "create_model_from_config", "get_pretrained_model", "load_model_config"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("stable-audio-tools")
    if name in _HOMES:
        return getattr(_import(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _import(module: str) -> ModuleType:
    """A module of this package, without a garbage collection in between.

    Importing leaves next to no garbage, and one walk over torch's objects takes as long as importing all of ours. torch itself comes
    first, as it would without us. `benchmarks/imports.py` measures it.
    """
    import torch  # noqa: F401

    collecting = gc.isenabled()
    gc.disable()
    try:
        return import_module(module, __name__)
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
