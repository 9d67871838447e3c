"""What `export` refuses, and that a failure leaves everything as it was."""

import errno
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from trainings import checkpoint, config_of, trained

from stable_audio_tools.models.atomic_file import MARK
from stable_audio_tools.models.checkpoints import save_model

# asking wrongly


def test_nothing_is_replaced_without_force(export):
    path = checkpoint("step.ckpt", trained(config_of("diffusion_uncond")))
    Path("out").mkdir()
    Path("out/model_config.json").write_text("mine")
    status, _, err = export(path, "--out", "out")
    assert status == 2 and "there is already out/model_config.json" in err and "--force replaces it" in err
    assert Path("out/model_config.json").read_text() == "mine" and not Path("out/model.safetensors").exists()
    assert export(path, "--out", "out", "--force")[0] == 0
    status, _, err = export(path, "--out", path, "--format", "peer", "--force")
    assert status == 2 and "this is the checkpoint itself" in err


def test_a_full_disk_leaves_what_was_there(export, monkeypatch):
    path = checkpoint("step.ckpt", trained(config_of("diffusion_uncond")))
    for out in ("model.safetensors", "model.ckpt"):
        Path(out).write_text("earlier")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            status, _, err = export(path, "--out", out, "--format", "peer", "--force")
        assert status == 1 and f"cannot write {out}: No space left on device" in err and "GB free" in err
        assert Path(out).read_text() == "earlier" and not list(Path().glob(f"*{MARK}*"))


def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_space_is_said_before_anything_is_built(export, monkeypatch):
    path = checkpoint("step.ckpt", trained(config_of("diffusion_uncond")))
    monkeypatch.setattr("shutil.disk_usage", lambda place: DiskUsage(0, 0, 1000))
    status, _, err = export(path, "--out", "out")
    assert status == 2 and "0.00 GB are free" in err and not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plain.safetensors", "--out", "a", "--weights", "ema"), ("--weights ema", "has one set of weights", "leave it out")),
        (("step.ckpt", "--out", "a.ckpt"), ("--format native is no .ckpt file", "a file that ends in .safetensors or a folder")),
        (
            ("step.ckpt", "--out", "a.pt", "--format", "peer"),
            ("--format peer is no .pt file", ".safetensors or a file that ends in .ckpt or a folder"),
        ),
        (("step.ckpt", "--out", "a.safetensors", "--format", "diffusers"), ("--format diffusers is no .safetensors file", "name a folder")),
        (
            ("step.ckpt", "--out", "a", "--format", "peer", "--fold-weight-norm"),
            ("--fold-weight-norm", "would be left without these weights"),
        ),
        (("step.ckpt", "--out", "a", "--fold-weight-norm"), ("--fold-weight-norm", "has no weight-normalised layer", "leave it out")),
        (("gone.ckpt", "--out", "a"), ("gone.ckpt", "no such file")),
        (("empty", "--out", "a"), ("the folder has no model.safetensors or model.ckpt",)),
        (("deep", "--out", "a"), ("a DeepSpeed checkpoint", "python deep/zero_to_fp32.py deep weights.pt")),
        (("parts", "--out", "a"), ("a checkpoint of torch.distributed", "dcp_to_torch parts weights.pt")),
        (("bare.ckpt", "--out", "a"), ("bare.ckpt", "carries no model config", "model_config.json")),
        (("step.ckpt", "--out", "a", "--model-config", "other.json"), ("does not fit this model", "--model-config FILE")),
        (("step.ckpt", "--out", "bare.ckpt/a"), ("bare.ckpt is a file", "name another place")),
    ],
    ids=lambda value: "",
)
def test_every_wrong_request_says_what_to_do(export, arguments, says):
    wrapper = trained(config_of("diffusion_uncond"))
    checkpoint("step.ckpt", wrapper)
    save_model("plain.safetensors", wrapper.model, wrapper.model_config)
    torch.save({"state_dict": wrapper.model.state_dict()}, "bare.ckpt")
    other = config_of("diffusion_uncond")
    other["model"]["config"]["depth"] = 1
    Path("other.json").write_text(json.dumps(other))
    for folder, name in (("empty", "notes.txt"), ("deep", "zero_to_fp32.py"), ("parts", ".metadata")):
        Path(folder).mkdir()
        Path(folder, name).touch()
    status, written, err = export(*arguments)
    assert status == 2 and not written and not Path("a").exists()
    for text in says:
        assert text in err
