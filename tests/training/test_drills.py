"""Runs that are stopped, killed or refused a disk at any moment: what is left behind is whole, and going on gives the same weights."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
from drill import Run, ended, equal, wait_for
from torch import nn

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
