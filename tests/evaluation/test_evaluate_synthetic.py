"""The evaluation as a whole: real sounds pass, noise and chance do not, and damage shows in the right column."""

import json

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.synthetic import Combination, SyntheticConfig, SyntheticDataset
from stable_audio_tools.evaluation import synthetic
from stable_audio_tools.evaluation.clips import with_noise
from stable_audio_tools.evaluation.scores import NOISE, REAL, SHUFFLED
from stable_audio_tools.evaluation.synthetic import choose_prompts, evaluate_synthetic

RATE, SIZE = 8000, 8192
CONFIG = SyntheticConfig(instruments=["sine", "square", "saw", "pluck", "bell", "noise"])


def player(change=lambda audio, labels: audio, shift=0, channels=1):
    """A generator that plays other real sounds of the prompts, after a change; `shift` transposes, in semitones."""
    sounds = SyntheticDataset(CONFIG, SIZE, RATE, channels)

    def generate(conditioning):
        asked = [Combination(c["instrument"], None if c["midi"] is None else c["midi"] + shift, c["loudness"]) for c in conditioning]
        return change(torch.stack([sounds.sound(combination, 9000 + i)[0] for i, combination in enumerate(asked)]), conditioning)

    return generate


def evaluate(generate, num_prompts=48, **options):
    return evaluate_synthetic(generate, options.pop("config", CONFIG), RATE, SIZE, num_prompts, **options)


def at_snr(snr_db):
    return lambda audio, _: with_noise(audio, snr_db, torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Fewer sounds to fit on than a real evaluation: these tests ask for coarse differences."""
    monkeypatch.setattr(synthetic, "CALIBRATION_SOUNDS", 30)


@pytest.fixture(scope="module")
def report():
    return evaluate(player(channels=2), num_prompts=100, settings={"steps": 50})


def test_real_sounds_pass(report):
    for scores in (report.model, report.pitched[REAL]):
        assert scores.pitch.value > 0.97 and scores.instrument.value > 0.97 and scores.loudness.value > 0.97
        assert scores.median_cents < 6 and scores.loudness_error_db < 1.2 and scores.broken == 0
    assert report.unpitched[REAL].instrument.value > 0.9 and report.unpitched[REAL].pitch.value == 1


def test_white_noise_and_shuffled_prompts_are_at_chance(report):
    for source in (NOISE, SHUFFLED):
        scores = report.pitched[source]
        assert scores.pitch.value < 0.1 and scores.instrument.value < 0.3 and scores.loudness.value < 0.6


def test_noise_like_prompts_stay_apart(report):
    assert report.model.pitch.total == 100
    assert report.unpitched["model"].pitch.total == 12
    assert set(report.by_instrument) == {"sine", "square", "saw", "pluck", "bell"}
    assert sum(scores.pitch.total for scores in report.by_instrument.values()) == 100


@pytest.mark.slow
def test_damage_ranks_as_it_should(report):
    clean, light, heavy = report.model, evaluate(player(at_snr(20))).model, evaluate(player(at_snr(-15))).model
    assert light.pitch.value > 0.97 and light.instrument.value > 0.95
    assert heavy.pitch.value < 0.7 < clean.pitch.value and heavy.instrument.value < 0.7


@pytest.mark.slow
def test_a_wrong_note_is_wrong_in_pitch_alone():
    for shift in (1, 12, -12):
        scores = evaluate(player(shift=shift)).model
        assert scores.pitch.value < 0.03 and scores.loudness.value > 0.97
        assert scores.instrument.value > (0.9 if shift == 1 else 0.7), "an octave up, a square wave at 8 kHz is nearly a sine"
        assert scores.median_cents == pytest.approx(100 * abs(shift), abs=15)


def test_a_wrong_level_is_wrong_in_loudness_alone():
    scores = evaluate(player(lambda audio, _: 0.4 * audio)).model
    assert scores.pitch.value > 0.97 and scores.instrument.value > 0.97
    assert scores.loudness_error_db == pytest.approx(8, abs=0.8) and scores.loudness.value < 0.5


def test_silent_and_broken_clips_are_wrong_and_counted():
    def damaged(audio, labels):
        audio[0:48:2] = 0
        audio[1:48:4, 0, 100] = torch.nan
        return audio

    scores = evaluate(player(damaged)).model
    assert scores.broken == 12 and scores.silence > 0.5
    for share in (scores.pitch, scores.instrument, scores.loudness):
        assert share.hits == pytest.approx(12, abs=1)


def test_nothing_at_all_gives_a_report():
    nothing = evaluate(lambda conditioning: torch.full((len(conditioning), 1, 4000), torch.nan))
    assert nothing.model.pitch.hits == nothing.model.instrument.hits == nothing.model.loudness.hits == 0
    assert nothing.model.broken == 48
    plain = json.loads(json.dumps(nothing.to_dict(), allow_nan=False))
    assert plain["pitched"]["model"]["median_cents"] is None and plain["pitched"]["model"]["silence"] is None


@pytest.mark.slow
def test_prompts_are_held_out_fixed_and_even():
    asked = []

    def generate(conditioning):
        asked.append([c["prompt"] for c in conditioning])
        return torch.zeros(len(conditioning), 1, SIZE)

    first, second = evaluate(generate), evaluate(generate, config=CONFIG.model_copy(update={"seed": 5}))
    assert asked[0] == asked[1] and first.recipe["distinct"] == 48
    held = choose_prompts(CONFIG.combinations("held_out"), 48, 0)
    assert set(held) <= set(CONFIG.combinations("held_out"))
    counts = [sum(c.instrument == name for c in held) for name in ("sine", "square", "saw", "pluck", "bell")]
    assert max(counts) - min(counts) <= 3, "uneven only where an instrument has fewer held out"
    assert choose_prompts(CONFIG.combinations("held_out"), 96, 0)[:48] == held
    assert first.recipe["prompts"] == second.recipe["prompts"] == "combinations held out of training"


def test_without_anything_held_out_the_report_says_so():
    config = CONFIG.model_copy(update={"hold_out": 0.0})
    report = evaluate(lambda conditioning: torch.zeros(len(conditioning), 1, SIZE), num_prompts=6, config=config)
    assert report.recipe["prompts"] == "combinations seen in training" and "seen in training" in report.to_markdown()


def test_the_same_evaluation_twice_is_the_same_report():
    assert evaluate(player(), num_prompts=10).to_dict() == evaluate(player(), num_prompts=10).to_dict()


def test_the_report_reads_as_tables_and_holds_its_recipe(report):
    text, plain = report.to_markdown(), report.to_dict()
    assert "| real sounds " in text and "steps 50" in text and "100 clips" in text
    assert plain["recipe"]["steps"] == 50 and plain["recipe"]["sample_rate"] == RATE
    pitch = plain["pitched"]["model"]["pitch"]
    assert pitch["of"] == 100 and pitch["low"] <= pitch["share"] <= pitch["high"]
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3 and all(len({len(line) for line in table.splitlines()}) == 1 for table in tables)


def test_misuse_is_said():
    with pytest.raises(ValueError, match="num_prompts is 1; at least 2 are needed"):
        evaluate(player(), num_prompts=1)
    with pytest.raises(ValueError, match=r"generate returned audio of shape \(3, 1, 8\); expected \(60, C, T\)"):
        evaluate(lambda conditioning: torch.zeros(3, 1, 8))
    with pytest.raises(ConfigError, match="no instrument with a pitch, so there is no note to ask for"):
        evaluate(player(), config=SyntheticConfig(instruments=["noise"]))
