"""Builds `index.html`: reads the run folder, chooses what to embed, fills the template, replaces the page in one move."""

from __future__ import annotations

from pathlib import Path

from stable_audio_tools.report import render
from stable_audio_tools.report.demos import group_rows
from stable_audio_tools.report.document import replace_file, string
from stable_audio_tools.report.evaluation import evaluation_charts
from stable_audio_tools.report.media import EMBED_BUDGET, RUNNING_BUDGET, MediaCache, choose_embedded
from stable_audio_tools.report.metrics import MetricsReader, charts
from stable_audio_tools.report.players import Players
from stable_audio_tools.report.run_folder import read_run_folder
from stable_audio_tools.report.values import items

_CACHE = MediaCache()
_READER = MetricsReader()


def build_report(run_dir: Path) -> Path:
    """Write `<run_dir>/index.html` from what the folder holds now; cheap enough to be called throughout a run.

    A run in progress is fine: what is missing or half-written is left out and named on the page. The old page stays in
    place until the new one is complete.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: there is no folder `run_dir`.
        OSError: the page cannot be written.
    """
    folder = read_run_folder(Path(run_dir), _READER)
    players = Players(choose_embedded(folder.demos, _CACHE, RUNNING_BUDGET if folder.running else EMBED_BUDGET), _CACHE, folder.path)
    data = {
        "status": folder.status,
        "updated": string(folder.run.get("updated")),
        "resumed": [step for step in items(folder.run.get("resumed")) if isinstance(step, int)],
        "last_step": folder.last_step,
        "charts": charts(folder.logged),
        "evaluations": evaluation_charts(folder.evaluations),
        "demos": {
            "steps": [demo.step for demo in folder.demos],
            "embedded": [any(map(players.embeds, demo.clips)) for demo in folder.demos],
            "groups": [
                {"title": group.title, "rows": [players.row(row.first, row.clips) for row in group.rows]}
                for group in group_rows(folder.demos)
            ],
        },
    }
    return replace_file(folder.path / "index.html", render.page(folder, data, players.media.values()))
