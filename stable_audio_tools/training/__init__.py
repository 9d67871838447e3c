"""Training: hosts, strategies, losses, demos. The only subpackage besides `cli` that imports Lightning."""

from typing import Any

__all__ = ["create_demo_callback_from_config", "create_training_wrapper_from_config"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from stable_audio_tools.training import factory

        return getattr(factory, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
