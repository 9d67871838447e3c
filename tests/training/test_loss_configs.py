"""`loss_configs`: every key acts or is refused, published blocks are accepted, and each loss reaches the sum with its weight."""

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.training.losses.config import AutoencoderLossConfig

SCALES = [256, 64]
SPECTRAL = {"config": {"fft_sizes": SCALES, "hop_sizes": [64, 16], "win_lengths": SCALES}, "weights": {"mrstft": 2.0}}
MEL = {"config": {"n_mels": [8], "window_lengths": [256], "pow": 1.0, "log_weight": 1.0, "mag_weight": 1.0}, "weights": {"mrmel": 0.5}}


def parse(document: dict) -> AutoencoderLossConfig:
    return validate(AutoencoderLossConfig, document, "x.json")


def problem(document: dict) -> tuple[tuple, str, str]:
    with pytest.raises(ConfigError) as error:
        parse(document)
    (found,) = error.value.problems
    return found.path, found.message, found.fix


def sounds(channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, channels, 2048) * 0.1, (torch.randn(2, channels, 2048) * 0.1).requires_grad_()


def test_nothing_given_is_the_default_of_the_peer():
    for config in (AutoencoderLossConfig(), parse({})):
        assert config.discriminator.weights.adversarial == 0.1 and config.discriminator.weights.feature_matching == 5
        assert config.discriminator.config.filters == 32
        assert config.discriminator.config.n_ffts == config.spectral.config.fft_sizes == (2048, 1024, 512, 256, 128, 64, 32)
        assert config.spectral.config.perceptual_weighting and config.spectral.weights.mrstft == 1
        assert config.min_samples == 2048
        terms = config.build(44100, 2)(*sounds(), {"kl": torch.tensor(1.0)})
        assert set(terms) == {"mrstft", "stft_left", "stft_right", "kl"}


def test_a_discriminator_left_out_is_left_out():
    assert parse({"spectral": SPECTRAL}).build_discriminator(44100, 2) is None
    assert AutoencoderLossConfig().build_discriminator(44100, 1) is not None


def test_each_term_has_its_weight_and_fades_with_its_block():
    blocks = {"spectral": {**SPECTRAL, "decay": 0.5}, "time": {"weights": {"l1": 3.0, "l2": 4.0}, "decay": 0.9}, "mrmel": MEL}
    losses = parse({**blocks, "bottleneck": {"weights": {"kl": 0.1}}}).build(44100, 2)
    (reals, decoded), info = sounds(), {"kl": torch.tensor(5.0)}
    first, later = losses(reals, decoded, info, 0), losses(reals, decoded, info, 2)
    torch.testing.assert_close(first["mrstft"], 2 * losses.stft(reals, decoded)["mrstft"])
    torch.testing.assert_close(first["stft_left"], losses.stft(reals, decoded)["stft_left"])
    torch.testing.assert_close(first["l1"], 3 * (reals - decoded).abs().mean())
    torch.testing.assert_close(first["l2"], 4 * (reals - decoded).square().mean())
    torch.testing.assert_close(first["mrmel"], 0.5 * losses.mel(reals, decoded))
    assert first["kl"] == 0.5
    factors = {"mrstft": 0.25, "stft_left": 0.25, "stft_right": 0.25, "l1": 0.81, "l2": 0.81, "mrmel": 1.0, "kl": 1.0}
    for name, factor in factors.items():
        torch.testing.assert_close(later[name], factor * first[name])


def test_the_sum_reaches_the_reconstruction():
    reals, decoded = sounds()
    torch.stack(list(parse({"spectral": SPECTRAL, "mrmel": MEL}).build(44100, 2)(reals, decoded, {}).values())).sum().backward()
    assert decoded.grad.isfinite().all() and decoded.grad.any()


def test_terms_of_weight_zero_are_not_computed():
    config = parse(
        {
            "spectral": {**SPECTRAL, "weights": {"mrstft": 0.0}},
            "time": {"weights": {"l1": 1.0, "l2": 0.0}},
            "mrmel": {"weights": {"mrmel": 0}},
        }
    )
    assert set(config.build(44100, 2)(*sounds(), {})) == {"l1"}


def test_mono_has_one_spectral_term():
    assert set(parse({"spectral": SPECTRAL}).build(44100, 1)(*sounds(1), {})) == {"mrstft"}


def test_weights_of_stereo_are_refused_for_mono():
    config = parse({"spectral": {**SPECTRAL, "config": {**SPECTRAL["config"], "w_diff": 0.5}}})
    config.build(44100, 2)
    with pytest.raises(ConfigError) as error:
        config.build(44100, 1)
    (found,) = error.value.problems
    assert (found.path, found.fix) == (("spectral", "config", "w_diff"), "remove the key")
    assert found.message == "only stereo has a sum and a difference, this audio has 1 channel"


def test_published_keys_without_effect_are_accepted():
    parse(
        {
            "spectral": {**SPECTRAL, "type": "mrstft"},
            "time": {"type": "l1", "config": {}, "weights": {"l1": 0.0}},
            "bottleneck": {"type": "kl", "weights": {"kl": 1e-4}},
        }
    )


@pytest.mark.parametrize(
    ("document", "path", "message", "fix"),
    [
        ({"time": {"weights": {"l1": 0.0}}}, (), "no reconstruction loss", "give spectral, time or mrmel a weight above 0"),
        (
            {"spectral": {**SPECTRAL, "weights": {"mrsft": 1.0, "mrstft": 1.0}}},
            ("spectral", "weights", "mrsft"),
            'unknown key "mrsft"',
            'did you mean "mrstft"?',
        ),
        (
            {"time": {"weights": {"l1": 1.0}}, "distillation": {"weights": {"mrstft_distill": 1.0}}},
            ("distillation", "weights", "mrstft_distill"),
            "sounds are compared as loss_configs.spectral says, which is missing",
            "add a spectral block; its weight may be 0",
        ),
        (
            {"mrmel": {"weights": {"mrmel": 1.0}}},
            ("mrmel", "config"),
            "required because weights.mrmel is above 0",
            "give n_mels, window_lengths, pow, log_weight and mag_weight",
        ),
        (
            {"mrmel": {**MEL, "config": {**MEL["config"], "n_mels": [8, 9]}}},
            ("mrmel", "config", "n_mels"),
            "2 entries for 1 window_lengths",
            "give one per window length",
        ),
        (
            {"mrmel": {**MEL, "config": {**MEL["config"], "log_weight": 0, "mag_weight": 0}}},
            ("mrmel", "config"),
            "log_weight and mag_weight are both 0: nothing is compared",
            "make one positive",
        ),
    ],
)
def test_what_cannot_act_is_refused(document, path, message, fix):
    got = problem(document)
    assert (got[0], got[1]) == (path, message)
    assert fix in got[2]


@pytest.mark.parametrize(
    ("change", "key", "message", "fix"),
    [
        ({"hop_sizes": [64]}, "hop_sizes", "1 entries for 2 fft_sizes", "give one per resolution"),
        ({"win_lengths": [512, 64]}, ("win_lengths", 0), "the window is longer than the transform of 256", "at most 256"),
        ({"n_bins": 20}, "n_bins", "it has no effect without scale", "give scale too, or neither"),
        ({"scale": "mel"}, "scale", "it has no effect without n_bins", "give n_bins too, or neither"),
        ({"scale": "mel", "n_bins": [20]}, "n_bins", "1 entries for 2 fft_sizes", "give one per resolution"),
    ],
)
def test_resolutions_that_do_not_fit_together_are_refused(change, key, message, fix):
    path = ("spectral", "config", *((key,) if isinstance(key, str) else key))
    assert problem({"spectral": {**SPECTRAL, "config": {**SPECTRAL["config"], **change}}}) == (path, message, fix)


def test_comparing_nothing_is_refused():
    nothing = {"w_sc": 0.0, "w_log_mag": 0.0}
    found = problem({"spectral": {**SPECTRAL, "config": {**SPECTRAL["config"], **nothing}}})
    assert found[1] == "w_sc, w_log_mag, w_lin_mag and w_phs are all 0: nothing is compared"


def test_the_shortest_audio_is_known_before_anything_is_built():
    assert parse({"spectral": SPECTRAL, "mrmel": {**MEL, "config": {**MEL["config"], "window_lengths": [1024]}}}).min_samples == 513
    assert parse({"time": {"weights": {"l1": 1.0}}}).min_samples == 1
