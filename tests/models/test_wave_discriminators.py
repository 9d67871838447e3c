"""Discriminators dac, oobleck and big_vgan: published layout and numbers, who learns from which loss, any precision, what is refused."""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from reference_inputs import reference_input
from reference_rule import assert_matches, assert_same_layout, rule_value

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.discriminators import DISCRIMINATORS, Discriminator, DiscriminatorConfig
from stable_audio_tools.models.discriminators.base import HINGE, LEAST_SQUARES, RELATIVISTIC, UNIT_HINGE
from stable_audio_tools.models.discriminators.dac import to_one_level

RECORDED = json.loads((Path(__file__).parents[1] / "reference" / "wave_discriminators.json").read_text())
CQT = {"cqtd_filters": 4, "cqtd_hop_lengths": [64, 50], "cqtd_n_octaves": [6, 4], "cqtd_bins_per_octaves": [12, 24]}
SMALL = {
    "encodec": {"filters": 4, "n_ffts": [256, 128], "hop_lengths": [64, 32], "win_lengths": [256, 128]},
    "dac": {"periods": [2], "rates": [3], "fft_sizes": [128], "bands": [[0.0, 0.3], [0.2, 1.0]]},
    "oobleck": {},
    "big_vgan": {"periods": [3], **CQT},
}
SAMPLE_RATE, SAMPLES = 8000, 600
HALVES = (torch.bfloat16, torch.float16)
HEAVY = pytest.mark.slow  # a CPU takes seconds for 16-bit convolutions, and for published widths


def document(kind: str, **params) -> dict:
    return {"type": kind, "config": {**SMALL.get(kind, {}), **params}, "weights": {"adversarial": 1.0, "feature_matching": 1.0}}


def parse(data: dict):
    return validate(DiscriminatorConfig, data, "x.json")


@cache
def fresh(kind: str, channels: int) -> Discriminator:
    return parse(document(kind)).build(SAMPLE_RATE, channels)


def build(kind: str, channels: int = 2) -> Discriminator:
    return copy.deepcopy(fresh(kind, channels))


def problems(data: dict) -> list[tuple]:
    with pytest.raises(ConfigError) as error:
        parse(data)
    return [(problem.path, problem.message, problem.fix) for problem in error.value.problems]


def sounds(channels: int = 2, samples: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    return 0.2 * torch.randn(2, channels, samples), (0.2 * torch.randn(2, channels, samples)).requires_grad_()


@torch.no_grad()
def fill(discriminator: Discriminator, table: dict) -> None:
    state = discriminator.state_dict(keep_vars=True)
    for index, key in enumerate(sorted(state)):
        state[key].copy_(rule_value(table[key][3], state[key], index))


@pytest.mark.parametrize("name", ["dac hinge", *(pytest.param(name, marks=HEAVY) for name in ("dac", "oobleck"))])
@pytest.mark.slow
def test_layout_and_losses_and_gradients_are_those_of_the_published_discriminator(name):
    case = RECORDED[name]
    discriminator = parse({**document("none"), "type": case["type"], "config": case["config"]}).build(SAMPLE_RATE, case["channels"])
    assert_same_layout(discriminator, case["statedict"])
    fill(discriminator, case["statedict"])
    reals, fakes = (reference_input((2, case["channels"], case["samples"]), s) for s in (3, 4))
    fakes.requires_grad_()
    adversarial, features = discriminator.generator_loss(reals, fakes)
    gradients = [torch.autograd.grad(loss, fakes, retain_graph=True)[0].norm() for loss in (adversarial, features)]
    losses = torch.stack([discriminator.discriminator_loss(reals, fakes), adversarial, features])
    assert_matches(losses, torch.tensor(case["losses"]), 1e-5)
    assert_matches(torch.stack(gradients), torch.tensor(case["gradient"]), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "channels"),
    [pytest.param(kind, channels, marks=HEAVY if (kind, channels) == ("oobleck", 1) else ()) for kind in SMALL for channels in (1, 2)],
)
def test_each_players_loss_reaches_its_own_weights(kind, channels):
    discriminator, (reals, fakes) = build(kind, channels), sounds(channels)
    discriminator.discriminator_loss(reals, fakes).backward()
    assert fakes.grad is None
    assert all(p.grad is not None for p in discriminator.parameters())

    discriminator.zero_grad()
    discriminator.requires_grad_(False)
    for loss in discriminator.generator_loss(reals.requires_grad_(), fakes):
        (gradient,) = torch.autograd.grad(loss, fakes, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any(dim=-1).all()
    assert reals.grad is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dac", "big_vgan"])
def test_a_discriminator_learns_and_can_be_fooled(kind):
    discriminator, (reals, fakes) = build(kind), sounds()
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    before = discriminator.discriminator_loss(reals, fakes).item()
    for _ in range(3):
        optimizer.zero_grad()
        discriminator.discriminator_loss(reals, fakes).backward()
        optimizer.step()
    assert discriminator.discriminator_loss(reals, fakes).item() < before
    adversarial, _ = discriminator.generator_loss(reals, fakes)
    (gradient,) = torch.autograd.grad(adversarial, fakes)
    assert discriminator.generator_loss(reals, (fakes - 1e-3 * gradient.sign()).detach())[0] < adversarial


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.slow
def test_equal_sounds_have_no_feature_distance(kind):
    reals, _ = sounds()
    assert build(kind).generator_loss(reals, reals)[1] == 0


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [pytest.param(kind, dtype, marks=HEAVY if dtype == torch.float16 or kind == "oobleck" else ()) for kind in SMALL for dtype in HALVES],
)
@pytest.mark.slow
def test_half_precision_weights_and_sounds_give_nearly_the_same_losses(kind, dtype):
    discriminator, (reals, fakes) = build(kind), sounds()
    want = [discriminator.discriminator_loss(reals, fakes), *discriminator.generator_loss(reals, fakes)]
    half, given = discriminator.to(dtype), fakes.detach().to(dtype).requires_grad_()
    got = [half.discriminator_loss(reals.to(dtype), given), *half.generator_loss(reals.to(dtype), given)]
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=0.02, atol=5e-3)
    sum(got).backward()
    assert given.grad.dtype == dtype and given.grad.isfinite().all() and given.grad.any()


@pytest.mark.parametrize("kind", ["encodec", "dac", pytest.param("oobleck", marks=HEAVY), "big_vgan"])
@pytest.mark.slow
def test_autocast_gives_nearly_the_same_losses(kind):
    discriminator, (reals, fakes) = build(kind), sounds()
    want = [discriminator.discriminator_loss(reals, fakes), *discriminator.generator_loss(reals, fakes)]
    with torch.autocast("cpu", torch.bfloat16):
        got = [discriminator.discriminator_loss(reals, fakes), *discriminator.generator_loss(reals, fakes)]
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=0.02, atol=5e-3)
    assert all(loss.dtype == torch.float32 for loss in got)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.slow
def test_silence_is_judged(kind):
    silence = torch.zeros(2, 2, SAMPLES)
    losses = [build(kind).discriminator_loss(silence, silence), *build(kind).generator_loss(silence, silence)]
    assert torch.stack(losses).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "params", "shortest"),
    [
        ("encodec", {}, 256),
        ("dac", {"periods": [7], "rates": [], "fft_sizes": []}, 8),
        ("dac", {"periods": [], "rates": [5], "fft_sizes": []}, 5),
        ("dac", {"periods": [], "rates": [], "fft_sizes": [128], "bands": [[0, 1]]}, 73),
        ("oobleck", {}, 4),
        ("big_vgan", {"periods": [5]}, 6),
    ],
)
def test_any_length_from_the_shortest_on_can_be_judged(kind, params, shortest):
    config = parse(document(kind, **params))
    assert config.min_samples == shortest
    discriminator = config.build(SAMPLE_RATE, 1).requires_grad_(False)
    lengths = range(shortest, shortest + (2 if kind == "oobleck" else 40))
    assert all(discriminator.discriminator_loss(*sounds(1, length)).isfinite() for length in lengths)
    with pytest.raises((RuntimeError, ValueError)):
        discriminator.discriminator_loss(*sounds(1, shortest - 1))


def test_spectra_have_a_frame_per_hop_and_every_bin_of_their_bands():
    *layers, scores = build("dac").discriminator.discriminators[-1](torch.randn(3, 2, 640))
    assert [tuple(layer.shape) for layer in layers[::5]] == [(6, 32, 20, 19), (6, 32, 20, 52)]  # 65 bins: 0..18 and 13..64
    assert scores.shape == (6, 1, 20, 3 + 7)


def test_periods_are_columns():
    view = build("dac").discriminator.discriminators[0]
    with torch.no_grad():
        even, odd = torch.randn(2, 1, 2, 300)
        rows = torch.stack([even, odd], -1).flatten(-2)
        other = torch.stack([even, torch.randn_like(odd)], -1).flatten(-2)
    assert torch.equal(view(rows)[-1][..., :50, 0], view(other)[-1][..., :50, 0])  # up to where the end is reflected


def test_a_rate_hears_only_what_fits_in_it():
    view = build("dac", 1).discriminator.discriminators[1]
    time = torch.arange(1200.0)
    high, low = (torch.sin(2 * torch.pi * frequency * time)[None, None] for frequency in (0.4, 0.1))
    assert view.decimate(high)[..., 40:-40].abs().max() < 1e-3 < 0.9 < view.decimate(low).abs().max()
    assert view.decimate(low).shape[-1] == 400


def test_levels_and_offsets_do_not_matter_to_dac():
    x = 0.3 * torch.randn(2, 2, 500)
    level = to_one_level(x)
    torch.testing.assert_close(level.abs().amax(-1), torch.full((2, 2), 0.8))
    torch.testing.assert_close(to_one_level(0.01 * x + 0.5), level, rtol=1e-3, atol=1e-4)
    assert to_one_level(torch.zeros(1, 1, 9, dtype=torch.float16)).any() == False  # noqa: E712


@pytest.mark.slow
def test_the_oobleck_score_is_a_sum_and_its_distance_too():
    discriminator, (reals, fakes) = build("oobleck"), sounds()
    scores, features = discriminator(reals)
    assert [score.shape for score in scores] == [(2,)] and [len(layers) for layers in features] == [8 * 5]
    single = [network(reals)[0] for network in discriminator.multi_discriminator.discriminators]
    torch.testing.assert_close(scores[0], single[0] + single[1])
    other = discriminator(fakes)[1][0]
    distance = sum((a - b).abs().mean() for a, b in zip(features[0], other, strict=True))
    torch.testing.assert_close(discriminator.generator_loss(reals, fakes)[1], distance)


def test_big_vgan_adds_what_periods_and_notes_say():
    discriminator, (reals, fakes) = build("big_vgan"), sounds()
    parts = [torch.stack([part.discriminator_loss(reals, fakes), *part.generator_loss(reals, fakes)]) for part in discriminator.children()]
    whole = (discriminator.discriminator_loss(reals, fakes), *discriminator.generator_loss(reals, fakes))
    torch.testing.assert_close(torch.stack(whole), parts[0] + parts[1])


def test_notes_have_layers_as_their_authors_name_them():
    keys = {key: tuple(value.shape) for key, value in build("big_vgan", 1).cqt.state_dict().items() if key.startswith("discriminators.1.")}
    assert keys == {
        **{f"discriminators.1.conv_pres.{i}.weight": (2, 2, 3, 9) for i in range(4)},
        **{f"discriminators.1.conv_pres.{i}.bias": (2,) for i in range(4)},
        "discriminators.1.convs.0.weight": (4, 2, 3, 9),
        **{f"discriminators.1.convs.{i}.weight_v": (4, 4, 3, 9) for i in (1, 2, 3)},
        "discriminators.1.convs.4.weight_v": (4, 4, 3, 3),
        **{f"discriminators.1.convs.{i}.weight_g": (4, 1, 1, 1) for i in (1, 2, 3, 4)},
        **{f"discriminators.1.convs.{i}.bias": (4,) for i in range(5)},
        "discriminators.1.conv_post.weight_v": (1, 4, 3, 3),
        "discriminators.1.conv_post.weight_g": (1, 1, 1, 1),
        "discriminators.1.conv_post.bias": (1,),
    }


def test_widths_of_notes_follow_the_config():
    config = parse(document("big_vgan", cqtd_filters_scale=2, cqtd_max_filters=16, cqtd_dilations=[1, 3], cqtd_out_channels=3))
    network = config.build(SAMPLE_RATE, 2).cqt.discriminators[0]
    assert [conv.out_channels for conv in network.convs] == [4, 8, 16, 16]
    scores, features = network(torch.randn(2, 2, 640))
    assert scores.shape == (2, 3, 11, 18) and len(features) == 4  # 72 bins, halved twice


def test_volume_can_be_brought_to_one_level_before_notes_are_heard():
    audio = 0.1 * torch.randn(1, 2, 640)
    for normalized in (False, True):
        cqt = parse(document("big_vgan", cqtd_normalize_volume=normalized)).build(SAMPLE_RATE, 2).cqt
        assert torch.allclose(cqt(audio)[0][0], cqt(3 * audio)[0][0], rtol=1e-3, atol=1e-5) is normalized


@pytest.mark.parametrize("game", [HINGE, RELATIVISTIC, LEAST_SQUARES, UNIT_HINGE])
def test_of_every_game_telling_apart_is_best_for_one_and_worst_for_the_other(game):
    high, low = torch.full((4,), 2.0), torch.full((4,), -2.0)
    high, low = (high, low) if game in (HINGE, RELATIVISTIC) else (high.clamp(max=1), low.clamp(min=0))
    assert game.discriminator(high, low) < game.discriminator(low, high)
    assert game.generator(high, high) < game.generator(high, low)


def test_hinges_stop_where_sounds_are_told_apart_and_squares_do_not():
    sure = torch.tensor([3.0]), torch.tensor([-3.0])
    assert HINGE.discriminator(*sure) == UNIT_HINGE.discriminator(*sure) == 0
    assert LEAST_SQUARES.discriminator(*sure) == 4 + 9
    assert UNIT_HINGE.generator(*sure) == 4 and LEAST_SQUARES.generator(*sure) == 16


@pytest.mark.parametrize(
    ("kind", "params", "path", "message", "fix"),
    [
        (
            "dac",
            {"periods": [], "rates": [], "fft_sizes": []},
            (),
            "rates, periods and fft_sizes are all empty: nothing is judged",
            "give one",
        ),
        ("dac", {"bands": [[0.5, 0.5]]}, ("bands", 0), "no bin of the 65 of a transform of 128 lies in this band", "widen the band"),
        (
            "dac",
            {"bands": [[0.0, 0.01], [0, 1]]},
            ("bands", 0),
            "no bin of the 65 of a transform of 128 lies in this band",
            "widen the band",
        ),
        ("dac", {"channels": 2}, ("channels",), 'unknown key "channels"', ""),
        ("big_vgan", {"cqtd_n_octaves": [4]}, ("cqtd_n_octaves",), "1 entries for 2 cqtd_hop_lengths", "give one per network"),
        ("big_vgan", {"cqtd_fmin": 30.0}, ("cqtd_fmin",), 'unknown key "cqtd_fmin"', 'did you mean "fmin"?'),
    ],
)
def test_what_cannot_be_judged_is_refused(kind, params, path, message, fix):
    ((found_path, found_message, found_fix),) = problems(document(kind, **params))
    assert (found_path, found_message) == (("config", *path), message) and fix in found_fix


@pytest.mark.parametrize(("kind", "key"), [("oobleck", "in_channels"), ("big_vgan", "cqtd_in_channels")])
def test_channels_come_from_the_model_and_may_be_repeated(kind, key):
    config = parse(document(kind, **{key: 2}))
    assert not config.audio_problems(SAMPLE_RATE, 2)
    (problem,) = config.audio_problems(SAMPLE_RATE, 1)
    assert problem.path == ("config", key) and problem.fix == "remove the key, or give 1"
    assert problem.message == "2 channels, but the model's audio has 1"


def test_notes_must_fit_in_the_sample_rate():
    (problem,) = parse(document("big_vgan", fmin=4000.0)).audio_problems(SAMPLE_RATE, 2)
    assert problem.path == ("config", "fmin") and problem.fix == "lower it below 4000"
    assert problem.message == "the lowest note, 4000 Hz, is not below half the sample rate of 8000 Hz"


def test_the_family_lists_them():
    assert DISCRIMINATORS.names == ("encodec", "dac", "oobleck", "big_vgan")
