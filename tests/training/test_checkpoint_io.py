"""A checkpoint that has its name is whole: killed writers, full disks and flipped bits cost at most the newest save."""

import errno
import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from stable_audio_tools.models.atomic_file import MARK, atomic_file, remove_stale
from stable_audio_tools.models.checkpoint_error import CheckpointError
from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO, CheckpointWriteError, newest_good_checkpoint

fork = multiprocessing.get_context("fork")  # a new process without a second import of Lightning
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def state(step: int, size: int = 1000) -> dict:
    """A training state whose every value tells its step."""
    return {"state_dict": {"weight": torch.full((size,), float(step))}, "optimizer_states": [], "step": step}


def save(folder: Path, step: int, size: int = 1000) -> Path:
    path = folder / f"step={step:08d}.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(step, size), path)
    return path


def good_step(folder: Path) -> int:
    """The step of the newest good checkpoint, all of whose tensors are of that step."""
    content = AtomicCheckpointIO().load_checkpoint(newest_good_checkpoint(folder))
    assert torch.equal(content["state_dict"]["weight"], torch.full_like(content["state_dict"]["weight"], content["step"]))
    return content["step"]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.fixture
def other_file_system(tmp_path_factory):
    """A folder on another file system than the temporary one, as the run folders of a cluster are."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path_factory.getbasetemp().stat().st_dev:
        pytest.skip("no second file system to write to")
    folder = shared / f"checkpoint-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


# saving and loading


def test_a_state_round_trips_into_a_folder_that_was_not_there(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 3)
    assert good_step(path.parent) == 3
    assert [file.name for file in path.parent.iterdir()] == ["step=00000003.ckpt"]


def test_a_loaded_state_can_be_written_to_without_changing_the_file(tmp_path):
    path = save(tmp_path, 1)
    AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["weight"].zero_()
    assert good_step(tmp_path) == 1


def test_a_state_that_would_not_load_again_is_refused_when_saving(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(TypeError, match=r"this training state could not be loaded again: holds a Python object \(numpy"):
        AtomicCheckpointIO().save_checkpoint({"callbacks": {"mine": torch.zeros(2).numpy()}}, tmp_path / "step=00000002.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["step=00000001.ckpt"]


def test_storage_options_and_removal(tmp_path):
    path = save(tmp_path, 1)
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, path, storage_options={})
    AtomicCheckpointIO().remove_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not path.exists()


class Toy(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.losses: list[float] = []

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


def fit(model: Toy, folder: Path, epochs: int, resume: Path | None = None) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=2), ckpt_path=resume, weights_only=False)
    return trainer


def test_lightning_saves_and_resumes_through_it(tmp_path):
    torch.manual_seed(0)
    whole, first, second = Toy(), Toy(), Toy()
    first.load_state_dict(whole.state_dict())
    fit(whole, tmp_path, 4)
    fit(first, tmp_path, 2).save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    fit(second, tmp_path, 4, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert first.losses + second.losses == whole.losses


# bad files


def test_a_damaged_checkpoint_is_refused_with_the_good_one_beside_it(tmp_path):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    damage(bad)
    with pytest.raises(CheckpointError) as error:
        AtomicCheckpointIO().load_checkpoint(bad)
    (problem,) = error.value.problems
    assert problem.message.startswith("damaged: its part archive/data/0 does not match its checksum")
    assert problem.fix == f"copy or download it again, or go on from {good}"


def test_missing_and_weight_only_files_are_no_checkpoints(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "model.ckpt")
    for path, message in ((tmp_path / "x" / "y.ckpt", "no such file"), (tmp_path / "model.ckpt", "weights, not the state of a training")):
        with pytest.raises(CheckpointError) as error:
            AtomicCheckpointIO().load_checkpoint(path)
        assert error.value.problems[0].message == message


def test_the_newest_good_checkpoint_is_found_by_looking_into_the_files(tmp_path, caplog):
    assert newest_good_checkpoint(tmp_path) is None
    for step in (5, 1, 9, 3):  # the order of saving, not of names
        last = save(tmp_path, step)
        os.utime(last, (1, 1))  # as after copying the folder
    assert good_step(tmp_path) == 3
    damage(last)
    (tmp_path / "step=00000010.ckpt").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert good_step(tmp_path) == 9
    assert f"{last}: damaged: its part archive/data/0" in caplog.text
    assert "step=00000010.ckpt: the file is empty" in caplog.text


def test_a_second_name_of_the_newest_file_does_not_hide_its_step(tmp_path):
    path = save(tmp_path, 4)
    os.link(path, tmp_path / "last.ckpt")
    assert newest_good_checkpoint(tmp_path) == path


# writers that are stopped


def write_until_killed(folder: Path, size: int) -> None:
    for step in range(1, 10_000):
        save(folder, step, size)
        for old in sorted(folder.glob("*.ckpt"))[:-1]:
            old.unlink()


def kill_while_writing(folder: Path, kills: int, size: int) -> None:
    draw = random.Random(0)
    for _ in range(kills):
        writer = fork.Process(target=write_until_killed, args=(folder, size))
        writer.start()
        deadline = time.monotonic() + 30
        while not list(folder.glob("*.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        finished = list(folder.glob("*.ckpt"))
        assert finished
        for path in finished:  # every one, not only the newest
            AtomicCheckpointIO().load_checkpoint(path)
        assert good_step(folder) >= 1
        assert len(list(folder.glob(f"*{MARK}*"))) <= 1


@pytest.mark.slow
def test_kill_9_while_writing_leaves_only_whole_checkpoints(other_file_system):
    kill_while_writing(other_file_system, kills=4, size=2_000_000)
    save(other_file_system, 99_999)
    assert not list(other_file_system.glob(f"*{MARK}*"))


@pytest.mark.exhaustive
def test_kill_9_at_fifty_moments_leaves_only_whole_checkpoints(other_file_system):
    kill_while_writing(other_file_system, kills=50, size=20_000_000)


def test_only_what_no_living_writer_holds_is_removed(tmp_path):
    with atomic_file(tmp_path / "living.ckpt") as file:
        file.write(b"half")
        (tmp_path / f"dead.ckpt{MARK}123").write_bytes(b"half")
        (tmp_path / "whole.ckpt").write_bytes(b"whole")
        held = fork.Process(target=remove_stale, args=(tmp_path,))
        held.start()
        held.join()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["living.ckpt", "whole.ckpt"]


# disks that refuse


def test_a_file_size_limit_leaves_the_earlier_checkpoint_and_a_clear_error(tmp_path):
    path = save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointWriteError) as error:
            AtomicCheckpointIO().save_checkpoint(state(2, 1_000_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == f"cannot save {path}: File too large; earlier checkpoints are as they were"
    assert error.value.errno == errno.EFBIG
    assert good_step(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_the_earlier_checkpoint_and_a_clear_error(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", tmp_path], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        save(tmp_path, 1, 500_000)
        with pytest.raises(CheckpointWriteError, match=r"No space left on device, 0.00 GB free; earlier checkpoints are as they were"):
            save(tmp_path, 2, 500_000)
        assert good_step(tmp_path) == 1
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(CheckpointWriteError, match=r"cannot save .*File exists; earlier checkpoints are as they were"):
        save(tmp_path / "checkpoints", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path):
    save(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointWriteError, match="Permission denied"):
            save(tmp_path, 2)
        assert good_step(tmp_path) == 1
    finally:
        tmp_path.chmod(0o700)
