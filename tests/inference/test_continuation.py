"""Going on from audio with a model that inpaints: seconds kept, seconds made."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.inference.continuation import continuation, continue_audio
from stable_audio_tools.inference.generation import generate_diffusion_cond_inpaint
from stable_audio_tools.models import create_model_from_config

RATE = configs.SAMPLE_RATE
OPTIONS = {"conditioning": [{"prompt": "a bell"}], "steps": 2, "cfg_scale": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def model():
    model = create_model_from_config(configs.inpainting())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


AUDIO = (RATE, 0.3 * torch.randn(1, 1200, generator=torch.Generator().manual_seed(0)))


def test_it_is_inpainting_of_all_that_follows(model):
    audio = continue_audio(model, AUDIO, seconds=0.256, keep_s=0.1, **OPTIONS)
    assert audio.shape == (1, 1, 2048)
    mask = torch.zeros(1, 2048)
    mask[:, :800] = 1
    torch.testing.assert_close(
        audio, generate_diffusion_cond_inpaint(model, inpaint_audio=AUDIO, inpaint_mask=mask, sample_size=2048, **OPTIONS)
    )


def test_what_is_kept_reaches_the_model_and_what_follows_does_not(model):
    kept = continue_audio(model, AUDIO, seconds=0.256, keep_s=0.1, **OPTIONS)
    other_end, other_start = AUDIO[1].clone(), AUDIO[1].clone()
    other_end[:, 800:] += 1
    other_start[:, 799] += 1
    assert torch.equal(continue_audio(model, (RATE, other_end), seconds=0.256, keep_s=0.1, **OPTIONS), kept)
    assert not torch.equal(continue_audio(model, (RATE, other_start), seconds=0.256, keep_s=0.1, **OPTIONS), kept)


def test_all_of_the_audio_is_kept_unless_told():
    given = continuation((2 * RATE, torch.zeros(1, 4000)), RATE, seconds=1.0)
    assert given["regenerate_s"] == [(0.25, 1.0)] and given["sample_size"] == RATE


@pytest.mark.parametrize(
    ("seconds", "keep_s", "message"),
    [
        (0.256, 0.0, "keep_s must be above 0 and at most the 0.15 s that the audio holds, got 0"),
        (0.256, 0.2, "keep_s must be above 0 and at most the 0.15 s that the audio holds, got 0.2"),
        (0.15, None, "0.15 s are kept, and the whole is to be 0.15 s: nothing is left to make; raise seconds or set keep_s"),
        (0.1, 0.12, "0.12 s are kept, and the whole is to be 0.1 s"),
    ],
)
def test_seconds_that_do_not_fit_are_told(model, seconds, keep_s, message):
    with pytest.raises(ValueError, match=message):
        continue_audio(model, AUDIO, seconds=seconds, keep_s=keep_s, **OPTIONS)


def test_a_model_that_does_not_inpaint_is_told():
    with pytest.raises(ValueError, match="the model does not inpaint"):
        continue_audio(create_model_from_config(configs.text_to_audio()), AUDIO, seconds=0.256, keep_s=0.1, **OPTIONS)
