"""Levels and silence: what clips measure afterwards, what stays, and settings that could not act."""

import math

import pytest
import torch

from stable_audio_tools.audio.loudness import loudness_lufs
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.data.levels import SoundOptions, at_level, shorten_silence

RATE = 16000


def noise(seconds=1.5, level=0.02, channels=2):
    return level * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(0))


def measured(audio, measure):
    if measure == "lufs":
        return loudness_lufs(audio, RATE)
    return 20 * math.log10(float(audio.abs().max() if measure == "peak" else audio.double().square().mean().sqrt()))


@pytest.mark.parametrize("measure", ["lufs", "rms", "peak"])
@pytest.mark.parametrize("level_db", [-16.0, -40.0])
def test_a_clip_has_the_level_that_was_asked_for(measure, level_db):
    audio = at_level(noise(), RATE, measure, level_db)
    assert measured(audio, measure) == pytest.approx(level_db, abs=1e-3)
    torch.testing.assert_close(audio / audio.abs().max(), noise() / noise().abs().max())


def test_a_clip_never_passes_full_scale_and_the_gain_has_a_limit():
    assert float(at_level(noise(), RATE, "rms", -1.0).abs().max()) == pytest.approx(0.95)
    assert float(at_level(noise(level=0.9), RATE, "peak", 0.0).abs().max()) <= 1
    assert measured(at_level(noise(), RATE, "rms", -10, 6.0), "rms") == pytest.approx(measured(noise(), "rms") + 6)
    assert measured(at_level(noise(level=0.3), RATE, "rms", -30, 6.0), "rms") == pytest.approx(-30)


def test_what_is_as_good_as_silent_stays_as_it_is():
    for quiet in (noise(level=0.0009), torch.zeros(2, 999)):
        assert at_level(quiet, RATE, "lufs", -16) is quiet


def test_levels_are_drawn_around_the_middle():
    options = SoundOptions(volume_norm=True, volume_norm_param=(-20.0, 3.0))
    levels = [loudness_lufs(options.levelled(noise(), RATE, draw), RATE) for draw in (0.0, 0.5, 1.0)]
    assert levels == pytest.approx([-23, -20, -17], abs=1e-3)
    assert SoundOptions().levelled(audio := noise(), RATE, 0.3) is audio


def test_long_silence_is_shortened_to_what_is_next_to_the_sound():
    ramp = torch.arange(1, 101, dtype=torch.float32)[None] + 1000
    silent = torch.zeros(1, 100)
    whole = torch.cat((silent, ramp, silent + 0.25, ramp, silent[:, :30], ramp, silent), 1)
    whole[0, 250] = -0.4  # the middle of a silence of 100
    short = shorten_silence(whole, 0.5, 40, 20)
    parts = (silent[:, :20], ramp, silent[:, :20] + 0.25, ramp, silent[:, :30], ramp, silent[:, :20])
    assert torch.equal(short, torch.cat(parts, 1))


@pytest.mark.parametrize("longest, kept, expected", [(99, 20, 120), (100, 20, 200), (0, 99, 199), (0, 100, 200), (0, 300, 200)])
def test_which_silence_is_long(longest, kept, expected):
    audio = torch.cat((torch.ones(1, 50), torch.zeros(1, 100), torch.ones(1, 50)), 1)
    assert shorten_silence(audio, 0.5, longest, kept).shape == (1, expected)


def test_a_place_is_silent_where_all_channels_are_and_all_may_be():
    audio = torch.zeros(2, 1000)
    audio[0, :300] = audio[1, 700:] = 1.0
    assert shorten_silence(audio, 0.5, 50, 100).shape == (2, 700)
    assert shorten_silence(torch.zeros(1, 1000), 0.5, 50, 100).shape == (1, 100)


def test_options_count_in_seconds():
    options = SoundOptions(remove_silence=True, silence_threshold=(0.1, 0.25), max_silence_duration=0.5)
    long, short = (torch.cat((torch.ones(1, 9), torch.zeros(1, round(seconds * RATE)), torch.ones(1, 9)), 1) for seconds in (0.6, 0.45))
    assert options.shortened(long, RATE).shape[-1] == 18 + RATE // 4
    assert options.shortened(short, RATE) is short
    assert SoundOptions().shortened(long, RATE) is long


IDLE = [
    ({"volume_norm_param": [-20.0, 2.0]}, "volume_norm"),
    ({"volume_norm_max_gain_db": 6.0}, "volume_norm"),
    ({"silence_threshold": [0.1, 0.5]}, "remove_silence"),
    ({"max_silence_duration": 1.0}, "remove_silence"),
]


@pytest.mark.parametrize("given, switch", IDLE)
def test_settings_without_their_switch_are_refused(given, switch):
    (key,) = given
    with pytest.raises(ConfigError) as error:
        validate(SoundOptions, given, "x.json")
    (problem,) = error.value.problems
    assert (
        problem.path == (key,) and problem.message == f"has no effect without {switch}" and problem.fix.startswith(f'set "{switch}": true')
    )
    validate(SoundOptions, {**given, switch: True}, "x.json")


@pytest.mark.parametrize("given", [{"volume_norm": "loud"}, {"volume_norm": True, "volume_norm_param": [-16.0, -1.0]}])
def test_values_out_of_range(given):
    with pytest.raises(ConfigError):
        validate(SoundOptions, given, "x.json")
