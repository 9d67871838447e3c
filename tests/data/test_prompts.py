"""Prompts: templates that leave out what is not known, several captions, shuffled and dropped tags, all functions of the visit."""

from collections import Counter

import pytest

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.data.prompts import PromptOptions, fill

VISITS = 400


def options(**settings):
    return validate(PromptOptions, settings, "data.json")


def prompts(metadata, visits=VISITS, **settings):
    made = options(**settings)
    return [made.drawn(metadata, 0, visit, 7, 0).get("prompt") for visit in range(visits)]


@pytest.mark.parametrize(
    "template, metadata, prompt",
    [
        ("{genre} music, {bpm} bpm", {"genre": "rock", "bpm": 120.0}, "rock music, 120 bpm"),
        ("{genre} music, {bpm} bpm", {"genre": "rock"}, "rock music"),
        ("{genre} music, {bpm} bpm", {"bpm": 90}, "90 bpm"),
        ("{genre} music, {bpm} bpm", {}, ""),
        ("{a}, {b}; {c} | {d}", {"b": "B", "d": "D"}, "B | D"),
        ("{artist} - {title}", {"title": "Song"}, "Song"),
        ("A {genre} track. Tempo {bpm}.", {"genre": "", "bpm": 1.5}, "Tempo 1.5."),
        ("Genre: {genre}\nTempo: {bpm}", {"genre": "rock", "bpm": None}, "Genre: rock"),
        ("{title} by {artist}, loud", {"title": "Song"}, "loud"),
        ("{genre}, {bpm} bpm", {"genre": ["rock", " pop ", ""], "bpm": 90}, "rock, pop, 90 bpm"),
        ("{instrumental}, {live_take}", {"instrumental": True, "live_take": False}, "instrumental"),
        ("{a}, {b}", {"a": "one, two", "b": "{c} - x"}, "one, two, {c} - x"),
        ("{{x}} {a b}", {"a b": 1}, "{x} 1"),
        ("fixed words, ", {}, "fixed words"),
    ],
)
def test_a_template_says_what_is_known(template, metadata, prompt):
    assert fill(template, metadata) == prompt


def test_a_template_is_text_and_never_code():
    metadata = {"a": PromptOptions(), "b": "x"}
    with pytest.raises(ValueError, match=r"'a' is .* which cannot stand in a prompt"):
        fill("{a}", metadata)
    for template in ("{b.__class__}", "{b[0]}", "{b!r}", "{b:>9}", "{}", "{ b}", "{b", "b}"):
        with pytest.raises(ConfigError, match=r"templates\[1\]\n +not a template: .*\n.*write a field as \{name\}"):
            options(templates=["{b}", template])


def test_without_options_a_prompt_is_the_caption():
    metadata = {"prompt": "b, a,c", "bpm": 90}
    assert options().drawn(metadata, 0, 1, 2) == metadata
    assert options().drawn({"bpm": 90}, 0, 1, 2) == {"bpm": 90}


def test_one_of_several_captions_is_drawn_for_each_visit():
    metadata = {"prompt": "one", "prompts": ["one", "two", "three"]}
    drawn = prompts(metadata)
    assert drawn == prompts(metadata)
    assert all(100 < count < 170 for count in Counter(drawn).values()) and len(set(drawn)) == 3
    assert {options().drawn(metadata, 0, 0, item)["prompt"] for item in range(20)} == {"one", "two", "three"}
    assert {options().drawn(metadata, seed, 0, 0)["prompt"] for seed in range(20)} == {"one", "two", "three"}
    assert metadata == {"prompt": "one", "prompts": ["one", "two", "three"]}


def test_templates_are_drawn_by_weight_among_those_that_say_something():
    settings = {"templates": ["{genre}", "{bpm} bpm", "{mood}"], "template_weights": [3, 1, 5]}
    drawn = Counter(prompts({"genre": "rock", "bpm": 90}, **settings))
    assert set(drawn) == {"rock", "90 bpm"}
    assert 0.68 < drawn["rock"] / VISITS < 0.82
    assert prompts({"key": "C"}, 3, **settings) == ["", "", ""]
    assert [options(**settings).says_something(data) for data in ({"bpm": 90}, {"key": "C"}, {"prompt": "x"})] == [True, False, False]
    assert [options().says_something(data) for data in ({"prompt": "x"}, {"prompt": ""}, {})] == [True, False, False]


def test_a_template_may_hold_the_caption_that_was_drawn():
    drawn = prompts({"prompt": "one", "prompts": ["one", "two"], "bpm": 90}, templates=["{prompt}, {bpm} bpm"])
    assert set(drawn) == {"one, 90 bpm", "two, 90 bpm"}


def test_tags_are_shuffled_behind_those_that_are_kept():
    drawn = prompts({"prompt": "trigger, a,b , c,"}, shuffle_tags=True, keep_tags=1)
    assert len(set(drawn)) == 6
    for prompt in drawn:
        first, *rest = prompt.split(", ")
        assert first == "trigger" and sorted(rest) == ["a", "b", "c"]


def test_tags_are_dropped_one_by_one_and_never_all():
    drawn = prompts({"prompt": "a, b, c, d"}, tag_dropout=0.3)
    left = Counter(tag for prompt in drawn for tag in prompt.split(", "))
    assert all(0.62 < left[tag] / VISITS < 0.78 for tag in "abcd")
    assert all(list(prompt) == sorted(prompt) for prompt in (text.replace(", ", "") for text in drawn))
    assert len(set(drawn)) > 12
    assert all(prompts({"prompt": "a, b"}, tag_dropout=0.95))
    assert set(prompts({"prompt": "a, b"}, tag_dropout=0.95, keep_tags=1)) == {"a", "a, b"}


def test_dropping_captions_empties_the_prompt_and_nothing_else():
    made = options(dropout=0.25)
    drawn = [made.drawn({"prompt": "a", "bpm": 90}, 0, visit, 7) for visit in range(VISITS)]
    assert {item["prompt"] for item in drawn} == {"", "a"} and {item["bpm"] for item in drawn} == {90}
    assert 0.18 < sum(item["prompt"] == "" for item in drawn) / VISITS < 0.32
    assert set(prompts({"prompt": "a"}, dropout=1.0)) == {""}


def test_each_variation_has_draws_of_its_own():
    """What one option draws does not move when another is switched on."""
    metadata = {"prompt": "one, x", "prompts": ["one, x", "two, x"]}
    plain, shuffled = prompts(metadata), prompts(metadata, shuffle_tags=True)
    assert [set(text.split(", ")) for text in plain] == [set(text.split(", ")) for text in shuffled]
    dropped = prompts(metadata, dropout=0.5)
    assert all(text in ("", other) for text, other in zip(dropped, plain, strict=True)) and "" in dropped


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"template_weights": [1]}, r"template_weights\n +1 weights for 0 templates\n += give one weight per template"),
        ({"templates": ["{a}"], "template_weights": [1, 2]}, r"2 weights for 1 templates"),
        ({"templates": ["{a}"], "template_weights": [0]}, r"template_weights\[0\]"),
        ({"keep_tags": 2}, r"keep_tags\n +has no effect without shuffle_tags and tag_dropout"),
        ({"tag_dropout": 1.0}, r"tag_dropout"),
        ({"shuffle": True}, r"did you mean \"shuffle_tags\""),
    ],
)
def test_settings_that_cannot_act_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        options(**settings)
