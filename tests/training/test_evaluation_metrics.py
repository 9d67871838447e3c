"""`eval_loss_configs`: what each metric measures, that a monitor can follow it, and what is refused."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from test_host import Repeat, fit, loader, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.evaluation.pair_scores import si_sdr
from stable_audio_tools.nn.filters import mel_filterbank
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.losses import metrics
from stable_audio_tools.training.losses.metrics import EvaluationConfig, pesq_score

has_pesq = pytest.mark.skipif(importlib.util.find_spec("pesq") is None, reason="the package pesq is not installed")


def sounds():
    return (0.1 * torch.randn(2, 3, 2, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).unbind(0)


def scores(document, sample_rate=16000):
    evaluation = validate(EvaluationConfig, document, "x.json").build(sample_rate).double()
    return {name: score.value for name, score in evaluation(*sounds()).items()}


def test_si_sdr_is_the_ratio_of_what_is_the_target_to_what_is_not():
    target, noise = (x - x.mean(-1, keepdim=True) for x in sounds())
    noise = noise - (noise * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    noise = noise * (target.square().sum(-1, keepdim=True) / noise.square().sum(-1, keepdim=True)).sqrt()
    for wanted in (-20.0, 0.0, 30.0):
        estimate = -3 * (target + 10 ** (-wanted / 20) * noise)
        expected = torch.full((3, 2), wanted, dtype=torch.float64)
        torch.testing.assert_close(si_sdr(target, estimate, eps=1e-12), expected, rtol=0, atol=1e-6)


def test_si_sdr_ignores_an_offset_unless_told_to_hear_it():
    target, noise = sounds()
    estimate = target + 0.1 * noise
    torch.testing.assert_close(si_sdr(target, estimate + 0.5), si_sdr(target, estimate))
    assert (si_sdr(target, estimate + 0.5, zero_mean=False) < si_sdr(target, estimate) - 10).all()


def test_silence_has_a_finite_si_sdr():
    target, _ = sounds()
    for pair in ((torch.zeros_like(target), target), (target, torch.zeros_like(target)), (target, target)):
        assert si_sdr(*pair).isfinite().all()


def test_every_metric_judges_each_channel_by_itself():
    target, estimate = sounds()
    found = scores({"stft": {}, "mel": {"n_mels": 32}, "sisdr": {}})
    window = torch.hann_window(1024, dtype=torch.float64)

    def magnitudes(x, bands=None):
        spectrum = torch.stft(x.flatten(0, 1), 1024, 256, window=window, return_complex=True).abs().clamp(min=1e-4)
        return spectrum if bands is None else bands @ spectrum

    for name, bands in (("stft", None), ("mel", mel_filterbank(16000, 1024, 32))):
        wanted, given = (magnitudes(x, bands) for x in (target, estimate))
        convergence = ((wanted - given).square().sum((1, 2)).sqrt() / wanted.square().sum((1, 2)).sqrt()).mean()
        torch.testing.assert_close(found[name], convergence + (wanted.log() - given.log()).abs().mean())
    torch.testing.assert_close(found["sisdr"], si_sdr(target, estimate).mean())


@pytest.mark.parametrize(
    "changed",
    [
        {"w_sc": 0.0},
        {"w_log_mag": 2.0},
        {"w_lin_mag": 1.0},
        {"w_phs": 1.0},
        {"perceptual_weighting": True},
        {"scale_invariance": True},
        {"eps": 1e-2},
        {"mag_distance": "L2"},
        {"log_eps": 0.1},
        {"log_fac": 2.0, "log_eps": 0.1},
        {"window": "hamming_window"},
        {"win_length": 512},
        {"hop_size": 128},
        {"fft_size": 2048},
        {"scale": "mel", "n_bins": 16},
        {"reduction": "sum"},
    ],
    ids=str,
)
def test_every_key_of_a_spectral_metric_acts(changed):
    assert not torch.isclose(scores({"stft": changed})["stft"], scores({"stft": {}})["stft"])


def trained(**training):
    config = configs.autoencoder(**training)
    module, batch = wrapper(config), next(iter(loader(config)))
    trainer = fit(module, Repeat(batch), 2)
    trainer.validate(module, Repeat(batch), verbose=False)
    return module, batch, trainer.callback_metrics


def test_metrics_are_of_the_sampling_weights_and_a_monitor_sees_them():
    """The peer sends them to two loggers alone, so that nothing can follow them."""
    module, batch, seen = trained(eval_loss_configs={"stft": {}, "mel": {"n_mels": 16}, "sisdr": {}}, use_ema=True)
    assert {"val/stft", "val/mel", "val/sisdr", "val/loss", "val/loss_mrstft"} <= seen.keys()
    with torch.no_grad(), metrics_seed():
        found = module.strategy.reconstruct(module.autoencoder_ema.ema_model.eval(), batch[0])
        expected = module.evaluation(found.audio, found.decoded)
    for name, score in expected.items():
        torch.testing.assert_close(seen[f"val/{name}"], score.value)
    assert si_sdr(found.audio, found.decoded).mean() == seen["val/sisdr"]  # in dB, more is better


def metrics_seed():
    from stable_audio_tools.diffusion.seeds import derive_seed
    from stable_audio_tools.inference.generation import isolated_generators
    from stable_audio_tools.training.denoising import VALIDATION_SEED

    return isolated_generators(torch.device("cpu"), derive_seed(VALIDATION_SEED, 0))


def test_validation_without_metrics_has_the_losses_and_moves_no_generator():
    config = configs.autoencoder()
    module, batch = wrapper(config), next(iter(loader(config)))
    trainer = fit(module, Repeat(batch), 1)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with torch.no_grad():
        trainer.validate(module, Repeat(batch), verbose=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert {"val/loss", "val/loss_mrstft", "val/loss_l1", "val/loss_kl"} <= trainer.callback_metrics.keys()
    assert "val/stft" not in trainer.callback_metrics


def problems(config):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config)
    return {entry["path"]: (entry["message"], entry["fix"]) for entry in caught.value.to_dict()["problems"]}


@pytest.mark.parametrize(
    ("block", "path", "message"),
    [
        ({"sisdr": None}, "sisdr", "expected an object"),
        ({"si_sdr": {}}, "si_sdr", 'unknown key "si_sdr"'),
        ({"stft": {"fft_sizes": [512]}}, "stft.fft_sizes", 'unknown key "fft_sizes"'),
        ({"stft": {"win_length": 2048}}, "stft.win_length", "the window is longer than the transform of 1024"),
        ({"stft": {"n_bins": 10}}, "stft.n_bins", "it has no effect without scale"),
        ({"stft": {"w_sc": 0, "w_log_mag": 0}}, "stft", "nothing is compared"),
        ({"stft": {"fft_size": 8192}}, "stft", "2048 samples are too short for a transform of 8192"),
        ({"mel": {"n_mels": 2000}}, "mel.n_mels", "hold no bin"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused(block, path, message):
    (found,) = problems(configs.autoencoder(eval_loss_configs=block)).items()
    assert found[0] == f"training.eval_loss_configs.{path}" and message in found[1][0]


def test_pesq_without_its_package_is_refused_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    found = problems(configs.autoencoder(eval_loss_configs={"pesq": {}}))
    assert found["training.eval_loss_configs.pesq"] == (
        "needs the package pesq, which is not installed",
        'pip install -e ".[pesq]", or remove the key',
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": 4000}, "at least 8000 Hz, the audio has 4000"),
        ({"sample_size": 1024}, "needs at least 0.25 s, sample_size is 0.128 s"),
    ],
    ids=str,
)
def test_pesq_of_audio_that_it_does_not_know_is_refused(monkeypatch, change, message):
    monkeypatch.setattr(metrics, "find_spec", lambda name: name)
    found = problems(configs.autoencoder(eval_loss_configs={"pesq": {}}) | change)
    assert message in found["training.eval_loss_configs.pesq"][0]


def speech_like(sample_rate, seconds=1.5):
    """A tone of 200 Hz with overtones, in syllables."""
    time = torch.arange(int(seconds * sample_rate)) / sample_rate
    voice = sum(torch.sin(2 * math.pi * 200 * k * time) / k for k in range(1, 12))
    return (0.1 * voice * (torch.sin(2 * math.pi * 3 * time) > 0))[None, None]


@has_pesq
@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 44100])
def test_pesq_falls_with_noise_at_any_rate(sample_rate):
    clean = speech_like(sample_rate)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    found = [float(pesq_score(clean, clean + level * noise, sample_rate).value) for level in (0.0, 0.003, 0.1)]
    assert 4.4 < found[0] < 4.7 and found[0] > found[1] > found[2] > 0.9


@has_pesq
def test_pesq_is_the_mean_over_channels_that_have_something_to_judge():
    voice = speech_like(16000)
    noisy = voice + 0.01 * torch.randn(voice.shape, generator=torch.Generator().manual_seed(0))
    whole = pesq_score(torch.cat([voice, voice, torch.zeros_like(voice)], 1), torch.cat([voice, noisy, noisy], 1), 16000)
    parts = [pesq_score(voice, other, 16000).value for other in (voice, noisy)]
    torch.testing.assert_close(whole.value, sum(parts) / 2)
    assert whole.signals == 2
    silent = pesq_score(torch.zeros_like(voice), noisy, 16000)
    assert silent.signals == 0 and silent.value == 0


@has_pesq
def test_validation_logs_pesq():
    config = configs.autoencoder(eval_loss_configs={"pesq": {}})
    config["sample_size"] = 12000
    module = wrapper(config)
    voice = speech_like(8000).expand(2, 2, -1)
    trainer = fit(module, Repeat((voice, ({}, {}))), 1)
    trainer.validate(module, Repeat((voice, ({}, {}))), verbose=False)
    assert 0.9 < trainer.callback_metrics["val/pesq"] < 4.7
