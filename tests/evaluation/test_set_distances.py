"""Distances between sets of clips: nothing for equal ones, more for more damage, and no more than chance for two halves of one."""

import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from sounds_for_tests import RATE, changed, clipped, coded, low_passed, noisy, real_clips

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.evaluation.bootstrap import Bootstrap
from stable_audio_tools.evaluation.clip_sets import Clip
from stable_audio_tools.evaluation.comparison import Comparison
from stable_audio_tools.evaluation.embedders import build_embedder
from stable_audio_tools.evaluation.metrics import measure
from stable_audio_tools.models import create_model_from_config

DISTANCES = ("frechet", "frechet_infinity", "kernel", "kad")
EMBEDDERS = ("log_mel", "latents")
CLIPS = 60


@cache
def embedder(name):
    torch.manual_seed(3)
    return build_embedder(name, create_model_from_config(configs.autoencoder()).eval() if name == "latents" else None)


@cache
def clips(seed=0):
    return real_clips(CLIPS, seed, channels=2)


def distances(generated, reference, *names, embedders=EMBEDDERS, **options):
    options = {"bootstrap": Bootstrap(8)} | options
    comparison = Comparison(generated, reference, embedders=[embedder(name) for name in embedders], **options)
    return {found.name: found for found in measure(names or DISTANCES, comparison)}


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "in another order"])
@pytest.mark.slow
def test_equal_sets_are_at_zero(order):
    found = distances(clips(), clips()[::order])
    assert set(found) == {f"{distance}_{name}" for distance in DISTANCES for name in EMBEDDERS}
    for one in found.values():
        assert abs(one.value) < 1e-6 and abs(one.low) < 1e-6 and abs(one.high) < 1e-6, one


@pytest.mark.slow
def test_more_noise_is_farther_for_every_distance_and_embedder():
    found = [distances(noisy(clips(), snr_db), clips()) for snr_db in (60, 40, 20, 10, 0, -10)]
    for name in found[0]:
        heard = found if name.startswith("frechet") else found[2:]  # without bias, next to nothing may come out below nothing
        values = [of[name].value for of in heard]
        assert values[0] > 0 and all(less < more for less, more in pairwise(values)), (name, values)


@pytest.mark.slow
def test_more_noise_is_farther_from_other_clips_too():
    found = [distances(noisy(clips(), snr_db), clips(1), embedders=["log_mel"]) for snr_db in (40, 20, 10, 0, -10)]
    for name in found[0]:
        values = [of[name].value for of in found]
        assert all(less < more for less, more in pairwise(values)), (name, values)


DAMAGES = {"low-pass": (low_passed, (3000, 1000, 300)), "clipping": (clipped, (2, 6, 30)), "coding": (coded, (0.9, 0.3, 0.03))}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_worse_damage_is_farther_for_every_distance_and_embedder(damage):
    change, grades = DAMAGES[damage]
    found = [distances(change(clips(), grade), clips()) for grade in grades]
    for name in found[0]:
        values = [of[name].value for of in found]
        assert 0 < values[0] < values[1] < values[2], (name, values)


@pytest.mark.parametrize(
    ("halves", "share"), [pytest.param(5, 0.7, marks=pytest.mark.slow), pytest.param(40, 0.88, marks=pytest.mark.exhaustive)]
)
def test_two_halves_of_one_dataset_are_within_what_one_source_gives(halves, share):
    """For 95 of 100 pairs of halves; the numbers of one pair go together, so few pairs may show fewer."""
    inside, held = [], []
    for seed in range(1, halves + 1):
        found = distances(clips(seed), clips(seed + 60), "frechet", "kernel", "kad", bootstrap=Bootstrap(100))
        inside += [of.same_source[0] <= of.value <= of.same_source[1] for of in found.values()]
        held += [of.low <= 0 <= of.high for name, of in found.items() if not name.startswith("frechet")]
    assert sum(inside) / len(inside) >= share
    assert sum(held) / len(held) >= 0.9, "the distances without bias have 0 in their intervals"


def test_two_halves_of_a_few_clips_are_within_and_noise_is_not():
    halves = distances(clips()[:30], clips(1)[:30], "frechet", "kernel", embedders=["log_mel"], bootstrap=Bootstrap(60))
    damaged = distances(noisy(clips()[:30], 10), clips(1)[:30], "frechet", "kernel", embedders=["log_mel"], bootstrap=Bootstrap(60))
    for name, of in halves.items():
        assert of.same_source[0] <= of.value <= of.same_source[1]
        assert damaged[name].value > damaged[name].same_source[1]
        assert damaged[name].low <= damaged[name].value <= damaged[name].high and damaged[name].low > of.value


def test_a_number_carries_what_repeats_it_and_is_repeated():
    first, second = (distances(clips()[:12], clips(1)[:15], recipe={"steps": 50}) for _ in range(2))
    assert {name: of.to_dict() for name, of in first.items()} == {name: of.to_dict() for name, of in second.items()}
    plain = json.loads(json.dumps(first["frechet_log_mel"].to_dict(), allow_nan=False))
    assert plain["better"] == "lower" and plain["n"] == 12 and plain["low"] <= plain["value"] <= plain["high"]
    expected = {"steps": 50, "embedder": "log_mel", "sample_rate": 32000, "loudness": "as it is", "generated": 12, "reference": 15}
    assert expected.items() <= plain["recipe"].items()
    assert {"hash", "resamples", "bootstrap_seed", "distance", "dimensions"} <= plain["recipe"].keys()
    assert "fewer clips than dimensions" in plain["recipe"]["note"] and "note" not in first["kernel_log_mel"].recipe
    assert len(plain["same_source"]) == 2


def test_intervals_depend_on_their_seed_and_values_do_not():
    first, second = (distances(clips()[:12], clips(1)[:12], "frechet", bootstrap=Bootstrap(20, seed)) for seed in (0, 1))
    for name in first:
        assert first[name].value == second[name].value and first[name].low != second[name].low


def test_broken_and_empty_clips_are_left_out_and_said():
    broken = Clip(torch.full((1, 500), torch.nan), RATE)
    empty = Clip(torch.zeros(1, 0), RATE)
    found = distances([*clips()[:10], broken, empty], clips(1)[:10], "frechet", embedders=["log_mel"])["frechet_log_mel"]
    clean = distances(clips()[:10], clips(1)[:10], "frechet", embedders=["log_mel"])["frechet_log_mel"]
    assert found.value == clean.value and found.recipe["left_out"] == 2 and found.recipe["generated"] == 10
    nothing = distances([broken, broken], clips(1)[:10], embedders=["log_mel"])
    assert all(of.to_dict()["value"] is None and of.n == 0 for of in nothing.values())


def test_too_few_clips_to_extrapolate_give_no_number():
    found = distances(clips()[:7], clips(1)[:7], "frechet_infinity", embedders=["log_mel"])["frechet_infinity_log_mel"]
    assert found.to_dict()["value"] is None and found.n == 7


def test_loudness_counts_unless_clips_are_brought_to_one():
    quiet = changed(clips()[:20], lambda audio: 0.1 * audio)
    plain, levelled = (
        distances(quiet, clips()[:20], "frechet", embedders=["log_mel"], loudness=loudness)["frechet_log_mel"] for loudness in (None, -23.0)
    )
    assert plain.value > 20 * levelled.value and levelled.recipe["loudness"] == "each clip at -23 LUFS"


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="paired clips need one original each"):
        Comparison(clips()[:3], clips()[:2], paired=True)
    with pytest.raises(ValueError, match="2 prompts for 3 clips"):
        Comparison(clips()[:3], prompts=["a", "b"])
    with pytest.raises(ValueError, match=r"embedders log_mel, log_mel: .* must differ"):
        Comparison(clips()[:3], embedders=[embedder("log_mel")] * 2)
