"""Several processes: the same weights on every rank, noise of its own on each, from one machine or from several."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

pytestmark = pytest.mark.slow
TRAIN = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py")]

# Imported by every rank: writes down the weights at the end, and the state of the random generator after each step.
WATCH = """
import torch
from stable_audio_tools.training.module import TrainingModule

real = TrainingModule._finish_step
noise = []

def finish(self):
    real(self)
    noise.append(torch.get_rng_state())
    torch.save({"weights": dict(self.state_dict()), "noise": noise, "step": self.train_step}, f"rank{self.global_rank}.pt")

TrainingModule._finish_step = finish
"""


def frozen_encoder():
    """An autoencoder of one player, which from step 2 on has no gradient for all of its weights."""
    config = configs.autoencoder(warmup_steps=1, encoder_freeze_on_warmup=True)
    del config["training"]["loss_configs"]["discriminator"]
    return config


KINDS = {"frozen_encoder": frozen_encoder}


def command(folder, kind, *flags):
    (folder / "model.json").write_text(json.dumps(KINDS.get(kind, getattr(configs, kind, None))()))
    (folder / "data.json").write_text(json.dumps({"dataset_type": "synthetic", "num_items": 64, "hold_out": 0}))
    (folder / "watch.py").write_text(WATCH)
    data = ["--dataset-config", "data.json", "--val-dataset-config", "data.json", "--val-every", "2", "--num-workers", "0"]
    fixed = "--strategy ddp --accelerator cpu --logger csv --log-every 1 --plugins watch --name run"
    return [*TRAIN, "--model-config", "model.json", *data, *fixed.split(), *flags]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **more}


def assert_ranks_agree(folder, step):
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["step"] == second["step"] == step
    tensors = {key: value for key, value in first["weights"].items() if isinstance(value, torch.Tensor)}
    assert tensors and all(torch.equal(value, second["weights"][key]) for key, value in tensors.items())
    assert all(not torch.equal(a, b) for a, b in zip(first["noise"], second["noise"], strict=True))


@pytest.mark.parametrize(
    "kind", ["text_to_audio", "autoencoder", "language_model", "inpainting", "diffusion_autoencoder", "frozen_encoder"]
)
def test_two_processes_train_one_model_each_with_its_own_noise(kind, tmp_path):
    def run(*flags):
        done = subprocess.run(
            command(tmp_path, kind, "--devices", "2", *flags),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done

    done = run("--max-steps", "3")
    assert_ranks_agree(tmp_path, 3)
    assert done.stderr.count("report: ") == 1
    run("--max-steps", "5", "--recover")
    assert_ranks_agree(tmp_path, 5)
    state = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    assert state["status"] == "finished" and state["step"] == 5 and state["resumed"] == [3]


def test_two_machines_of_one_process_each_are_one_run(tmp_path):
    line = command(tmp_path, "text_to_audio", "--devices", "1", "--num-nodes", "2", "--max-steps", "2")
    shared = environment()
    ranks = [
        subprocess.Popen(line, cwd=tmp_path, env={**shared, "NODE_RANK": str(node)}, stderr=subprocess.PIPE, text=True) for node in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    assert_ranks_agree(tmp_path, 2)
