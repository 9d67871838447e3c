"""`training.evaluation`: what is measured while training runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from pydantic import Field

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.evaluation.comparison import Comparison, Need
from stable_audio_tools.evaluation.embedders import build_embedder, check_embedder_name
from stable_audio_tools.evaluation.metrics import DEFAULT_METRICS, METRICS, choose_metrics
from stable_audio_tools.evaluation.model_clips import Sampling

LACKING = {"steps": "a sampler", "cfg_scale": "guidance"}
DESCRIPTIVE = ("statistics", "memorisation")  # not measured unless asked for: many numbers, or much time
OWN = "latents"  # the embedder that is the model's own, where no other is named
NUM_CLIPS = 64  # chosen: enough to rank the steps of one training by log-mel statistics; a final figure takes more


class PeriodicEvaluationConfig(StrictModel):
    """Clips made by the sampling weights (EMA where there are any) are measured beside those of a dataset, and logged as `eval/<name>`."""

    every: int = Field(gt=0, description="train steps between two evaluations; the last step is evaluated too")
    metrics: tuple[str, ...] | None = Field(
        None, min_length=1, description="as --metrics of evaluate; default: distances, and what compares pairs"
    )
    embedder: str = Field("log_mel", description='what distances of sets are taken in, as "NAME" or "NAME:PATH"')
    num_clips: int | None = Field(
        None, ge=2, description=f"clips made each time, for the first items of the data; default: {NUM_CLIPS}, or all if there are fewer"
    )
    batch_size: int = Field(8, gt=0, description="clips made at once; it changes none of them")
    steps: int | None = Field(None, gt=0, description="sampler steps; default: demo.demo_steps")
    cfg_scale: float | None = Field(None, ge=0, description="guidance, 1 is none; default: the first of demo.demo_cfg_scales")
    seed: int = Field(0, ge=0, description="of the clips' noise, which is the same each time")
    dataset: str | None = Field(None, description="file of a dataset config, of audio; default: the validation data")

    def problems(self, demo: Any) -> Iterator[Problem]:
        """What does not fit this kind of training, which its `demo` section tells: whether it samples, and whether it is guided."""
        for key, counterpart in (("steps", "demo_steps"), ("cfg_scale", "demo_cfg_scales")):
            if getattr(self, key) is not None and not hasattr(demo, counterpart):
                yield Problem((key,), f"no effect: these clips are made without {LACKING[key]}", "remove it", on_key=True)
        reconstructs = hasattr(demo, "max_demos")
        prompted = hasattr(demo, "demo_cond")
        # Whether the embedder knows text, it says itself, once it is there.
        possible: dict[Need, bool] = {
            "reference": True,
            "embedder": True,
            "pairs": reconstructs,
            "prompts": prompted,
            "text_embedder": prompted,
            "rating_embedder": True,
        }
        there = [need for need, met in possible.items() if met]
        for index, name in enumerate(self.metrics or ()):
            yield from (Problem(("metrics", index), found.message, found.fix, name) for found in _found(choose_metrics, [name], there))
        name = self.embedder.partition(":")[0]
        yield from (Problem(("embedder",), found.message, found.fix, self.embedder) for found in _found(check_embedder_name, name))
        if reconstructs and self.embedder == OWN:
            message = "the autoencoder's latents change as it trains, so numbers of two steps would not compare"
            yield Problem(("embedder",), message, 'name another autoencoder: "latents:FILE"', self.embedder)

    def chosen(self, there: Collection[Need]) -> list[str]:
        """The metrics to compute with what is there.

        Raises:
            ConfigError: one was asked for that does not fit.
        """
        names = choose_metrics(self.metrics, there)
        return [name for name in names if self.metrics is not None or name not in DESCRIPTIVE]

    def try_embedder(self) -> None:
        """
        Raises:
            ConfigError: its package or weights are not there or cannot be used, or metrics were asked for that it is of no use to.
        """
        built = [] if self.embedder == OWN else [build_embedder(self.embedder)]
        all_but_embedder = Comparison([], [], paired=True, prompts=[], embedders=built).needs_met
        for problem in _found(choose_metrics, self.metrics, all_but_embedder | {"embedder"}):
            raise ConfigError([replace(problem, path=("training", "evaluation", "metrics"))], "model config")

    def check_watched(self, metric: str) -> None:
        """`metric` is a name without "eval/".

        Raises:
            ConfigError: no evaluation will measure it. Of families whose names are not known before, nothing is said.
        """
        families = self.metrics or [name for name in DEFAULT_METRICS if name not in DESCRIPTIVE]
        spoken_of = [name for name in METRICS if metric == name or metric.startswith(f"{name}_")]
        known = [name for name in families if set(METRICS[name].needs) & {"reference", "pairs"}]
        names = [f"{name}_{self.embedder.partition(':')[0]}" if "embedder" in METRICS[name].needs else name for name in known]
        if metric not in names and (spoken_of or len(known) == len(families)):
            raise ConfigError([Problem((), "no evaluation measures it", did_you_mean(metric, names))], f"--monitor eval/{metric}")

    def sampling(self, demo: Any) -> Sampling:
        """How clips are made: as demos, where nothing else is said."""
        scales = getattr(demo, "demo_cfg_scales", ())
        return Sampling(
            steps=self.steps or getattr(demo, "demo_steps", None),
            cfg_scale=self.cfg_scale if self.cfg_scale is not None else next(iter(scales), None),
            sampler=getattr(demo, "sampler_type", None),
            seed=self.seed,
        )


def _found(check: Any, *arguments: Any) -> tuple[Problem, ...]:
    """The problems that a check raises."""
    try:
        check(*arguments)
    except ConfigError as error:
        return error.problems
    return ()
