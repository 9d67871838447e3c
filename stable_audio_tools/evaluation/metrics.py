"""Metrics by name. A new one is a function from a comparison to measures and a line here; a plugin calls `register_metric`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

from . import pairs
from .comparison import NEEDS, Comparison, Need
from .measure import Measure
from .memorisation import memorisation
from .ratings import ratings
from .set_distances import frechet, frechet_infinity, kad, kernel
from .sound_statistics import sound_statistics
from .text_agreement import text_score


@dataclass(frozen=True)
class Metric:
    """A family of measures that is asked for by one name.

    compute: all its measures. Called only where `needs` are met.
    needs: what must be there to compare with.
    description: what it says, in a few words.
    package: what must be installed, by its name for `import`, and its fix.
    """

    compute: Callable[[Comparison], list[Measure]]
    needs: tuple[Need, ...]
    description: str
    package: tuple[str, str] | None = None

    @property
    def is_installed(self) -> bool:
        return self.package is None or find_spec(self.package[0]) is not None


TWO_SETS: tuple[Need, ...] = ("reference", "embedder")
PESQ, STOI = ("pesq", 'pip install -e ".[pesq]"'), ("pystoi", "pip install pystoi")

METRICS: dict[str, Metric] = {
    "frechet": Metric(frechet, TWO_SETS, "Fréchet distance between two sets"),
    "frechet_infinity": Metric(frechet_infinity, TWO_SETS, "Fréchet distance, extrapolated to endlessly many clips"),
    "kernel": Metric(kernel, TWO_SETS, "kernel distance between two sets, polynomial kernel"),
    "kad": Metric(kad, TWO_SETS, "kernel distance between two sets, Gaussian kernel"),
    "statistics": Metric(sound_statistics, (), "loudness, peaks, clipping, silence, spectrum, stereo image; and distances of each"),
    "text_score": Metric(text_score, ("prompts", "text_embedder"), "how well clips fit their prompts (CLAP score)"),
    "ratings": Metric(ratings, ("rating_embedder",), "how people would rate the clips"),
    "memorisation": Metric(memorisation, ("training",), "copies of training clips, and the nearest of them to each clip"),
    "mrstft": Metric(pairs.mrstft, ("pairs",), "distance of spectra at several resolutions"),
    "mel": Metric(pairs.mel, ("pairs",), "distance of mel spectra at several resolutions"),
    "si_sdr": Metric(pairs.signal_to_distortion, ("pairs",), "scale-invariant signal-to-distortion ratio"),
    "l1": Metric(pairs.l1, ("pairs",), "mean absolute difference of samples"),
    "pesq": Metric(pairs.pesq, ("pairs",), "perceptual speech quality", PESQ),
    "stoi": Metric(pairs.stoi, ("pairs",), "intelligibility of speech", STOI),
}
DEFAULT_METRICS: tuple[str, ...] = (
    *("frechet", "kernel", "statistics", "text_score", "ratings", "memorisation"),
    *("mrstft", "mel", "si_sdr", "l1"),
)
"""What is computed where nothing is asked for, as far as it fits."""


def register_metric(name: str, metric: Metric) -> None:
    """Add a metric, from a plugin.

    Raises:
        ValueError: the name is taken.
    """
    if METRICS.setdefault(name, metric) is not metric:
        raise ValueError(f"metric {name!r} is already registered")


def choose_metrics(names: Iterable[str] | None, there: Collection[Need]) -> tuple[str, ...]:
    """The metrics to compute, checked before anything is generated.

    Args:
        names: what was asked for; None: the default ones that fit.
        there: what the clips will be compared with.

    Raises:
        ConfigError: there is no such metric, or it needs what is not there. All problems at once.
    """
    if names is None:
        return tuple(name for name in DEFAULT_METRICS if set(METRICS[name].needs) <= set(there))
    names = tuple(dict.fromkeys(names))
    problems = [problem for name in names for problem in _problems(name, there)]
    if problems:
        raise ConfigError(problems, source="metrics")
    return names


def _problems(name: str, there: Collection[Need]) -> Iterable[Problem]:
    if name not in METRICS:
        yield Problem((), f"there is no metric {name!r}", did_you_mean(name, METRICS))
        return
    for need in METRICS[name].needs:
        if need not in there:
            yield Problem((), f"{name!r} needs {NEEDS[need]}, and there is none", f"give it, or leave {name!r} out")
    if not METRICS[name].is_installed:
        package, fix = METRICS[name].package or ("", "")
        yield Problem((), f"{name!r} needs the package {package}, which is not installed", f"{fix}, or leave {name!r} out")


def measure(names: Iterable[str], comparison: Comparison) -> list[Measure]:
    """All measures of the metrics named, in their order.

    Raises:
        ConfigError: as `choose_metrics`.
    """
    chosen = choose_metrics(names, comparison.needs_met)
    return [measure for name in chosen for measure in METRICS[name].compute(comparison)]


def descriptions() -> Mapping[str, str]:
    """What each metric says, for help texts."""
    return {name: metric.description for name, metric in METRICS.items()}
