"""The codec of windowed transformers, which no published package can build: its parts are held to what they say."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.autoencoders.local_attn import (
    LocalAttentionDecoderConfig,
    LocalAttentionEncoderConfig,
    LocalAttentionEncoderParams,
    LocalTransformer,
)
from stable_audio_tools.models.factory import create_model_from_config

CONFIG = json.loads((Path(__file__).parents[2] / "reference" / "tiny_ae_local_attn.json").read_text())
SIZES = {"embed_dims": [16, 32], "heads": [2, 4], "depths": [1, 2], "ratios": [2, 3], "local_attn_window_size": 8}


def encoder(**options):
    return LocalAttentionEncoderConfig.model_validate(
        {"type": "local_attn", "config": {**SIZES, "in_channels": 2, "out_channels": 6, **options}}
    ).build()


def decoder(**options):
    return LocalAttentionDecoderConfig.model_validate(
        {"type": "local_attn", "config": {**SIZES, "in_channels": 6, "out_channels": 2, **options}}
    ).build()


def randomise(module):
    """Branches that start at zero would hide what is wrong in them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return module


def test_the_published_config_builds_and_trains():
    model = create_model_from_config(CONFIG)
    audio = torch.randn(2, 2, 256)
    latents = model.encode(audio)
    decoded = model.decode(latents)
    assert latents.shape == (2, 8, 32) and decoded.shape == (2, 2, 256)
    decoded.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    copy.deepcopy(model).load_state_dict(model.state_dict())


def test_keys_are_those_of_the_published_modules():
    with torch.device("meta"):
        state = create_model_from_config(CONFIG).state_dict()
    shapes = {key.removeprefix("encoder."): tuple(value.shape) for key, value in state.items() if key.startswith("encoder.layers.1.")}
    assert shapes == {
        "layers.1.transformer.layers.0.0.gamma": (64,),
        "layers.1.transformer.layers.0.0.beta": (64,),
        "layers.1.transformer.layers.0.1.to_qkv.weight": (192, 64),
        "layers.1.transformer.layers.0.1.to_out.weight": (64, 64),
        "layers.1.transformer.layers.0.3.gamma": (64,),
        "layers.1.transformer.layers.0.3.beta": (64,),
        "layers.1.transformer.layers.0.4.ff.0.proj.weight": (256, 64),
        "layers.1.transformer.layers.0.4.ff.0.proj.bias": (256,),
        "layers.1.transformer.layers.0.4.ff.2.weight": (64, 128),
        "layers.1.transformer.rotary_pos_emb.inv_freq": (16,),
        "layers.1.project_down.weight": (64, 256),
    }
    assert tuple(state["decoder.layers.0.project_up.weight"].shape) == (256, 64)
    assert {key for key in state if ".layers." not in key} == {
        f"{half}.{name}.weight" for half in ("encoder", "decoder") for name in ("project_in", "project_out")
    }


@torch.no_grad()
@pytest.mark.parametrize(("size", "causal", "left", "right"), [(8, False, 3, 4), (7, False, 3, 3), (1, False, 0, 0), (5, True, 4, 0)])
def test_a_frame_sees_a_window_of_the_given_size(size, causal, left, right):
    params = LocalAttentionEncoderParams.model_validate(
        {**SIZES, "in_channels": 1, "out_channels": 1, "local_attn_window_size": size, "causal": causal}
    )
    module = randomise(LocalTransformer(16, 2, 1, params))
    frames = torch.randn(1, 300, 16)
    moved = frames.clone()
    moved[:, 200] = torch.randn(16)
    changed = (module(frames) - module(moved)).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(200 - right, 201 + left))


@torch.no_grad()
def test_merged_frames_take_turns_in_the_channels_and_the_decoder_splits_them_alike():
    down, up = encoder(depths=[0, 0]).layers[0], decoder(embed_dims=[16, 16], heads=[2, 2], depths=[0, 0]).layers[0]
    # Keep frame 1 of each pair; and write each frame to the second of its pair.
    nn.init.zeros_(down.project_down.weight)[:, 1::2] = torch.eye(16)
    nn.init.zeros_(up.project_up.weight)[1::2] = torch.eye(16)
    x = torch.randn(1, 6, 16)
    assert torch.equal(down(x), x[:, 1::2])
    assert torch.equal(up(x)[:, 1::2], x) and up(x)[:, ::2].abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"ff_mult": 3}, {"causal": True}, {"checkpointing": True}, {"depths": [0, 1]}])
def test_every_option_builds_runs_trains_and_reloads(options):
    for make, shape, want in ((encoder, (2, 2, 48), (2, 6, 8)), (decoder, (2, 6, 8), (2, 2, 48))):
        module, twin = randomise(make(**options)), make(**options)
        x = torch.randn(shape)
        y = module(x)
        assert y.shape == want
        y.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        twin.load_state_dict(module.state_dict())
        assert torch.equal(twin(x), y)
        half = twin.bfloat16()(x.bfloat16())
        assert half.dtype == torch.bfloat16 and half.isfinite().all()


@torch.no_grad()
@pytest.mark.slow
def test_backends_agree():
    auto = randomise(encoder())
    flex = encoder(backend="flex")
    flex.load_state_dict(auto.state_dict())
    audio = torch.randn(1, 2, 1800)
    torch.testing.assert_close(flex(audio), auto(audio), atol=1e-4, rtol=1e-4)


def test_defaults_are_those_of_the_published_classes():
    encoder_config = LocalAttentionEncoderConfig.model_validate({"type": "local_attn", "config": {"in_channels": 2, "out_channels": 64}})
    decoder_config = LocalAttentionDecoderConfig.model_validate({"type": "local_attn", "config": {"in_channels": 64, "out_channels": 2}})
    assert encoder_config.config.embed_dims == decoder_config.config.embed_dims[::-1] == (96, 192, 384, 768)
    for config in (encoder_config, decoder_config):
        params = config.config
        assert (params.heads, params.depths, params.ratios) == ((12,) * 4, (3,) * 4, (2,) * 4)
        assert (params.local_attn_window_size, params.ff_mult, params.causal, config.downsampling_ratio) == (64, 2, False, 16)
        with torch.device("meta"):
            config.build()


def test_absent_lists_follow_embed_dims_and_stay_absent():
    config = {"type": "local_attn", "config": {"in_channels": 2, "out_channels": 4, "embed_dims": [24, 48]}}
    params = LocalAttentionEncoderConfig.model_validate(config)
    assert params.downsampling_ratio == 4
    assert params.model_dump(exclude_unset=True, mode="json") == config


@pytest.mark.parametrize(
    ("options", "path", "message", "fix"),
    [
        ({"heads": [2]}, ("heads",), "heads has 1 entries for the 2 stages of embed_dims", "give 2 entries"),
        ({"ratios": [2, 2, 2]}, ("ratios",), "ratios has 3 entries for the 2 stages of embed_dims", "give 2 entries"),
        (
            {"heads": [2, 5]},
            ("embed_dims", 1),
            "embed_dims[1] is 32, which 5 heads do not divide",
            "make it a multiple of 5, or change heads[1]",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, path, message, fix):
    for config in (LocalAttentionEncoderConfig, LocalAttentionDecoderConfig):
        with pytest.raises(ConfigError) as error:
            validate(config, {"type": "local_attn", "config": {**SIZES, "in_channels": 2, "out_channels": 2, **options}}, "config")
        (problem,) = error.value.problems
        assert problem.path == ("config", *path) and message in problem.message and fix in problem.fix


def test_the_autoencoder_names_these_keys_when_sizes_differ():
    body = copy.deepcopy(CONFIG["model"])
    body["encoder"]["config"]["out_channels"] = 16
    body["decoder"]["config"]["in_channels"] = 4
    body["decoder"]["config"]["ratios"] = [2, 2]
    with pytest.raises(ConfigError) as error:
        validate(AutoencoderBody, body, "config")
    assert {problem.path for problem in error.value.problems} == {
        ("encoder", "config", "out_channels"),
        ("decoder", "config", "in_channels"),
        ("decoder", "config", "ratios"),
    }


def test_audio_that_the_ratios_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="50 samples are no multiple of 6, the product of the ratios: pad them"):
        encoder()(torch.randn(1, 2, 50))
