"""Metadata read off where a file lies."""

import pytest

from stable_audio_tools.data.path_fields import path_fields


@pytest.mark.parametrize(
    "pattern, path, fields",
    [
        ("{artist}/{album}/{title}", "Nina/Live 1968/01 - Song.v2.flac", {"artist": "Nina", "album": "Live 1968", "title": "01 - Song.v2"}),
        ("{artist}/{title}", "Nina/Live/Song.wav", None),
        ("{artist}/{title}", "Song.wav", None),
        ("**/{artist}/{title}", "a/b/Nina/Song.wav", {"artist": "Nina", "title": "Song"}),
        ("**/{title}", "Song.wav", {"title": "Song"}),
        ("{bpm}bpm_{key}_*", "loops/90bpm_Am_x_2.wav", None),
        ("*/{bpm}bpm_{key}_*", "loops/90bpm_Am_x_2.wav", {"bpm": 90, "key": "Am"}),
        ("{artist} - {title}", "A - B - C.mp3", {"artist": "A", "title": "B - C"}),
        ("{n}", "007.wav", {"n": "007"}),
        ("{prompt}", "12.wav", {"prompt": "12"}),
        ("{caption}", " a dog barks .wav", {"prompt": "a dog barks"}),
        ("a.b(c)/{x}", "a.b(c)/1.5e1.wav", {"x": 15.0}),
        ("a.b/{x}", "a-b/1.wav", None),
    ],
)
def test_fields_of_a_path(pattern, path, fields):
    assert path_fields(pattern, path) == fields


@pytest.mark.parametrize(
    "pattern, reason",
    [
        ("{a}/{a}", r"\{a\} stands here twice"),
        ("{a}/{", r"a single '\{' at character 5"),
        ("a}", r"a single '\}'"),
        ("{a b}", "is no name"),
        ("{}", "is no name"),
        ("{relpath}", "is set by the dataset itself"),
        ("*/x", "names no field"),
        ("", "names no field"),
    ],
)
def test_patterns_that_say_nothing_are_refused(pattern, reason):
    with pytest.raises(ValueError, match=reason):
        path_fields(pattern, "x")
