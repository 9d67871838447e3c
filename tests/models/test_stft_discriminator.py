"""The discriminator agrees with the published one, and each player's loss moves that player alone."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from reference_inputs import reference_input
from reference_rule import assert_same_layout, rule_value

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.discriminators import DISCRIMINATORS, DiscriminatorConfig
from stable_audio_tools.models.discriminators.stft import EncodecDiscriminatorConfig

RECORDED = json.loads((Path(__file__).parents[1] / "reference" / "discriminators.json").read_text())


def config(**params) -> dict:
    scales = {"filters": 4, "n_ffts": [256, 128], "hop_lengths": [64, 32], "win_lengths": [256, 128]}
    return {"type": "encodec", "config": {**scales, **params}, "weights": {"adversarial": 0.1, "feature_matching": 5.0}}


def build(channels: int = 2, **params):
    return EncodecDiscriminatorConfig.model_validate(config(**params)).build(44100, channels)


@torch.no_grad()
def fill(discriminator) -> None:
    state, digest = discriminator.state_dict(keep_vars=True), hashlib.sha256()
    for index, key in enumerate(sorted(state)):
        if (kind := RECORDED["statedict"][key][3]) != "keep":
            state[key].data.copy_(rule_value(kind, state[key], index))
            digest.update(state[key].detach().numpy().tobytes())
    assert digest.hexdigest() == RECORDED["weights_sha256"]


def sounds() -> tuple[torch.Tensor, torch.Tensor]:
    return reference_input((2, 2, 2048), 3), reference_input((2, 2, 2048), 4).requires_grad_()


@pytest.mark.parametrize("normalized", [False, True])
def test_layout_and_losses_are_those_of_the_published_discriminator(normalized):
    discriminator = build(normalize_losses=normalized)
    assert_same_layout(discriminator, RECORDED["statedict"])
    fill(discriminator)
    reals, fakes = sounds()
    got = torch.stack([discriminator.discriminator_loss(reals, fakes), *discriminator.generator_loss(reals, fakes)])
    want = torch.tensor(RECORDED["encodec normalized" if normalized else "encodec"])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["hinge", "rpgan"])
def test_each_players_loss_reaches_its_own_weights(loss_type):
    discriminator, (reals, fakes) = build(loss_type=loss_type), sounds()
    discriminator.discriminator_loss(reals, fakes).backward()
    assert fakes.grad is None
    assert all(p.grad is not None for p in discriminator.parameters())

    discriminator.zero_grad()
    discriminator.requires_grad_(False)
    sum(discriminator.generator_loss(reals.requires_grad_(), fakes)).backward()
    assert fakes.grad.abs().sum() > 0
    assert reals.grad is None and all(p.grad is None for p in discriminator.parameters())


@pytest.mark.parametrize("loss_type", ["hinge", "rpgan"])
def test_a_discriminator_learns_and_can_be_fooled(loss_type):
    discriminator, (reals, fakes) = build(loss_type=loss_type), sounds()
    optimizer = torch.optim.Adam(discriminator.parameters(), 0.01)
    before = discriminator.discriminator_loss(reals, fakes).item()
    for _ in range(5):
        optimizer.zero_grad()
        discriminator.discriminator_loss(reals, fakes).backward()
        optimizer.step()
    assert discriminator.discriminator_loss(reals, fakes).item() < before

    adversarial, _ = discriminator.generator_loss(reals, fakes)
    (gradient,) = torch.autograd.grad(adversarial, fakes)
    fooling = (fakes - 1e-3 * gradient.sign()).detach()
    assert discriminator.generator_loss(reals, fooling)[0] < adversarial


def test_relativistic_losses_are_log_2_for_equal_sounds_and_mirror_each_other():
    discriminator, (reals, fakes) = build(loss_type="rpgan"), sounds()
    torch.testing.assert_close(discriminator.discriminator_loss(reals, reals), torch.tensor(2.0).log())
    torch.testing.assert_close(discriminator.discriminator_loss(reals, fakes), discriminator.generator_loss(fakes, reals)[0])


def test_equal_sounds_have_no_feature_distance():
    discriminator, (reals, _) = build(), sounds()
    assert discriminator.generator_loss(reals, reals)[1] == 0


@pytest.mark.parametrize("channels", [1, 2])
def test_widths_follow_the_config(channels):
    discriminator = build(channels, filters_scale=2, max_filters=16, dilations=[1, 2, 4], stride=[1, 2], out_channels=3)
    (scale, _) = discriminator.discriminators.discriminators
    assert [conv.conv.out_channels for conv in scale.convs] == [4, 8, 16, 16, 16]
    scores, features = discriminator(torch.randn(1, channels, 1024))
    assert scores[0].shape[:2] == (1, 3)
    assert [len(layers) for layers in features] == [5, 5]


def test_spectra_can_be_compressed_by_their_magnitude():
    plain, compressed, x = build(), build(spec_scale_pow=-0.5), torch.randn(1, 2, 512)
    compressed.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(x)[0][0], compressed(x)[0][0])


def test_a_fresh_discriminator_can_be_copied():
    discriminator, x = build(), torch.randn(1, 2, 512)
    assert torch.equal(copy.deepcopy(discriminator)(x)[0][0], discriminator(x)[0][0])


def test_half_precision_audio_is_judged():
    scores, _ = build()(torch.randn(1, 2, 512).half())
    assert scores[0].dtype == torch.float32


def test_audio_shorter_than_a_transform_is_named():
    assert EncodecDiscriminatorConfig.model_validate(config()).min_samples == 256
    with pytest.raises(ValueError, match="audio of 200 samples is shorter than the discriminator's transform of 256"):
        build()(torch.randn(1, 2, 200))


def problems(document: dict) -> list[tuple[tuple, str, str]]:
    with pytest.raises(ConfigError) as error:
        validate(DiscriminatorConfig, document, "x.json")
    return [(problem.path, problem.message, problem.fix) for problem in error.value.problems]


def test_scales_of_different_numbers_and_too_long_windows_are_refused():
    found = problems(config(hop_lengths=[64], win_lengths=[512, 128]))
    assert (("config", "hop_lengths"), "1 entries for 2 n_ffts", "give one per scale") in found
    assert (("config", "win_lengths", 0), "the window is longer than the transform of 256", "at most 256") in found


def test_wrong_arguments_of_the_activation_are_refused():
    ((path, message, fix),) = problems(config(activation_params={"slope": 0.1}))
    assert path == ("config", "activation_params")
    assert "unexpected keyword argument 'slope'" in message
    assert fix == "see torch.nn.LeakyReLU"


def test_weights_and_filters_are_required():
    missing = {path for path, _, _ in problems({"type": "encodec", "config": {}, "weights": {"adversarial": 0.1}})}
    assert missing == {("config", "filters"), ("weights", "feature_matching")}


def test_the_family_lists_it():
    assert DISCRIMINATORS.names == ("encodec", "dac", "oobleck", "big_vgan")
