"""The training strategies a config can name; others come from plugins through `STRATEGIES.register`."""

from stable_audio_tools.configs.base import Family
from stable_audio_tools.training.strategies.base import LatentBatch, LossOutput, TrainingStrategy, Update
from stable_audio_tools.training.strategies.supervised import SupervisedConfig

STRATEGIES = Family("training strategy", SupervisedConfig, key="name")

__all__ = ["STRATEGIES", "LatentBatch", "LossOutput", "TrainingStrategy", "Update"]
