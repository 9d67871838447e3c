"""What training knows of its data when it starts, without reading them again: `data.json` of the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from stable_audio_tools.audio.io import shown
from stable_audio_tools.data.audio_dir import AudioDirDataset
from stable_audio_tools.data.check import check_data, folder_report
from stable_audio_tools.data.latent_folder import LatentFolder
from stable_audio_tools.data.pre_encoded import PreEncodedDataset
from stable_audio_tools.data.synthetic import SyntheticDataset
from stable_audio_tools.data.types import Fault

EXAMPLES = 20  # files that cannot be used, of each folder
LISTS = ("bad", "clipped", "caption_problems")  # of which the rest is only counted


def summarise(dataset: Any) -> list[dict[str, Any]]:
    """A JSON object for each folder: items, hours, rates, captions. Nothing for a dataset of another kind."""
    return [_short(report) for report in _reports(dataset)]


def _reports(dataset: Any) -> list[dict[str, Any]]:
    if isinstance(dataset, SyntheticDataset):
        return [report.to_dict() for report in check_data(dataset.config).folders]
    if isinstance(dataset, PreEncodedDataset):
        named = zip(dataset.config.datasets, dataset.folders, strict=True)
        return [_latents(item.id, folder, dataset.samples_per_frame, dataset.sample_rate) for item, folder in named]
    if isinstance(dataset, AudioDirDataset):
        pairs = zip(dataset.config.datasets, dataset.scans, strict=True)
        return [folder_report(item.id, scan, dataset.sample_rate).to_dict() for item, scan in pairs]
    return []


def _latents(name: str, folder: LatentFolder, samples_per_frame: int, sample_rate: int) -> dict[str, Any]:
    """A folder of stored latents. Which items have a caption is not known without reading what lies beside each."""
    facts = folder.facts
    seconds = [frames * samples_per_frame / sample_rate for frames in folder.valid]
    return {
        "id": name,
        "path": shown(folder.root),
        "files": len(folder),
        "hours": sum(seconds) / 3600,
        "seconds": _spread(seconds),
        "frames": _spread(folder.frames),
        "kind": "tokens" if facts.tokens else "distributions" if facts.distribution else "latents",
        "encoder": facts.encoder,
        "bad": _faults(folder.bad),
    }


def _spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Shortest, median, longest."""
    return (min(values), median(values), max(values)) if values else None


def _faults(bad: Sequence[Fault]) -> list[tuple[str, str]]:
    return [(fault.path, fault.cause) for fault in bad]


def _short(report: dict[str, Any]) -> dict[str, Any]:
    """The same with long lists cut, and counted."""
    lists = {name: report[name] for name in LISTS if name in report}
    return report | {name: rows[:EXAMPLES] for name, rows in lists.items()} | {f"num_{name}": len(rows) for name, rows in lists.items()}
