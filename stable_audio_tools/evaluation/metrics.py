"""Metrics by name. A new one is a function from a comparison to measures and a line here; a plugin calls `register_metric`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

from .comparison import NEEDS, Comparison, Need
from .measure import Measure
from .set_distances import frechet, frechet_infinity, kad, kernel


@dataclass(frozen=True)
class Metric:
    """A family of measures that is asked for by one name.

    compute: all its measures. Called only where `needs` are met.
    needs: what must be there to compare with.
    embeds: one measure for each embedder; without an embedder there is none.
    description: what it says, in a few words.
    """

    compute: Callable[[Comparison], list[Measure]]
    needs: tuple[Need, ...]
    description: str
    embeds: bool = False


METRICS: dict[str, Metric] = {
    "frechet": Metric(frechet, ("reference",), "Fréchet distance between two sets", embeds=True),
    "frechet_infinity": Metric(frechet_infinity, ("reference",), "Fréchet distance, extrapolated to endlessly many clips", embeds=True),
    "kernel": Metric(kernel, ("reference",), "kernel distance between two sets, polynomial kernel", embeds=True),
    "kad": Metric(kad, ("reference",), "kernel distance between two sets, Gaussian kernel", embeds=True),
}
DEFAULT_METRICS: tuple[str, ...] = ("frechet", "kernel")
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
