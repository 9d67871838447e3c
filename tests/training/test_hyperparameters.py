"""The policy of small fine-tunings: its table, what wins over what, and what is refused."""

import pytest

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.training.hyperparameters import compute_hyperparameters


def compute(profile, n, *arguments, env=None, **options):
    return compute_hyperparameters(profile, n, *arguments, env=env or {}, **options)


@pytest.mark.parametrize(
    ("profile", "clips", "rate", "steps"),
    [
        ("style", 15, 4e-4, 750),
        ("style", 5, 4e-4, 500),
        ("style", 100, 4e-4, 2000),
        ("custom-styles", 15, 4e-4, 750),
        ("voice", 10, 4e-4, 1000),
        ("voice", 11, 3e-4, 1100),
        ("voice", 20, 3e-4, 2000),
        ("voice", 21, 2.5e-4, 2100),
        ("voice", 3, 4e-4, 800),
        ("custom-actors", 40, 2.5e-4, 3000),
    ],
)
def test_the_table(profile, clips, rate, steps):
    found = compute(profile, clips)
    assert (found.learning_rate, found.max_train_steps) == (rate, steps)
    assert (found.lr_scheduler, found.warmup_steps) == ("cosine_with_restarts", 0)
    assert set(found.origins.values()) == {"policy"}


def test_short_clips_count_for_less_and_long_ones_for_no_more():
    assert compute("style", 40, 400.0, clip_seconds=20.0) == compute("style", 20, clip_seconds=20.0)
    assert compute("style", 20, 4000.0, clip_seconds=20.0).clips == 20
    assert compute("style", 20, 10.0).clips == 20  # nobody said how long a clip of the model is
    assert compute("style", 20).passes(batch_size=4) == 1000 * 4 / 20


def test_the_environment_is_read_at_the_call(monkeypatch):
    assert compute_hyperparameters("style", 15).learning_rate == 4e-4
    monkeypatch.setenv("SAT_HP_STYLE_LR", "1e-3")
    found = compute_hyperparameters("style", 15)
    assert found.learning_rate == 1e-3 and found.origins["learning_rate"] == "SAT_HP_STYLE_LR"
    assert found.origins["max_train_steps"] == "policy"


@pytest.mark.parametrize(
    ("profile", "clips", "env", "rate", "steps"),
    [
        ("style", 15, {"SB_HP_STYLE_SPI": "10", "SB_HP_STYLE_MIN": "1"}, 4e-4, 150),
        ("style", 15, {"SB_HP_STYLE_LR": "9", "SAT_HP_STYLE_LR": "1e-5"}, 1e-5, 750),
        ("style", 15, {"SAT_HP_STYLE_LR": " "}, 4e-4, 750),
        ("style", 15, {"SAT_HP_VOICE_LR_T1": "9", "SAT_HP_STYLE_MAX": "600"}, 4e-4, 600),
        ("voice", 11, {"SB_HP_ACTOR_LR_T2": "1e-4", "SAT_HP_VOICE_LR_T1": "9"}, 1e-4, 1100),
        ("voice", 11, {"SAT_HP_VOICE_T1_MAX": "11"}, 4e-4, 1100),
        ("voice", 30, {"SAT_HP_VOICE_T2_MAX": "30", "SAT_HP_VOICE_MAX": "2000"}, 3e-4, 2000),
    ],
)
def test_variables_have_a_say(profile, clips, env, rate, steps):
    found = compute(profile, clips, env=env)
    assert (found.learning_rate, found.max_train_steps) == (rate, steps)


def test_what_is_asked_for_wins_even_where_it_is_the_default():
    env = {"SAT_HP_STYLE_LR": "1e-3", "SAT_HP_STYLE_SPI": "999"}
    found = compute("style", 15, overrides={"learning_rate": 4e-4, "max_train_steps": 2000, "warmup_steps": None}, env=env)
    assert (found.learning_rate, found.max_train_steps) == (4e-4, 2000)
    assert found.origins == {
        "learning_rate": "asked for",
        "max_train_steps": "asked for",
        "lr_scheduler": "policy",
        "warmup_steps": "policy",
    }
    assert "learning_rate 0.0004 (asked for)" in str(found)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("stile", 5), {}, ["unknown profile 'stile'", "did you mean", "style"]),
        (("style", 0), {}, ["nothing to learn from: 0 clips"]),
        (("style", 5, 0.0), {}, ["0 s in all"]),
        (("style", 5), {"env": {"SAT_HP_STYLE_LR": "fast"}}, ["SAT_HP_STYLE_LR", "'fast' is not a number above 0", "0.0004"]),
        (("style", 5), {"env": {"SB_HP_STYLE_MIN": "1.5"}}, ["SB_HP_STYLE_MIN", "a whole number above 0"]),
        (("style", 5), {"env": {"SAT_HP_STYLE_MIN": "3000"}}, ["SAT_HP_STYLE_MIN", "at least 3000 steps and at most 2000"]),
        (("voice", 5), {"env": {"SAT_HP_VOICE_T1_MAX": "25"}}, ["SAT_HP_VOICE_T1_MAX", "[25, 20]"]),
        (("style", 5), {"overrides": {"lr": 1e-3}}, ["lr", "no such setting"]),
        (("style", 5), {"overrides": {"learning_rate": 0.0}}, ["learning_rate", "number above 0"]),
        (("style", 5), {"overrides": {"max_train_steps": 10.5}}, ["max_train_steps", "whole number above 0"]),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, options, said):
    with pytest.raises(ConfigError) as refused:
        compute(*arguments, **options)
    assert all(part in str(refused.value) for part in said), refused.value
