"""A model card: Markdown with Hugging Face's front matter, made of what a model's config and its run say, and of nothing else.

What is not known is left out, and paths of the machine that trained are. The licence is for the model's owner to state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePath
from typing import Any

from stable_audio_tools.export.snippets import snippet
from stable_audio_tools.models.config import BaseModelConfig
from stable_audio_tools.report.document import duration, figure, scaled, string, words
from stable_audio_tools.report.evaluation import measured
from stable_audio_tools.report.facts import Facts, data_facts, known
from stable_audio_tools.report.run_folder import RunFolder
from stable_audio_tools.report.values import items, mapping, number

FILE_NAME = "README.md"
DEMO_FOLDER = "demos"

KINDS = {
    "autoencoder": ("An autoencoder of audio", "audio-to-audio"),
    "diffusion_autoencoder": ("An autoencoder of audio whose decoder is a diffusion model", "audio-to-audio"),
    "diffusion_uncond": ("An unconditional diffusion model of audio", None),
    "diffusion_cond": ("A diffusion model that makes audio from conditions", "text-to-audio"),
    "diffusion_cond_inpaint": ("A diffusion model that makes audio from conditions, also into gaps of existing audio", "text-to-audio"),
    "lm": ("A language model over audio tokens", "text-to-audio"),
}
"""Of each model type: what it is in words, and the hub's name for its task."""
PARTS = ("pretransform", "encoder", "bottleneck", "decoder")
TEXTS = ("t5", "clap_text", "bytes", "phoneme")
OF_THE_MODEL = " · model · "  # in names of the synthetic evaluation, which also has those of real sounds and of noise


@dataclass(frozen=True)
class Exported:
    """What was exported.

    config: of the model; training: its `training` section. weights: name of the file; folder: whether its config lies beside it.
    facts: about these weights. demos: (title, file) of clips made in training, relative to the card.
    """

    name: str
    config: BaseModelConfig
    training: Mapping[str, Any]
    weights: str
    folder: bool
    diffusers: bool
    facts: Facts
    demos: Sequence[tuple[str, str]] = field(default=())


def model_card(exported: Exported, run: RunFolder | None) -> str:
    """The card of an exported model; `run` is what is known of its training."""
    kind, task = KINDS.get(exported.config.model_type, ("A model of audio", None))
    if task == "text-to-audio" and not _reads_text(exported.config):
        task = None
    sections = [
        _front_matter(task, exported.diffusers),
        f"# {_text(exported.name)}\n\n{kind}, trained with stable-audio-tools.",
        _section("Model", _table([*_model_facts(exported.config), *exported.facts])),
        _section("Use", _usage(exported)),
        *(_run_sections(run) if run is not None else ()),
        _section("Demos", "\n".join(f"- [{_text(title)}]({file})" for title, file in exported.demos)),
        _section("License", "Not stated yet: name it here and in the first lines of this file."),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _front_matter(task: str | None, diffusers: bool) -> str:
    lines = ["# license: the owner's to state, such as cc-by-4.0"]
    lines += [f"library_name: {'diffusers' if diffusers else 'stable-audio-tools'}"]
    lines += [f"pipeline_tag: {task}"] if task else []
    return "\n".join(["---", *lines, "tags:", "- audio", "---"])


def _reads_text(config: BaseModelConfig) -> bool:
    conditioning = getattr(config.model, "conditioning", None)
    return conditioning is not None and any(entry.type in TEXTS for entry in conditioning.configs)


def _model_facts(config: BaseModelConfig) -> Facts:
    model = config.model
    conditioning = getattr(model, "conditioning", None)
    conditions = () if conditioning is None else conditioning.configs
    channels = {1: "mono", 2: "stereo"}.get(config.audio_channels, f"{config.audio_channels} channels")
    return known(
        [
            ("Model type", config.model_type),
            ("Sample rate", f"{config.sample_rate:,} Hz, {channels}"),
            ("Length of training clips", duration(config.sample_size / config.sample_rate)),
            ("Audio samples a latent frame", f"{config.samples_per_frame:,}" if config.samples_per_frame > 1 else ""),
            *(
                (name, getattr(getattr(model, name.lower(), None), "type", ""))
                for name in ("Pretransform", "Encoder", "Bottleneck", "Decoder")
            ),
            ("Network", _network(config)),
            ("Conditions", ", ".join(f"{entry.id} ({entry.type})" for entry in conditions)),
        ]
    )


def _network(config: BaseModelConfig) -> str:
    """Its type, and what it predicts the noise path by."""
    network = next((found for key in ("diffusion", "lm") if (found := getattr(config.model, key, None)) is not None), config.model)
    named = (getattr(network, "type", ""), getattr(network, "diffusion_objective", ""))
    return ", ".join(filter(None, named))


def _usage(exported: Exported) -> str:
    weights = "." if exported.folder else exported.weights
    code = snippet(exported.config, exported.training, weights, diffusers=exported.diffusers)
    if code is None:
        return ""
    package = "diffusers" if exported.diffusers else "stable-audio-tools 1.0 or newer"
    return f"With {package}, in the folder of this file:\n\n```python\n{code}```"


def _run_sections(run: RunFolder) -> Iterator[str]:
    yield _section("Training", _table(_training_facts(run)))
    yield _section("Training data", "\n\n".join(filter(None, _data(run))))
    yield _section("Measured", _metrics(run))


def _training_facts(run: RunFolder) -> Facts:
    state, args = run.run, mapping(run.setup.get("args.json"))
    wall, batch = number(state.get("wall_s")), state.get("batch_size", args.get("batch_size"))
    versions = mapping(state.get("versions"))
    return known(
        [
            ("Run updated", string(state.get("updated"))[:10]),
            ("Run time", duration(wall) if wall is not None else ""),
            ("Device", string(state.get("device"))),
            ("Batch", f"{batch} clips" if number(batch) is not None else ""),
            ("Trained parameters", scaled(number(state.get("parameters")))),
            ("Seed", figure(args["seed"]) if number(args.get("seed")) is not None else ""),
            ("Versions", ", ".join(f"{name} {string(versions[name])}" for name in ("stable-audio-tools", "torch") if name in versions)),
        ]
    )


def _data(run: RunFolder) -> Iterator[str]:
    """What the training was fed: the kind of dataset, and the counts of each of its sources."""
    dataset = mapping(run.setup.get("dataset.json"))
    sources = [string(mapping(source).get("id")) for source in items(dataset.get("datasets"))]
    facts = [("Type", string(dataset.get("dataset_type"))), ("Sources", ", ".join(filter(None, sources)))]
    made = dataset if dataset.get("dataset_type") == "synthetic" else {}
    facts += [(words(key).capitalize(), _listed(value)) for key, value in made.items() if key != "dataset_type"]
    yield _table(known(facts))
    for source in map(mapping, items(run.data.get("folders"))):
        table = _table(data_facts({key: _placeless(value) for key, value in source.items() if key != "path"}))
        yield f"### {_text(string(source.get('id')))}\n\n{table}" if table else ""


def _listed(value: Any) -> str:
    return ", ".join(map(figure, value)) if isinstance(value, list) else figure(value)


def _metrics(run: RunFolder) -> str:
    """Every number that was measured of the model, with its interval, and how."""
    found = measured(run.evaluation)
    found = {name: metric for name, metric in found.items() if OF_THE_MODEL in name} or found
    rows = [
        " | ".join(map(_text, (words(name), figure(metric["value"]), _interval(metric), figure(metric.get("n")))))
        for name, metric in found.items()
        if number(metric.get("value")) is not None
    ]
    if not rows:
        return ""
    table = ["| | value | interval | clips |", "|---|---|---|---|", *(f"| {row} |" for row in rows)]
    recipes = filter(None, dict.fromkeys(_recipe(metric.get("recipe")) for metric in found.values()))
    return "\n\n".join(["\n".join(table), *(f"Recipe: {recipe}." for recipe in recipes)])


def _interval(metric: Mapping[str, Any]) -> str:
    low, high = number(metric.get("low")), number(metric.get("high"))
    return f"{figure(low)} to {figure(high)}" if low is not None and high is not None else "–"


def _recipe(recipe: Any) -> str:
    entries = recipe.items() if isinstance(recipe, Mapping) else [("", recipe)] if recipe else []
    return ", ".join(_text(f"{words(key)} {_listed(_placeless(value))}".strip()) for key, value in entries)


def _placeless(value: Any) -> Any:
    """A file's name without the place on the machine that measured."""
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(facts: Iterable[tuple[str, str]]) -> str:
    rows = [f"| {name} | {_text(text)} |" for name, text in facts]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _text(value: str) -> str:
    """Text from a file, on one line and without meaning to Markdown or a browser."""
    text = escape(" ".join(value.split()), quote=False)
    for character in "\\`*[]|":
        text = text.replace(character, f"\\{character}")
    return text
