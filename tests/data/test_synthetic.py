"""The synthetic dataset: every item is a function of seed and index, and its labels are true."""

import math
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.data.instruments import ALL_INSTRUMENTS, INSTRUMENTS
from stable_audio_tools.data.notes import midi_to_hz, midi_to_note, note_to_midi, parse_notes
from stable_audio_tools.data.synthesis import Draws, damped_sinusoids
from stable_audio_tools.data.synthetic import LEVELS_DB, Combination, SyntheticConfig, SyntheticDataset

RATE, SIZE = 8000, 8192
PITCHED = [name for name, instrument in INSTRUMENTS.items() if instrument.pitched]


def dataset(sample_size=SIZE, sample_rate=RATE, audio_channels=1, **keys) -> SyntheticDataset:
    return SyntheticConfig(**keys).build(sample_size=sample_size, sample_rate=sample_rate, audio_channels=audio_channels)


def collate(items):
    return torch.stack([audio for audio, _ in items]), [labels for _, labels in items]


def first_item(start_method_seed: int) -> bytes:
    return dataset(seed=start_method_seed)[5][0].numpy().tobytes()


# the same sound whatever happens around it


def test_an_item_depends_on_seed_and_index_alone():
    one, again = dataset(seed=3), dataset(seed=3)
    backwards = [again[i] for i in reversed(range(20))][::-1]
    for i, (audio, labels) in enumerate(backwards):
        assert torch.equal(one[i][0], audio) and one[i][1] == labels
    assert not torch.equal(dataset(seed=4)[0][0], one[0][0])


def test_items_are_the_same_in_any_batch_and_in_workers():
    sounds = dataset(num_items=24)
    whole, labels = collate([sounds[i] for i in range(24)])
    for batch_size, workers in ((5, 0), (8, 2)):
        loader = DataLoader(sounds, batch_size=batch_size, num_workers=workers, collate_fn=collate)
        audio, found = zip(*loader, strict=True)
        assert torch.equal(torch.cat(audio), whole)
        assert [item for batch in found for item in batch] == labels


@pytest.mark.slow
def test_a_process_started_from_nothing_makes_the_same_sound():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(first_item, 9).result() == first_item(9)


def philox_4x64(counter: int, key: tuple[int, int]) -> list[int]:
    """One block of four words, ten rounds, as published: Salmon et al. 2011, doi:10.1145/2063384.2063405."""
    mask = 2**64 - 1
    words, keys = [counter >> shift & mask for shift in (0, 64, 128, 192)], list(key)
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [second >> 64 ^ words[1] ^ keys[0], second & mask, first >> 64 ^ words[3] ^ keys[1], first & mask]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
    return words


def test_draws_follow_the_published_generator():
    """So they change neither with numpy's version nor with the platform."""
    words = [word for block in (1, 2) for word in philox_4x64(block + (7 << 128), (11, 3))]
    assert Draws((11, 3), 7).uniform(size=8).tolist() == [(word >> 11) / 2**53 for word in words]


def test_splits_and_seeds_draw_from_different_streams():
    sounds = {
        (split, seed): dataset(split=split, seed=seed, hold_out=0.4)[0][0] for split in ("train", "held_out", "all") for seed in (0, 1)
    }
    clips = list(sounds.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(clips) for b in clips[:i])


def test_a_sound_asked_for_is_no_item_of_the_pool():
    sounds = dataset(num_items=30, instruments=["sine"], notes=["A4"], loudness=["soft"], hold_out=0.0)
    asked = sounds.sound(Combination("sine", 69, "soft"), 4)[0]
    assert not any(torch.equal(asked, sounds[i][0]) for i in range(30))


def test_an_index_outside_the_pool_is_an_error():
    with pytest.raises(IndexError, match="item 10 of 10"):
        dataset(num_items=10)[10]


# what is held out


def test_held_out_and_training_share_nothing_and_miss_nothing():
    config = SyntheticConfig(hold_out=0.2)
    train, held, every = (set(config.combinations(split)) for split in ("train", "held_out", "all"))
    assert train & held == set() and train | held == every
    assert len(every) == len(PITCHED) * 25 * 3 + 3
    assert len(held) / (len(every) - 3) == pytest.approx(0.2, abs=0.05)
    assert all(c.midi is not None for c in held), "a noise-like prompt cannot be held out: nothing else says what it is"


def test_items_come_from_their_split_only():
    for split in ("train", "held_out"):
        sounds = dataset(split=split, hold_out=0.3)
        given = set(sounds.combinations)
        seen = {(m["instrument"], m["midi"], m["loudness"]) for _, m in (sounds[i] for i in range(150))}
        assert seen <= given and len(seen) > 60


def test_holding_out_does_not_depend_on_the_rest_of_the_config():
    wide, narrow = SyntheticConfig(hold_out=0.2), SyntheticConfig(hold_out=0.2, instruments=["bell", "sine"], notes="C4-C5", seed=7)
    assert set(narrow.combinations("held_out")) <= set(wide.combinations("held_out"))
    assert set(SyntheticConfig(hold_out=0.1).combinations("held_out")) < set(wide.combinations("held_out"))


def test_every_instrument_note_and_word_is_left_for_training():
    given = SyntheticConfig().combinations("train")
    assert {c.instrument for c in given} == set(ALL_INSTRUMENTS)
    assert {c.midi for c in given} >= set(parse_notes("A3-A5"))


def test_the_held_out_part_is_a_validation_set():
    config = SyntheticConfig(hold_out=0.2)
    held = config.held_out()
    assert held is not None and held.split == "held_out" and held.num_items == len(config.combinations("held_out"))
    assert SyntheticConfig(hold_out=0.0).held_out() is None


# labels


@pytest.mark.parametrize("prompts", ["plain", "varied"])
def test_prompts_say_what_the_labels_say(prompts):
    words = {instrument.words: name for name, instrument in INSTRUMENTS.items()}
    sounds = dataset(prompts=prompts)
    texts = set()
    for _, labels in (sounds[i] for i in range(300)):
        prompt = labels["prompt"]
        assert [name for word, name in words.items() if re.search(rf"\b{word}\b", prompt)] == [labels["instrument"]]
        assert re.findall(r"\b(soft|medium|loud)\b", prompt) == [labels["loudness"]]
        assert re.findall(r"[A-G]#?\d", prompt) == ([labels["note"]] if labels["note"] else [])
        assert len(prompt.encode()) <= 48 and ("a organ" not in prompt)
        texts.add(re.sub(r"[A-G]#?\d|soft|medium|loud|" + "|".join(words), "_", prompt))
    # The wordings themselves: "a"/"an" doubles those with an article.
    assert len(texts) == (3 if prompts == "plain" else 13)


def test_the_plain_prompt():
    sounds = dataset()
    assert sounds.sound(Combination("pluck", 69, "soft"), 0)[1]["prompt"] == "a plucked string playing A4, soft"
    assert sounds.sound(Combination("organ", 61, "loud"), 0)[1]["prompt"] == "an organ playing C#4, loud"
    assert sounds.sound(Combination("noise", None, "soft"), 0)[1]["prompt"] == "a noise burst, soft"


def test_metadata_is_true():
    sounds = dataset(seconds=[0.2, 0.6])
    onsets = set()
    for i in range(60):
        audio, labels = sounds[i]
        onset, length = round(labels["onset_s"] * RATE), round(labels["duration_s"] * RATE)
        part = audio[0, onset : onset + length].double()
        assert 0.2 <= labels["duration_s"] <= 0.6001
        assert audio[0, :onset].abs().sum() == 0 and audio[0, onset + length :].abs().sum() == 0
        assert part.square().mean().sqrt() == pytest.approx(labels["rms"], rel=1e-5)
        assert labels["seconds_start"] == 0 and labels["seconds_total"] == pytest.approx(SIZE / RATE)
        if labels["midi"] is not None:
            cents = 1200 * math.log2(labels["frequency_hz"] / midi_to_hz(labels["midi"]))
            assert cents == pytest.approx(labels["detune_cents"]) and abs(cents) <= 6
            assert note_to_midi(labels["note"]) == labels["midi"]
        else:
            assert labels["note"] is labels["frequency_hz"] is labels["detune_cents"] is None
        onsets.add(onset)
    assert len(onsets) > 50
    assert sounds[0][1]["path"] == "synthetic/train/0/0000000"


def test_a_sound_without_seconds_fills_the_clip():
    labels = dataset()[0][1]
    assert labels["onset_s"] == 0 and labels["duration_s"] == pytest.approx(SIZE / RATE)


def test_every_instrument_is_as_frequent_as_any_other():
    sounds = dataset(sample_size=800, instruments=["sine", "noise", "bell"])
    names = [sounds[i][1]["instrument"] for i in range(900)]
    assert all(names.count(name) == pytest.approx(300, abs=60) for name in ("sine", "noise", "bell"))


# sound


@pytest.mark.parametrize("channels", [1, 2])
def test_loudness_words_are_ordered_apart_and_never_clip(channels):
    sounds = dataset(audio_channels=channels, hold_out=0.0)
    levels = {word: [] for word in LEVELS_DB}
    for i in range(400):
        audio, labels = sounds[i]
        assert audio.dtype == torch.float32 and audio.shape == (channels, SIZE)
        assert audio.abs().max() < 1
        levels[labels["loudness"]].append(labels["level_db"])
    assert max(levels["soft"]) < min(levels["medium"]) - 4 and max(levels["medium"]) < min(levels["loud"]) - 4


def test_stereo_is_panned_at_the_same_power():
    mono, stereo = dataset(audio_channels=1), dataset(audio_channels=2)
    widths = set()
    for i in range(10):
        one, two = mono[i][0].double(), stereo[i][0].double()
        assert two.square().mean() == pytest.approx(one.square().mean().item(), rel=1e-5)
        widths.add(round((two[0].square().mean() / two[1].square().mean()).item(), 3))
    assert len(widths) == 10 and all(0.3 < width < 3 for width in widths)


@pytest.mark.parametrize("name", ALL_INSTRUMENTS)
def test_sounds_start_and_end_without_a_click(name):
    sounds = dataset(seconds=0.5, instruments=[name], loudness=["loud"], hold_out=0.0)
    for i in range(5):
        audio, labels = sounds[i]
        onset = round(labels["onset_s"] * RATE)
        sound = audio[0, onset : onset + RATE // 2]
        assert sound[0] == 0 and sound[-1].abs() < 0.02 * sound.abs().max()


def share_between_harmonics(clip: torch.Tensor, sample_rate: int, frequency_hz: float) -> float:
    """The energy further than 20 Hz from every harmonic, where aliases lie."""
    power = torch.fft.rfft(clip * torch.blackman_window(len(clip), dtype=torch.float64)).abs().square()
    hz = torch.arange(len(power)) * sample_rate / len(clip)
    distance = (hz - frequency_hz * (hz / frequency_hz).round().clamp_min(1)).abs()
    return (power[distance > 20].sum() / power.sum()).item()


@pytest.mark.parametrize("sample_rate", [8000, 44100])
@pytest.mark.parametrize("name", ["square", "saw", "triangle", "organ"])
def test_all_energy_lies_at_the_harmonics(name, sample_rate):
    sounds = dataset(sample_size=sample_rate, sample_rate=sample_rate, instruments=[name], notes="D5-A5", hold_out=0.0)
    for i in range(6):
        audio, labels = sounds[i]
        inner = audio[0, sample_rate // 10 : -sample_rate // 10].double()  # without the fades, which widen the lines
        assert share_between_harmonics(inner, sample_rate, labels["frequency_hz"]) < 1e-8


def test_a_naive_saw_would_alias():
    time = torch.arange(8000, dtype=torch.float64) / 8000
    assert share_between_harmonics(2 * (time * 743.3 % 1) - 1, 8000, 743.3) > 0.01


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("sine", {1: 1}),
        ("square", {k: 1 / k for k in (1, 3, 5)}),
        ("saw", {k: 1 / k for k in range(1, 7)}),
        ("triangle", {k: 1 / k**2 for k in (1, 3, 5)}),
    ],
)
def test_waves_have_their_spectra(name, relative):
    sounds = SyntheticDataset(SyntheticConfig(hold_out=0.0), 16000, 16000)
    audio, labels = sounds.sound(Combination(name, 69, "medium"), 1)
    time = torch.arange(16000, dtype=torch.float64) / 16000
    window = torch.hann_window(16000, dtype=torch.float64)

    def amplitude(harmonic):
        turn = torch.exp(-2j * torch.pi * harmonic * labels["frequency_hz"] * time)
        return (audio[0] * window * turn).sum().abs().item()

    for harmonic in range(1, 7):
        assert amplitude(harmonic) / amplitude(1) == pytest.approx(relative.get(harmonic, 0), abs=2e-3)


def test_a_plucked_string_and_a_bell_fade_and_lose_brightness():
    sounds = SyntheticDataset(SyntheticConfig(hold_out=0.0), 16000, 16000)
    for name in ("pluck", "bell"):
        clip = sounds.sound(Combination(name, 60, "loud"), 0)[0][0]
        parts = [clip[start : start + 4000] for start in (200, 8000)]
        spectra = [torch.fft.rfft(part * torch.hann_window(4000)).abs().square() for part in parts]
        bright = [(s[150:].sum() / s.sum()).item() for s in spectra]
        assert parts[1].square().mean() < 0.25 * parts[0].square().mean()
        assert bright[1] < 0.5 * bright[0]


def test_damped_sinusoids_are_what_the_formula_says():
    frequencies, amplitudes = np.array([0.011, 0.2371]), np.array([1.0, 0.5])
    phases, decays = np.array([0.3, 2.0]), np.array([1e-3, 0.0])
    n = np.arange(5000)[:, None]
    expected = (amplitudes * np.exp(-decays * n) * np.sin(2 * np.pi * frequencies * n + phases)).sum(1)
    np.testing.assert_allclose(damped_sinusoids(frequencies, amplitudes, phases, decays, 5000), expected, atol=1e-10)


# configs


def test_notes():
    assert parse_notes("A3-A5") == tuple(range(57, 82))
    assert parse_notes(("C4", "Bb3", "A3-B3")) == (57, 58, 59, 60)
    assert [midi_to_note(note_to_midi(name)) for name in ("C-1", "F#3", "Bb2", "G9")] == ["C-1", "F#3", "A#2", "G9"]
    assert midi_to_hz(69) == 440


def test_json_arrays_and_whole_numbers_are_accepted():
    config = validate(
        SyntheticConfig,
        {"dataset_type": "synthetic", "instruments": ["sine"], "notes": ["A4", "C5-E5"], "seconds": 1, "hold_out": 0},
        "d.json",
    )
    assert config.seconds == 1.0 and len(config.combinations("all")) == 18


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"notes": "H4"}, "'H4' is not a note; write a letter A to G"),
        ({"notes": "A5-A3"}, "the range 'A5-A3' falls; write the lower note first"),
        ({"notes": []}, "no note given; name at least one"),
        ({"notes": "A9"}, "note 'A9' is outside MIDI's range"),
        ({"instruments": ["sine", "sine"]}, "instruments lists a name twice"),
        ({"instruments": []}, "instruments is empty; name at least one"),
        ({"instruments": ["kazoo"]}, 'expected one of "sine", "square"'),
        ({"seconds": [2.0, 1.0]}, "seconds is [2.0, 1.0]; write the shorter length first"),
        ({"seconds": 0.01}, "seconds"),
        ({"hold_out": 1.0}, "hold_out"),
        ({"num_items": 0}, "num_items"),
        ({"hold_out": 0.99}, "hold_out 0.99 leaves no training sound with the instrument"),
        ({"hold_out": 0.0, "split": "held_out"}, "hold_out 0.0 holds nothing out, so split 'held_out' is empty"),
        ({"seed": -1}, "seed"),
        ({"secnds": 1.0}, "secnds"),
    ],
)
def test_what_a_config_must_not_say(keys, message):
    with pytest.raises(ConfigError) as error:
        validate(SyntheticConfig, {"dataset_type": "synthetic", **keys}, "d.json")
    assert message in str(error.value) and "d.json" in str(error.value)


def test_what_does_not_fit_the_clip_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        dataset(seconds=[0.5, 2.0], notes="A4-A7")
    assert "sounds of 2.0 s do not fit a clip of 8192 samples = 1.024 s" in str(error.value)
    assert "raise sample_size to 16000" in str(error.value)
    assert "A7 is 3520 Hz, too high for 8000 Hz audio, which carries" not in str(error.value), "3520 Hz lies below 0.9 of Nyquist"
    with pytest.raises(ConfigError, match="A#7 is 3729 Hz, too high for 8000 Hz audio, which carries 35"):
        dataset(notes="A4-A#7")


def test_more_than_stereo_is_refused():
    with pytest.raises(ConfigError, match=r"audio_channels is 4; synthetic sounds are mono \(1\) or stereo \(2\)"):
        dataset(audio_channels=4)
