"""`train` as a user runs it: real processes, real files, kill -9 and signals included."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

TRAIN = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py")]
pytestmark = pytest.mark.slow


def vowels(rate, formants=((700, 1100), (300, 2300), (450, 800))):
    """A second of speech-like sound: harmonics of 120 Hz under the formants of three vowels, with pauses between them."""
    t = np.arange(rate // 4) / rate
    partials = np.arange(120, min(4000, rate / 2), 120)
    pause = np.zeros(rate // 12)
    voiced = []
    for places in formants:
        loud = sum(np.exp(-(((partials - place) / 150) ** 2)) for place in places)
        voiced += [0.1 * (loud[:, None] * np.sin(2 * np.pi * partials[:, None] * t)).sum(0) * np.hanning(len(t)), pause]
    return np.concatenate(voiced)


@pytest.fixture
def folder(tmp_path):
    """Tones and speech in several formats, rates and lengths, half of the tones with a caption, and one broken file."""
    root = tmp_path / "sounds"
    root.mkdir()
    rng = np.random.default_rng(0)
    for index, (suffix, rate) in enumerate(
        [("wav", 44100), ("flac", 22050), ("ogg", 16000), ("mp3", 48000), ("wav", 8000), ("flac", 8000)]
    ):
        t = np.arange(int(rate * rng.uniform(0.2, 1.5))) / rate
        tone = 0.3 * np.sin(2 * np.pi * 220 * 2 ** (index / 6) * t)
        soundfile.write(root / f"{index}.{suffix}", np.stack([tone, tone], 1) if index % 2 else tone, rate)
        if index % 2:
            (root / f"{index}.txt").write_text(f"tone number {index}")
    for suffix, rate in (("wav", 16000), ("ogg", 44100)):
        soundfile.write(root / f"speech_{suffix}.{suffix}", vowels(rate), rate)
    (root / "broken.wav").write_bytes(b"RIFF nothing")
    return root


def write(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def train(tmp_path, *argv, **kwargs):
    command = [*TRAIN, "--save-dir", str(tmp_path / "runs"), "--num-workers", "0", "--logger", "csv", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, **kwargs)


def losses(run):
    lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/loss")
    return [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]


@pytest.mark.parametrize("kind", ["text_to_audio", "autoencoder"])
def test_a_folder_of_mixed_files_trains_and_leaves_everything_promised(kind, folder, tmp_path):
    demo = {"demo_every": 40, "demo_steps": 2} if kind == "text_to_audio" else {"demo_every": 40, "max_demos": 1}
    model = write(tmp_path / "model.json", getattr(configs, kind)(demo=demo))
    data = write(tmp_path / "data.json", {"dataset_type": "audio_dir", "datasets": [{"id": "tones", "path": str(folder)}]})
    done = train(
        tmp_path, "--model-config", model, "--dataset-config", data, "--max-steps", "200", "--name", "run", "--checkpoint-every", "100"
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    kept = {
        "config.json",
        "dataset.json",
        "args.json",
        "metrics.csv",
        "train.log",
        "index.html",
        "run.json",
        "checkpoints",
        "exports",
        "demos",
    }
    assert kept <= {p.name for p in run.iterdir()}
    assert sorted(p.name for p in (run / "checkpoints").glob("*.ckpt")) == ["last.ckpt", "step=00000100.ckpt", "step=00000200.ckpt"]
    assert (run / "exports" / "model.safetensors").exists()
    assert sorted(p.name for p in (run / "demos").iterdir()) == [f"step_{s:08d}" for s in (0, 40, 80, 120, 160, 200)]
    values = losses(run)
    assert len(values) == 20 and sum(values[-5:]) < sum(values[:5])
    assert done.stderr.count("broken.wav") == 1
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def start(tmp_path, model, *argv):
    command = [
        *TRAIN,
        "--model-config",
        model,
        "--save-dir",
        str(tmp_path / "runs"),
        "--num-workers",
        "0",
        "--logger",
        "csv",
        "--name",
        "run",
        "--val-every",
        "0",
        "--log-every",
        "1",
        *argv,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_recover_after_kill_9_equals_a_run_that_was_never_killed(tmp_path):
    model = write(tmp_path / "model.json", configs.text_to_audio())
    run = tmp_path / "runs" / "run"
    process = start(tmp_path, model, "--max-steps", "60", "--checkpoint-every", "10")
    wait_for(lambda: (run / "checkpoints" / "step=00000020.ckpt").exists(), process)
    process.kill()
    process.wait()
    again = start(tmp_path, model, "--max-steps", "60", "--checkpoint-every", "10", "--recover")
    out = again.communicate(timeout=200)
    assert again.returncode == 0, out[1]
    straight = train(tmp_path, "--model-config", model, "--max-steps", "60", "--name", "straight", "--val-every", "0", "--log-every", "1")
    assert straight.returncode == 0, straight.stderr
    assert losses(run) == losses(tmp_path / "runs" / "straight")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_that_step_and_says_so(tmp_path, number, status):
    model = write(tmp_path / "model.json", configs.text_to_audio())
    run = tmp_path / "runs" / "run"
    process = start(tmp_path, model, "--max-steps", "100000", "--checkpoint-every", "0")
    wait_for(lambda: (run / "metrics.csv").exists(), process)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == status, error
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "stopped" and (run / "checkpoints" / f"step={state['step']:08d}.ckpt").exists()
    assert "stopped by a signal" in error and "Traceback" not in error
    assert [path.name for path in (run / "demos").iterdir()] == ["step_00000000"]


def test_sigusr1_saves_and_goes_on(tmp_path):
    model = write(tmp_path / "model.json", configs.text_to_audio())
    run = tmp_path / "runs" / "run"
    process = start(tmp_path, model, "--max-steps", "100000", "--checkpoint-every", "0")
    wait_for(lambda: (run / "metrics.csv").exists(), process)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: list((run / "checkpoints").glob("step=*.ckpt")), process)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) and process.returncode == 143


def test_the_same_name_twice_is_refused_without_recover(tmp_path):
    model = write(tmp_path / "model.json", configs.text_to_audio())
    assert train(tmp_path, "--model-config", model, "--max-steps", "1", "--name", "run").returncode == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}
    second = train(tmp_path, "--model-config", model, "--max-steps", "1", "--name", "run")
    assert second.returncode == 2 and "--recover goes on with it" in second.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}


def test_a_failure_while_running_says_the_cause_and_keeps_the_traceback_in_the_log(tmp_path):
    plugin = tmp_path / "trouble.py"
    plugin.write_text(
        "from stable_audio_tools.training.strategies.supervised import Supervised\n"
        "real = Supervised.loss\n"
        "def loss(self, model, batch):\n"
        "    self.calls = getattr(self, 'calls', 0) + 1\n"
        "    if self.calls > 3: raise RuntimeError('the disk is on fire')\n"
        "    return real(self, model, batch)\n"
        "Supervised.loss = loss\n"
    )
    model = write(tmp_path / "model.json", configs.text_to_audio())
    failed = train(
        tmp_path,
        "--model-config",
        model,
        "--max-steps",
        "9",
        "--name",
        "run",
        "--checkpoint-every",
        "2",
        "--plugins",
        "trouble",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    run = tmp_path / "runs" / "run"
    assert failed.returncode == 1
    assert "the disk is on fire" in failed.stderr and "Traceback" not in failed.stderr
    assert "Traceback" in (run / "train.log").read_text()
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert (run / "checkpoints" / "step=00000002.ckpt").exists()


@pytest.fixture
def autoencoder_run(tmp_path):
    """Trains an autoencoder for two steps with a logger, without any account; gives the run's folder."""

    def run(logger):
        model = write(tmp_path / "model.json", configs.autoencoder(demo={"demo_every": 2, "max_demos": 1}))
        options = ("--max-steps", "2", "--log-every", "1", "--name", "run", "--logger", logger, "--project", "whales")
        secrets = {"WANDB_API_KEY": "", "COMET_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
        done = train(tmp_path, "--model-config", model, *options, env={**os.environ, **secrets})
        assert done.returncode == 0, done.stderr
        return tmp_path / "runs" / "run"

    return run


def test_wandb_gets_numbers_sounds_and_pictures_without_asking(autoencoder_run):
    run = autoencoder_run("wandb")
    media = [p.relative_to(run).as_posix() for p in (run / "wandb").rglob("*") if p.is_file() and "media" in p.parts]
    for kind, suffix in (("demo", ".wav"), ("spectrogram", ".png"), ("latents", ".png"), ("latents_3d", ".json")):
        assert any(f"/{kind}/" in name and name.endswith(suffix) for name in media), (kind, media)
    (log,) = run.rglob("run-*.wandb")
    assert b"whales" in log.read_bytes() and b"train/loss" in log.read_bytes()


def test_tensorboard_gets_numbers_sounds_and_pictures(autoencoder_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(autoencoder_run("tensorboard") / "tensorboard")).Reload()
    tags = events.Tags()
    assert "train/loss" in tags["scalars"]
    assert any("reconstruction" in tag for tag in tags["audio"])
    assert any("latents" in tag for tag in tags["images"])


@pytest.mark.slow
def test_comet_without_an_account_keeps_numbers_sounds_and_pictures(autoencoder_run):
    (archive,) = (autoencoder_run("comet") / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        messages = file.read("messages.json").decode()
    assert "train/loss" in messages and "reconstruction" in messages and "latents" in messages
