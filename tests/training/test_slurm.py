"""A SLURM job whose time is over: SIGUSR1, a checkpoint, `scontrol requeue`, and the same command goes on exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.training import slurm

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STEPS = 400
COMMANDS = {
    "train": f"train --model-config model.json --dataset-config data.json --num-workers 0 --max-steps {STEPS} --log-every 1 --val-every 0"
    " --checkpoint-every 0 --accelerator cpu --logger csv --name",
    "fit": f"fit --model.config model.json --data.config data.json --data.num_workers 0 --trainer.max_steps {STEPS}"
    " --trainer.log_every_n_steps 1 --trainer.limit_val_batches 0 --checkpoint_every 0 --trainer.accelerator cpu --logger csv --name",
}
SCONTROL = '#!/bin/sh\necho "$@" >> requeued.txt\nexit ${SCONTROL_STATUS:-0}\n'


class Job:
    """A folder that stands for the cluster: a fake `scontrol`, and processes with the variables of a task of one node."""

    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        (self.bin / "scontrol").write_text(SCONTROL)
        (self.bin / "scontrol").chmod(0o755)
        (folder / "model.json").write_text(json.dumps(configs.text_to_audio(demo={"demo_every": 10_000, "demo_steps": 1})))
        (folder / "data.json").write_text(json.dumps({"dataset_type": "synthetic", "num_items": 60, "hold_out": 0}))

    def start(self, command, name, **variables):
        task = {"JOB_ID": "1234", "JOB_NAME": "audio", "NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1"}
        task |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "localhost", **variables}
        shell = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        shell |= {"PATH": f"{self.bin}:{shell['PATH']}", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
        shell |= {key if key.startswith("SCONTROL") else f"SLURM_{key}": value for key, value in task.items()}
        line = [sys.executable, "-m", "stable_audio_tools", *COMMANDS[command].split(), name]
        return subprocess.Popen(line, cwd=self.folder, env=shell, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def requeued(self):
        return self.read("requeued.txt").splitlines()

    def read(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def rows(self, name):
        """Lines of metrics.csv that a step wrote."""
        return self.read(f"runs/{name}/metrics.csv").splitlines()[1:]

    def losses(self, name):
        header = self.read(f"runs/{name}/metrics.csv").splitlines()[0].split(",")
        return [line.split(",")[header.index("train/loss")] for line in self.rows(name)]

    def wait(self, process, ready):
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_requeued_command_goes_on_exactly_where_the_job_ended(command, tmp_path):
    job = Job(tmp_path)
    first = job.start(command, "run")
    job.wait(first, lambda: len(job.rows("run")) >= 5)
    first.send_signal(signal.SIGUSR1)
    error = first.communicate(timeout=120)[1]
    assert first.returncode == 143, error
    assert job.requeued() == ["requeue 1234"]
    state = json.loads(job.read("runs/run/run.json"))
    assert state["status"] == "stopped" and 0 < state["step"] < STEPS
    assert not list((tmp_path / "runs").rglob("hpc_ckpt*"))

    again, straight = job.start(command, "run", RESTART_COUNT="1"), job.start(command, "straight")
    errors = [process.communicate(timeout=300)[1] for process in (again, straight)]
    assert [again.returncode, straight.returncode] == [0, 0], errors
    assert json.loads(job.read("runs/run/run.json"))["resumed"] == [state["step"]]
    assert job.losses("run") == job.losses("straight") and len(job.losses("run")) == STEPS
    ours, theirs = (load_file(tmp_path / "runs" / name / "exports" / "model.safetensors") for name in ("run", "straight"))
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_signal_before_the_first_step_is_not_lost(tmp_path):
    job = Job(tmp_path)
    process = job.start("train", "run")
    job.wait(process, lambda: job.read("runs/run/args.json"))
    process.send_signal(signal.SIGUSR1)
    seen = len(job.rows("run"))
    error = process.communicate(timeout=120)[1]
    assert seen == 0
    assert process.returncode == 143 and job.requeued() == ["requeue 1234"], error
    assert json.loads(job.read("runs/run/run.json"))["step"] == 1


def test_a_job_that_cannot_be_requeued_saves_and_goes_on_until_sigterm(tmp_path):
    job = Job(tmp_path)
    process = job.start("train", "run", SCONTROL_STATUS="1")
    job.wait(process, lambda: len(job.rows("run")) >= 2)
    process.send_signal(signal.SIGUSR1)
    job.wait(process, lambda: job.requeued() and list((tmp_path / "runs" / "run" / "checkpoints").glob("step=*.ckpt")))
    seen = len(job.rows("run"))
    job.wait(process, lambda: len(job.rows("run")) > seen + 2)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 143 and "scontrol does not requeue job 1234" in error
    assert len(job.requeued()) == 1


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({"SLURM_JOB_ID": "7"}, "requeue 7"),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "requeue 5_2"),
    ],
)
def test_a_task_of_an_array_is_requeued_alone(variables, asked, tmp_path, monkeypatch):
    job = Job(tmp_path)
    for name, value in {**variables, "PATH": f"{job.bin}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert slurm.requeue_job() and job.requeued() == [asked]


def test_without_scontrol_nothing_is_requeued(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.requeue_job() and "scontrol: No such file" in caplog.text


def test_an_interactive_session_is_no_job_and_a_first_attempt_no_restart(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "audio")
    assert slurm.in_job() and not slurm.restarted()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert slurm.restarted()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert not slurm.in_job() and not slurm.restarted()
