"""The Python of published model cards runs as it stands, on a local folder in place of the hub's name."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import torch
import torchaudio
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.models import create_model_from_config

OPEN_1_0 = """
import torch
import torchaudio
from einops import rearrange
from stable_audio_tools import get_pretrained_model
from stable_audio_tools.inference.generation import generate_diffusion_cond

device = "cuda" if torch.cuda.is_available() else "cpu"

# Download model
model, model_config = get_pretrained_model("stabilityai/stable-audio-open-1.0")
sample_rate = model_config["sample_rate"]
sample_size = model_config["sample_size"]

model = model.to(device)

# Set up text and timing conditioning
conditioning = [{
    "prompt": "128 BPM tech house drum loop",
    "seconds_start": 0,
    "seconds_total": 30
}]

# Generate stereo audio
output = generate_diffusion_cond(
    model,
    steps=100,
    cfg_scale=7,
    conditioning=conditioning,
    sample_size=sample_size,
    sigma_min=0.3,
    sigma_max=500,
    sampler_type="dpmpp-3m-sde",
    device=device
)

# Rearrange audio batch to a single sequence
output = rearrange(output, "b d n -> d (b n)")

# Peak normalize, clip, convert to int16, and save to file
output = output.to(torch.float32).div(torch.max(torch.abs(output))).clamp(-1, 1).mul(32767).to(torch.int16).cpu()
torchaudio.save("output.wav", output, sample_rate)
"""
OPEN_SMALL = (
    OPEN_1_0.replace("stable-audio-open-1.0", "stable-audio-open-small")
    .replace('    "seconds_start": 0,\n', "")
    .replace("steps=100,\n    cfg_scale=7,", "steps=8,")
    .replace('sigma_min=0.3,\n    sigma_max=500,\n    sampler_type="dpmpp-3m-sde"', 'sampler_type="pingpong"')
)


def folder_model(folder, *, objective, conditions):
    """A small model of the published kind: conditions by cross-attention and globally, a stereo VAE."""
    config, body = configs.text_to_audio(), configs.autoencoder()["model"]
    numbers = [{"id": name, "type": "number", "config": {"min_val": 0, "max_val": 512}} for name in conditions]
    config["audio_channels"] = 2
    model = config["model"]
    model["io_channels"] = model["diffusion"]["config"]["io_channels"] = 4
    model["pretransform"] = {"type": "autoencoder", "config": body}
    model["conditioning"]["configs"] += numbers
    model["diffusion"].update(
        diffusion_objective=objective, cross_attention_cond_ids=["prompt", *conditions], global_cond_ids=[*conditions]
    )
    model["diffusion"]["config"]["global_cond_dim"] = 16 * len(conditions)
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(config))
    save_file(create_model_from_config(config).state_dict(), folder / "model.safetensors")


def rearrange(tensor, pattern):
    """einops' function for the one pattern of model cards, where that package is not installed."""
    assert pattern == "b d n -> d (b n)"
    return tensor.transpose(0, 1).flatten(1)


def save(path, audio, sample_rate):
    """In the place of torchaudio's function, which needs torchcodec, and as of 2.11 takes whole numbers for samples beyond full scale."""
    soundfile.write(path, audio.T.numpy(), sample_rate)


@pytest.fixture
def card_packages(monkeypatch):
    if importlib.util.find_spec("einops") is None:
        einops = ModuleType("einops")
        einops.rearrange = rearrange
        monkeypatch.setitem(sys.modules, "einops", einops)
    monkeypatch.setattr(torchaudio, "save", save)


@pytest.mark.parametrize(
    ("card", "name", "kind"),
    [
        (OPEN_1_0, "stabilityai/stable-audio-open-1.0", {"objective": "v", "conditions": ["seconds_start", "seconds_total"]}),
        (OPEN_SMALL, "stabilityai/stable-audio-open-small", {"objective": "rf_denoiser", "conditions": ["seconds_total"]}),
    ],
    ids=["open 1.0", "open small"],
)
def test_the_snippet_of_a_model_card_runs_unchanged(tmp_path, monkeypatch, card_packages, card, name, kind):
    monkeypatch.chdir(tmp_path)  # a folder of the hub's name is taken before the hub is asked
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder_model(tmp_path / name, **kind)
    exec(compile(card, "model card", "exec"), {"__name__": "card"})
    audio, rate = soundfile.read("output.wav", dtype="int16")
    assert audio.shape == (2048, 2) and rate == 8000
    assert abs(audio.astype(int)).max() == 32767
    assert sorted(os.listdir()) == ["output.wav", "stabilityai"]
