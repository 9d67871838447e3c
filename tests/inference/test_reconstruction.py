"""Audio through autoencoders and back: any rate, channels and length, alone as in a batch, in chunks as in one pass."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.inference.reconstruction import decode, encode, reconstruct
from stable_audio_tools.models import create_model_from_config

RATE = configs.SAMPLE_RATE
BOTTLENECKS = {
    "rvq": {"type": "rvq", "config": {"dim": 4, "num_quantizers": 3, "codebook_size": 16, "kmeans_init": False}},
    "dac_rvq": {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 2}},
    "noisy": {
        "type": "dac_rvq",
        "config": {"input_dim": 4, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 2, "noise_augment_dim": 4},
    },
    "fsq": {"type": "fsq", "config": {"levels": [5], "num_codebooks": 4}},
}


def random_weights(config):
    model = create_model_from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def autoencoder(bottleneck="vae"):
    config = configs.autoencoder()
    if bottleneck != "vae":
        config["model"]["bottleneck"] = BOTTLENECKS[bottleneck]
        config["model"]["encoder"]["config"]["latent_dim"] = 4
    if bottleneck == "noisy":
        config["model"]["decoder"]["config"]["latent_dim"] = 8
    return random_weights(config)


@pytest.fixture(scope="module", params=["vae", "rvq", "dac_rvq", "noisy", "fsq", "diffusion"])
def model(request):
    return random_weights(configs.diffusion_autoencoder()) if request.param == "diffusion" else autoencoder(request.param)


@pytest.fixture(scope="module")
def vae():
    return autoencoder()


@pytest.fixture(scope="module")
def sampler():
    return random_weights(configs.diffusion_autoencoder())


def sound(*shape, seed=0):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steps_of(model):
    return {"steps": 3} if hasattr(model, "diffusion") else {}


# what comes out


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 1000])
def test_a_reconstruction_is_as_long_as_its_audio(model, samples):
    audio = reconstruct(model, (RATE, sound(2, 1, samples)), seed=1, **steps_of(model))
    assert audio.shape == (2, model.out_channels, samples) and audio.dtype == torch.float32 and audio.isfinite().all()
    assert not audio.requires_grad


@pytest.mark.parametrize(("shape", "items"), [((500,), 1), ((1, 500), 1), ((2, 500), 1), ((3, 2, 500), 3), ((3, 6, 500), 3)])
def test_any_form_of_audio_is_taken(vae, shape, items):
    assert reconstruct(vae, (RATE, sound(*shape))).shape == (items, 2, 500)


def test_audio_of_another_rate_is_resampled(vae):
    audio = sound(1, 2, 800)
    assert reconstruct(vae, (2 * RATE, audio)).shape[-1] == 400
    assert reconstruct(vae, (44100, audio)).shape[-1] == round(800 * RATE / 44100)


def test_it_is_encoding_and_decoding(vae):
    audio = sound(1, 2, 1600)
    with torch.no_grad():
        expected = vae.eval().decode(vae.encode(audio, sample=False))
    torch.testing.assert_close(reconstruct(vae, (RATE, audio)), expected)


def test_encode_and_decode_are_its_halves(model):
    audio = sound(2, 1, 1600)
    latents = encode(model, (RATE, audio))
    assert latents.shape == (2, model.latent_dim, 1600 // model.downsampling_ratio) and latents.dtype == torch.float32
    whole = reconstruct(model, (RATE, audio), seed=4, **steps_of(model))
    torch.testing.assert_close(decode(model, latents, seed=4, **steps_of(model)), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_another_precision_gives_float32(dtype):
    model, audio = autoencoder(), sound(1, 2, 1600)
    expected = reconstruct(model, (RATE, audio))
    got = reconstruct(model.to(dtype), (RATE, audio))
    assert got.dtype == torch.float32
    assert (got - expected).std() < 0.05 * expected.std()


# what is random


def test_an_item_does_not_depend_on_its_batch(model):
    audio = sound(3, 1, 700)
    three = reconstruct(model, (RATE, audio), seed=9, latent_noise=0.1, **steps_of(model))
    two = reconstruct(model, (RATE, audio[:2]), seed=9, latent_noise=0.1, **steps_of(model))
    torch.testing.assert_close(two, three[:2], rtol=1e-4, atol=1e-5)
    single = reconstruct(model, (RATE, audio[2:]), seed=[5], latent_noise=0.1, **steps_of(model))
    mixed = reconstruct(model, (RATE, audio), seed=[3, 4, 5], latent_noise=0.1, **steps_of(model))
    torch.testing.assert_close(single, mixed[2:], rtol=1e-4, atol=1e-5)


def test_what_is_random_is_the_seeds(model):
    given, options = (RATE, sound(1, 1, 700)), steps_of(model)
    draws = bool(options) or getattr(model.bottleneck, "noise_augment_dim", 0) > 0
    first = reconstruct(model, given, seed=1, **options)
    assert torch.equal(first, reconstruct(model, given, seed=1, **options))
    assert torch.equal(first, reconstruct(model, given, seed=2, **options)) != draws


def test_a_fresh_seed_is_logged_and_repeats_the_clip(sampler, caplog):
    with caplog.at_level("INFO"):
        first = reconstruct(sampler, (RATE, sound(1, 1, 700)), steps=2)
    seed = int(caplog.messages[-1].removeprefix("seed "))
    assert torch.equal(first, reconstruct(sampler, (RATE, sound(1, 1, 700)), steps=2, seed=seed))


def test_neither_mode_nor_global_generator_moves(model):
    model.train()
    before = torch.get_rng_state()
    reconstruct(model, (RATE, sound(1, 1, 700)), seed=3, latent_noise=0.1, **steps_of(model))
    assert model.training and torch.equal(torch.get_rng_state(), before)


def test_noise_on_the_latents_moves_the_audio_by_its_strength(vae):
    given = (RATE, sound(1, 2, 1600))
    clean = reconstruct(vae, given)
    little, much = (reconstruct(vae, given, seed=1, latent_noise=strength) - clean for strength in (0.01, 0.1))
    assert 0 < little.std() < 0.3 * much.std()


# few codebooks


@pytest.mark.parametrize("kind", ["rvq", "dac_rvq"])
def test_the_first_codebooks_alone(kind):
    model, audio = autoencoder(kind), sound(1, 2, 1600)
    with torch.no_grad():
        tokens = model.eval().tokenize(audio, sample=False)
        for count in (1, 2, 3):
            expected = model.decode_tokens(tokens[:, :count])
            torch.testing.assert_close(reconstruct(model, (RATE, audio), num_quantizers=count), expected)
    torch.testing.assert_close(expected, reconstruct(model, (RATE, audio)))


# long audio


def test_chunks_make_what_one_pass_makes(model):
    audio = sound(2, 1, 16000)
    done = []
    whole = reconstruct(model, (RATE, audio), seed=2, **steps_of(model))
    chunked = reconstruct(model, (RATE, audio), seed=2, chunk_s=0.5, callback=lambda *each: done.append(each), **steps_of(model))
    exact = not hasattr(model, "diffusion")  # a network with attention sees a chunk and no more; its noise is that of one pass
    assert (chunked - whole).square().mean().sqrt() < (1e-6 if exact else 0.05) * whole.std()
    assert done[-1][0] == done[-1][1] == len(done) > 1


def test_progress_counts_the_samplers_steps(sampler):
    done = []
    reconstruct(sampler, (RATE, sound(1, 1, 700)), steps=4, seed=0, callback=lambda *each: done.append(each))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_network_with_a_least_length_gets_it():
    config = configs.diffusion_autoencoder()
    config["model"]["pretransform"] = None
    config["model"].update(io_channels=1, downsampling_ratio=8)
    config["model"]["encoder"]["config"]["in_channels"] = 1
    config["model"]["diffusion"] = {
        "type": "DAU1d",
        "config": {"io_channels": 1, "cond_dim": 4, "depth": 3, "n_attn_layers": 1, "channels": [32, 32, 32], "strides": [2, 2]},
    }
    model = random_weights(config)
    assert model.min_samples > model.downsampling_ratio
    assert reconstruct(model, (RATE, sound(1, 1, 3)), steps=1, seed=0).shape == (1, 1, 3)


# what does not fit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 5}, "steps have no effect: the model decodes in one pass"),
        ({"num_quantizers": 1}, "num_quantizers has no effect: the model's latents are continuous"),
        ({"latent_noise": -1.0}, "latent_noise must be 0 or more, got -1"),
        ({"latent_noise": float("nan")}, "latent_noise must be 0 or more, got nan"),
        ({"chunk_s": 0.0}, "chunk_s must be above 0, got 0"),
        ({"audio": (RATE, torch.zeros(1, 2, 0))}, "there is no sample"),
        ({"audio": (0, torch.zeros(1, 2, 9))}, "audio has a rate of 0"),
        ({"audio": (RATE, torch.zeros(1, 1, 2, 9))}, r"audio has shape \(1, 1, 2, 9\), expected"),
        ({"seed": [1, 2]}, "2 seeds for 1 items"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told(vae, arguments, message):
    with pytest.raises(ValueError, match=message):
        reconstruct(vae, **{"audio": (RATE, sound(1, 2, 100)), **arguments})


def test_codebooks_that_are_not_there_or_stand_side_by_side_are_told():
    given = (RATE, sound(1, 2, 100))
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"num_quantizers must be 1 to 3, got {count}"):
            reconstruct(autoencoder("rvq"), given, num_quantizers=count)
    with pytest.raises(ValueError, match="num_quantizers is 1, but the codebooks stand side by side: all 4 are needed"):
        reconstruct(autoencoder("fsq"), given, num_quantizers=1)


def test_other_models_and_latents_are_told(vae, sampler):
    with pytest.raises(ValueError, match="reconstruction needs an autoencoder or a diffusion autoencoder, this is a ConditionedDiffusion"):
        reconstruct(create_model_from_config(configs.text_to_audio()), (RATE, sound(1, 100)))
    with pytest.raises(ValueError, match=r"latents have shape \(1, 3, 9\), expected \(batch, 4, frames\)"):
        decode(vae, torch.zeros(1, 3, 9))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        reconstruct(sampler, (RATE, sound(1, 100)), steps=0)


# every network

OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [3, 5], "use_snake": True}
SEANET = {"n_filters": 4, "dimension": 4, "ratios": [2, 4], "lstm": 1, "channels": 1}
TAAE = {"channels": 64, "c_mults": [2, 2], "strides": [2, 4], "transformer_depths": [1, 1], "sliding_window": [3, 4]}
LOCAL = {"embed_dims": [16, 32], "heads": [2, 4], "depths": [1, 1], "ratios": [2, 4], "local_attn_window_size": 8}
NETWORKS = {
    "oobleck": ({**OOBLECK, "in_channels": 1, "latent_dim": 4}, {**OOBLECK, "out_channels": 1, "latent_dim": 4}, 15),
    "dac": ({"strides": [2, 4], "d_model": 4, "latent_dim": 4}, {"rates": [4, 2], "channels": 16, "latent_dim": 4}, 8),
    "seanet": (SEANET, SEANET, 8),
    "taae": ({**TAAE, "in_channels": 1, "latent_dim": 4}, {**TAAE, "out_channels": 1, "latent_dim": 4}, 8),
    "local_attn": (
        {**LOCAL, "in_channels": 1, "out_channels": 4},
        {**LOCAL, "embed_dims": [32, 16], "heads": [4, 2], "in_channels": 4, "out_channels": 1, "ratios": [4, 2]},
        8,
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    encoder, decoder, ratio = NETWORKS[request.param]
    sides = {"encoder": {"type": request.param, "config": encoder}, "decoder": {"type": request.param, "config": decoder}}
    config = {
        **configs.autoencoder(),
        "audio_channels": 1,
        "model": {**sides, "latent_dim": 4, "downsampling_ratio": ratio, "io_channels": 1},
    }
    del config["training"]
    return random_weights(config)


@pytest.mark.parametrize("frames", [1, 3, 20])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_every_network_takes_any_length(network, frames, more):
    samples = frames * network.downsampling_ratio + more
    audio = reconstruct(network, (RATE, sound(1, 1, samples)))
    assert audio.shape == (1, 1, samples) and audio.isfinite().all()


def test_every_network_makes_in_chunks_what_it_makes_in_one_pass(network):
    """Recurrence and attention too: what they know of the surroundings is that of windows and of what fades."""
    ratio = network.downsampling_ratio
    audio = sound(1, 1, 400 * ratio)
    chunked = reconstruct(network, (RATE, audio), chunk_s=100 * ratio / RATE)
    torch.testing.assert_close(chunked, reconstruct(network, (RATE, audio)), rtol=1e-4, atol=1e-5)
