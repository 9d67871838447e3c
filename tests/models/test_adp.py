"""ADP U-Nets: the four places a config can name them, what conditions do, what a config may not say, and lengths of any kind."""

import copy
import hashlib
import json
import logging

import pytest
import torch
from torch import nn

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.denoisers.adp import ADPCFGConfig, ADPUnconditionalConfig
from stable_audio_tools.models.denoisers.adp_unet import ADPParams, ADPUNet
from stable_audio_tools.models.factory import create_model_from_config, parse_model_config
from stable_audio_tools.nn.adp import downsampler, upsampler

SIZES = {
    "in_channels": 4,
    "channels": 16,
    "multipliers": [1, 2, 2],
    "factors": [2, 3],
    "num_blocks": [1, 2],
    "attentions": [0, 1],
    "attention_heads": 2,
    "attention_multiplier": 2,
    "resnet_groups": 4,
}
WITH_NULL = {"context_embedding_features": 8, "context_embedding_max_length": 4}
FRAMES = 24


def number(name, width):
    return {"id": name, "type": "number", "config": {"output_dim": width}}


def conditional(kind="adp_cfg_1d", *, ids=None, conditioners=(), **keys):
    ids = {"cross_attention_cond_ids": ["a", "b"]} if ids is None else ids
    return {
        "model_type": "diffusion_cond",
        "sample_rate": 8000,
        "sample_size": FRAMES,
        "model": {
            "io_channels": 4,
            "conditioning": {"cond_dim": 8, "configs": [number("a", 8), number("b", 8), *conditioners]},
            "diffusion": {"type": kind, "config": {**SIZES, **(WITH_NULL if kind == "adp_cfg_1d" else {}), **keys}, **ids},
        },
    }


def unconditional(**keys):
    model = {"type": "adp_uncond_1d", "config": {**SIZES, **keys}}
    return {"model_type": "diffusion_uncond", "sample_rate": 8000, "sample_size": FRAMES, "audio_channels": 4, "model": model}


def unet(**keys):
    return ADPUNet(ADPParams.model_validate({**SIZES, **keys}))


def noisy(frames=FRAMES, batch=2):
    return torch.randn(batch, 4, frames), torch.tensor([0.3, 0.8])[:batch]


def conditions(model, a=(0.1, 0.9), b=(0.5, 0.2)):
    return model.conditioner([{"a": x, "b": y} for x, y in zip(a, b, strict=True)], "cpu")


@pytest.fixture(params=[False, True], ids=["timestep by mapping", "timestep also a token"])
def guided_model(request):
    return create_model_from_config(conditional(use_xattn_time=request.param)).eval()


GLOBAL = {"global_cond_ids": ["a", "b"]}
SPECTRAL = conditional("adp_1d", ids=GLOBAL, context_features=16, use_stft=True, stft_num_fft=64, stft_hop_length=16)
CONFIGS = {
    "cfg": conditional(use_xattn_time=True),
    "cond": conditional("adp_1d", ids=GLOBAL, context_features=16, use_nearest_upsample=True, patch_size=2),
    "uncond": unconditional(),
    "spectrogram": unconditional(use_stft=True, stft_num_fft=16, stft_hop_length=4, stft_use_complex=True),
}


def run(model, x, t, **options):
    return model(x, t, conditions(model), **options) if hasattr(model, "conditioner") else model(x, t)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_from_config_to_weights_and_back(config):
    model, other = (create_model_from_config(config).eval() for _ in range(2))
    x, t = noisy()
    out = run(model, x, t)
    assert out.shape == x.shape
    assert not torch.equal(run(other, x, t), out)
    other.load_state_dict(model.state_dict())
    for same in (other, copy.deepcopy(model)):
        torch.testing.assert_close(run(same, x, t), out, rtol=0, atol=0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_gradients_reach_every_parameter(config):
    model = create_model_from_config(config)
    x, t = noisy()
    options = {"cfg_dropout_prob": 0.5} if "cfg" in config["model"].get("diffusion", {}).get("type", "") else {}
    run(model, x, t, **options).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bfloat16_is_near_the_full_result_and_the_window_stays_exact(config):
    model = create_model_from_config(config).eval()
    low = copy.deepcopy(model).to(torch.bfloat16)
    x, t = noisy()
    out = run(low, x.bfloat16(), t)
    assert out.dtype == torch.bfloat16
    full = run(model, x, t)
    assert (out - full).norm() < 0.1 * full.norm()
    assert all(torch.equal(low.state_dict()[key], model.state_dict()[key]) for key in low.state_dict() if key.endswith("stft.window"))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_it_builds_without_memory(config):
    with torch.device("meta"):
        model = create_model_from_config(config)
    shapes = {key: value.shape for key, value in create_model_from_config(config).state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes


def test_the_published_layout_at_full_size():
    """Keys and shapes of Stable Audio 1.0's network, as recorded, by their digest."""
    config = {
        "in_channels": 64,
        "context_embedding_features": 768,
        "context_embedding_max_length": 79,
        "channels": 256,
        "resnet_groups": 16,
        "kernel_multiplier_downsample": 2,
        "multipliers": [4, 4, 4, 5, 5],
        "factors": [1, 2, 2, 4],
        "num_blocks": [2, 2, 2, 2],
        "attentions": [1, 3, 3, 3, 3],
        "attention_heads": 16,
        "attention_multiplier": 4,
        "use_nearest_upsample": False,
        "use_skip_scale": True,
        "use_context_time": True,
    }
    with torch.device("meta"):
        network = ADPCFGConfig.model_validate({"type": "adp_cfg_1d", "config": config}).build()
    layout = sorted([key, list(value.shape)] for key, value in network.state_dict().items())
    assert len(layout) == 806
    assert hashlib.sha256(json.dumps(layout).encode()).hexdigest() == LAYOUT_1_0


LAYOUT_1_0 = "8bbbc518c74e694884f0efc0fe8ce01dbde277a554346c344bbd0e6fe9f07844"


def test_initial_weights_are_halved():
    config = ADPUnconditionalConfig.model_validate({"type": "adp_uncond_1d", "config": SIZES})
    torch.manual_seed(0)
    whole = ADPUNet(config.config)
    torch.manual_seed(0)
    half = config.build().model
    for name, value in whole.named_parameters():
        torch.testing.assert_close(half.get_parameter(name), value / 2)


# conditions


def test_what_guidance_leaves_is_the_same_for_every_prompt(guided_model):
    x, t = noisy()
    others = []
    for a in ((0.1, 0.9), (0.7, 0.0)):
        info: dict = {}
        guided_model(x, t, conditions(guided_model, a), cfg_scale=3.0, info=info)
        others.append(info["uncond_output"])
    torch.testing.assert_close(others[0], others[1])


def test_dropout_is_what_guidance_leaves_and_trains_the_null(guided_model):
    x, t = noisy()
    info: dict = {}
    cond = conditions(guided_model)
    guided_model(x, t, cond, cfg_scale=3.0, info=info)
    out = guided_model(x, t, cond, cfg_dropout_prob=1.0)
    torch.testing.assert_close(out, info["uncond_output"], rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    used = guided_model.model.model.fixed_embedding.embedding.weight.grad.abs().sum(-1) > 0
    token = guided_model.model.model.to_time_embedding is not None
    assert used.tolist() == [True, True, token] + [False] * (len(used) - 3)


@pytest.mark.parametrize("batch_cfg", [True, False])
def test_a_negative_prompt(guided_model, batch_cfg):
    x, t = noisy()
    cond, negative = conditions(guided_model), conditions(guided_model, a=(0.6, 0.3))
    plain, other = guided_model(x, t, cond), guided_model(x, t, negative)
    got = guided_model(x, t, cond, cfg_scale=3.0, negative_cond=negative, batch_cfg=batch_cfg)
    torch.testing.assert_close(got, other + 3 * (plain - other), rtol=1e-4, atol=1e-5)


def test_a_negative_prompt_is_seen_where_it_is_longer(guided_model):
    """Also past the last token of the prompt; the places where neither has one stay empty."""
    x, t = noisy(batch=1)
    real = [torch.tensor([mask]) for mask in ([True, False, False], [True, True, False])]
    tokens = torch.randn(1, 3, 8)
    cond = {"a": Condition(torch.randn(1, 3, 8), real[0]), "b": Condition(torch.randn(1, 1, 8), None)}

    def other(tokens):
        info: dict = {}
        negative = {**cond, "a": Condition(tokens, real[1])}
        guided_model(x, t, cond, cfg_scale=3.0, negative_cond=negative, info=info)
        return info["uncond_output"]

    nudges = torch.eye(3)[:, None, :, None] * torch.randn(8)
    seen = [bool((other(tokens + nudge) - other(tokens)).abs().max() > 1e-6) for nudge in nudges]
    assert seen == [True, True, False]


def test_a_negative_prompt_of_another_length(guided_model):
    x, t = noisy()
    cond = conditions(guided_model)
    negative = {**cond, "a": Condition(torch.randn(2, 3, 8), None)}
    plain, other = guided_model(x, t, cond), guided_model(x, t, negative)
    got = guided_model(x, t, cond, cfg_scale=3.0, negative_cond=negative)
    torch.testing.assert_close(got, other + 3 * (plain - other), rtol=1e-4, atol=1e-5)


def test_the_networks_own_share_of_rescaling(guided_model):
    x, t = noisy()
    cond = conditions(guided_model)
    own = guided_model(x, t, cond, cfg_scale=3.0, rescale_cfg=True)
    torch.testing.assert_close(own, guided_model(x, t, cond, cfg_scale=3.0, scale_phi=0.4))
    asked = guided_model(x, t, cond, cfg_scale=3.0, rescale_cfg=True, scale_phi=0.9)
    torch.testing.assert_close(asked, guided_model(x, t, cond, cfg_scale=3.0, scale_phi=0.9))
    assert not torch.allclose(own, guided_model(x, t, cond, cfg_scale=3.0))


def test_padding_of_a_prompt_says_nothing(guided_model):
    x, t = noisy()
    cond = conditions(guided_model)
    mask = torch.tensor([[True, False]] * 2)
    padded = [{**cond, "a": Condition(torch.cat((cond["a"].tensor, junk), dim=1), mask)} for junk in torch.randn(2, 2, 1, 8)]
    torch.testing.assert_close(*(guided_model(x, t, each) for each in padded))


def test_cross_attention_without_a_learned_null():
    model = create_model_from_config(conditional("adp_1d", context_embedding_features=8)).eval()
    x, t = noisy()
    cond = conditions(model)
    info: dict = {}
    out = model(x, t, cond, cfg_scale=2.0, info=info)
    zeros = {name: Condition(torch.zeros_like(c.tensor), c.mask) for name, c in cond.items()}
    torch.testing.assert_close(info["uncond_output"], model(x, t, zeros))
    assert not torch.allclose(out, model(x, t, cond))


def test_channels_enter_at_each_level_that_asks_for_them():
    model = unet(context_channels=[2, 0, 8]).eval()
    x, t = noisy()
    top, deep = torch.randn(2, 2, FRAMES), torch.randn(2, 8, FRAMES // 6)
    stretched = deep.repeat_interleave(6, dim=-1)
    out = model(x, t, beside=torch.cat((top, stretched), dim=1))
    for changed in (torch.cat((top + 1, stretched), dim=1), torch.cat((top, stretched + 1), dim=1)):
        assert not torch.allclose(model(x, t, beside=changed), out)
    assert model.to_in.block.block1.project.in_channels == 6 and model.downsamples[1].blocks[0].block1.project.in_channels == 40


def test_guidance_without_anything_to_leave_out_is_reported(caplog):
    model = create_model_from_config(conditional("adp_1d", ids=GLOBAL, context_features=16)).eval()
    x, t = noisy()
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(model(x, t, conditions(model), cfg_scale=3.0), model(x, t, conditions(model)))
    assert "cfg_scale 3 has no effect" in caplog.text


# lengths


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("multiplier", [2, 4])
def test_sampling_down_and_up_keeps_the_length(factor, nearest, multiplier):
    x = torch.randn(1, 3, 4 * factor)
    low = downsampler(3, 5, factor, multiplier)(x)
    assert low.shape == (1, 5, 4)
    assert upsampler(5, 3, factor, nearest=nearest)(low).shape == x.shape


@pytest.mark.parametrize("length", [64, 67, 128, 131])
@pytest.mark.parametrize("num_fft", [16, 31])
def test_spectrograms_take_any_length(length, num_fft):
    model = unet(use_stft=True, stft_num_fft=num_fft, stft_hop_length=8)
    x, t = noisy(length)
    assert model(x, t).shape == x.shape


@pytest.mark.parametrize("use_complex", [True, False])
@pytest.mark.parametrize("num_fft", [16, 31])
def test_spectrogram_channels_are_the_signal(use_complex, num_fft):
    stft = unet(use_stft=True, stft_num_fft=num_fft, stft_hop_length=4, stft_use_complex=use_complex).stft
    x = torch.randn(2, 3, 61)
    channels = stft.encode(x)
    assert channels.shape == (2, 3 * stft.channels, stft.frames(61))
    torch.testing.assert_close(stft.decode(channels, 61), x, rtol=1e-4, atol=1e-5)


def test_a_context_may_be_a_spectrogram_too():
    model = unet(use_stft=True, stft_num_fft=16, stft_hop_length=4, use_stft_context=True, context_channels=[2])
    x, t = noisy(64)
    beside = torch.randn(2, 2, 64)
    out = model(x, t, beside=beside)
    assert out.shape == x.shape and not torch.allclose(model(x, t, beside=beside.flip(0)), out)


@pytest.mark.parametrize("how", ["selective", "full", True])
def test_checkpointing_changes_no_gradient(how):
    plain = unet(context_embedding_features=8)
    saving = unet(context_embedding_features=8, activation_checkpointing=how)
    saving.load_state_dict(plain.state_dict())
    x, t = noisy()
    context = torch.randn(2, 3, 8)
    for model in (plain, saving):
        model(x, t, context=context).square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(saving.get_parameter(name).grad, parameter.grad)


def test_features_of_every_level():
    model = create_model_from_config(conditional()).eval()
    x, t = noisy()
    info: dict = {}
    model(x, t, conditions(model), info=info)
    assert [tuple(features.shape[1:]) for features in info["hidden_states"]] == [(12, 32), (4, 32), (4, 32), (12, 32), (24, 16)]


# what can be wrong


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"factors": [2]}, "factors", "factors has 1 numbers, but multipliers has 3 numbers, for the top and 2 levels\n  = give 2"),
        ({"num_blocks": [1, 1, 1]}, "num_blocks", "num_blocks has 3 numbers"),
        ({"attentions": [1]}, "attentions", "attentions has 1 numbers, .*\n  = give 3, for each level and the bottom"),
        ({"attentions": [0, 0, 0, 1]}, "attentions", "attentions has 4 numbers"),
        ({"context_channels": [1, 1, 1, 1]}, "context_channels", "4 numbers, but .*\n  = give at most 3"),
        ({"out_channels": 5}, "out_channels", "a denoiser gives what it takes"),
        ({"channels": 17}, "channels", "channels 17 is odd\n  = nearest: 16 or 18"),
        ({"patch_size": 3}, "patch_size", "16 is no multiple of patch_size 3"),
        (
            {"resnet_groups": 12},
            "resnet_groups",
            "32 channels, no multiple of resnet_groups 12\n  = choose a divisor, such as 4",
        ),
        ({"kernel_multiplier_downsample": 3}, "kernel_multiplier_downsample", "multiple of 2"),
        ({"context_channels": [0, 6]}, r"context_channels\[1\]", "6 channels are no multiple of resnet_groups 4\n  = nearest: 8"),
        ({"num_blocks": [0, 1], "context_channels": [0, 4]}, r"context_channels\[1\]", r"num_blocks\[0\] is 0"),
        ({"attention_heads": None}, "attention_heads", "whose heads have no size\n  = give attention_heads"),
        ({"attention_heads": 33}, "attention_heads", "more than the 32 channels there are\n  = at most 32"),
        ({"attention_multiplier": None}, "attention_multiplier", "need attention_multiplier"),
        ({"multipliers": [1, 2, 3]}, "attentions", "a transformer has 48 channels, no multiple of 32"),
        ({"use_stft": True}, "stft_num_fft", "use_stft needs stft_num_fft"),
        ({"stft_num_fft": 64}, "stft_num_fft", "has no effect without use_stft"),
        ({"use_stft_context": True}, "use_stft_context", "has no effect without use_stft"),
        (
            {"use_stft": True, "stft_num_fft": 64},
            "stft_hop_length",
            "windows of 64 samples every 256 .*\n  = at most 33",
        ),
        ({"use_stft": True, "stft_num_fft": 64, "stft_window_length": 65}, "stft_window_length", "exceeds stft_num_fft 64"),
        ({"context_features": 4}, "context_features", "this model has no conditions\n  = remove it"),
        ({"depth": 3}, "depth", "unknown key|no such key|not a key"),
    ],
)
def test_sizes_that_do_not_fit(keys, path, message):
    with pytest.raises(ConfigError, match=rf"(?s){path}\n.*{message}"):
        parse_model_config(unconditional(**keys))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (conditional(in_channels=3), r"config.in_channels\n.*in_channels is 3, but the model's io_channels is 4"),
        (conditional("adp_1d", ids=GLOBAL), "context_features is 0, but the conditions of global_cond_ids have width a 8, b 8: 16"),
        (conditional("adp_1d", ids={}, context_features=16), "global_cond_ids names no condition\n.*, or remove context_features"),
        (conditional("adp_1d", ids={}, context_channels=[4]), "input_concat_ids names no condition\n.*, or remove context_channels"),
        (conditional("adp_1d", ids={"input_concat_ids": ["a"]}, context_channels=[4]), "is 4, .* a 8\n  = make its numbers 8 together"),
        (conditional(ids={"cross_attention_cond_ids": ["a"], "prepend_cond_ids": ["b"]}), "adp_cfg_1d takes no conditions this way"),
        (conditional() | {"sample_size": 25}, "no multiple of 6 .*patch_size x factors"),
        (SPECTRAL | {"sample_size": 20}, "sample_size 20 is shorter than the model can take, 33"),
    ],
)
def test_conditions_and_lengths_that_do_not_fit(config, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        parse_model_config(config)


@pytest.mark.parametrize("key", ["context_embedding_features", "context_embedding_max_length"])
def test_the_learned_null_needs_its_sizes(key):
    config = {name: value for name, value in {**SIZES, **WITH_NULL}.items() if name != key}
    with pytest.raises(ConfigError, match=key):
        validate(ADPCFGConfig, {"type": "adp_cfg_1d", "config": config}, "denoiser")


BYTES = {"id": "text", "type": "bytes", "config": {"max_length": 5, "output_dim": 8}}


def test_prompts_longer_than_the_learned_null_are_refused_before_any_weight_exists():
    config = conditional(ids={"cross_attention_cond_ids": ["a", "text"]}, conditioners=[BYTES])
    with pytest.raises(ConfigError) as caught:
        parse_model_config(config)
    (problem,) = caught.value.problems
    assert problem.path == ("model", "diffusion", "config", "context_embedding_max_length")
    assert (
        problem.message == "context_embedding_max_length is 4, but the conditions of cross_attention_cond_ids have more tokens: a 1, text 5"
    )
    assert problem.fix == "set context_embedding_max_length to 6, or lower max_length of the prompt"


@pytest.mark.parametrize(
    ("keys", "conditioning"),
    [({"context_embedding_max_length": 6}, {}), ({}, {"pre_encoded_keys": ["text"]})],
    ids=["there is room", "finished tensors may be short"],
)
def test_prompts_that_may_fit_the_learned_null_are_taken(keys, conditioning):
    config = conditional(ids={"cross_attention_cond_ids": ["a", "text"]}, conditioners=[BYTES], **keys)
    config["model"]["conditioning"] |= conditioning
    text = torch.randn(3, 8) if conditioning else "some words"
    model = create_model_from_config(config).eval()
    cond = model.conditioner([{"a": 0.5, "b": 0.5, "text": text}], "cpu")
    assert model(*noisy(batch=1), cond, cfg_scale=2.0).shape == (1, 4, FRAMES)


def test_phonemes_are_as_many_as_the_text_has():
    phonemes = {"id": "text", "type": "phoneme", "config": {"output_dim": 8}}
    parse_model_config(conditional(ids={"cross_attention_cond_ids": ["text"]}, conditioners=[phonemes]))


def test_inputs_that_do_not_fit(guided_model):
    x, t = noisy()
    cond = conditions(guided_model)
    with pytest.raises(ValueError, match="20 frames are no multiple of patch_size x factors = 6; pad to 24"):
        guided_model(x[..., :20], t, cond)
    with pytest.raises(ValueError, match="latents have 3 channels, the model has in_channels 4"):
        guided_model(x[:, :3], t, cond)
    with pytest.raises(ValueError, match="5 tokens, but context_embedding_max_length is 4; raise it, or shorten the prompt"):
        guided_model(x, t, {**cond, "a": Condition(torch.randn(2, 4, 8), None)})
    with pytest.raises(ValueError, match="cross_attn_cond has width 6, the model has context_embedding_features 8"):
        guided_model.model.model(x, t, context=torch.randn(2, 3, 6))
    with pytest.raises(ValueError, match="an ADP U-Net takes no exit_layer_ix"):
        guided_model(x, t, cond, exit_layer_ix=0)
    with pytest.raises(ValueError, match="an ADP U-Net takes no mask"):
        guided_model(x, t, cond, mask=torch.ones(2, FRAMES, dtype=torch.bool))
    spectral = unet(use_stft=True, stft_num_fft=64, stft_hop_length=16, stft_length=128)
    with pytest.raises(ValueError, match="stft_length 128 samples, got 64"):
        spectral(*noisy(64))
    with pytest.raises(ValueError, match="20 samples are too short for a transform of 64; at least 33"):
        unet(use_stft=True, stft_num_fft=64, stft_hop_length=16)(*noisy(20))


@pytest.mark.slow
def test_it_learns_one_batch():
    torch.manual_seed(0)
    model = create_model_from_config(conditional())
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x0, noise, t, losses = torch.randn(2, 4, FRAMES), torch.randn(2, 4, FRAMES), torch.tensor([0.3, 0.7]), []
    for _ in range(40):
        out = model(model.objective.add_noise(x0, noise, t), t, conditions(model), cfg_dropout_prob=0.1)
        loss = nn.functional.mse_loss(out, model.objective.target(x0, noise, t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
