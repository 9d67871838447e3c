"""Pitch, instrument and loudness as measured, against sounds whose truth is known."""

import math

import pytest
import torch

from stable_audio_tools.data.instruments import ALL_INSTRUMENTS, INSTRUMENTS
from stable_audio_tools.data.synthetic import SyntheticConfig, SyntheticDataset
from stable_audio_tools.evaluation.clips import sounding_part, to_mono, with_noise
from stable_audio_tools.evaluation.instrument import InstrumentClassifier, instrument_features
from stable_audio_tools.evaluation.loudness import level_db, silence_share
from stable_audio_tools.evaluation.pitch import estimate_pitch
from stable_audio_tools.evaluation.statistics import Share

PITCHED = [name for name, instrument in INSTRUMENTS.items() if instrument.pitched]


def clips(count, *, sample_rate=8000, seconds=1.024, channels=1, first=0, **keys):
    """(B, C, T) audio and labels of the first items of a dataset in which nothing is held out."""
    sounds = SyntheticDataset(SyntheticConfig(hold_out=0.0, **keys), round(seconds * sample_rate), sample_rate, channels)
    items = [sounds[first + i] for i in range(count)]
    return torch.stack([audio for audio, _ in items]), [labels for _, labels in items]


def at_snr(audio, snr_db):
    return with_noise(audio, snr_db, torch.Generator().manual_seed(1))


# pitch


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
@pytest.mark.parametrize("name", PITCHED)
@pytest.mark.slow
def test_the_pitch_of_every_note_is_its_label(name, sample_rate):
    sounds = SyntheticDataset(
        SyntheticConfig(hold_out=0.0, instruments=[name], loudness=["soft"]), round(1.024 * sample_rate), sample_rate, 1
    )
    made = [sounds.sound(combination, i) for i, combination in enumerate(sounds.combinations)]
    found = estimate_pitch(torch.stack([audio for audio, _ in made]), sample_rate)
    cents = 1200 * torch.log2(found.frequency_hz / torch.tensor([labels["frequency_hz"] for _, labels in made]))
    assert len(made) == 25 and found.voiced.all()
    assert cents.abs().max() < 3 and cents.abs().median() < 0.5


@pytest.mark.slow
def test_low_high_short_and_late_sounds_have_their_pitch():
    for keys in ({"notes": "A1-A6", "sample_rate": 44100}, {"notes": "C3-C6", "seconds": 2.0, "sample_rate": 16000}):
        seconds = keys.pop("seconds", 1.0)
        audio, labels = clips(60, seconds=seconds, instruments=PITCHED, **keys)
        midi = torch.tensor([float(label["midi"]) for label in labels])
        assert (estimate_pitch(audio, keys["sample_rate"]).cents_from(midi).abs() < 12).all()
    sounds = SyntheticDataset(SyntheticConfig(seconds=[0.1, 0.2], instruments=PITCHED), 16000, 8000, 2)
    items = [sounds[i] for i in range(40)]
    found = estimate_pitch(torch.stack([audio for audio, _ in items]), 8000)
    assert (found.cents_from(torch.tensor([float(labels["midi"]) for _, labels in items])).abs() < 15).all()


@pytest.mark.parametrize("snr_db", [20, 10])
def test_noise_over_a_sound_does_not_move_its_pitch(snr_db):
    audio, labels = clips(120, instruments=PITCHED)
    midi = torch.tensor([float(label["midi"]) for label in labels])
    assert (estimate_pitch(at_snr(audio, snr_db), 8000).cents_from(midi).abs() < 12).all()


@pytest.mark.parametrize("sample_rate", [8000, 16000, 48000])
@pytest.mark.slow
def test_noise_and_silence_have_no_pitch(sample_rate):
    noise = torch.randn(100, 1, sample_rate)
    burst, _ = clips(50, sample_rate=sample_rate, instruments=["noise"])
    assert not estimate_pitch(noise, sample_rate).voiced.any()
    assert not estimate_pitch(burst, sample_rate).voiced.any()
    nothing = estimate_pitch(torch.zeros(2, 1, sample_rate), sample_rate)
    assert nothing.frequency_hz.isnan().all() and not nothing.voiced.any()


def test_octaves_are_kept():
    time = torch.arange(8000) / 8000
    for f0 in (110.0, 220.0, 440.0, 880.0):
        tones = torch.stack(
            [
                sum(torch.sin(2 * math.pi * k * f0 * time) * a for k, a in enumerate(weights, 1))
                for weights in ((1, 0, 0), (1, 1, 1), (0.5, 1, 0.5))
            ]
        )
        cents = 1200 * torch.log2(estimate_pitch(tones, 8000).frequency_hz / f0)
        assert cents.abs().max() < 2


def test_one_bad_clip_changes_nothing_for_the_others():
    audio, _ = clips(3, instruments=["saw"])
    alone = estimate_pitch(audio, 8000)
    broken = torch.cat([audio, torch.full_like(audio[:1], torch.nan), torch.zeros_like(audio[:1])])
    broken[1, 0, 17] = torch.inf
    found = estimate_pitch(broken, 8000)
    assert torch.equal(found.frequency_hz[[0, 2]], alone.frequency_hz[[0, 2]])
    assert found.voiced.tolist() == [True, False, True, False, False]


def test_audio_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"audio has shape \(8000,\); expected \(B, C, T\) or \(B, T\) with T > 0"):
        to_mono(torch.zeros(8000))


def test_the_sounding_part_begins_at_the_onset():
    audio = torch.zeros(2, 8000)
    audio[0, 3000:5000] = 1.0
    part = sounding_part(audio, 8000, 0.5)
    assert part.shape == (2, 4000)
    assert part[0, 0] == 0 or part[0, 60] == 1
    assert part[0, 60:1900].min() == 1 and part[0, 2100:].abs().sum() == 0


# instrument


@pytest.fixture(scope="module")
def classifier():
    audio, labels = clips(450)
    snr_db = torch.linspace(5, 45, 450)[torch.randperm(450, generator=torch.Generator().manual_seed(0))]
    return InstrumentClassifier.fit(instrument_features(at_snr(audio, snr_db), 8000), [label["instrument"] for label in labels])


@pytest.mark.parametrize(("snr_db", "least"), [(None, 0.97), (20, 0.97), (10, 0.95)])
@pytest.mark.slow
def test_instruments_are_told_apart_in_noise_too(classifier, snr_db, least):
    audio, labels = clips(270, first=1000)
    heard = classifier.predict(instrument_features(audio if snr_db is None else at_snr(audio, snr_db), 8000))
    assert sum(a == label["instrument"] for a, label in zip(heard, labels, strict=True)) / 270 >= least


def test_features_do_not_depend_on_level_onset_or_channels(classifier):
    audio, _ = clips(27, seconds=0.5)
    plain = instrument_features(audio, 8000)
    torch.testing.assert_close(instrument_features(0.1 * audio, 8000), plain, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(instrument_features(audio.expand(-1, 2, -1), 8000), plain, atol=1e-3, rtol=1e-3)


def test_broken_and_silent_clips_are_classified_without_a_crash(classifier):
    audio = torch.zeros(2, 1, 8000)
    audio[0, 0, 5] = torch.nan
    features = instrument_features(audio, 8000)
    assert features.isfinite().all() and all(name in ALL_INSTRUMENTS for name in classifier.predict(features))


def test_too_few_sounds_to_fit_are_refused():
    with pytest.raises(ValueError, match="2 sounds are too few for 2 instruments; give at least two of each"):
        InstrumentClassifier.fit(torch.randn(2, 3, dtype=torch.float64), ["sine", "bell"])
    with pytest.raises(ValueError, match="3 rows of features for 2 labels"):
        InstrumentClassifier.fit(torch.randn(3, 3, dtype=torch.float64), ["sine", "bell"])


# loudness


@pytest.mark.parametrize(("sample_rate", "channels"), [(8000, 1), (44100, 2)])
def test_the_measured_level_is_the_label(sample_rate, channels):
    audio, labels = clips(40, sample_rate=sample_rate, channels=channels)
    true = torch.tensor([label["level_db"] for label in labels], dtype=torch.float64)
    assert (level_db(audio, sample_rate) - true).abs().max() < 0.1


def test_levels_of_a_sine_of_full_scale():
    sine = torch.sin(2 * math.pi * 100 * torch.arange(8000) / 8000).expand(1, 2, -1)
    assert level_db(sine, 8000).item() == pytest.approx(-3.01, abs=0.01)
    assert level_db(sine[..., :100], 8000).isfinite(), "shorter than the window: taken whole"


def test_silence_around_a_sound_does_not_change_the_level():
    sine = torch.sin(2 * math.pi * 100 * torch.arange(8000) / 8000).expand(1, 1, -1)
    quiet = torch.cat([torch.zeros(1, 1, 8000), sine], -1)
    assert level_db(quiet, 8000).item() == pytest.approx(level_db(sine, 8000).item(), abs=0.01)
    assert silence_share(quiet, 8000).item() == pytest.approx(0.5, abs=0.03)


def test_silence_and_nan_have_no_level():
    audio = torch.zeros(2, 1, 8000)
    audio[1, 0, 3] = torch.nan
    assert level_db(audio, 8000)[0] == -torch.inf and level_db(audio, 8000)[1].isnan()
    assert silence_share(audio, 8000)[0] == 1 and silence_share(audio, 8000)[1].isnan()


# statistics


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (48, 48, 0.9259, 1.0), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_of_published_tables(hits, total, low, high):
    """First, second and fourth: Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I."""
    share = Share(hits, total)
    assert share.value == hits / total and share.interval == pytest.approx((low, high), abs=1e-4)


def test_a_share_of_nothing_is_unknown():
    assert math.isnan(Share(0, 0).value) and Share(0, 0).interval == (0, 1) and str(Share(0, 0)) == "-"
    assert str(Share(24, 48)) == "50.0 % (36 to 64)"
