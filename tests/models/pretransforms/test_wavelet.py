"""Wavelets: exact reconstruction, and the published numbers by what defines them."""

import copy

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.pretransforms import PretransformConfig
from stable_audio_tools.models.pretransforms.wavelet import LOWPASS

ROOT2 = 2**0.5
# Of the published tables, as a check that is not ours: middle taps of analysis and synthesis lowpass.
MIDDLE = {
    "bior2.2": (1.0606601717798212, 0.7071067811865476),
    "bior2.4": (0.9943689110435825, 0.7071067811865476),
    "bior2.6": (0.9667475524034829, 0.7071067811865476),
    "bior2.8": (0.9516421218971786, 0.7071067811865476),
    "bior4.4": (0.8526986790094022, 0.7884856164056644),
    "bior6.8": (0.8259229974584023, 0.7589077294536541),
}


def wavelet(name="bior4.4", *, channels=1, levels=1, **options):
    config = {"type": "wavelet", "config": {"channels": channels, "levels": levels, "wavelet": name}, **options}
    return TypeAdapter(PretransformConfig).validate_python(config).build(16000)


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("name", LOWPASS)
def test_decoding_undoes_encoding_to_the_last_sample(name, levels):
    module = wavelet(name, channels=2, levels=levels)
    samples = (module.encoder.margin // 2 + 1) * 2**levels  # the shortest there is, where the ends are all there is
    for length in (samples, 4096):
        audio = torch.randn(3, 2, length)
        latents = module.encode(audio)
        assert latents.shape == (3, 2 * 2**levels, length // 2**levels)
        torch.testing.assert_close(module.decode(latents), audio, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LOWPASS)
def test_filters_are_those_of_the_published_tables(name):
    module = wavelet(name)
    taps = 2 * module.encoder.margin + 1
    assert {key: value.shape for key, value in module.state_dict().items()} == {
        "encoder.kernel": (2, 1, taps),
        "decoder.kernel": (2, 1, taps),
    }
    low, merged = module.encoder.kernel[0, 0].double(), module.decoder.kernel[0, 0].double()
    assert (low.max().item(), merged.max().item()) == pytest.approx(MIDDLE[name], abs=1e-7)
    for filter_ in (low, merged):
        assert filter_.sum().item() == pytest.approx(ROOT2, abs=1e-6)


@pytest.mark.parametrize(("name", "zeros"), [(name, int(name[-3])) for name in LOWPASS])
def test_high_bands_do_not_see_polynomials(name, zeros):
    """`biorR.D` analyses with R vanishing moments: a polynomial of degree R - 1 is all in the low band, away from the mirrored ends."""
    module = wavelet(name).double()
    time = torch.linspace(-1, 1, 64, dtype=torch.float64)
    high = module.encode((time ** (zeros - 1))[None, None])[0, 1, 8:-8]
    seen = module.encode((time**zeros)[None, None])[0, 1, 8:-8]
    assert high.abs().max() < 1e-6
    if zeros < 6:  # a sixth power of small steps is as small as the rounding of the filters
        assert seen.abs().max() > 1e-6


def test_bands_rise_and_a_wider_one_is_spread_over_the_groups_of_a_frame():
    module = wavelet("bior6.8", channels=2, levels=3)
    time = torch.arange(2048)
    for period, groups in ((256, [0]), (10.7, [1]), (5.3, [2, 3]), (2.2, [4, 5, 6, 7])):
        audio = torch.stack((torch.sin(2 * torch.pi * time / period), torch.zeros(2048)))[None]
        energy = module.encode(audio).unflatten(1, (8, 2)).square().sum((0, 3))
        assert energy[:, 1].max() == 0  # channels do not mix
        assert energy[groups, 0].sum() > 0.9 * energy.sum()
    sample = torch.zeros(1, 2, 64)
    sample[0, 0, 33] = 1
    top = module.encode(sample).unflatten(1, (8, 2))[0, 4:, 0].abs()
    assert divmod(int(top.argmax()), 8) == (0, 4)  # sample 33 is the first high one of frame 4


def test_filters_stay_exact_in_half_precision_and_copies():
    module = wavelet("bior6.8", levels=2)
    half = copy.deepcopy(module).half()
    assert torch.equal(half.encoder.kernel, module.encoder.kernel)
    audio = torch.randn(1, 1, 256).bfloat16()
    assert half.encode(audio).dtype == torch.bfloat16
    assert torch.equal(half.encode(audio), module.encode(audio.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        latents = module.encode(audio.float())
    assert torch.equal(latents, module.encode(audio.float()))
    torch.testing.assert_close(module.decode(latents.double()).float(), audio.float(), atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_a_gpu_reconstructs_as_exactly_whatever_its_fast_formats():
    module = wavelet("bior6.8", levels=3).cuda()
    audio = torch.randn(2, 1, 4096, device="cuda")
    latents = module.encode(audio)
    torch.testing.assert_close(latents.cpu(), wavelet("bior6.8", levels=3).encode(audio.cpu()), atol=1e-5, rtol=0)
    torch.testing.assert_close(module.decode(latents), audio, atol=1e-5, rtol=0)


def test_audio_shorter_than_the_filters_is_refused():
    module = wavelet("bior2.2", levels=3)
    with pytest.raises(ValueError, match="8 samples are too few for 3 levels of this wavelet: pad them to more than 8"):
        module.encode(torch.zeros(1, 1, 8))
    with pytest.raises(ValueError, match="pad them to more than 8"):
        module.decode(torch.zeros(1, 8, 1))
    module.decode(module.encode(torch.zeros(1, 1, 16)))


def test_sizes_reach_the_autoencoder_around_it():
    sizes = {"channels": 4, "c_mults": [1], "strides": [2]}
    body = {
        "encoder": {"type": "oobleck", "config": {**sizes, "in_channels": 4, "latent_dim": 3}},
        "decoder": {"type": "oobleck", "config": {**sizes, "out_channels": 8, "latent_dim": 3}},
        "pretransform": {"type": "wavelet", "config": {"channels": 2, "levels": 2, "wavelet": "bior4.4"}},
        "latent_dim": 3,
        "downsampling_ratio": 8,
        "io_channels": 2,
    }
    with pytest.raises(ValidationError, match=r"encoder\.config\.in_channels is 4, but the pretransform has 8 encoded channels"):
        AutoencoderBody.model_validate(body)
    body["encoder"]["config"]["in_channels"] = 8
    with torch.device("meta"):
        model = AutoencoderBody.model_validate(body).build(16000)
    assert model.pretransform.encoder.kernel.is_meta
    model = AutoencoderBody.model_validate(body).build(16000)
    audio = model.decode(model.encode(torch.randn(1, 2, 64)))
    audio.square().sum().backward()
    assert audio.shape == (1, 2, 64)
    assert all(p.grad is not None for p in model.encoder.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"channels": 1, "levels": 2, "wavelet": "bior3.3"}, "Input should be 'bior2.2', 'bior2.4'"),
        ({"channels": 1, "levels": 0, "wavelet": "bior2.2"}, "greater than 0"),
        ({"channels": 1, "levels": 2}, "Field required"),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(PretransformConfig).validate_python({"type": "wavelet", "config": config})
