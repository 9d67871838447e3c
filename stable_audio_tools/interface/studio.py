"""What the page does, without the page: which models there are, what each asks for, and clips made of the answers.

What is made goes into a folder of its own for each visitor, below the output folder, and nothing is written elsewhere.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from stable_audio_tools.audio.io import load_audio, save_audio
from stable_audio_tools.audio.spectrogram import plot_area
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.pretrained import find_model

from .failures import Stopped
from .form import Form, form_of
from .making import PICTURE, Clip, Told, make
from .requests import Request, request_of
from .shelf import Choice, Shelf, Wanted, find_adapters, find_models

FORMATS = ("flac", "mp3", "ogg")
"""What a clip can be had as, beside WAV."""

Say = Callable[[str, float], None]
"""Is told what is being done, and the share of it that is done."""


@dataclass
class Visitor:
    """One open page.

    folder: where its clips go. stop: set when it wants no more of what is being made.
    """

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Column:
    """What one model made."""

    title: str
    clips: Sequence[Clip]
    notes: Sequence[str] = ()


class Studio:
    """Models of a folder of runs, behind one shelf.

    Args:
        out: the output folder.
        named: models that are offered besides those of `runs`.
        any_path: a visitor may name any file of this machine, not only what is offered.
    """

    def __init__(self, shelf: Shelf, runs: Path, out: Path, *, named: Sequence[str] = (), any_path: bool = False):
        self.shelf, self.runs, self.out, self.named, self.any_path = shelf, runs, out.absolute(), tuple(named), any_path
        self._visitors: dict[str, Visitor] = {}

    def models(self) -> list[Choice]:
        return find_models(self.runs, self.named)

    def adapters(self) -> list[Choice]:
        return find_adapters(self.runs)

    def form(self, model: str) -> Form:
        """What a model asks for.

        Raises:
            ConfigError: it is not offered, not there, or has a bad config.
        """
        self._check_offered(model, self.models())
        return form_of(find_model(model).parsed)

    def visitor(self, session: str) -> Visitor:
        """The visitor of a session, whose name is the browser's affair and never part of a path."""
        if session not in self._visitors:
            name = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(8)}"
            self._visitors[session] = Visitor(self.out / name)
        return self._visitors[session]

    def leave(self, session: str) -> None:
        """A page was closed: what is being made for it ends at the next step. Its files stay."""
        if visitor := self._visitors.pop(session, None):
            visitor.stop.set()

    def make(self, wanted: Sequence[Wanted], values: Mapping[str, Any], visitor: Visitor, say: Say) -> list[Column]:
        """Clips of each model with the same settings and seeds.

        Args:
            wanted: models; the first one's form has asked for `values`.

        Raises:
            ConfigError, ValueError: see `making.make`; a model or adapter is not offered.
            Stopped: the visitor wants no more.
        """
        visitor.stop.clear()
        self._check_sounds(wanted[0].model, values)
        offered = [*self.models(), *self.adapters()]
        for path in (path for each in wanted for path in (each.model, *(name for name, _ in each.adapters))):
            self._check_offered(path, offered)
        columns = []
        for number, (each, request) in enumerate(zip(wanted, _same_for_all(wanted, values), strict=True), start=1):
            title = _title(each, offered)
            told = _until_stopped(visitor.stop, f"{title}: " if len(wanted) > 1 else "", say)
            with self.shelf.lent(each, lambda what: say(what, 0.0)) as opened:
                clips = make(opened, request, visitor.folder if len(wanted) == 1 else visitor.folder / f"model_{number}", told)
            columns.append(Column(title, clips, opened.notes))
        return columns

    def converted(self, name: str, form: str) -> Path:
        """A clip of ours in another format, beside the original.

        Args:
            name: of its WAV file, relative to the output folder.

        Raises:
            ConfigError: there is no such clip, or the format cannot hold it.
        """
        source = (self.out / name).resolve()
        if form not in FORMATS or source.suffix != ".wav" or not source.is_relative_to(self.out.resolve()) or not source.is_file():
            raise ConfigError("there is no such clip", source=str(name))
        target = source.with_suffix(f".{form}")
        if not target.exists():
            audio, rate = load_audio(source)
            save_audio(target, audio, rate)
        return target

    def sound(self, name: str) -> Path:
        """A sound that was sent to the page or made by it.

        Raises:
            ConfigError: it is neither.
        """
        path = Path(name).resolve()
        if not path.is_relative_to(self.out.resolve()):
            raise ConfigError("this sound was not sent to the page, nor made by it", source=name)
        return path

    def _check_sounds(self, model: str, values: Mapping[str, Any]) -> None:
        entries = form_of(find_model(model).parsed).by_name
        for name, value in values.items():
            if value and name in entries and entries[name].kind == "audio":
                self.sound(str(value))

    def _check_offered(self, path: str, offered: Sequence[Choice]) -> None:
        if not self.any_path and path not in {choice.path for choice in offered}:
            fix = "choose one of the list; paths of one's own are taken where the page is open to this machine alone"
            raise ConfigError([Problem((), "this is not offered here", fix)], path)


def shown(columns: Sequence[Column], out: Path) -> list[dict[str, Any]]:
    """Columns as JSON for the page; file names are relative to the output folder."""
    return [
        {"title": column.title, "notes": list(column.notes), "clips": [_shown(clip, out.absolute()) for clip in column.clips]}
        for column in columns
    ]


def _shown(clip: Clip, out: Path) -> dict[str, Any]:
    return {
        "audio": clip.audio.relative_to(out).as_posix(),
        "picture": clip.picture.relative_to(out).as_posix(),
        "plot": plot_area(*PICTURE),
        "seconds": clip.seconds,
        "settings": dict(clip.settings),
        "remark": clip.remark,
    }


def _title(wanted: Wanted, offered: Sequence[Choice]) -> str:
    """What the list calls a model, and its adapters."""
    labels = {choice.path: choice.label for choice in offered}
    adapters = [f" + {labels.get(path, Path(path).stem)} {strength:g}" for path, strength in wanted.adapters]
    return labels.get(wanted.model, wanted.model) + "".join(adapters)


def _same_for_all(wanted: Sequence[Wanted], values: Mapping[str, Any]) -> list[Request]:
    """A request for each model, with one seed.

    Raises:
        ConfigError: the values do not suffice for one of them, or one has no use for some.
    """
    requests: list[Request] = []
    forms = [form_of(find_model(each.model).parsed) for each in wanted]
    for each, form in zip(wanted, forms, strict=True):
        # What only the first one asks for, and nobody has touched, is nothing to refuse.
        named = {name: value for name, value in values.items() if name in form.by_name or not forms[0].untouched(name, value)}
        try:
            made = request_of(form, named if requests else values)
        except ConfigError as error:
            raise error if not requests else ConfigError(error.problems, f"{each.model} does not take these settings") from None
        requests.append(replace(made, seed=requests[0].seed) if requests else made)
    return requests


def _until_stopped(stop: threading.Event, prefix: str, say: Say) -> Told:
    def told(done: int, of: int) -> None:
        if stop.is_set():
            raise Stopped
        say(f"{prefix}step {done} of {of}", done / max(of, 1))

    return told
