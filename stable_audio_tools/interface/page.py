"""The page itself: Gradio components of a model's form, and what their buttons do.

The form is made anew for each model. Handlers get a mapping from component to value and read it by name, so that no order of
components has a meaning. Gradio is imported here and nowhere else.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import gradio as gr

from stable_audio_tools.configs.errors import ConfigError

from .failures import sentence
from .form import Entry, Form
from .studio import FORMATS, Studio, shown
from .waveform import waveform

TITLE = "stable-audio-tools"
NOTHING_YET = "What you make appears here, the newest on top."
NO_MODELS = "There is no model to choose yet. Train one (`stable-audio-tools train`), or start this page with `--model FILE`."
FONT, MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # of the machine: the page asks no other server for any
STRONGEST = 2.0  # of an adapter
SLIDER_STEPS = 200
RESULTS = """<pre class="sat-problem" role="alert" hidden></pre>
<div class="sat-results" aria-live="polite"><p class="sat-said">{}</p></div>"""
REGION = """<div class="sat-region">
<svg viewBox="0 0 1000 96" preserveAspectRatio="none" role="img" aria-label="Waveform; drag to choose the part to make anew"></svg>
<div class="sat-fields"><label>from <input type="number" min="0" step="0.01" aria-label="start of the part in seconds"></label>
<label>to <input type="number" min="0" step="0.01" aria-label="end of the part in seconds"></label> s</div>
<p>Drag over the waveform: what lies under red is made anew, the rest is kept.</p></div>"""
GROUPS = {
    "more": "More conditions",
    "guidance": "Guidance",
    "sampler": "Sampler",
    "start": "Start from a sound",
    "inpaint": "Change a part of a sound",
}

Components = dict[str, Any]


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio; `launch_options` are for its launch."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{TITLE}</h1>", elem_classes="sat-head")
        with gr.Row(equal_height=True):
            models = [(choice.label, choice.path) for choice in studio.models()]
            first = models[0][1] if models else None
            model = gr.Dropdown(models, value=first, label="Model", allow_custom_value=studio.any_path, scale=4, elem_id="model")
            other = gr.Dropdown(
                [("nothing", ""), *models], value="", label="Compare with", allow_custom_value=studio.any_path, scale=3, elem_id="other"
            )
            adapters = gr.Dropdown(
                [(choice.label, choice.path) for choice in studio.adapters()],
                multiselect=True,
                label="Adapters",
                allow_custom_value=studio.any_path,
                scale=3,
                elem_id="adapters",
            )
            look = gr.Button("Refresh", scale=0, min_width=90, size="sm")
        with gr.Row(elem_classes="sat-work"):
            with gr.Column(scale=5, min_width=320):
                controls = gr.Column()
            with gr.Column(scale=7, min_width=320):
                results = gr.HTML(
                    "",
                    html_template=RESULTS.format(NOTHING_YET),
                    js_on_load=_text("results.js"),
                    server_functions=[_converter(studio)],
                    elem_id="results",
                    root=str(studio.out),
                    formats=list(FORMATS),
                )
        with controls:
            _rendered(studio, model, other, adapters, results)
        look.click(lambda: _choices(studio), None, [model, other, adapters], show_progress="hidden")
        page.unload(_leaver(studio))
    return page


def launch_options(studio: Studio) -> dict[str, Any]:
    """Keyword arguments of `launch`: no tunnel, no other server, and no file but what was made here."""
    return {
        "allowed_paths": [str(studio.out)],
        "css": _text("page.css"),
        "theme": gr.themes.Default(font=FONT, font_mono=MONO),
        "share": False,
        "show_error": True,
        "quiet": True,
        "run_history": False,
        "footer_links": [],
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "max_file_size": "500mb",
        "prevent_thread_lock": True,
    }


# the form


def _rendered(studio: Studio, model: Any, other: Any, adapters: Any, results: Any) -> None:
    @gr.render(inputs=[model, adapters])
    def form(path: str | None, merged: list[str] | None) -> None:
        if not path:
            gr.Markdown(NO_MODELS)
            return
        try:
            asked = studio.form(path)
        except Exception as error:  # noqa: BLE001 - `sentence` logs what nobody expected
            gr.HTML(f'<pre class="sat-problem" role="alert">{html.escape(sentence(error))}</pre>')
            return
        gr.HTML(f'<p class="sat-facts">{html.escape(asked.facts)}</p>')
        components = _laid_out([entry for entry in asked.entries if entry.group == "main"])
        strengths = {name: _strength(name) for name in merged or ()}
        with gr.Row():
            title = "Reconstruct" if asked.work == "reconstruction" else "Generate"
            go = gr.Button(title, variant="primary", elem_id="go", key="go", scale=3)
            stop = gr.Button("Stop", elem_id="stop", key="stop", scale=1, min_width=80)
        status = gr.HTML("", elem_id="status", key="status")
        components |= _grouped(asked)
        if "region" in components:
            _follow_waveform(components)
        run = _runner(studio, components, strengths, model, other)
        triggers = [go.click, *(components[name].submit for name in ("conditions.prompt",) if name in components)]
        gr.on(
            triggers,
            run,
            {model, other, *components.values(), *strengths.values()},
            [results],
            show_progress_on=status,
            concurrency_id="model",
            concurrency_limit=1,
            trigger_mode="once",
        )
        stop.click(_stopper(studio), None, None, queue=False, show_progress="hidden")


def _laid_out(entries: Sequence[Entry]) -> Components:
    """A component for each entry; short ones share a row."""
    components: Components = {}
    for short, run in groupby(entries, key=lambda entry: entry.kind not in ("text", "json", "audio", "region")):
        with gr.Row() if short else nullcontext():
            components |= {entry.name: _component(entry) for entry in run}
    return components


def _grouped(asked: Form) -> Components:
    """What one can do without, in groups that open."""
    components: Components = {}
    for group, title in GROUPS.items():
        if entries := [entry for entry in asked.entries if entry.group == group]:
            with gr.Accordion(title, open=group == "inpaint", key=f"group {group}"):
                components |= _laid_out(entries)
    return components


def _component(entry: Entry) -> Any:
    common: dict[str, Any] = {"label": entry.label, "key": f"{entry.name} {entry.kind}", "elem_id": _id(entry.name), "min_width": 150}
    told = common | {"info": entry.help or None, "value": entry.default}
    if entry.kind in ("text", "json"):
        return gr.Textbox(**told, lines=1, max_lines=6)
    if entry.kind == "choice":
        return gr.Dropdown(list(entry.choices), **told)
    if entry.kind == "flag":
        return gr.Checkbox(**told)
    if entry.kind == "audio":
        return gr.Audio(type="filepath", sources=["upload", "microphone"], **common)
    if entry.kind == "region":
        common.pop("label")
        return gr.HTML(json.dumps(waveform(None, 1.0)), html_template=REGION, js_on_load=_text("region.js"), **common)
    if entry.blank or entry.low is None or entry.high is None or entry.name in ("seconds", "seed"):
        return gr.Number(precision=0 if entry.kind == "whole" else None, placeholder="as by default", **told)
    return gr.Slider(entry.low, entry.high, step=_step(entry), **told)


def _step(entry: Entry) -> float:
    assert entry.low is not None and entry.high is not None
    return 1 if entry.kind == "whole" else 10 ** math.floor(math.log10((entry.high - entry.low) / SLIDER_STEPS * 2))


def _strength(path: str) -> Any:
    label = f"Strength of {Path(path).stem}"
    return gr.Slider(-STRONGEST, STRONGEST, value=1.0, step=0.05, label=label, key=f"strength {path}", info=path)


def _id(name: str) -> str:
    return "set-" + "".join(char if char.isalnum() else "-" for char in name)


def _follow_waveform(components: Components) -> None:
    """The waveform is that of the sound, cut at the length of the clip."""
    sound, seconds, region = (components[name] for name in ("inpaint_audio", "seconds", "region"))

    def drawn(path: str | None, length: float | None) -> str:
        try:
            return json.dumps(waveform(Path(path) if path else None, length or 1.0))
        except ConfigError as error:
            raise gr.Error(html.escape(str(error)), title="This sound cannot be used", duration=None) from None

    gr.on([sound.change, seconds.change], drawn, [sound, seconds], region, show_progress="hidden")


# what buttons do


def _runner(studio: Studio, components: Components, strengths: Components, model: Any, other: Any) -> Callable[..., Iterator[str]]:
    def run(values: Mapping[Any, Any], request: gr.Request, progress: gr.Progress = gr.Progress()) -> Iterator[str]:  # noqa: B008
        yield _news()
        chosen = [path for path in dict.fromkeys((values[model], values[other])) if path]
        merged = [(path, float(values[strength])) for path, strength in strengths.items()]
        try:
            given = {name: _given(name, values[component]) for name, component in components.items()}
            visitor = studio.visitor(_session(request))
            columns = studio.make(chosen, given, visitor, lambda what, share: progress(share, desc=what), adapters=merged)
        except Exception as error:  # noqa: BLE001 - `sentence` logs what nobody expected
            yield _news(problem=sentence(error))
        else:
            yield _news(columns=shown(columns, studio.out))

    return run


def _given(name: str, value: Any) -> Any:
    """A component's value as its entry takes it; a waveform's is JSON."""
    if name != "region" or not value:
        return value
    part = json.loads(value)
    return part if part.get("start") is not None and part.get("end") is not None else None


def _news(**news: Any) -> str:
    return json.dumps(news)


def _stopper(studio: Studio) -> Callable[..., None]:
    def stop(request: gr.Request) -> None:
        studio.visitor(_session(request)).stop.set()

    return stop


def _leaver(studio: Studio) -> Callable[..., None]:
    def leave(request: gr.Request) -> None:
        studio.leave(_session(request))

    return leave


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _converter(studio: Studio) -> Callable[[str, str], str]:
    def converted(name: str, form: str) -> str:
        try:
            return json.dumps({"name": studio.converted(name, form).relative_to(studio.out.resolve()).as_posix()})
        except Exception as error:  # noqa: BLE001 - `sentence` logs what nobody expected
            return json.dumps({"problem": sentence(error)})

    return converted


def _choices(studio: Studio) -> Sequence[Any]:
    models = [(choice.label, choice.path) for choice in studio.models()]
    adapters = [(choice.label, choice.path) for choice in studio.adapters()]
    return gr.Dropdown(choices=models), gr.Dropdown(choices=[("nothing", ""), *models]), gr.Dropdown(choices=adapters)


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
