"""Adapters: small updates of a trained model's weights, in files of their own; `read_adapter` and `merge_adapter`."""

from stable_audio_tools.adapters.files import Adapter, read_adapter
from stable_audio_tools.adapters.loading import AdapterFile, load_with_adapters
from stable_audio_tools.adapters.low_rank import LowRankUpdate
from stable_audio_tools.adapters.merge import MergeReport, merge_adapter

__all__ = ["Adapter", "AdapterFile", "LowRankUpdate", "MergeReport", "load_with_adapters", "merge_adapter", "read_adapter"]
