import copy

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.pretransforms import PRETRANSFORMS, PretransformConfig

SIZES = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
AUTOENCODER = {
    "encoder": {"type": "oobleck", "config": {**SIZES, "in_channels": 2, "latent_dim": 6}},
    "decoder": {"type": "oobleck", "config": {**SIZES, "out_channels": 2, "latent_dim": 3}},
    "bottleneck": {"type": "vae"},
    "latent_dim": 3,
    "downsampling_ratio": 8,
    "io_channels": 2,
}
EXAMPLES = {
    "autoencoder": {"type": "autoencoder", "config": AUTOENCODER},
    "patched": {"type": "patched", "config": {"channels": 2, "patch_size": 8}},
    "log_spectrogram": {"type": "log_spectrogram", "config": {"channels": 2, "n_fft": 32, "hop_length": 8}},
    "wavelet": {"type": "wavelet", "config": {"channels": 2, "levels": 3, "wavelet": "bior2.2"}},
    "pqmf": {"type": "pqmf", "config": {"channels": 2, "num_bands": 8}},
}


def parse(config):
    return TypeAdapter(PretransformConfig).validate_python(config)


def autoencoder(**options):
    return parse({**EXAMPLES["autoencoder"], **options}).build(16000)


def test_every_pretransform_has_an_example_here():
    assert set(PRETRANSFORMS.names) == set(EXAMPLES) | {"dac_pretrained", "audiocraft_pretrained"}  # they need files: see their own tests


@pytest.mark.parametrize("name", EXAMPLES)
def test_sizes_are_known_before_and_kept_after_building(name):
    config = parse(EXAMPLES[name])
    module = config.build(16000)
    for sizes in (config, module):
        assert (sizes.io_channels, sizes.downsampling_ratio) == (2, 8)
    assert config.encoded_channels == module.encoded_channels
    latents = module.encode(torch.randn(3, 2, 160))
    assert latents.shape == (3, module.encoded_channels, 20)
    assert module.decode(latents).shape == (3, 2, 160)
    assert not module.is_discrete


@pytest.mark.parametrize("name", EXAMPLES)
def test_frozen_and_in_eval_mode_whatever_the_owner_does(name):
    owner = torch.nn.Sequential(copy.deepcopy(parse(EXAMPLES[name]).build(16000))).train()
    assert not any(module.training for module in owner[0].modules())
    assert not any(p.requires_grad for p in owner.parameters())
    assert name in ("autoencoder", "wavelet", "pqmf") or not owner.state_dict()


@pytest.mark.parametrize("name", EXAMPLES)
def test_gradient_passes_through_both_ways(name):
    module = parse(EXAMPLES[name]).build(16000)
    audio = torch.randn(1, 2, 80, requires_grad=True)
    module.encode(audio).square().sum().backward()
    assert audio.grad.isfinite().all() and audio.grad.abs().max() > 0
    latents = torch.randn(1, module.encoded_channels, 10, requires_grad=True)
    module.decode(latents).square().sum().backward()
    assert latents.grad.isfinite().all() and latents.grad.abs().max() > 0


def test_the_autoencoders_keys_stand_under_model():
    bare, module = AutoencoderBody.model_validate(AUTOENCODER).build(16000), autoencoder()
    assert set(module.state_dict()) == {f"model.{key}" for key in bare.state_dict()}


@torch.no_grad()
def test_scale_divides_the_latents():
    plain, scaled = autoencoder(), autoencoder(scale=2.5)
    scaled.load_state_dict(plain.state_dict())
    audio = torch.randn(2, 2, 64)
    with torch.random.fork_rng():
        latents = plain.encode(audio)
    torch.testing.assert_close(scaled.encode(audio) * 2.5, latents)
    torch.testing.assert_close(scaled.decode(latents / 2.5), plain.decode(latents))


@torch.no_grad()
@pytest.mark.parametrize("option", ["chunked", "iterate_batch"])
def test_options_that_save_memory_change_nothing_else(option):
    plain, saving = autoencoder(), autoencoder(**{option: True})
    saving.load_state_dict(plain.state_dict())
    latents = torch.randn(2, 3, 140)  # longer than one chunk of 128
    # Half the default overlap is two frames short of the receptive field, whose edge counts for next to nothing.
    torch.testing.assert_close(saving.decode(latents), plain.decode(latents), atol=1e-4, rtol=0)
    calls = []
    saving.model.decoder.register_forward_hook(lambda module, args, out: calls.append(args[0].shape))
    saving.decode(latents)
    assert len(calls) == 2


@torch.no_grad()
def test_half_precision_inside_full_outside():
    full, half = autoencoder(), autoencoder(model_half=True)
    half.load_state_dict(full.state_dict())
    assert all(p.dtype == torch.float16 for p in half.parameters())
    latents = torch.randn(1, 3, 16)
    audio = half.decode(latents)
    assert audio.dtype == torch.float32 and half.encode(audio).dtype == torch.float32
    torch.testing.assert_close(audio, full.decode(latents), atol=1e-2, rtol=1e-2)


@torch.no_grad()
def test_a_cast_of_the_whole_model_overrides_half_precision():
    module = autoencoder(model_half=True).bfloat16()
    audio = module.decode(torch.randn(1, 3, 16, dtype=torch.bfloat16))
    assert audio.dtype == torch.bfloat16 and audio.isfinite().all()
    assert module.encode(audio.float()).dtype == torch.float32


def test_enable_grad_trains_the_autoencoder():
    module = autoencoder(enable_grad=True)
    assert module.training and all(p.requires_grad for p in module.parameters())
    module.eval()
    assert not module.training


@pytest.mark.parametrize("oversampling", [1, 2, 4])
def test_patches_are_a_rearrangement_with_an_exact_inverse(oversampling):
    config = {"type": "patched", "config": {"channels": 2, "patch_size": 8, "oversampling": oversampling}}
    module, audio, hop = parse(config).build(16000), torch.randn(3, 2, 64), 8 // oversampling
    assert module.downsampling_ratio == parse(config).downsampling_ratio == hop
    latents = module.encode(audio)
    assert latents.shape == (3, 16, 64 // hop)
    assert torch.equal(latents[1, 8:, 3], audio[1, 1, 3 * hop : 3 * hop + 8])
    torch.testing.assert_close(module.decode(latents), audio, atol=1e-6, rtol=0)
    if oversampling == 1:
        assert torch.equal(module.decode(latents), audio)
        assert torch.equal(module.encode(module.decode(latents)), latents)


def test_decoding_overlapping_patches_is_the_least_squares_inverse():
    module = parse({"type": "patched", "config": {"channels": 1, "patch_size": 4, "oversampling": 2}}).build(8000)
    matrix = torch.stack([module.encode(row.view(1, 1, -1)).flatten() for row in torch.eye(12)], 1)
    latents = torch.randn(1, 4, 6)
    want = torch.linalg.lstsq(matrix, latents.flatten()[:, None]).solution.flatten()
    torch.testing.assert_close(module.decode(latents).flatten(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["patched", "log_spectrogram", "wavelet", "pqmf"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 64), r"audio has shape \(1, 1, 64\), expected \(batch, 2, a multiple of 8\): convert the channels, pad the length"),
        ((1, 2, 63), r"\(1, 2, 63\), expected"),
        ((2, 64), r"\(2, 64\), expected"),
    ],
)
def test_audio_that_does_not_fit_is_refused(name, shape, message):
    module = parse(EXAMPLES[name]).build(16000)
    with pytest.raises(ValueError, match=message):
        module.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=rf"latents have shape \(1, 5, 4\), expected \(batch, {module.encoded_channels}, frames\)"):
        module.decode(torch.zeros(1, 5, 4))


SPECTROGRAM = {"channels": 1, "n_fft": 32}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"type": "patched", "config": {"channels": 1, "patch_size": 8, "oversampling": 3}},
            "patch_size 8 is no multiple of oversampling 3\n  = choose one that divides it",
        ),
        ({"type": "patched", "enable_grad": True, "config": {"channels": 1, "patch_size": 8}}, "Input should be False"),
        (
            {"type": "log_spectrogram", "config": {**SPECTROGRAM, "hop_length": 12}},
            "hop_length must be even and go at least twice into n_fft, got n_fft 32 and hop_length 12\n  = best 4 times, such as 8",
        ),
        ({"type": "log_spectrogram", "config": {**SPECTROGRAM, "hop_length": 32}}, "at least twice"),
        ({"type": "log_spectrogram", "config": {**SPECTROGRAM, "hop_length": 1}}, "must be even"),
        (
            {"type": "log_spectrogram", "config": {**SPECTROGRAM, "hop_length": 8, "mean": [0.0, 1.0]}},
            "mean has 2 numbers, but n_fft 32 has 16 bins\n  = give 16, or one",
        ),
        ({"type": "log_spectrogram", "config": {**SPECTROGRAM, "hop_length": 8, "std": 0.0}}, "std must be above 0, got 0.0"),
        (
            {"type": "log_spectrogram", "config": {**SPECTROGRAM, "hop_length": 8, "std": [1.0] * 15 + [-1.0]}},
            "std must be above 0, got -1.0",
        ),
        ({"type": "autoencoder", "scale": 0.0, "config": AUTOENCODER}, "greater than 0"),
        ({"type": "autoencoder", "config": {**AUTOENCODER, "downsampling_ratio": 9}}, "but downsampling_ratio is 9"),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        parse(config)


def test_a_whole_config_is_not_the_config_of_an_autoencoder():
    whole = {"model_type": "autoencoder", "sample_rate": 16000, "model": AUTOENCODER}
    with pytest.raises(ConfigError) as caught:
        validate(PretransformConfig, {"type": "autoencoder", "config": whole}, "pretransform")
    (problem,) = caught.value.problems
    assert problem.path == ("config", "model") and problem.fix == 'put what is in "model" in its place'
