"""The losses are the formulas they claim to be: recorded values, the direct form in float64, and properties of hearing and scale."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from reference_inputs import reference_input
from torch.nn import functional as F

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.nn.filters import a_weighting_fir, mel_filterbank
from stable_audio_tools.nn.reconstruction import MelParams, MultiResolutionMel, MultiResolutionSTFT, SpectralParams, fir_filter
from stable_audio_tools.nn.spectra import MagnitudeWeights, ShortTime, magnitude_distance, signals, spectral_convergence
from stable_audio_tools.training.losses.terms import LossTerm, bottleneck_terms, masked_mean

RATE = 44100
RECORDED = json.loads((Path(__file__).parents[1] / "reference" / "losses.json").read_text())
SIZES = (2048, 1024, 512, 256, 128, 64, 32)


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def params(sizes=SIZES, **more) -> SpectralParams:
    return SpectralParams(fft_sizes=sizes, hop_sizes=tuple(size // 4 for size in sizes), win_lengths=sizes, **more)


def stft(dtype=torch.float32, sizes=SIZES, **more) -> MultiResolutionSTFT:
    with default_dtype(dtype):
        return MultiResolutionSTFT(params(sizes, **more), RATE)


def recorded_sounds(dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """(target, estimate) of the recorded values."""
    estimate, other = (reference_input((2, 2, 4096), s, dtype) for s in (11, 12))
    return 0.3 * estimate + 0.7 * other, estimate


def direct(target, estimate, taps, sizes=SIZES) -> dict[str, torch.Tensor]:
    """The formulas signal by signal, written from the papers."""

    def magnitude(x, size):
        x = F.conv1d(x[:, None], taps[None, None], padding=len(taps) // 2)[:, 0]
        spectrum = torch.stft(x, size, size // 4, size, torch.hann_window(size, dtype=x.dtype), return_complex=True)
        return (spectrum.real**2 + spectrum.imag**2).clamp(min=1e-8).sqrt()

    def loss(a, b):
        total = 0.0
        for size in sizes:
            wanted, given = magnitude(a, size), magnitude(b, size)
            total += ((wanted - given).norm(dim=(-2, -1)) / wanted.norm(dim=(-2, -1))).mean() + (wanted.log() - given.log()).abs().mean()
        return total / len(sizes)

    (l, r), (a, b) = target.unbind(1), estimate.unbind(1)
    return {"mrstft": (loss(l + r, a + b) + loss(l - r, a - b)) / 2, "stft_left": loss(l, a), "stft_right": loss(r, b)}


# recorded values


@pytest.mark.parametrize("weighting", [" perceptual", ""])
def test_stereo_and_mono_losses_are_the_recorded_ones(weighting):
    loss, (target, estimate) = stft(perceptual_weighting=bool(weighting)), recorded_sounds()
    got = loss(target, estimate)
    assert got["mrstft"].item() == pytest.approx(RECORDED[f"stereo{weighting}"], rel=2e-6)
    assert got["stft_left"].item() == pytest.approx(RECORDED[f"left{weighting}"], rel=2e-6)
    assert loss(target[:, :1], estimate[:, :1])["mrstft"].item() == pytest.approx(RECORDED[f"left{weighting}"], rel=2e-6)


def test_one_resolution_is_the_recorded_one():
    target, estimate = recorded_sounds()
    assert stft(sizes=(1024,))(target[:, :1], estimate[:, :1])["mrstft"].item() == pytest.approx(RECORDED["left, 1024 alone"], rel=2e-6)


def test_the_peers_exchanged_call_differs_by_what_it_divides_by():
    target, estimate = recorded_sounds()
    exchanged = stft(perceptual_weighting=True)(estimate, target)["mrstft"].item()
    assert exchanged == pytest.approx(RECORDED["stereo perceptual, target and estimate exchanged"], rel=2e-6)


def test_mel_losses_are_the_recorded_ones():
    target, estimate = recorded_sounds()
    bands = stft(sizes=(1024,), scale="mel", n_bins=128)(target[:, :1], estimate[:, :1])["mrstft"]
    assert bands.item() == pytest.approx(RECORDED["left, mel 128 bands at 1024"], rel=2e-6)
    mel = MelParams(n_mels=(5, 10, 20, 40, 80), window_lengths=(32, 64, 128, 256, 512), pow=1.0, log_weight=1.0, mag_weight=1.0)
    assert MultiResolutionMel(mel, RATE)(target, estimate).item() == pytest.approx(RECORDED["mel"], rel=2e-6)


def test_masked_means_are_the_recorded_ones():
    a, b = reference_input((2, 3, 16), 1), reference_input((2, 3, 16), 2)
    mask = torch.arange(16) < torch.tensor([[10], [4]])
    assert masked_mean((a - b).square()).item() == pytest.approx(RECORDED["mse"], rel=1e-6)
    assert masked_mean((a - b).square(), mask[:, None]).item() == pytest.approx(RECORDED["mse masked"], rel=1e-6)


# the direct form


def test_values_and_gradients_are_those_of_the_direct_form_in_float64():
    target, estimate = recorded_sounds(torch.float64)
    estimate.requires_grad_()
    wanted = direct(target, estimate, a_weighting_fir(RATE))
    got = stft(torch.float64, perceptual_weighting=True)(target, estimate)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=0)
        theirs, ours = (torch.autograd.grad(x, estimate, retain_graph=True)[0] for x in (value, got[name]))
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.parametrize(("size", "hop"), [(16, 4), (16, 5), (15, 4), (8, 11), (2, 1), (1, 1)])
def test_the_adjoint_of_a_transform_is_the_gradient_that_autograd_gives(size, hop):
    generator = torch.Generator().manual_seed(size * hop)
    transform = ShortTime(torch.rand(size, dtype=torch.float64, generator=generator), hop)
    audio = torch.randn(3, 50, dtype=torch.float64, generator=generator, requires_grad=True)
    spectra = transform(audio)
    slope = torch.randn(spectra.shape, dtype=torch.complex128, generator=generator)
    (wanted,) = torch.autograd.grad(spectra, audio, slope)
    torch.testing.assert_close(transform.adjoint(slope.clone(), 50), wanted)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("terms", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 2.0, 0.3)])
def test_the_written_out_gradient_is_autograds(parts, terms):
    generator = torch.Generator().manual_seed(0)
    target, estimate = torch.randn(2, parts, 2, 50, dtype=torch.float64, generator=generator)
    estimate[:, :, :20] *= 1e-6  # below the floor
    estimate.requires_grad_()
    transform, weights = ShortTime(torch.hann_window(8, dtype=torch.float64), 2), MagnitudeWeights(*terms, floor=1e-4)
    got = magnitude_distance(target, estimate, transform, weights)
    wanted, given = (signals(transform(x)).abs().clamp(min=1e-4) for x in (target, estimate))
    plain = weights.convergence * spectral_convergence(wanted, given) + weights.log * (given.log() - wanted.log()).abs().mean((1, 2, 3))
    plain = plain + weights.linear * (given - wanted).abs().mean((1, 2, 3))
    torch.testing.assert_close(got, plain)
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)[: len(got)]
    ours, theirs = (torch.autograd.grad((upstream * x).sum(), estimate)[0] for x in (got, plain))
    torch.testing.assert_close(ours, theirs)
    assert not ours[:, :, :12].any()


@pytest.mark.slow
def test_a_compiled_loss_is_the_same():
    target, estimate = recorded_sounds()
    estimate.requires_grad_()
    loss = stft(sizes=(64,))
    wanted, got = (sum(run(target, estimate).values()) for run in (loss, torch.compile(loss)))
    torch.testing.assert_close(got, wanted)
    ours, plain = (torch.autograd.grad(x, estimate)[0] for x in (got, wanted))
    assert (ours - plain).norm() <= 1e-3 * plain.norm()


def test_almost_equal_channels_keep_the_digits_of_their_difference():
    """The power of a difference formed from the channels' powers would be rounding noise here."""
    pair = [torch.stack([x[:, 0], x[:, 0] + 1e-5 * x[:, 1]], 1) for x in recorded_sounds()]
    options = {"sizes": (256,), "w_sum": 0.0, "eps": 1e-20}
    exact = stft(torch.float64, **options)(*(x.double() for x in pair))["mrstft"]
    assert stft(**options)(*pair)["mrstft"].item() == pytest.approx(exact.item(), rel=2e-3)


def test_every_option_keeps_the_paths_consistent():
    """An option at a value without effect takes the plain autograd path; both paths are one function."""
    target, estimate = recorded_sounds(torch.float64)
    quick = stft(torch.float64, sizes=(256, 64), w_lin_mag=0.3)(target, estimate)
    general = stft(torch.float64, sizes=(256, 64), w_lin_mag=0.3, log_eps=1e-300)(target, estimate)
    torch.testing.assert_close(quick, general)


# properties


def test_an_exact_copy_costs_nothing_and_has_a_finite_gradient():
    target, _ = recorded_sounds()
    for options in ({}, {"w_phs": 1.0}, {"scale": "mel", "n_bins": 10}):
        copy = target.clone().requires_grad_()
        total = sum(stft(sizes=(256, 128), **options)(target, copy).values())
        total.backward()
        assert total.item() == pytest.approx(0, abs=1e-5)
        assert copy.grad.isfinite().all()


def test_silence_against_silence_and_against_sound_is_finite():
    target, _ = recorded_sounds()
    for a, b in (
        (torch.zeros_like(target), torch.zeros_like(target)),
        (torch.zeros_like(target), target),
        (target, torch.zeros_like(target)),
    ):
        estimate = b.clone().requires_grad_()
        total = sum(stft(sizes=(256, 128))(a, estimate).values())
        total.backward()
        assert total.isfinite() and estimate.grad.isfinite().all()


def test_no_gradient_reaches_the_target():
    target, estimate = recorded_sounds()
    target.requires_grad_()
    estimate.requires_grad_()
    sum(stft(sizes=(128,))(target, estimate).values()).backward()
    MultiResolutionMel(MelParams(n_mels=(8,), window_lengths=(128,), pow=1.0, log_weight=1.0, mag_weight=1.0), RATE)(
        target, estimate
    ).backward()
    assert target.grad is None and estimate.grad.any()


def test_the_sum_and_the_difference_are_weighted_apart():
    target, _ = recorded_sounds()
    wide = target * torch.tensor([1.0, -1.0])[:, None] * 0.3 + target  # changes the difference of the channels more than their sum
    both, total, side = (stft(sizes=(256,), w_sum=a, w_diff=b)(target, wide)["mrstft"] for a, b in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))
    torch.testing.assert_close(both, total + side)
    assert total != side


def test_scale_invariance_ignores_gain_and_nothing_else():
    target, estimate = recorded_sounds(torch.float64)
    loss = stft(torch.float64, sizes=(256,), scale_invariance=True, eps=1e-20)
    assert loss(target, 3 * target)["mrstft"].item() == pytest.approx(0, abs=1e-9)
    assert loss(target, estimate)["mrstft"] > 0.1


def test_distances_and_reductions_mean_what_they_say():
    target, estimate = recorded_sounds(torch.float64)
    only = {"w_sc": 0.0, "w_log_mag": 0.0, "w_lin_mag": 1.0}
    x, y = (audio[:, :1] for audio in (target, estimate))
    wanted, given = (
        torch.stft(z[:, 0], 64, 16, 64, torch.hann_window(64, dtype=z.dtype), return_complex=True).abs().clamp(min=1e-4) for z in (x, y)
    )
    cases = {
        (): (wanted - given).abs().mean(),
        (("mag_distance", "L2"),): (wanted - given).square().mean(),
        (("reduction", "sum"),): (wanted - given).abs().sum(),
    }
    for options, value in cases.items():
        torch.testing.assert_close(stft(torch.float64, sizes=(64,), **only, **dict(options))(x, y)["mrstft"], value)
    log = {"w_sc": 0.0, "log_fac": 3.0, "log_eps": 0.5}
    value = ((3 * wanted + 0.5).log() - (3 * given + 0.5).log()).abs().mean()
    torch.testing.assert_close(stft(torch.float64, sizes=(64,), **log)(x, y)["mrstft"], value)


def test_the_phase_term_sees_what_magnitudes_do_not():
    target, _ = recorded_sounds()
    flipped = -target
    assert stft(sizes=(256,))(target, flipped)["mrstft"] == 0
    assert stft(sizes=(256,), w_phs=1.0)(target, flipped)["mrstft"].item() == pytest.approx(2, rel=1e-3)


def test_half_precision_and_autocast_do_not_change_the_loss():
    target, estimate = recorded_sounds()
    plain = stft(sizes=(256,), perceptual_weighting=True, scale="mel", n_bins=20)
    expected = plain(target, estimate)["mrstft"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(target, estimate)["mrstft"], expected)
    half = plain(target.half(), estimate.half())["mrstft"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=0)


def test_nothing_of_a_loss_is_stored():
    assert not stft(perceptual_weighting=True, scale="mel", n_bins=(100, 80, 60, 40, 20, 10, 5)).state_dict()


def test_the_filter_weighs_frequencies_as_hearing_does():
    taps = a_weighting_fir(RATE)
    assert torch.equal(taps, taps.flip(0))
    response = torch.fft.rfft(taps, RATE).abs()
    decibel = 20 * torch.log10(response[[100, 1000, 2500, 4000]])
    table = torch.tensor([0.0, 1.27, 0.96], dtype=torch.float64)  # IEC 61672-1, table 3; the bilinear transform bends higher ones
    torch.testing.assert_close(decibel[1:], table, rtol=0, atol=0.3)
    assert decibel[0] < -12  # 101 taps cannot follow the slope down to -19.1 dB


def test_the_filter_is_the_convolution():
    audio, taps = torch.randn(2, 3, 500, dtype=torch.float64), a_weighting_fir(RATE)
    expected = F.conv1d(audio.flatten(0, 1)[:, None], taps[None, None], padding=50).view_as(audio)
    torch.testing.assert_close(fir_filter(audio, taps), expected)


def test_mel_bands_are_triangles_of_equal_area():
    bands = mel_filterbank(RATE, 4096, 40)
    assert bands.shape == (40, 2049) and bands.min() == 0
    area = bands.sum(1) * RATE / 4096
    torch.testing.assert_close(area, torch.ones(40, dtype=torch.float64), rtol=0, atol=0.05)
    peaks = bands.argmax(1)
    assert (peaks[1:] > peaks[:-1]).all()


# errors


def test_audio_that_is_too_short_or_of_another_shape_is_named():
    assert params().min_samples == 1025
    with pytest.raises(ValueError, match="audio of 1024 samples is too short: the spectral loss needs 1025"):
        stft()(torch.zeros(1, 2, 1024), torch.zeros(1, 2, 1024))
    with pytest.raises(ValueError, match=r"original \(1, 2, 2048\) and reconstruction \(1, 2, 2047\) differ in shape"):
        stft()(torch.zeros(1, 2, 2048), torch.zeros(1, 2, 2047))


def test_more_mel_bands_than_bins_are_named():
    with pytest.raises(ConfigError) as error:
        stft(sizes=(64,), scale="mel", n_bins=80)
    (problem,) = error.value.problems
    assert problem.message.endswith("of 80 mel bands hold no bin of a transform of 64 at 44100 Hz") and problem.fix == "give fewer bands"


# terms


def test_a_terms_weight_depends_on_the_step_alone():
    term = LossTerm("l1", 2.0, decay=0.5)
    values = [term(torch.tensor(3.0), step).item() for step in (0, 0, 2, 1)]
    assert values == [6.0, 6.0, 1.5, 3.0]


def test_bottleneck_terms_have_the_published_weights_unless_the_config_says_otherwise():
    info = {"kl": torch.tensor(2.0), "vq/commitment_loss": torch.tensor(4.0), "latents": torch.zeros(3)}
    assert {name: value.item() for name, value in bottleneck_terms(info, {}).items()} == pytest.approx({"kl": 2e-6, "commitment": 1.0})
    assert bottleneck_terms(info, {"kl": 0.5})["kl"] == 1


def test_masked_means_leave_out_what_is_masked():
    value, mask = torch.tensor([[1.0, 5.0], [2.0, torch.nan]]), torch.tensor([[True, False], [True, False]])
    assert masked_mean(value, mask) == 1.5
    assert masked_mean(value, mask, dim=1).tolist() == [1.0, 2.0]
    assert masked_mean(value, torch.zeros_like(mask), dim=1).tolist() == [0.0, 0.0]
    assert masked_mean(value[:1], dim=1) == 3
    with pytest.raises(ValueError, match=r"a mask must be bool, this one is torch.int64"):
        masked_mean(value, mask.long())


def test_masked_values_get_no_gradient():
    value = torch.ones(1, 2, 3, requires_grad=True)
    masked_mean(value.square(), torch.tensor([[[True, False, True]]])).backward()
    assert value.grad.tolist() == [[[0.5, 0.0, 0.5]] * 2]
