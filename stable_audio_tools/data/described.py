"""What a dataset config says about the metadata of its items, beside what lies in files: shared by datasets of audio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from stable_audio_tools.audio.io import shown
from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.data.captions import Metadata, captioned, over
from stable_audio_tools.data.path_fields import FIXED, path_fields
from stable_audio_tools.data.prompts import PromptOptions, field_text


class DescribedItem(StrictModel):
    """One dataset of audio, as far as its metadata go; its config derives from it."""

    custom_metadata_module: str | None = Field(
        None, description="Python file with get_custom_metadata(info, audio) -> dict; runs only with --allow-code"
    )
    path_pattern: str | None = Field(
        None,
        description='what paths say, such as "{artist}/{album}/{title}"; * is anything, **/ any folders; other sources win',
    )
    captions_per_line: bool = Field(False, description="each line of a caption is one of several, of which one is drawn for each visit")
    prompts: PromptOptions = Field(default_factory=PromptOptions, description="how prompts are made of metadata, and varied")

    @model_validator(mode="after")
    def _pattern_is_sound(self) -> Self:
        try:
            if self.path_pattern is not None:
                path_fields(self.path_pattern, "")
        except ValueError as error:
            fix = 'write it as "{artist}/{album}/{title}", without the extension'
            raise ConfigError([Problem(("path_pattern",), f"not a pattern: {error}", fix, self.path_pattern)]) from None
        return self

    def described(self, relpath: str, stored: Metadata) -> Metadata:
        """All that is known about an item before it is read.

        Args:
            relpath: its path relative to the dataset's root, with "/". stored: what lies in and beside the file.
        """
        if self.captions_per_line and "prompt" in stored:
            texts = stored.get("prompts") or [stored["prompt"]]
            stored = captioned({**stored, "prompts": [line for text in texts for line in text.splitlines()]})
        found = path_fields(self.path_pattern, relpath) if self.path_pattern is not None else None
        return over(found, stored) if found else stored

    def problems(self, place: tuple[str | int, ...], items: Iterable[tuple[str, Metadata]]) -> Iterator[Problem]:
        """What the settings expect of the items and none of them has.

        Args:
            place: of this config. items: relative paths and metadata, as `described` gives them.
        """
        if self.path_pattern is None and not self.prompts.templates:
            return
        relpaths, known = [], {*FIXED[:-1]}
        unusable: dict[str, str] = {}
        fields = {name for _, name in self.prompts.fields()}
        for relpath, metadata in items:
            relpaths.append(relpath)
            known |= metadata.keys()
            for name in fields - unusable.keys():
                if problem := _unusable(name, metadata):
                    unusable[name] = f"{shown(relpath)}: {problem}"
        yield from self._pattern_problems(place, relpaths)
        for index, name in self.prompts.fields():
            where = (*place, "prompts", "templates", index)
            if name not in known:
                yield Problem(where, f"no item has {value_text(name)}", did_you_mean(name, sorted(known)), self.prompts.templates[index])
            elif name in unusable:
                yield Problem(where, unusable[name], "name another field", self.prompts.templates[index])

    def _pattern_problems(self, place: tuple[str | int, ...], relpaths: Sequence[str]) -> Iterator[Problem]:
        pattern = self.path_pattern
        if pattern is not None and relpaths and not any(path_fields(pattern, relpath) for relpath in relpaths):
            fix = "it stands for the whole path without the extension: use * for one folder or name and **/ for any folders"
            yield Problem((*place, "path_pattern"), f"matches none of {len(relpaths)} paths, such as {shown(relpaths[0])}", fix, pattern)


def check_described(items: Sequence[DescribedItem], contents: Iterable[Iterable[tuple[str, Metadata]]]) -> None:
    """Do the settings of all datasets fit what these hold?

    Args:
        contents: relative paths and metadata of the items of each.

    Raises:
        ConfigError: a template names what no item has, or a pattern matches no path.
    """
    pairs = enumerate(zip(items, contents, strict=True))
    if problems := [problem for index, (item, content) in pairs for problem in item.problems(("datasets", index), content)]:
        raise ConfigError(problems, "dataset config")


def _unusable(name: str, metadata: dict[str, Any]) -> str:
    try:
        field_text(name, metadata)
    except ValueError as error:
        return str(error)
    return ""
