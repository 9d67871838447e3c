"""Reconstructions against their originals: nothing for equal ones, worse for more damage, each clip and channel by itself."""

import importlib.util
import math

import pytest
import torch
from sounds_for_tests import RATE, changed, coded, low_passed, noisy, real_clips

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.evaluation import metrics as module
from stable_audio_tools.evaluation.bootstrap import Bootstrap
from stable_audio_tools.evaluation.clip_sets import Clip
from stable_audio_tools.evaluation.comparison import Comparison
from stable_audio_tools.evaluation.metrics import DEFAULT_METRICS, METRICS, choose_metrics, measure, register_metric
from stable_audio_tools.evaluation.pair_scores import si_sdr
from stable_audio_tools.evaluation.pairs import STFT
from stable_audio_tools.nn.reconstruction import MultiResolutionSTFT

PAIRED = ("mrstft", "mel", "si_sdr", "l1")


def scores(copies, originals, names=PAIRED):
    return {found.name: found for found in measure(names, Comparison(copies, originals, paired=True, bootstrap=Bootstrap(20)))}


def test_a_perfect_reconstruction_is_perfect():
    clips = real_clips(4, channels=2)
    found = scores(clips, clips)
    assert found["mrstft"].value == found["mel"].value == found["l1"].value == 0 and found["si_sdr"].value > 60
    assert [found[name].better for name in PAIRED] == ["lower", "lower", "higher", "lower"]
    assert found["si_sdr"].recipe["sample_rate"] == RATE


@pytest.mark.parametrize(
    ("damage", "grades"),
    [(noisy, (40, 20, 0)), (coded, (0.5, 0.1, 0.02)), (low_passed, (3000, 500, 150))],
    ids=["noise", "coding", "low-pass"],
)
@pytest.mark.slow
def test_worse_damage_is_worse_in_every_metric(damage, grades):
    clips = real_clips(8)
    found = [scores(damage(clips, grade), clips) for grade in grades]
    for name in PAIRED:
        values = [of[name].value if of[name].better == "lower" else -of[name].value for of in found]
        assert values == sorted(values) and values[0] < values[-1], (name, values)
    if damage is noisy:
        assert [of["si_sdr"].value for of in found] == pytest.approx(grades, abs=0.3)


def test_each_clip_counts_once_and_each_channel_is_judged_by_itself():
    clips = real_clips(3, channels=2)
    copies = noisy(clips, 10)
    expected = [
        MultiResolutionSTFT(STFT, RATE)(original.audio[channel][None, None], copy.audio[channel][None, None])["mrstft"]
        for original, copy in zip(clips, copies, strict=True)
        for channel in range(2)
    ]
    assert scores(copies, clips)["mrstft"].value == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)
    expected = torch.stack([si_sdr(original.audio, copy.audio).mean() for original, copy in zip(clips, copies, strict=True)])
    assert scores(copies, clips)["si_sdr"].value == pytest.approx(float(expected.mean()), rel=1e-5)


def test_clips_of_many_lengths_are_compared_over_their_common_part_and_the_rest_is_said():
    clips = real_clips(4)
    cut = [Clip(clip.audio[:, : 4000 + 100 * i], RATE) for i, clip in enumerate(clips)]
    assert scores(cut, clips)["l1"].value == 0
    broken = [*cut[:3], Clip(torch.full((1, 100), torch.nan), RATE)]
    found = scores(broken, clips)
    assert all(of.n == 3 and of.recipe["left_out"] == 1 for of in found.values())
    short = scores([Clip(clip.audio[:, :500], RATE) for clip in clips], clips)
    assert math.isnan(short["mrstft"].value) and short["l1"].value == 0


def test_pairs_that_cannot_be_compared_are_refused():
    (clip,) = real_clips(1)
    for other in (Clip(clip.audio, 2 * RATE), Clip(clip.audio.expand(2, -1), RATE)):
        with pytest.raises(ValueError, match=r"0-0\.wav has 1 channels at 8000 Hz, its reconstruction"):
            scores([other], [clip])


@pytest.mark.parametrize("name", ["pesq", "stoi"])
def test_listener_models_rank_noise_where_they_are_installed(name):
    if not METRICS[name].is_installed:
        pytest.skip(f"the package of {name} is not installed")
    clips = changed(real_clips(3), lambda audio: torch.nn.functional.pad(audio.repeat(1, 3), (1000, 1000)))
    found = [scores(noisy(clips, snr_db), clips, [name])[name].value for snr_db in (40, 10, -5)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_what_cannot_be_computed_is_said_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        choose_metrics(["frechett", "kernel", "mrstft", "pesq", "stoi"], ["reference"])
    problems = [(problem.message, problem.fix) for problem in error.value.problems]
    assert problems[0][0] == "there is no metric 'frechett'" and 'did you mean "frechet"?' in problems[0][1]
    assert problems[1] == ("'kernel' needs an embedder, and there is none", "give it, or leave 'kernel' out")
    assert problems[2][0] == "'mrstft' needs the original of each clip, and there is none"
    assert ("'pesq' needs the package pesq, which is not installed", "pip install -e \".[pesq]\", or leave 'pesq' out") in problems
    assert ("'stoi' needs the package pystoi, which is not installed", "pip install pystoi, or leave 'stoi' out") in problems


def test_the_default_is_what_fits():
    assert choose_metrics(None, []) == ("statistics",)
    assert choose_metrics(None, ["reference", "embedder"]) == ("frechet", "kernel", "statistics")
    assert choose_metrics(None, ["reference", "pairs", "embedder"]) == ("frechet", "kernel", "statistics", *PAIRED)
    assert set(choose_metrics(None, module.NEEDS)) == set(DEFAULT_METRICS)
    assert choose_metrics(["l1", "l1"], ["pairs"]) == ("l1",)


def test_a_plugin_adds_a_metric():
    metric = module.Metric(lambda comparison: [comparison.bootstrap.mean("seconds", torch.ones(2), {})], (), "how long")
    register_metric("seconds", metric)
    try:
        assert measure(["seconds"], Comparison(real_clips(2)))[0].value == 1
        with pytest.raises(ValueError, match="'seconds' is already registered"):
            register_metric("seconds", module.Metric(lambda comparison: [], (), "other"))
    finally:
        del METRICS["seconds"]


def test_the_test_environment_is_known():
    assert METRICS["pesq"].is_installed == (importlib.util.find_spec("pesq") is not None)
