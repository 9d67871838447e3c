import copy
import json

import pytest
import torch
from reference_rule import assert_matches, load_reference, rule_value
from torch import nn

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.seanet import SEANetDecoderConfig, SEANetEncoderConfig, SEANetEncoderParams

SMALL = {"n_filters": 4, "dimension": 3, "ratios": [2, 3], "lstm": 1}
OPTIONS = {
    "plain": {},
    "no lstm": {"lstm": 0},
    "causal": {"causal": True, "lstm": 2},
    "spectral": {"norm": "spectral_norm"},
    "layer norm": {"norm": "layer_norm", "norm_params": {"eps": 1e-4}, "causal": True},
    "group norm": {"norm": "time_group_norm", "norm_params": {"affine": False}},
    "no norm, zeros, true skip": {"norm": "none", "pad_mode": "constant", "true_skip": True},
    "time_layer_norm": {"norm": "time_layer_norm", "pad_mode": "replicate"},
    "residual": {"n_residual_layers": 2, "dilation_base": 3, "compress": 1, "residual_kernel_size": 4},
    "no residual": {"n_residual_layers": 0, "compress": 8, "kernel_size": 4, "last_kernel_size": 1},
    "activation": {"activation": "LeakyReLU", "activation_params": {"negative_slope": 0.3}},
    "learned activation": {"activation": "PReLU", "channels": 2},
}


def encoder(**settings):
    return SEANetEncoderConfig.model_validate({"type": "seanet", "config": {**SMALL, **settings}})


def decoder(**settings):
    return SEANetDecoderConfig.model_validate({"type": "seanet", "config": {**SMALL, **settings}})


def fill_part(part: nn.Module, prefix: str, table):
    """Write the rule's weights for the entries under `prefix`; all of them and no others must be there."""
    wanted = {key.removeprefix(prefix): entry for key, entry in table.items() if key.startswith(prefix)}
    state = part.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == {key: entry[0] for key, entry in wanted.items()}
    for index, key in enumerate(sorted(table)):
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            state[name].copy_(rule_value(table[key][3], state[name], index))


@torch.no_grad()
def test_numbers_are_the_reference():
    reference = load_reference("tiny_ae_seanet_rvq")
    model = reference.config["model"]
    first = SEANetEncoderConfig.model_validate(model["encoder"]).build().eval()
    last = SEANetDecoderConfig.model_validate(model["decoder"]).build().eval()
    fill_part(first, "encoder.", reference.table)
    fill_part(last, "decoder.", reference.table)
    assert_matches(first(reference["in.audio"]), reference["out.pre_bottleneck_latents"])
    assert_matches(last(reference["in.latents"]), reference["out.decoded_skip_bottleneck"])


def test_building_twice_gives_the_same_encoder_and_leaves_the_config_alone():
    config = {"type": "seanet", "config": {"n_filters": 2, "ratios": [4, 4, 5, 8], "lstm": 0}}
    before = copy.deepcopy(config)
    parsed = SEANetEncoderConfig.model_validate(config)
    strides = [[m.stride[0] for m in parsed.build().modules() if isinstance(m, nn.Conv1d) and m.stride[0] > 1] for _ in range(2)]
    assert strides == [[4, 4, 5, 8]] * 2
    assert config == before


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_round_trips_runs_and_trains(option):
    settings = OPTIONS[option]
    channels = settings.get("channels", 1)
    final = {"final_activation": "Tanh", **({"trim_right_ratio": 0.5} if settings.get("causal") else {})}
    halves = encoder(**settings), decoder(**settings, **final)
    first, last = (half.build() for half in halves)
    for half, module in zip(halves, (first, last), strict=True):
        half.build().load_state_dict(module.state_dict())
    audio = torch.randn(2, channels, 31)
    latents = first(audio)
    decoded = last(latents)
    assert latents.shape == (2, 3, 6) and decoded.shape == (2, channels, 36)
    assert decoded.abs().max() <= 1
    decoded.square().mean().backward()
    weights = [*first.parameters(), *last.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weights)
    copy.deepcopy(first)  # after a pass, when a hook would have left a computed weight behind


@pytest.mark.parametrize("option", ["plain", "spectral", "group norm"])
def test_builds_on_the_meta_device(option):
    settings = OPTIONS[option]
    with torch.device("meta"):
        module = encoder(**settings).build()
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    assert module(torch.randn(1, 1, 24, device="meta")).shape == (1, 3, 4)


@torch.no_grad()
@pytest.mark.parametrize(("causal", "norm"), [(True, "weight_norm"), (True, "layer_norm"), (False, "weight_norm")])
def test_causal_outputs_do_not_hear_the_future(causal, norm):
    first = encoder(causal=causal, norm=norm, pad_mode="constant").build().eval()
    last = decoder(causal=causal, norm=norm, pad_mode="constant").build().eval()
    audio = torch.randn(1, 1, 48)
    changed = torch.cat((audio[..., :24], torch.randn(1, 1, 24)), dim=-1)
    latents, other = first(audio), first(changed)
    assert torch.allclose(latents[..., :4], other[..., :4], atol=1e-6) is causal
    heard = torch.cat((latents[..., :4], torch.randn(1, 3, 4)), dim=-1)
    assert torch.allclose(last(latents)[..., :24], last(heard)[..., :24], atol=1e-6) is causal


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5, 6, 7])
def test_lengths_round_up_to_whole_frames(length):
    assert encoder(lstm=0).build()(torch.randn(1, 1, length)).shape[-1] == -(-length // 6)


def test_half_precision_stays_close():
    first, last = encoder().build().eval(), decoder().build().eval()
    audio = torch.randn(1, 1, 48)
    full = last(first(audio))
    half = last.bfloat16()(first.bfloat16()(audio.bfloat16()))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.05)


def test_defaults_are_those_of_the_published_classes():
    first, last = SEANetEncoderConfig(type="seanet"), SEANetDecoderConfig(type="seanet")
    assert (first.in_channels, first.out_channels, first.downsampling_ratio) == (1, 128, 32)
    assert (last.in_channels, last.out_channels, last.downsampling_ratio) == (128, 1, 320)


@pytest.mark.parametrize(
    ("make", "settings", "path", "text"),
    [
        (encoder, {"activation": "Elu"}, "config.activation", "ELU"),
        (encoder, {"activation": "ReLU", "activation_params": {"alpha": 1.0}}, "config.activation_params.alpha", "remove it"),
        (encoder, {"activation_params": {"inplace": True}}, "config.activation_params.inplace", "it has alpha"),
        (encoder, {"activation_params": {"alpha": "x"}}, "config.activation_params", "the arguments of torch.nn.ELU"),
        (encoder, {"norm_params": {"eps": 1e-5}}, "config.norm_params.eps", "remove it; layer_norm and time_group_norm"),
        (encoder, {"norm": "layer_norm", "norm_params": {"affine": True}}, "config.norm_params.affine", "eps, elementwise_affine, bias"),
        (encoder, {"norm": "time_group_norm", "causal": True}, "config.norm", 'set "causal": false'),
        (encoder, {"compress": 5}, "config.compress", "set compress to 4 or less"),
        (encoder, {"pad_mode": "zero"}, "config.pad_mode", "constant"),
        (decoder, {"trim_right_ratio": 0.5}, "config.trim_right_ratio", 'or "causal": true'),
        (decoder, {"final_activation_params": {"alpha": 1.0}}, "config.final_activation_params", "name one, or remove them"),
        (
            decoder,
            {"final_activation": "Tanh", "final_activation_params": {"alpha": 1.0}},
            "config.final_activation_params.alpha",
            "remove",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_place_and_fix(make, settings, path, text):
    kind = SEANetEncoderConfig if make is encoder else SEANetDecoderConfig
    config = {"type": "seanet", "config": {**SMALL, **settings}}
    with pytest.raises(ConfigError) as caught:
        validate(kind, config, "model.json", json.dumps(config))
    told = [(problem["path"], problem["message"] + problem["fix"]) for problem in caught.value.to_dict()["problems"]]
    assert any(path == place and text in words for place, words in told), told


def test_a_config_draws_no_random_number():
    state = torch.get_rng_state()
    SEANetEncoderParams(activation="RReLU", activation_params={"lower": 0.1})
    assert torch.equal(torch.get_rng_state(), state)
