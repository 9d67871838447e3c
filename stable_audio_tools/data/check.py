"""What a dataset holds, for people and for machines: the figures behind `check --data`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from stable_audio_tools.audio.io import AudioInfo, shown
from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.data.audio_dir import AudioDirConfig
from stable_audio_tools.data.latent_folder import LatentFolder
from stable_audio_tools.data.latent_report import LatentReport, latent_report
from stable_audio_tools.data.latent_tars import latent_tars
from stable_audio_tools.data.pre_encoded import PreEncodedConfig
from stable_audio_tools.data.scan import Progress, Scan
from stable_audio_tools.data.synthetic import SyntheticConfig
from stable_audio_tools.data.webdataset import WebDatasetConfig

BOUNDS_S = (1, 3, 10, 30, 60, 180, 600)  # of the groups that lengths are counted in
LISTED = 20  # clipped files and groups of duplicates that people are shown of each folder
BAR = 40  # characters of the longest bar


@dataclass(frozen=True)
class FolderReport:
    """One folder.

    files: usable ones, or items. hours, seconds (shortest, median, longest): of these. sample_rates, channels, formats, lengths:
    how many files have which, the most frequent first. upsampled: files below the model's rate, in which the highest
    frequencies are missing. clipped: usable files that reach full scale and stay there, with how many samples. silent: how many of
    `bad` are that. bad, caption_problems: as in `Scan`. others: files that are no audio, by extension.
    """

    id: str
    path: str
    files: int
    captioned: int
    hours: float = 0.0
    seconds: tuple[float, float, float] | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    sample_rates: dict[str, int] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    upsampled: int = 0
    clipped: tuple[tuple[str, int], ...] = ()
    silent: int = 0
    bad: tuple[tuple[str, str], ...] = ()
    caption_problems: tuple[str, ...] = ()
    others: dict[str, int] = field(default_factory=dict)

    @property
    def uncaptioned(self) -> int:
        return self.files - self.captioned

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "uncaptioned": self.uncaptioned}

    def lines(self) -> list[str]:
        """For people."""
        found = self.files + len(self.bad)
        text = [f"{self.id}: {self.path}", f"  {self.files} of {found} audio files can be used, {self.hours:.2f} hours"]
        if self.seconds:
            shortest, middle, longest = self.seconds
            text.append(f"  length {shortest:.2f} to {longest:.2f} s, median {middle:.2f} s")
            text += [f"    {group:>9} {count:>8} {_bar(count, self.lengths)}" for group, count in self.lengths.items()]
        for name in ("sample_rates", "channels", "formats", "others"):
            counts = getattr(self, name)
            if counts:
                text.append(f"  {name.replace('_', ' ')}: {', '.join(f'{what} ({count})' for what, count in counts.items())}")
        text.append(f"  captions: {self.captioned} with, {self.uncaptioned} without")
        if self.upsampled:
            text.append(f"  {self.upsampled} files are below the model's sample rate and lack its highest frequencies")
        text += _some([f"  clipped: {path}: {samples} samples at full scale" for path, samples in self.clipped])
        if self.bad:
            text.append(f"  bad: {len(self.bad)}, of which {self.silent} silent")
        text += [f"  bad: {path}: {cause}" for path, cause in self.bad]
        return text + [f"  caption: {problem}" for problem in self.caption_problems]


@dataclass(frozen=True)
class DataReport:
    """All folders of a dataset config. duplicates: groups of files, in any of them, that hold the same samples."""

    folders: tuple[FolderReport | LatentReport, ...]
    duplicates: tuple[tuple[str, ...], ...] = ()

    @property
    def usable(self) -> bool:
        """Whether every folder has something to train on."""
        return all(folder.files for folder in self.folders)

    def to_dict(self) -> dict[str, Any]:
        """For machines: only what JSON knows."""
        return {"usable": self.usable, "folders": [folder.to_dict() for folder in self.folders], "duplicates": self.duplicates}

    def lines(self) -> list[str]:
        twice = sum(len(group) - 1 for group in self.duplicates)
        said = [f"duplicates: {twice} files hold the same samples as another one"] if twice else []
        groups = [f"  the same: {', '.join(group)}" for group in self.duplicates]
        return [*(line for folder in self.folders for line in folder.lines()), *said, *_some(groups)]


def check_data(
    config: StrictModel, *, sample_rate: int | None = None, thorough: bool = False, progress: Progress | None = None
) -> DataReport:
    """Look over the data of a dataset config.

    Args:
        sample_rate: the model's, in Hz.
        thorough: read all of every file, which also finds clipped and duplicate ones.
        progress: as `scan_folder` takes it.

    Raises:
        ConfigError: a folder, or its table of captions, cannot be read.
    """
    if isinstance(config, SyntheticConfig):
        return DataReport((_synthetic(config),))
    if isinstance(config, PreEncodedConfig):
        return latents_report(config, config.folders(), sample_rate=sample_rate, thorough=thorough)
    if isinstance(config, WebDatasetConfig) and config.pre_encoded:
        return latents_report(config, [latent_tars(shards) for shards in config.shards()], sample_rate=sample_rate, thorough=thorough)
    if not isinstance(config, AudioDirConfig):
        return DataReport(())
    scans = config.scans(thorough=thorough, progress=progress)
    named = zip(config.datasets, scans, strict=True)
    return DataReport(tuple(folder_report(item.id, scan, sample_rate) for item, scan in named), duplicates(scans))


def folder_report(name: str, scan: Scan, sample_rate: int | None = None) -> FolderReport:
    infos = [*scan.infos()]
    lengths = [info.seconds for info in infos]
    heard = zip(scan.files, scan.sounds, strict=True) if scan.sounds else ()
    return FolderReport(
        id=name,
        path=shown(scan.root),
        files=len(infos),
        captioned=len(infos) - scan.uncaptioned,
        hours=sum(lengths) / 3600,
        seconds=_range(lengths),
        lengths=_by_length(lengths),
        sample_rates=_by_count(f"{info.sample_rate} Hz" for info in infos),
        channels=_by_count(str(info.channels) for info in infos),
        formats=_by_count(f"{info.container} {info.codec}" for info in infos),
        upsampled=sum(info.sample_rate < (sample_rate or 0) for info in infos),
        clipped=tuple((shown(file.path), sound.clipped) for file, sound in heard if sound.clipped),
        silent=scan.silent,
        bad=tuple((fault.path, fault.cause) for fault in scan.bad),
        caption_problems=scan.caption_problems,
        others=_by_count(scan.others),
    )


def latents_report(
    config: PreEncodedConfig | WebDatasetConfig, folders: Sequence[LatentFolder], *, sample_rate: int | None, thorough: bool
) -> DataReport:
    known = {"samples_per_frame": config.samples_per_frame, "sample_rate": sample_rate}
    names = [item.id for item in config.datasets]
    pairs = zip(names, folders, strict=True)
    return DataReport(tuple(latent_report(name, folder, thorough=thorough, **known) for name, folder in pairs))


def duplicates(scans: Iterable[Scan]) -> tuple[tuple[str, ...], ...]:
    """Groups of files that hold the same samples at the same rate, where all was read; of whatever folder and format."""
    same: defaultdict[tuple[int, int, int, int], list[str]] = defaultdict(list)
    for scan in scans:
        for file, sound in zip(scan.files, scan.sounds, strict=True) if scan.sounds else ():
            info: AudioInfo = file.info
            same[info.frames, info.sample_rate, info.channels, sound.checksum].append(shown(file.path))
    return tuple(tuple(group) for group in same.values() if len(group) > 1)


def _synthetic(config: SyntheticConfig) -> FolderReport:
    """The items of the pool; how long they are is known where the config says it."""
    bounds = config.seconds if isinstance(config.seconds, tuple) else (config.seconds,) * 2
    seconds = (bounds[0], (bounds[0] + bounds[1]) / 2, bounds[1]) if bounds[0] is not None and bounds[1] is not None else None
    combinations = len(config.combinations(config.split))
    return FolderReport(
        id="synthetic",
        path=f"made on the fly, of {combinations} combinations of instrument, note and loudness",
        files=config.num_items,
        captioned=config.num_items,
        hours=config.num_items * seconds[1] / 3600 if seconds else 0.0,
        seconds=seconds,
    )


def _range(lengths: Sequence[float]) -> tuple[float, float, float] | None:
    return (min(lengths), median(lengths), max(lengths)) if lengths else None


def _by_count(names: Iterable[str] | Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _by_length(lengths: Sequence[float]) -> dict[str, int]:
    """How many lengths lie between the bounds, in their order; empty groups are left out."""
    groups = Counter(sum(length >= bound for bound in BOUNDS_S) for length in lengths)
    edges = ("0", *map(str, BOUNDS_S), "")
    return {f"{edges[i]}-{edges[i + 1]} s" if edges[i + 1] else f"over {edges[i]} s": groups[i] for i in sorted(groups)}


def _bar(count: int, counts: Mapping[str, int]) -> str:
    return "#" * max(1, round(BAR * count / max(counts.values())))


def _some(lines: Sequence[str]) -> list[str]:
    return [*lines[:LISTED], *([f"  and {len(lines) - LISTED} more"] if len(lines) > LISTED else [])]
