"""Pseudo quadrature mirror filters: how exactly they reconstruct, and the published filters."""

import copy
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from reference_rule import assert_matches, assert_same_layout, fill, load_reference

from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.pretransforms import PretransformConfig
from stable_audio_tools.models.pretransforms.pqmf import design_prototype, minimise, reconstruction_error


def pqmf(**config):
    return TypeAdapter(PretransformConfig).validate_python({"type": "pqmf", "config": config}).build(16000)


def snr_db(audio, decoded, margin):
    inner = audio[..., margin:-margin]
    return 10 * math.log10(inner.square().sum() / (inner - decoded[..., margin:-margin]).square().sum())


@torch.no_grad()
def test_numbers_are_the_reference():
    reference = load_reference("tiny_ae_pqmf_pre")
    model = AutoencoderBody.model_validate(reference.config["model"]).build(16000).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    assert_matches(model.encode(reference["in.audio"], skip_bottleneck=True), reference["out.pre_bottleneck_latents"])
    assert_matches(model.decode(reference["in.latents"]), reference["out.decoded"])
    assert_matches(model.decode(reference["in.latents"], skip_bottleneck=True), reference["out.decoded_skip_bottleneck"])
    assert_matches(model.encode(reference["in.audio"], return_info=True)[1]["kl"], reference["seeded.info.kl"])


@pytest.mark.parametrize(("num_bands", "taps"), [(2, 49), (4, 95), (8, 189), (16, 377), (32, 753), (64, 1503), (128, 2991), (256, 5981)])
def test_reconstruction_is_nearly_perfect_at_every_band_count(num_bands, taps):
    """The lengths are the published ones, and follow from where the search for the cutoff ends."""
    module = pqmf(num_bands=num_bands)
    assert module.pqmf.prototype.shape == (taps,)
    audio = torch.randn(1, 1, 80 * num_bands, generator=torch.Generator().manual_seed(0))
    limit = 54 if num_bands <= 32 else 50 if num_bands == 64 else 40
    assert snr_db(audio, module.decode(module.encode(audio)), 24 * num_bands) > limit


@pytest.mark.parametrize(("attenuation", "limit"), [(30, 24), (60, 45), (80, 58), (90, 60), (120, 55), (200, 50)])
def test_reconstruction_by_attenuation(attenuation, limit):
    module = pqmf(attenuation=attenuation)
    audio = torch.randn(1, 1, 160 * 16, generator=torch.Generator().manual_seed(0))
    assert snr_db(audio, module.decode(module.encode(audio)), 50 * 16) > limit


def test_each_band_hears_its_frequencies_and_channels_do_not_mix():
    module = pqmf(num_bands=8, channels=2)
    time = torch.arange(1024)
    for band in range(8):
        sine = torch.sin(torch.pi * (band + 0.4) / 8 * time)
        bands = module.encode(torch.stack((torch.zeros(1024), sine))[None]).unflatten(1, (2, 8))[0, ..., 24:-24].square().sum(-1)
        assert bands[0].max() == 0
        assert bands[1, band] > 0.999 * bands[1].sum()


def test_the_search_leaves_the_cutoff_better_than_it_found_it():
    for num_bands in (2, 16, 64):
        assert reconstruction_error(design_prototype(num_bands, 100.0), num_bands) < 2e-4 / num_bands**0.5
    assert minimise(lambda x: (x - 3) ** 2, 1.0) == pytest.approx(3, abs=1e-3)
    assert minimise(lambda x: abs(x - 0.5), 1.0) == pytest.approx(0.5, abs=1e-3)


def test_filters_stay_exact_in_half_precision_and_copies():
    module = pqmf(num_bands=4)
    half = copy.deepcopy(module).bfloat16()
    assert torch.equal(half.pqmf.filter_bank, module.pqmf.filter_bank)
    audio = torch.randn(1, 1, 512).bfloat16()
    assert half.encode(audio).dtype == torch.bfloat16
    assert torch.equal(half.encode(audio), module.encode(audio.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        bands = module.encode(audio.float())
    assert torch.equal(bands, module.encode(audio.float()))
    torch.testing.assert_close(module.decode(bands.double()).float(), module.decode(bands), atol=1e-5, rtol=0)


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        module = pqmf(num_bands=4)
    assert module.pqmf.filter_bank.is_meta and module.pqmf.filter_bank.shape == (4, 128)
    assert module.encode(torch.zeros(1, 1, 64, device="meta")).shape == (1, 4, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_bands": 12}, "num_bands must be a power of 2, got 12\n  = choose 8 or 16"),
        ({"num_bands": 1}, "greater than or equal to 2"),
        ({"attenuation": 20}, "greater than or equal to 30"),
        ({"bands": 4}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        pqmf(**config)
