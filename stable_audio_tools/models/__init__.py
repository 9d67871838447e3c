"""Models, from config to weights. Public names are imported on first use, so that a part can be imported without the whole."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .factory import create_model_from_config, create_model_from_config_path
    from .pretrained import get_pretrained_model

_HOMES = {"create_model_from_config": ".factory", "create_model_from_config_path": ".factory", "get_pretrained_model": ".pretrained"}

__all__ = ["create_model_from_config", "create_model_from_config_path", "get_pretrained_model"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
