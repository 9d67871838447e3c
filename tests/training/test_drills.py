"""Runs that are stopped, killed or refused a disk at any moment: what is left behind is whole, and going on gives the same weights."""

import math
import os
import random
import resource
import shutil
import signal
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
from drill import Run, ended, equal, wait_for
from torch import nn

from stable_audio_tools.data.synthetic import SyntheticDataset
from stable_audio_tools.models.checkpoint_error import CheckpointError
from stable_audio_tools.training import checkpoint_io, run, start
from stable_audio_tools.training.demos.diffusion import DiffusionCondDemoCallback
from stable_audio_tools.training.denoising import DenoisingModule
from stable_audio_tools.training.module import TrainingModule

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

STEPS = 24
OPTIONS = ("--max-steps", STEPS, "--val-every", 10, "--accum-batches", 2)
PATIENCE_S = 20  # the goal is 30
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Weights of a run that nobody disturbed."""
    return Run(tmp_path_factory.mktemp("straight"), configs.text_to_audio(), *OPTIONS).finish()


# a signal in every phase


def slowed(owner, name, seconds, mark):
    """Make a function take longer, and leave a mark when it is called."""
    real = getattr(owner, name)

    def slow(*args, **kwargs):
        mark.touch()
        time.sleep(seconds)
        return real(*args, **kwargs)

    setattr(owner, name, slow)


def slow_demo(mark):
    """A demo of a hundred seconds, in sampling steps of a tenth."""

    def render(self, module):
        mark.touch()
        for _ in range(1000):
            nn.Identity()(time.sleep(0.1))
        return []

    DiffusionCondDemoCallback.render = render


def slow_export(mark):
    """Of the weights at the end; those of the best step are exported while training goes on."""
    real = run.TrainingRun._export

    def export(self, module, name):
        if name == "model":
            mark.touch()
            time.sleep(100)
        return real(self, module, name)

    run.TrainingRun._export = export


PHASES = {
    "building the model": lambda mark: slowed(start, "build_module", 100, mark),
    "making the optimizers": lambda mark: slowed(TrainingModule, "configure_optimizers", 100, mark),
    "the demo before the first step": slow_demo,
    "a step": lambda mark: slowed(TrainingModule, "training_step", 0.5, mark),
    "validation": lambda mark: slowed(DenoisingModule, "validation_step", 3, mark),
    "saving": lambda mark: slowed(checkpoint_io, "_write", 2, mark),
    "exporting": slow_export,
}
UNSAVED = ("building the model", "making the optimizers")


CASES = [(phase, signal.SIGTERM) for phase in PHASES] + [("making the optimizers", signal.SIGINT), ("validation", signal.SIGINT)]


@pytest.mark.parametrize(("phase", "number"), CASES)
def test_a_signal_is_obeyed_in_every_phase_and_the_run_goes_on_as_if_it_had_not_come(phase, number, tmp_path, straight):
    drill, mark = Run(tmp_path, configs.text_to_audio(), *OPTIONS, "--checkpoint-every", 8), tmp_path / "mark"
    process = drill.start(prepare=lambda: PHASES[phase](mark))
    wait_for(mark.exists, process)
    time.sleep(0.1)
    sent = time.monotonic()
    os.kill(process.pid, number)
    assert ended(process, PATIENCE_S) == STATUS[number], drill.said.read_text()
    assert time.monotonic() - sent < PATIENCE_S
    said = drill.said.read_text()
    assert "Traceback" not in said and "stopped by" in said, said
    if phase not in UNSAVED:
        assert drill.state()["status"] == "stopped" and f"step={drill.state()['step']:08d}.ckpt" in drill.checkpoints()
    assert not drill.leftovers()
    assert equal(drill.finish(), straight)


# any moment


def disturb(root, straight, times, *, kill):
    """Start a run again and again, and end it so many times at random moments; what it comes to must equal `straight`."""
    drill = Run(root, configs.text_to_audio(), *OPTIONS, "--checkpoint-every", 2, "--save-top-k", 2)
    draw, disturbed = random.Random(0), 0
    while disturbed < times:
        process = drill.start("--recover", prepare=lambda: slowed(TrainingModule, "training_step", 0.02, drill.root / "mark"))
        if draw.random() < 0.8:  # once training is under way, else anywhere
            while process.is_alive() and not (drill.root / "mark").exists():
                time.sleep(0.005)
        time.sleep(draw.uniform(0, 1.5))
        (drill.root / "mark").unlink(missing_ok=True)
        number = signal.SIGKILL if kill else draw.choice(list(STATUS))
        finished = not process.is_alive()
        if not finished:
            os.kill(process.pid, number)
        status = ended(process, 30)
        disturbed += not finished
        assert status == 0 if finished else status in (0, STATUS.get(number, -number)), drill.said.read_text()
        drill.checkpoints()
        assert len(drill.leftovers()) <= (1 if kill else 0)
        if status == 0:
            assert equal(drill.weights(), straight)
            shutil.rmtree(drill.folder)
    assert equal(drill.finish(), straight)
    assert not drill.leftovers()


@pytest.mark.parametrize("kill", [True, False], ids=["kill", "stop"])
def test_ended_at_any_moment_and_started_again_a_run_comes_to_the_same_weights(kill, tmp_path, straight):
    disturb(tmp_path, straight, 2, kill=kill)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kill", "times"), [(True, 50), (False, 20)], ids=["kill", "stop"])
def test_ended_at_many_moments_and_started_again_a_run_comes_to_the_same_weights(kill, times, tmp_path, straight):
    disturb(tmp_path, straight, times, kill=kill)


def test_a_second_signal_ends_a_run_at_once(tmp_path):
    drill, mark = Run(tmp_path, configs.text_to_audio(), *OPTIONS), tmp_path / "mark"
    process = drill.start(prepare=lambda: slowed(TrainingModule, "training_step", 60, mark))
    wait_for(mark.exists, process)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process, 5) == 143


def test_sigusr1_before_the_first_step_is_not_deadly(tmp_path):
    drill, mark = Run(tmp_path, configs.text_to_audio(), *OPTIONS), tmp_path / "mark"
    process = drill.start(prepare=lambda: slowed(start, "build_module", 1, mark))
    wait_for(mark.exists, process)
    os.kill(process.pid, signal.SIGUSR1)
    assert ended(process, 60) == 0


# disks that refuse


def test_a_run_whose_checkpoints_are_refused_goes_on_says_so_and_ends_with_1(tmp_path):
    drill = Run(tmp_path, configs.text_to_audio(), *OPTIONS, "--checkpoint-every", 8)
    good = drill.start("--max-steps", 8)
    assert ended(good, 100) == 0
    before = drill.checkpoints()
    size = min(path.stat().st_size for path in drill.folder.glob("checkpoints/*.ckpt"))
    process = drill.start("--recover", prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)))
    assert ended(process, 100) == 1
    said = drill.said.read_text()
    assert "step 16 is not saved: cannot save" in said and "step 24 is not saved" in said and "earlier checkpoints are as they were" in said
    assert drill.state()["status"] == "failed" and drill.checkpoints() == before and not drill.leftovers()


# numbers that are not finite


def test_too_many_bad_steps_end_a_run_with_1_and_leave_the_last_good_weights(tmp_path):
    def spoil():
        real = TrainingModule._backward

        def backward(self, update, *more):
            if self.train_step >= 10:
                update = replace(update, output=replace(update.output, loss=update.output.loss * math.nan))
            real(self, update, *more)

        TrainingModule._backward = backward

    drill = Run(tmp_path, configs.text_to_audio(), *OPTIONS, "--checkpoint-every", 5)
    process = drill.start("--max-bad-steps", 3, prepare=spoil)
    assert ended(process, 100) == 1
    said = drill.said.read_text()
    assert "error: training failed: FloatingPointError: training diverged at step 13: 3 steps in a row were skipped" in said
    assert "loss = nan; batch: synthetic/" in said and "--recover goes on from" in said
    assert drill.state()["status"] == "failed" and "step=00000010.ckpt" in drill.checkpoints()
    assert "skipped_steps" in (drill.folder / "metrics.csv").read_text().splitlines()[0]
    healed = drill.finish()
    assert all(weight.isfinite().all() for weight in healed.values())


# bad checkpoints


def rewritten(change):
    def spoil(path):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return spoil


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flipped(share):
    def spoil(path):
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 1
        path.write_bytes(content)

    return spoil


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("canary"),))


WEIGHT = "diffusion.model.model.to_timestep_embed.0.weight"
BAD = {
    "empty": lambda path: path.write_bytes(b""),
    **{f"cut at {share}": cut(share) for share in (0.001, 0.2, 0.5, 0.9, 0.999)},
    "random": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "flipped in the pickle": flipped(0.0005),
    "flipped in a tensor": flipped(0.5),
    "no generators": rewritten(lambda content: content["state_dict"].pop("strategy.noising._extra_state")),
    "another model": rewritten(lambda content: content["state_dict"].update(stranger=torch.zeros(3))),
    "missing keys": rewritten(lambda content: content["state_dict"].pop(WEIGHT)),
    "another shape": rewritten(lambda content: content["state_dict"].update({WEIGHT: torch.zeros(1, 2, 3, 4)})),
    "a pickle that runs code": lambda path: torch.save({"state_dict": {}, "optimizer_states": [], "x": Payload()}, path),
    "weights alone": rewritten(lambda content: content.pop("optimizer_states")),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    drill = Run(tmp_path_factory.mktemp("trained"), configs.text_to_audio(), "--max-steps", 1)
    drill.finish()
    return drill.folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint_is_refused_with_2_and_one_message(kind, tmp_path, trained):
    bad = tmp_path / "bad.ckpt"
    shutil.copyfile(trained, bad)
    BAD[kind](bad)
    drill = Run(tmp_path, configs.text_to_audio(), "--max-steps", 2)
    assert ended(drill.start("--ckpt-path", bad), 100) == 2
    said = drill.said.read_text()
    assert said.startswith(f"error: {bad}") and said.count("\n  = ") == 1 and said.count("error: ") == 1, said
    assert "Traceback" not in said and not drill.folder.exists() and not (tmp_path / "canary").exists()


@pytest.mark.exhaustive
def test_a_flipped_byte_anywhere_in_the_weights_is_found(tmp_path, trained):
    draw = random.Random(0)
    for _ in range(100):
        bad = tmp_path / "bad.ckpt"
        shutil.copyfile(trained, bad)
        flipped(draw.uniform(0.1, 0.8))(bad)
        with pytest.raises(CheckpointError, match=r"does not match its checksum|damaged"):
            checkpoint_io.AtomicCheckpointIO().load_checkpoint(bad)


# what hangs or dies beside the training process


def spoil_worker(what):
    """Data workers meet trouble at their ninth item."""
    real, served = SyntheticDataset.__getitem__, []

    def item(self, index):
        served.append(index)
        if len(served) > 8 and torch.utils.data.get_worker_info() is not None:
            what()
        return real(self, index)

    SyntheticDataset.__getitem__ = item


def test_a_data_worker_that_dies_ends_the_run_which_names_it(tmp_path):
    drill = Run(tmp_path, configs.text_to_audio(), *OPTIONS, "--num-workers", 1)
    assert ended(drill.start(prepare=lambda: spoil_worker(lambda: os._exit(9))), 60) == 1
    said = drill.said.read_text()
    assert "error: training failed: WorkerLostError: data worker 0 (process " in said and "ended with status 9" in said
    assert drill.state()["status"] == "failed"


HANGS = {
    "data": (lambda: spoil_worker(lambda: time.sleep(1000)), "waiting for data"),
    "a step": (lambda: slowed(TrainingModule, "_finish_step", 1000, Path("mark")), "in train step 1"),
    "validation": (lambda: slowed(DenoisingModule, "validation_step", 1000, Path("mark")), "in batch 0 of the validation at step 10"),
}


@pytest.mark.parametrize("place", HANGS)
def test_a_run_that_stands_still_ends_and_says_where(place, tmp_path):
    spoil, named = HANGS[place]
    drill = Run(tmp_path, configs.text_to_audio(), *OPTIONS, "--num-workers", 1, "--max-stall-minutes", 0.1)
    assert ended(drill.start(prepare=spoil), 60) == 1
    said = drill.said.read_text()
    assert "stands still: nothing has moved for 6 s, " in said and named in said
    assert "(most recent call first)" in said and "(most recent call first)" in (drill.folder / "train.log").read_text()


# secrets

SECRETS = {
    name: f"canary-{index}-{'x' * 32}"
    for index, name in enumerate(("WANDB_API_KEY", "COMET_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD"))
}


@pytest.mark.parametrize(("logger", "fails"), [("wandb", False), ("tensorboard", False), ("comet", False), ("csv", True), ("wandb", True)])
def test_no_secret_of_the_environment_is_written_anywhere(logger, fails, tmp_path):
    def prepare():
        os.environ.update(SECRETS, WANDB_MODE="offline", COMET_START_ONLINE="0", COMET_OFFLINE_DIRECTORY=str(tmp_path / "comet"))
        if fails:
            slowed(TrainingModule, "_finish_step", 0, Path("a folder that is not there") / "mark")

    drill = Run(tmp_path, configs.text_to_audio(), "--max-steps", 3, "--logger", logger)
    assert ended(drill.start(prepare=prepare), 100) == int(fails), drill.said.read_text()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > (4 if fails else 10)
    for path in written:
        content = path.read_bytes()
        content += b"".join(unpacked(path)) if zipfile.is_zipfile(path) else b""
        assert [name for name, secret in SECRETS.items() if secret.encode() in content] == [], path


def unpacked(path):
    with zipfile.ZipFile(path) as archive:
        yield from (archive.read(name) for name in archive.namelist())
