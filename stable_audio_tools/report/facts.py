"""Facts of a run as pairs of name and text: its state, what it costs as planned and as measured, and what its data are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_audio_tools.report.document import duration, figure, scaled, string
from stable_audio_tools.report.metrics import Metrics
from stable_audio_tools.report.run_folder import RunFolder
from stable_audio_tools.report.values import items, mapping, number

Facts = list[tuple[str, str]]
MEMORY_KINDS = ("weights", "average", "optimizer", "gradients", "activations")
COUNTED = (("sample_rates", "Sample rates"), ("channels", "Channels"), ("formats", "Formats"), ("lengths", "Lengths"))


def known(facts: Facts) -> Facts:
    return [(name, text) for name, text in facts if text]


def state_facts(folder: RunFolder) -> Facts:
    """What stands at the top of the page; facts that are not known are left out."""
    run = folder.run
    step, last, wall = (number(run.get(key)) for key in ("step", "max_steps", "wall_s"))
    speed = pace(folder)
    return known(
        [
            ("Step", _step(step, last)),
            ("Speed", f"{speed:.3g} steps/s" if speed else ""),
            ("Time", duration(wall) if wall is not None else ""),
            ("Left", duration((last - step) / speed) if folder.running and step is not None and last and speed and last >= step else ""),
            *_losses(folder.metrics),
            ("Parameters", scaled(number(run.get("parameters")))),
            ("Device", string(run.get("device"))),
            ("Started", _date(run.get("started"))),
            ("Updated", _date(run.get("updated"))),
            ("Resumed at", ", ".join(f"{at:,}" for at in items(run.get("resumed")) if isinstance(at, int))),
        ]
    )


def pace(folder: RunFolder) -> float | None:
    """Steps a second: of late, or else of the whole run."""
    step, wall = number(folder.run.get("step")), number(folder.run.get("wall_s"))
    return folder.metrics.pace or (step / wall if step and wall else None)


def _step(step: float | None, last: float | None) -> str:
    if step is None:
        return ""
    return f"{step:,.0f} of {last:,.0f} ({step / last:.0%})" if last else f"{step:,.0f}"


def _losses(metrics: Metrics) -> Facts:
    train, validation = metrics.series.get("train/loss"), metrics.series.get("val/loss")
    facts = [("Training loss", figure(train.last) if train and train.last is not None else "")]
    if validation and validation.last is not None and validation.best:
        step, best = validation.best
        where = "the best so far" if best == validation.last else f"best {figure(best)} at step {step:,.0f}"
        facts.append(("Validation loss", f"{figure(validation.last)} ({where})"))
    return facts


def _date(value: Any) -> str:
    """An ISO date and time to the minute."""
    text = string(value)
    return text[:16].replace("T", " ") + (" UTC" if text.endswith(("Z", "+00:00")) else "") if text else ""


def cost_facts(folder: RunFolder) -> Facts:
    """What the run takes: as measured, and as planned where there is a plan."""
    run, plan = folder.run, folder.plan
    memory, flops, speed = mapping(plan.get("memory")), number(plan.get("flops")), pace(folder)
    batch, world = number(run.get("batch_size")), number(run.get("devices"))
    planned, measured = _bytes(memory.get("total")), _bytes(run.get("peak_memory"))
    return known(
        [
            ("Batch", _batch(batch, world, number(run.get("accum_batches")))),
            ("Precision", string(run.get("precision"))),
            ("A train step", f"{1 / speed:.3g} s" if speed else ""),
            ("Peak memory a device", " · ".join(filter(None, (measured and f"measured {measured}", planned and f"planned {planned}")))),
            ("Planned for", ", ".join(f"{kind} {_bytes(memory.get(kind))}" for kind in MEMORY_KINDS if number(memory.get(kind)))),
            ("Memory of the process, at most", _bytes(run.get("peak_process_memory"))),
            ("Operations a step", scaled(flops, unit="FLOP")),
            ("Rate", scaled(flops * speed, unit="FLOP/s") + " a device" if flops and speed else ""),
            ("A checkpoint", _bytes(plan.get("checkpoint"))),
            ("An export", _bytes(plan.get("export"))),
        ]
    )


def _bytes(value: Any) -> str:
    return scaled(number(value), base=1024, unit="B")


def _batch(size: float | None, devices: float | None, accumulated: float | None) -> str:
    """As in "32" or "8 x 4 devices x 2 batches = 64 clips"."""
    if size is None:
        return ""
    devices, accumulated = devices or 1, accumulated or 1
    factors = [f"{size:g}"] + [f"{devices:g} devices"] * (devices > 1) + [f"{accumulated:g} batches"] * (accumulated > 1)
    return f"{size:g} clips" if len(factors) == 1 else f"{' x '.join(factors)} = {size * devices * accumulated:,.0f} clips"


def parts(folder: RunFolder) -> list[tuple[str, float, float]]:
    """Name, parameters and trained parameters of each part of the model."""
    found = []
    for part in items(folder.run.get("parts")) or items(folder.plan.get("parts")):
        total, trained = (number(mapping(part).get(key)) for key in ("parameters", "trainable"))
        if total is not None and trained is not None:
            found.append((string(part.get("name")), total, trained))
    return found


def data_facts(report: Mapping[str, Any]) -> Facts:
    """One folder (or other source) of the training data."""
    files, captioned, hours = (number(report.get(key)) for key in ("files", "captioned", "hours"))
    seconds = [number(value) for value in items(report.get("seconds"))]
    counts = {key: mapping(report.get(key)) for key, _ in COUNTED}
    return known(
        [
            ("Where", string(report.get("path"))),
            ("Kind", f"{report['kind']}, made by {string(report.get('encoder'))}" if isinstance(report.get("kind"), str) else ""),
            ("Items", f"{files:,.0f}" if files is not None else ""),
            ("With a caption", f"{captioned:,.0f} ({captioned / files:.0%})" if captioned is not None and files else ""),
            ("Length in all", f"{hours:,.2f} hours" if hours else ""),
            ("Shortest, median, longest", ", ".join(f"{value:.3g} s" for value in seconds if value is not None)),
            *((name, ", ".join(f"{what} ({figure(count)})" for what, count in counts[key].items())) for key, name in COUNTED),
            ("Below the model's rate", f"{report['upsampled']:,} files" if number(report.get("upsampled")) else ""),
            ("Left out as bad", _bad(report)),
        ]
    )


def _bad(report: Mapping[str, Any]) -> str:
    count = number(report.get("num_bad"))
    return f"{count:,.0f} files" if count else ""
