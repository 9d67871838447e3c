"""Places of keys and values in a JSON text."""

from __future__ import annotations

import json
import random

from stable_audio_tools.configs.source import excerpt, line_column, scan

TEXT = '{\n  "a": [1, {"b\\"c": "x, }"}],\n  "d": {}, "e": -1.5e3\n}\n'


def test_every_value_is_found_where_it_stands():
    places = scan(TEXT)
    found = {path: TEXT[slice(*span)] for path, span in places.values.items() if path}
    assert found == {
        ("a",): '[1, {"b\\"c": "x, }"}]',
        ("a", 0): "1",
        ("a", 1): '{"b\\"c": "x, }"}',
        ("a", 1, 'b"c'): '"x, }"',
        ("d",): "{}",
        ("e",): "-1.5e3",
    }
    assert {path: TEXT[slice(*span)] for path, span in places.keys.items()}[("a", 1, 'b"c')] == '"b\\"c"'
    assert line_column(TEXT, places.keys[("e",)][0]) == (3, 12)


def test_random_documents_are_scanned_whole():
    rng = random.Random(0)

    def value(depth):
        kind = rng.choice("dlsnb" if depth else "snb")
        if kind == "d":
            return {f"k{i} {rng.choice(['', '[', '}', ':', chr(233)])}": value(depth - 1) for i in range(rng.randrange(4))}
        if kind == "l":
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {"s": 'a "quoted\\ ]text', "n": rng.uniform(-1e9, 1e9), "b": rng.choice([True, None])}[kind]

    for indent in (None, 2) * 50:
        document = value(4)
        text = json.dumps(document, indent=indent, ensure_ascii=rng.random() < 0.5)
        for path, span in scan(text).values.items():
            inside = document
            for segment in path:
                inside = inside[segment]
            assert json.loads(text[slice(*span)]) == inside


def test_repeated_keys_and_constants_are_listed():
    text = '{"a": 1, "b": {"a": NaN, "a": 2}, "a": [-Infinity]}'
    places = scan(text)
    assert [(path, span[0]) for path, span in places.repeated] == [(("b", "a"), 25), (("a",), 34)]
    assert [path for path, _ in places.constants] == [("b", "a"), ("a", 0)]


def test_the_carets_stand_below_the_value():
    text = '{"日本": 5,\t"b": 77}'
    line, carets = excerpt(text, (text.index("77"), text.index("77") + 2))
    assert line == '{"日本": 5, "b": 77}'
    assert carets == " " * (2 + 4 + len('": 5, "b": ')) + "^^"


def test_a_long_line_is_cut_around_the_place():
    text = '{"a": 1, ' * 500 + "oops"
    line, carets = excerpt(text, (len(text) - 4, len(text)))
    assert line.startswith("…") and line.endswith("oops") and len(line) <= 102
    assert line[carets.index("^") :] == "oops" and carets.endswith("^^^^")


def test_control_characters_do_not_reach_the_terminal():
    line, _ = excerpt("{\x1b[2J oops", (0, 1))
    assert line == "{ [2J oops"
