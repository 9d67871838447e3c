"""Diffusion autoencoders: recorded numbers, every combination of parts encodes, trains and decodes, and sizes that do not fit."""

import copy

import pytest
import torch
from reference_inputs import reference_input
from reference_rule import assert_matches, assert_same_layout, fill, load_reference

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models.factory import create_model_from_config, parse_model_config

DAU = {"depth": 3, "n_attn_layers": 1, "channels": [32, 32, 32], "strides": [2, 2]}
DIT = {"embed_dim": 32, "depth": 1, "num_heads": 1, "patch_size": 2}
ENCODER = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 6}
DECODER = {"channels": 4, "c_mults": [1], "strides": [4], "latent_dim": 6, "out_channels": 3}


def config(network="DAU1d", *, channels=2, seen=6, **parts):
    """Latents of 6 channels at an eighth of the rate; a part that is None is left out."""
    sizes = {"io_channels": channels, **({"cond_dim": seen, **DAU} if network == "DAU1d" else {"input_concat_dim": seen, **DIT})}
    model = {
        "encoder": {"type": "oobleck", "config": {**ENCODER, "in_channels": channels}},
        "bottleneck": {"type": "tanh"},
        "diffusion": {"type": network, "config": sizes},
        "latent_dim": 6,
        "downsampling_ratio": 8,
        "io_channels": channels,
        **parts,
    }
    model = {key: part for key, part in model.items() if part is not None}
    return {"model_type": "diffusion_autoencoder", "sample_rate": 8000, "sample_size": 256, "model": model}


def decoder(**options):
    return {"type": "oobleck", "config": {**DECODER, **options}}


def patched():
    """Two audio channels as eight, at a quarter of the rate."""
    return {"type": "patched", "config": {"channels": 2, "patch_size": 4}}


COMBINATIONS = {
    "DAU1d": config(),
    "dit": config("dit"),
    "no bottleneck": config(bottleneck=None),
    "vae": config(seen=3, latent_dim=3, bottleneck={"type": "vae"}),
    "decoder": config(seen=3, decoder=decoder()),
    "dit and decoder": config("dit", seen=3, decoder=decoder()),
    "no encoder": config(seen=2, encoder=None, latent_dim=2, downsampling_ratio=1),
    "pretransform": config(channels=8, pretransform=patched()),
    "dit and pretransform, ratio in samples": config("dit", channels=8, pretransform=patched(), downsampling_ratio=32),
    "default strides": config("dit", diffusion={"type": "DAU1d", "config": {"cond_dim": 6, "depth": 3, "channels": [32] * 3}}),
}


@pytest.fixture(params=COMBINATIONS.values(), ids=COMBINATIONS.keys())
def data(request):
    return copy.deepcopy(request.param)


def randomised(data):
    """A model none of whose branches is zero."""
    model = create_model_from_config(data)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_recorded_numbers():
    reference = load_reference("tiny_diffae_dau1d")
    model = create_model_from_config(reference.config).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    with torch.no_grad():
        assert_matches(model.encode(reference["in.audio"], skip_bottleneck=True), reference["out.pre_bottleneck_latents"])
        latents = model.encode(reference["in.audio"])
        assert_matches(latents, reference["seeded.latents"])
        beside = reference["in.cond_latents_upsampled"]
        assert_matches(model.diffusion(reference["in.audio"], reference["in.t"], input_concat_cond=beside), reference["out.diffusion"])


def test_recorded_decoding():
    """The noise is the first draw of the global generator."""
    reference = load_reference("tiny_diffae_dau1d")
    model = create_model_from_config(reference.config).eval()
    fill(model, reference)
    torch.manual_seed(0)
    latents = 2 * reference_input((2, 8, 32), 2)
    assert_matches(model.decode(latents, steps=3), reference["seeded.decoded_steps3"])


def test_audio_goes_in_and_comes_out(data):
    """In the peer, decoding with a `decoder` never returns, and a network without written strides cannot be built."""
    before = copy.deepcopy(data)
    model = create_model_from_config(data).eval()
    audio = torch.randn(2, 2, 256)
    latents = model.encode(audio)
    ratio = data["model"]["downsampling_ratio"] if "encoder" not in data["model"] else model.frame_ratio
    frames = 256 // (1 if model.pretransform is None else 4)
    assert latents.shape == (2, data["model"]["latent_dim"], frames // ratio)
    assert model.decode(latents, steps=2).shape == audio.shape
    assert (model.sample_rate, model.diffusion_objective) == (8000, "v")
    assert 256 % model.min_input_length == 0 and data == before


@pytest.mark.slow
def test_training_reaches_every_part(data):
    model = randomised(data)
    x = torch.randn(2, model.io_channels, 64)
    latents = model.encode(x, skip_pretransform=True)
    model(x, torch.tensor([0.3, 0.8]), latents).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum()] == []


@pytest.mark.slow
def test_weights_survive_a_file_and_the_meta_device(data):
    model = randomised(data).eval()
    restored = create_model_from_config(data).eval()
    restored.load_state_dict(model.state_dict())
    x, t, latents = torch.randn(1, model.io_channels, 64), torch.tensor([0.5]), torch.randn(1, model.latent_dim, 64 // model.frame_ratio)
    torch.testing.assert_close(restored(x, t, latents), model(x, t, latents))
    with torch.device("meta"):
        assert set(create_model_from_config(data).state_dict()) == set(model.state_dict())


def test_half_precision(data):
    model = create_model_from_config(data).to(torch.bfloat16).eval()
    latents = model.encode(torch.randn(1, 2, 256, dtype=torch.bfloat16))
    assert model.decode(latents, steps=1).dtype == torch.bfloat16


def test_the_encoder_starts_halved():
    """The norms that weight normalisation starts from, against an encoder of the same draws."""
    torch.manual_seed(3)
    halved = create_model_from_config(config()).encoder
    torch.manual_seed(3)
    plain = parse_model_config(config()).model.encoder.build()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(halved.state_dict()[key], value / 2)


def test_a_decoder_prepares_what_the_network_sees():
    model = randomised(config(seen=3, decoder=decoder()))
    latents = torch.randn(1, 6, 4)
    prepared = model.decoder(latents)
    assert prepared.shape == (1, 3, 16)
    torch.testing.assert_close(model.beside(latents, 32), prepared.repeat_interleave(2, dim=-1))


def test_an_item_s_audio_depends_on_its_generator_alone():
    model = randomised(config()).eval()
    latents = torch.randn(3, 6, 8)
    together = model.decode(latents, steps=2, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    alone = model.decode(latents[1:2], steps=2, generator=[torch.Generator().manual_seed(6)])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.equal(alone, model.decode(latents[1:2], steps=2, generator=torch.Generator().manual_seed(7)))


def test_steps_are_counted_and_told():
    model, seen = create_model_from_config(config()).eval(), []
    audio = model.decode(torch.randn(1, 6, 8), 5, callback=seen.append)
    assert [step.index for step in seen] == list(range(5))
    assert not audio.requires_grad


@pytest.mark.parametrize("data", [COMBINATIONS["DAU1d"], COMBINATIONS["dit and pretransform, ratio in samples"]], ids=["plain", "frames"])
def test_long_audio_in_chunks(data):
    model = create_model_from_config(data).eval()
    audio = torch.randn(1, 2, model.downsampling_ratio * 40)
    latents = model.encode_audio(audio, chunked=True, chunk_size=16, overlap=8)
    assert latents.shape == (1, 6, 40)
    assert model.decode_audio(latents, chunked=True, chunk_size=16, overlap=8, steps=1).shape == audio.shape


@pytest.mark.slow
def test_tokens_are_decoded_like_the_latents_they_stand_for():
    quantiser = {"type": "rvq", "config": {"dim": 6, "num_quantizers": 2, "codebook_size": 8}}
    model = create_model_from_config(config(bottleneck=quantiser)).eval()
    audio = torch.randn(1, 2, 64)
    tokens = model.tokenize(audio)
    assert tokens.shape == (1, 2, 8)
    decoded = []
    for decode, given in ((model.decode_tokens, tokens), (model.decode, model.encode(audio))):
        torch.manual_seed(4)
        decoded.append(decode(given))
    torch.testing.assert_close(*decoded, rtol=1e-4, atol=1e-4)


def test_without_an_encoder_latents_come_from_elsewhere():
    model = create_model_from_config(config(encoder=None)).eval()
    assert model.decode(torch.randn(1, 6, 8), steps=1).shape == (1, 2, 64)
    with pytest.raises(ValueError, match="no encoder, and latents have 6 channels, the audio has 2: give it finished latents"):
        model.encode(torch.randn(1, 2, 64))


def test_another_objective_is_sampled_its_own_way():
    data = config("dit")
    data["model"]["diffusion"]["config"]["diffusion_objective"] = "rectified_flow"
    model = create_model_from_config(data).eval()
    assert model.diffusion_objective == "rectified_flow"
    latents, noise = torch.zeros(1, 6, 8), torch.Generator().manual_seed(2)
    audio = model.decode(latents, 1, generator=noise)
    x = torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(audio, x - model(x, torch.ones(1), latents))


NET = "model.diffusion.config"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (config(seen=5), [f"{NET}.cond_dim", "cond_dim is 5, but latent_dim 6 and bottleneck 'tanh' give it 6 channels to see", "to 6"]),
        (config("dit", seen=5, bottleneck=None), [f"{NET}.input_concat_dim", "latent_dim 6 and no bottleneck"]),
        (config(decoder=decoder()), [f"{NET}.cond_dim", "the decoder's out_channels give it 3 channels"]),
        (
            config(seen=3, decoder=decoder(latent_dim=4)),
            ["model.decoder.config.latent_dim", "give 6", "latent_dim to 6"],
        ),
        (config(io_channels=1), [f"{NET}.io_channels", "but io_channels is 1", "model.encoder.config.in_channels"]),
        (config(latent_dim=4), ["model.encoder.config.latent_dim", "latent_dim 4 and bottleneck 'tanh' need 4"]),
        (config(bottleneck={"type": "fsq", "config": {"levels": [5, 5]}}), ["model.bottleneck.config.levels", "set latent_dim to 2"]),
        (config(bottleneck={"type": "vae"}), ["model.encoder.config.latent_dim", "bottleneck 'vae' need 12"]),
        (
            config(downsampling_ratio=4),
            ["model.encoder.config.strides", "is 8, but downsampling_ratio is 4", "downsampling_ratio to 8"],
        ),
        (config(pretransform=patched()), ["model.io_channels", "io_channels is 2, but the pretransform gives 8", "set it to 8"]),
        (config(seen=3, decoder={**decoder(), "soft_clip": True}), ["model.decoder.soft_clip", "has no effect", "remove it"]),
        (config(diffusion=None), ["model", 'missing key "diffusion"']),
        (config("adp"), ['unknown diffusion decoder "adp"']),
        (
            {**config(), "sample_size": 102},
            ["102 is no multiple of 4 (product of strides 4)", "nearest: 100 or 104"],
        ),
        ({**config(), "sample_size": 8}, ["sample_size 8 is shorter than the model can take, 12"]),
        ({**config(), "audio_channels": 1}, ["audio_channels is 1, but the model has io_channels 2"]),
        (
            {**config(channels=8, pretransform=patched()), "sample_size": 40},
            ["is no multiple of 16 (the pretransform's downsampling ratio 4 x product of strides 4)"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_place_numbers_and_fix(data, said):
    with pytest.raises(ConfigError) as error:
        parse_model_config(data)
    assert [part for part in said if part not in str(error.value)] == []


def test_conditions_by_other_routes_are_refused():
    data = config("dit")
    data["model"]["diffusion"]["config"]["global_cond_dim"] = 8
    with pytest.raises(ConfigError, match="global_cond_dim is 8, but a diffusion_autoencoder has no such conditions"):
        parse_model_config(data)
