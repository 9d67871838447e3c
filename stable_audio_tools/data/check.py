"""What a dataset holds, for people and for machines: the figures behind `check --data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from stable_audio_tools.audio.io import shown
from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.data.audio_dir import AudioDirConfig
from stable_audio_tools.data.scan import Scan

BOUNDS_S = (1, 3, 10, 30, 60, 180, 600)  # of the groups that lengths are counted in


@dataclass(frozen=True)
class FolderReport:
    """One folder.

    files: usable ones. hours, seconds (shortest, median, longest): of these. sample_rates, channels, formats, lengths: how
    many files have which, the most frequent first. upsampled: files below the model's rate, in which the highest
    frequencies are missing. bad, caption_problems: as in `Scan`. others: files that are no audio, by extension.
    """

    id: str
    path: str
    files: int
    hours: float
    seconds: tuple[float, float, float] | None
    sample_rates: dict[str, int]
    channels: dict[str, int]
    formats: dict[str, int]
    lengths: dict[str, int]
    captioned: int
    uncaptioned: int
    upsampled: int
    bad: tuple[tuple[str, str], ...]
    caption_problems: tuple[str, ...]
    others: dict[str, int]

    def lines(self) -> list[str]:
        """For people."""
        found = self.files + len(self.bad)
        text = [f"{self.id}: {self.path}", f"  {self.files} of {found} audio files can be used, {self.hours:.2f} hours"]
        if self.seconds:
            shortest, middle, longest = self.seconds
            text.append(f"  length {shortest:.2f} to {longest:.2f} s, median {middle:.2f} s")
        for name in ("lengths", "sample_rates", "channels", "formats", "others"):
            counts = getattr(self, name)
            if counts:
                text.append(f"  {name.replace('_', ' ')}: {', '.join(f'{what} ({count})' for what, count in counts.items())}")
        text.append(f"  captions: {self.captioned} with, {self.uncaptioned} without")
        if self.upsampled:
            text.append(f"  {self.upsampled} files are below the model's sample rate and lack its highest frequencies")
        text += [f"  bad: {path}: {cause}" for path, cause in self.bad]
        return text + [f"  caption: {problem}" for problem in self.caption_problems]


@dataclass(frozen=True)
class DataReport:
    """All folders of a dataset config; none for a dataset that is made on the fly."""

    folders: tuple[FolderReport, ...]

    @property
    def usable(self) -> bool:
        """Whether every folder has something to train on."""
        return all(folder.files for folder in self.folders)

    def to_dict(self) -> dict[str, Any]:
        """For machines: only what JSON knows."""
        return {"usable": self.usable, "folders": [asdict(folder) for folder in self.folders]}

    def lines(self) -> list[str]:
        return [line for folder in self.folders for line in folder.lines()]


def check_data(config: StrictModel, *, sample_rate: int | None = None, thorough: bool = False) -> DataReport:
    """Look over the data of a dataset config.

    Args:
        sample_rate: the model's, in Hz.
        thorough: read all of every file.

    Raises:
        ConfigError: a folder, or its table of captions, cannot be read.
    """
    if not isinstance(config, AudioDirConfig):
        return DataReport(())
    scans = zip(config.datasets, config.scans(thorough=thorough), strict=True)
    return DataReport(tuple(folder_report(item.id, scan, sample_rate) for item, scan in scans))


def folder_report(name: str, scan: Scan, sample_rate: int | None = None) -> FolderReport:
    infos = [file.info for file in scan.files]
    lengths = sorted(info.seconds for info in infos)
    return FolderReport(
        id=name,
        path=shown(scan.root),
        files=len(infos),
        hours=sum(lengths) / 3600,
        seconds=(lengths[0], median(lengths), lengths[-1]) if lengths else None,
        sample_rates=_by_count(f"{info.sample_rate} Hz" for info in infos),
        channels=_by_count(str(info.channels) for info in infos),
        formats=_by_count(f"{info.container} {info.codec}" for info in infos),
        lengths=_by_length(lengths),
        captioned=len(infos) - scan.uncaptioned,
        uncaptioned=scan.uncaptioned,
        upsampled=sum(info.sample_rate < (sample_rate or 0) for info in infos),
        bad=tuple((fault.path, fault.cause) for fault in scan.bad),
        caption_problems=scan.caption_problems,
        others=_by_count(scan.others),
    )


def _by_count(names: Iterable[str] | Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _by_length(lengths: list[float]) -> dict[str, int]:
    """How many lengths lie between the bounds, in their order; empty groups are left out."""
    groups = Counter(sum(length >= bound for bound in BOUNDS_S) for length in lengths)
    edges = ("0", *map(str, BOUNDS_S), "")
    return {f"{edges[i]}-{edges[i + 1]} s" if edges[i + 1] else f"over {edges[i]} s": groups[i] for i in sorted(groups)}
