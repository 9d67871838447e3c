"""Where numbers and demos go: always a local CSV file, and wandb, TensorBoard or Comet when asked for. None of them prompts."""

from __future__ import annotations

import csv
import logging
import netrc
import os
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import CometLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from stable_audio_tools.audio.latent_picture import principal_components
from stable_audio_tools.configs.errors import ConfigError

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """`metrics.csv` of a run: one row a logged step, first columns `step` and `time_s`, blank cells for what was not logged.

    A resumed run drops rows beyond the step it resumes from, so that the file tells the history of the weights. A full disk is
    said once and does not end the run; rows are kept, and written when there is space again.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None):
        super().__init__()
        self.path = path
        self._rows: list[dict[str, str]] = []
        self._columns = ["step", "time_s"]
        self._behind = False
        if resume_step is not None and path.exists():
            self._read(resume_step)
        self._started = time.monotonic() - (float(self._rows[-1]["time_s"]) if self._rows else 0.0)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters are in the run's own JSON files."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": str(step), **{name: repr(float(value)) for name, value in metrics.items()}}
        same = bool(self._rows) and self._rows[-1]["step"] == row["step"]
        if same:
            self._rows[-1].update(row)
        else:
            self._rows.append({"time_s": f"{time.monotonic() - self._started:.2f}", **row})
        new = [name for name in row if name not in self._columns]
        self._columns += new
        try:
            if new or same or self._behind or not self.path.exists():
                self._rewrite()
            else:
                with self.path.open("a", newline="") as file:
                    self._writer(file).writerow(self._rows[-1])
            self._behind = False
        except OSError as error:
            if not self._behind:
                log.error("%s cannot be written: %s; training goes on", self.path, error.strerror or error)
            self._behind = True

    def _read(self, resume_step: int) -> None:
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row.get("step") and row.get("time_s")]
            self._columns = list(reader.fieldnames or self._columns)
        self._rows = [{k: v for k, v in row.items() if v} for row in rows if int(row["step"]) <= resume_step]
        self._rewrite()

    def _rewrite(self) -> None:
        partial = self.path.with_suffix(".csv.tmp")
        with partial.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(self._rows)
        partial.replace(self.path)

    def _writer(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns, restval="", extrasaction="ignore")


def create_loggers(
    kind: str, run_dir: Path, *, name: str, project: str, config: Mapping[str, Any], resume_step: int | None = None
) -> list[Logger]:
    """The loggers of a run; the first is always the metrics file.

    Args:
        kind: auto, wandb, tensorboard, csv, comet or none; auto means wandb where an account is configured.
        config: what was asked for, shown by remote loggers.

    """
    metrics = MetricsFile(run_dir / "metrics.csv", resume_step=resume_step)
    if kind == "auto":
        kind = "wandb" if wandb_is_configured() else "csv"
    match kind:
        case "csv" | "none":
            return [metrics]
        case "wandb":
            return [metrics, _wandb(run_dir, name, project, config)]
        case "tensorboard":
            return [metrics, TensorBoardLogger(save_dir=run_dir, name="tensorboard", version="")]
        case "comet":
            return [metrics, _comet(run_dir, name, project, config)]
    raise ValueError(f"unknown logger {kind!r}: expected auto, wandb, tensorboard, csv, comet or none")


def check_logger(kind: str) -> None:
    """Find out before a run starts what a logger lacks.

    Raises:
        ConfigError: the package behind `kind` is not installed.
    """
    if kind == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ConfigError('TensorBoard is not installed: pip install -e ".[tb]"', source="--logger tensorboard")
    if kind == "comet" and not find_spec("comet_ml"):
        raise ConfigError('Comet is not installed: pip install -e ".[comet]"', source="--logger comet")


def wandb_is_configured() -> bool:
    """Whether wandb can run without asking: a key in the environment or in the netrc file, or an offline mode."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "dryrun"):
        return os.environ.get("WANDB_MODE") != "disabled"
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return "api.wandb.ai" in hosts


def _wandb(run_dir: Path, name: str, project: str, config: Mapping[str, Any]) -> Logger:
    mode = os.environ.get("WANDB_MODE")
    offline = mode in ("offline", "dryrun")
    if not offline and mode != "disabled" and not wandb_is_configured():
        log.warning(
            "wandb has no account on this machine (no WANDB_API_KEY, no netrc entry): logging offline; `wandb sync` uploads it later"
        )
        offline = True
    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(name=name, project=project, save_dir=run_dir, offline=offline)
    logger.log_hyperparams(dict(config))
    return logger


def _comet(run_dir: Path, name: str, project: str, config: Mapping[str, Any]) -> Logger:
    account = os.environ.get("COMET_API_KEY") or Path.home().joinpath(".comet.config").exists()
    if not account:
        log.warning("Comet has no account on this machine (no COMET_API_KEY): logging offline; `comet upload` uploads it later")
        os.environ["COMET_START_ONLINE"] = "0"  # Lightning's own `online=False` switches Comet off altogether
    os.environ.setdefault("COMET_LOGGING_CONSOLE", "ERROR")
    folder = run_dir / "comet"
    folder.mkdir(exist_ok=True)
    logger = CometLogger(name=name, project=project, offline_directory=str(folder), log_code=False, log_git_patch=False)
    logger.log_hyperparams(dict(config))
    return logger


@dataclass(frozen=True)
class DemoFiles:
    """One demo as it is on disk, and what loggers need beside it.

    audio: (C, T) on the CPU, what `audio_file` holds, at `sample_rate` Hz.
    latents: (C, T) on the CPU, what `latents_file` shows; both None for most demos.
    """

    title: str
    audio_file: Path
    image_file: Path
    audio: Tensor
    sample_rate: int
    latents_file: Path | None = None
    latents: Tensor | None = None


@rank_zero_only
def log_demo(loggers: Iterable[Logger], demo: DemoFiles, step: int) -> None:
    """Send one demo to every logger that can take sound."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _demo_to_wandb(logger, demo, step)
        elif isinstance(logger, TensorBoardLogger):
            _demo_to_tensorboard(logger, demo, step)
        elif isinstance(logger, CometLogger):
            _demo_to_comet(logger, demo, step)


def _demo_to_wandb(logger: WandbLogger, demo: DemoFiles, step: int) -> None:
    import wandb

    caption = f"{demo.title}, step {step}"
    media = {
        f"demo/{demo.title}": wandb.Audio(str(demo.audio_file), sample_rate=demo.sample_rate, caption=caption),
        f"spectrogram/{demo.title}": wandb.Image(str(demo.image_file), caption=caption),
    }
    if demo.latents is not None:
        media[f"latents/{demo.title}"] = wandb.Image(str(demo.latents_file), caption=caption)
        media[f"latents_3d/{demo.title}"] = wandb.Object3D(_point_cloud(demo.latents))
    logger.experiment.log(media | {"trainer/global_step": step})


def _point_cloud(latents: Tensor) -> np.ndarray:
    """(T, 6) the frames of `latents` (C, T) along their first three principal axes, coloured from blue at the start to red at the end."""
    time = torch.linspace(0, 255, latents.shape[-1])
    return torch.stack([*principal_components(latents), time, torch.full_like(time, 64), 255 - time], dim=-1).numpy()


def _demo_to_tensorboard(logger: TensorBoardLogger, demo: DemoFiles, step: int) -> None:
    from PIL import Image

    logger.experiment.add_audio(demo.title, demo.audio.mean(dim=0), step, demo.sample_rate)  # TensorBoard plays mono only
    pictures = {demo.title: demo.image_file, f"{demo.title}, latents": demo.latents_file}
    for title, file in pictures.items():
        if file is not None:
            logger.experiment.add_image(title, np.asarray(Image.open(file).convert("RGB")), step, dataformats="HWC")


def _demo_to_comet(logger: CometLogger, demo: DemoFiles, step: int) -> None:
    logger.experiment.log_audio(str(demo.audio_file), sample_rate=demo.sample_rate, file_name=demo.title, step=step)
    pictures = {demo.title: demo.image_file, f"{demo.title}, latents": demo.latents_file}
    for title, file in pictures.items():
        if file is not None:
            logger.experiment.log_image(str(file), name=title, step=step)


@rank_zero_only
def end_runs(loggers: Iterable[Logger]) -> None:
    """End the runs of loggers that write in the background, so that all they were given is on disk or on its way."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
        elif isinstance(logger, CometLogger):
            logger.experiment.end()
