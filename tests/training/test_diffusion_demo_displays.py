"""Demos that also show the audio in the metadata: one clip or several, as audio or as latents, alone and with what is made."""

import sys
from pathlib import Path

import pytest
import torch
from test_host import wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.training import create_demo_callback_from_config
from stable_audio_tools.training.config import parse_run_config

CLIPS = 0.1 * torch.randn(2, 2, 1, 2048, generator=torch.Generator().manual_seed(0))


def shown(metadata, **demo):
    config = configs.text_to_audio(demo={"demo_steps": 1, "num_demos": 2, "demo_cfg_scales": [1, 2], **demo})
    module = wrapper(config).eval()
    batch = (torch.zeros(2, 1, 2048), [{"prompt": f"sound {i}", **each} for i, each in enumerate(metadata(module))])
    with torch.no_grad():
        return create_demo_callback_from_config(config, demo_dl=[batch]).render(module)


def of_kind(demos, kind):
    return [demo for demo in demos if demo.kind == kind]


def display(kind="audio", **config):
    return {"cond_display_configs": [{"id": "beat", "type": kind, "config": config}]}


def test_the_audio_condition_is_shown():
    demos = shown(lambda module: [{"audio": CLIPS[i, 0]} for i in range(2)], display_audio_cond=True)
    heard = of_kind(demos, "condition")
    assert [demo.title for demo in heard] == ["1. sound 0, audio", "2. sound 1, audio"]
    assert all(torch.equal(demo.audio, CLIPS[i, 0]) for i, demo in enumerate(heard)) and not of_kind(demos, "mix")


def test_audio_is_mixed_with_what_is_generated_at_each_scale():
    demos = shown(lambda module: [{"beat": CLIPS[i, 0]} for i in range(2)], **display(display_mix=True))
    generated, mixed = of_kind(demos, "generated"), of_kind(demos, "mix")
    assert [demo.cfg_scale for demo in mixed] == [1.0, 1.0, 2.0, 2.0] and len({demo.title for demo in demos}) == len(demos)
    assert all(torch.equal(b.audio, a.audio + CLIPS[i % 2, 0]) for i, (a, b) in enumerate(zip(generated, mixed, strict=True)))


def test_several_clips_are_shown_as_their_sum():
    demos = shown(lambda module: [{"beat": {"kick": CLIPS[i, 0], "snare": CLIPS[i, 1]}} for i in range(2)], **display("audio_dict"))
    for i, demo in enumerate(of_kind(demos, "condition")):
        torch.testing.assert_close(demo.audio, CLIPS[i].sum(0))


@pytest.mark.parametrize("kind", ["audio", "audio_dict"])
@pytest.mark.slow
def test_latents_are_decoded(kind):
    def metadata(module):
        latents = module.model.pretransform.encode(CLIPS[:, 0])
        return [{"beat": each if kind == "audio" else {"all": each}} for each in latents]

    for i, demo in enumerate(of_kind(shown(metadata, **display(kind, pre_encoded=True)), "condition")):
        torch.testing.assert_close(demo.audio, CLIPS[i, 0])


def without_pretransform(config):
    del config["model"]["pretransform"]
    return config


@pytest.mark.parametrize(
    "demo, change, path, message, fix",
    [
        (
            {"display_audio_cond": True, "demo_cond": [{"prompt": "x"}]},
            dict,
            "display_audio_cond",
            "JSON, holds none",
            "demo_cond_from_batch",
        ),
        ({**display(), "demo_cond": [{"prompt": "x"}]}, dict, "cond_display_configs", "holds none", "demo_cond_from_batch"),
        (display("sound"), dict, "cond_display_configs[0].type", "audio_dict", ""),
        (
            display(pre_encoded=True),
            without_pretransform,
            "cond_display_configs[0].config.pre_encoded",
            "the model has no pretransform that could decode latents",
            "remove it",
        ),
    ],
    ids=["audio", "configs", "type", "latents"],
)
def test_displays_that_cannot_be_are_refused(demo, change, path, message, fix):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(change(configs.text_to_audio(demo=demo)))
    (problem,) = caught.value.to_dict()["problems"]
    assert problem["path"] == f"training.demo.{path}" and message in problem["message"] + problem["fix"] and fix in problem["fix"]
