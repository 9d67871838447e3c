"""The weights that a user names by a file, by the folder of a run or by that of a model; and the run that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.models.checkpoint_error import bad_file
from stable_audio_tools.models.pretrained import WEIGHT_NAMES

SHARDED = {  # what lies in the folder of a checkpoint in parts: what it is, how it becomes one file
    "zero_to_fp32.py": ("a DeepSpeed checkpoint", "python {0}/zero_to_fp32.py {0} weights.pt"),
    ".metadata": (
        "a checkpoint of torch.distributed",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {0} weights.pt",
    ),
}


@dataclass(frozen=True)
class CheckpointSource:
    """A weight file, and the folder of the run that wrote it, if any."""

    weights: Path
    run: Path | None

    @classmethod
    def find(cls, path: Path) -> CheckpointSource:
        """What `path` means. Of a run it is the newest checkpoint that is whole, and its export where it has none.

        Raises:
            CheckpointError: the folder has no weights, or has them in parts.
        """
        if not path.is_dir():
            return cls(path, _run_of(path))
        if parts := next((name for name in SHARDED if (path / name).exists()), None):
            what, command = SHARDED[parts]
            raise bad_file(path, f"{what}, whose weights are in parts", f"put them together, then export that: {command.format(path)}")
        weights = _newest(path) or next((path / part / name for part, name in _places() if (path / part / name).is_file()), None)
        if weights is None:
            named = f"{' or '.join(WEIGHT_NAMES)}, here, in checkpoints/ or in exports/"
            raise bad_file(path, f"the folder has no {named}", "name a checkpoint, or the folder of a run or of a model")
        return cls(weights, _run_of(weights))


def _places() -> list[tuple[str, str]]:
    return [(part, name) for part in (".", "exports") for name in WEIGHT_NAMES]


def _newest(run: Path) -> Path | None:
    from stable_audio_tools.training.checkpoint_io import newest_good_checkpoint

    return newest_good_checkpoint(run / "checkpoints")


def _run_of(weights: Path) -> Path | None:
    """Runs keep weights in `checkpoints` and `exports`."""
    folder = weights.absolute().parent
    run = folder.parent
    return run if folder.name in ("checkpoints", "exports") and (run / "run.json").is_file() else None
