"""The page itself: Gradio's queue, progress, login and uploads around two elements of our own, a form and its results.

Gradio's own inputs are not used for a model's settings: when a list of them is made anew for another model, it lets one take the
value of another. Here a form is one element, whose value is a JSON object of values by name, so that no order has a meaning.
Gradio is imported in this file and nowhere else.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from stable_audio_tools.configs.errors import ConfigError

from .failures import sentence
from .form import Entry
from .shelf import Wanted
from .studio import FORMATS, Studio, shown
from .waveform import waveform

TITLE = "stable-audio-tools"
NO_MODELS = "There is no model to choose yet: train one (stable-audio-tools train), or start this page with --model FILE."
FONT, MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # of the machine: the page asks no other server for any
STRENGTH, STRONGEST = "strength.", 4.0  # of adapters
FORM = """<pre class="sat-problem" role="alert" hidden></pre><div class="sat-form"></div>"""
RESULTS = """<pre class="sat-problem" role="alert" hidden></pre>
<div class="sat-results" aria-live="polite"><p class="sat-said">What you make appears here, the newest on top.</p></div>"""


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio; `launch_options` are for its launch."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        models = [(choice.label, choice.path) for choice in studio.models()]
        with gr.Row(equal_height=True, elem_id="choices"):
            own: dict[str, Any] = {"allow_custom_value": studio.any_path, "min_width": 260}
            model = gr.Dropdown(models, value=models[0][1] if models else None, label="Model", elem_id="model", scale=4, **own)
            other = gr.Dropdown([("nothing", ""), *models], value="", label="Compare with", elem_id="other", scale=3, **own)
            adapters = gr.Dropdown(_adapters(studio), multiselect=True, label="Adapters of the model", elem_id="adapters", scale=3, **own)
            look = gr.Button("Refresh", scale=0, min_width=90, size="sm")
        with gr.Row(elem_id="work"):
            with gr.Column(scale=5, min_width=320):
                form = gr.HTML(
                    "{}",
                    html_template=FORM,
                    js_on_load=_text("form.js"),
                    server_functions=[_waveform(studio)],
                    elem_id="form",
                    spec="{}",
                )
                with gr.Column(elem_id="doing"):
                    with gr.Row():
                        go = gr.Button("Generate", variant="primary", elem_id="go", scale=3)
                        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
                    status = gr.HTML("", elem_id="status")
            with gr.Column(scale=7, min_width=320):
                results = gr.HTML(
                    "",
                    html_template=RESULTS,
                    js_on_load=_text("results.js"),
                    server_functions=[_converter(studio)],
                    elem_id="results",
                    root=str(studio.out),
                    formats=list(FORMATS),
                )
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([page.load, model.change, adapters.change], _form_of(studio), [model, adapters], form, **hidden)
        gr.on([page.load, look.click], lambda: _choices(studio), None, [model, other, adapters], **hidden)
        making: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "once", "api_visibility": "private"}
        go.click(_runner(studio), [model, other, form], results, show_progress_on=status, **making)
        stop.click(_stopper(studio), None, None, queue=False, **hidden)
        page.unload(_leaver(studio))
    return page


def launch_options(studio: Studio) -> dict[str, Any]:
    """Keyword arguments of `launch`: no tunnel, no other server, and no file but what was made or sent here."""
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


# what the page asks for


def _form_of(studio: Studio) -> Callable[[str | None, list[str] | None], Any]:
    def form_of(model: str | None, adapters: list[str] | None) -> Any:
        return gr.HTML(spec=json.dumps(_spec(studio, model, adapters or [])))

    return form_of


def _spec(studio: Studio, model: str | None, adapters: list[str]) -> dict[str, Any]:
    """The form of a model as JSON, with a strength for each adapter; or what keeps it from being shown."""
    if not model:
        return {"problem": NO_MODELS}
    try:
        form = studio.form(model)
    except Exception as error:  # noqa: BLE001 - `sentence` logs what nobody expected
        return {"problem": sentence(error)}
    return {"model": model, "facts": form.facts, "entries": [asdict(entry) for entry in (*form.entries, *map(_strength, adapters))]}


def _strength(path: str) -> Entry:
    return Entry(STRENGTH + path, "number", f"Strength of {Path(path).stem}", 1.0, -STRONGEST, STRONGEST, help=path, group="adapters")


def _choices(studio: Studio) -> list[Any]:
    models = [(choice.label, choice.path) for choice in studio.models()]
    return [gr.Dropdown(choices=models), gr.Dropdown(choices=[("nothing", ""), *models]), gr.Dropdown(choices=_adapters(studio))]


def _adapters(studio: Studio) -> list[tuple[str, str]]:
    return [(choice.label, choice.path) for choice in studio.adapters()]


# what buttons do


def _runner(studio: Studio) -> Callable[..., Iterator[str]]:
    numbers = itertools.count()

    def news(**what: Any) -> str:
        """What the results hear of; each piece differs from the one before."""
        return json.dumps({**what, "number": next(numbers)})

    def run(
        model: str | None,
        other: str | None,
        form: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is asked for one
    ) -> Iterator[str]:
        yield news()
        try:
            values = json.loads(form or "{}")
            strengths = {name.removeprefix(STRENGTH): values.pop(name) for name in [*values] if name.startswith(STRENGTH)}
            wanted = _wanted(model, other, strengths)
            visitor = studio.visitor(str(request.session_hash))
            columns = studio.make(wanted, values, visitor, lambda what, share: progress(share, desc=what))
        except Exception as error:  # noqa: BLE001 - `sentence` logs what nobody expected
            yield news(problem=sentence(error))
        else:
            yield news(columns=shown(columns, studio.out))

    return run


def _wanted(model: str | None, other: str | None, strengths: dict[str, Any]) -> list[Wanted]:
    """The model with its adapters, and the one to compare it with, if that differs."""
    if not model:
        raise ConfigError(NO_MODELS)
    adapters = tuple((path, _strength(path).read(value)) for path, value in strengths.items())
    return [*dict.fromkeys([Wanted(model, adapters), *([Wanted(other)] if other else [])])]


def _stopper(studio: Studio) -> Callable[..., None]:
    def stop(request: gr.Request) -> None:
        studio.visitor(str(request.session_hash)).stop.set()

    return stop


def _leaver(studio: Studio) -> Callable[..., None]:
    def leave(request: gr.Request) -> None:
        studio.leave(str(request.session_hash))

    return leave


def _converter(studio: Studio) -> Callable[[dict[str, Any]], str]:
    def converted(asked: dict[str, Any]) -> str:
        return _answer(lambda: {"name": studio.converted(asked["name"], asked["form"]).relative_to(studio.out.resolve()).as_posix()})

    return converted


def _waveform(studio: Studio) -> Callable[[dict[str, Any]], str]:
    def drawn(asked: dict[str, Any]) -> str:
        return _answer(lambda: waveform(studio.sound(asked["path"]) if asked["path"] else None, float(asked["seconds"])))

    drawn.__name__ = "waveform"  # what the page calls it
    return drawn


def _answer(ask: Callable[[], dict[str, Any]]) -> str:
    try:
        return json.dumps(ask())
    except Exception as error:  # noqa: BLE001 - `sentence` logs what nobody expected
        return json.dumps({"problem": sentence(error)})


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
