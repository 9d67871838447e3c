"""A model card in a folder: the card, and demos of the run copied beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from stable_audio_tools.export.card import DEMO_FOLDER, FILE_NAME, Exported, model_card
from stable_audio_tools.export.write import write_text
from stable_audio_tools.report.demos import Clip
from stable_audio_tools.report.run_folder import RunFolder, read_run_folder

MOST_DEMOS = 8  # chosen: enough to hear what a model does, little to download


def write_card(folder: Path, exported: Exported, run: Path | None, step: int) -> list[Path]:
    """Write the card and its demos into `folder`; returns what was written, the card first.

    Args:
        run: the folder of the run that trained the model, if any.
        step: train step of the weights; demos are the last ones up to it. 0: not known.

    Raises:
        OSError: no space, no permission and the like.
    """
    known = None if run is None else read_run_folder(run)
    clips = [] if known is None else [*_demos(known, step)][:MOST_DEMOS]
    copied = []
    for clip, audio in clips:
        (folder / DEMO_FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(audio, folder / DEMO_FOLDER / audio.name)
        copied.append((clip.title, f"{DEMO_FOLDER}/{audio.name}"))
    card = folder / FILE_NAME
    write_text(card, model_card(replace(exported, demos=copied), known))
    return [card, *(folder / file for _, file in copied)]


def _demos(run: RunFolder, step: int) -> Iterator[tuple[Clip, Path]]:
    """The clips of the last demos up to a step that have a sound."""
    made = [demo for demo in run.demos if not step or demo.step <= step]
    for clip in made[-1].clips if made else ():
        if clip.audio is not None:
            yield clip, clip.audio
