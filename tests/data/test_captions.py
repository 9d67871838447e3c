"""Captions of every kind, and what is said about those that cannot be used."""

import pytest

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.captions import over, read_sidecars, read_tables


def sidecars(folder, **texts):
    present = {}
    for extension, text in texts.items():
        path = folder / f"clip.{extension}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        present[str(path)] = str(path)
    return read_sidecars(str(folder / "clip.wav"), present)


def table(folder, name, text):
    (folder / name).write_text(text, "utf-8")
    return read_tables(folder)


def test_text_beside_the_file(tmp_path):
    assert sidecars(tmp_path, txt="\ufeff a bell\n ") == ({"prompt": "a bell"}, [])
    assert sidecars(tmp_path, txt=" \n") == ({}, [])


@pytest.mark.parametrize("key", ["prompt", "caption", "text"])
def test_json_beside_the_file(tmp_path, key):
    metadata, problems = sidecars(tmp_path, json=f'{{"{key}": " a bell ", "bpm": 120, "tags": ["x"]}}')
    assert (metadata, problems) == ({"prompt": "a bell", "bpm": 120, "tags": ["x"]}, [])


def test_json_wins_over_text(tmp_path):
    assert sidecars(tmp_path, txt="from text", json='{"prompt": "from json"}')[0] == {"prompt": "from json"}
    assert sidecars(tmp_path, txt="from text", json='{"key": "C"}')[0] == {"prompt": "from text", "key": "C"}
    assert sidecars(tmp_path, json='{"prompt": "a", "text": "lyrics"}')[0] == {"prompt": "a", "text": "lyrics"}


@pytest.mark.parametrize("key", ["prompt", "prompts", "caption", "captions", "text"])
def test_several_captions(tmp_path, key):
    given = f'{{"{key}": ["one ", " ", "two"], "bpm": 90}}'
    assert sidecars(tmp_path, json=given) == ({"prompt": "one", "prompts": ["one", "two"], "bpm": 90}, [])
    assert sidecars(tmp_path, json=f'{{"{key}": ["one"]}}') == ({"prompt": "one"}, [])
    assert sidecars(tmp_path, json=f'{{"{key}": []}}') == ({}, [])


def test_a_stronger_source_says_all_captions(tmp_path):
    listed = '{"path": "a.wav", "prompts": ["one", "two"], "bpm": 90}'
    assert table(tmp_path, "metadata.jsonl", listed).entries["a.wav"] == {"prompt": "one", "prompts": ["one", "two"], "bpm": 90}
    assert over({"prompt": "one", "prompts": ["one", "two"], "bpm": 90}, {"prompt": "three"}) == {"prompt": "three", "bpm": 90}
    assert over({"prompt": "one", "prompts": ["one", "two"]}, {"bpm": 90}) == {"prompt": "one", "prompts": ["one", "two"], "bpm": 90}


@pytest.mark.parametrize(
    "content, problem",
    [
        ({"json": '{"prompt": "a",\n  oops}'}, "clip.json:2: not valid JSON"),
        ({"json": "[1]"}, "clip.json:1: not an object"),
        ({"json": '{"prompt": 5}'}, "clip.json:1: 'prompt' is no text"),
        ({"json": '{"captions": ["a", 5]}'}, "clip.json:1: 'captions' is no list of texts"),
        ({"json": "[" * 100_000}, "clip.json:1: not valid JSON: too deep"),
        ({"txt": b"caf\xe9"}, "clip.txt: not text in UTF-8: byte 3"),
    ],
)
def test_a_malformed_sidecar_is_named(tmp_path, content, problem):
    metadata, problems = sidecars(tmp_path, **content)
    assert metadata == {}
    assert len(problems) == 1 and problem in problems[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_table(tmp_path, delimiter):
    rows = ["file_name,prompt,bpm,gain,key,code", 'sub/a.wav,"one, two",120,-1.5e-1,C,007', "b.wav,12,,,,", ""]
    text = "\n".join(rows).replace(",", delimiter).replace(f"one{delimiter} two", "one, two")
    made = table(tmp_path, "metadata.csv", text)
    assert made.problems == []
    assert made.entries == {
        "sub/a.wav": {"prompt": "one, two", "bpm": 120, "gain": -0.15, "key": "C", "code": "007"},
        "b.wav": {"prompt": "12"},
    }


def test_a_jsonl_table(tmp_path):
    made = table(tmp_path, "metadata.jsonl", '{"path": "./x/../a.wav", "caption": "one"}\n\n{"file_name": "b.wav", "bpm": 90}\n')
    assert made.entries == {"a.wav": {"prompt": "one"}, "b.wav": {"bpm": 90}}
    (tmp_path / "metadata.csv").write_text("path,prompt,key\na.wav,from csv,C\n")
    assert read_tables(tmp_path).entries["a.wav"] == {"prompt": "one", "key": "C"}


def test_an_absolute_path_in_a_table(tmp_path):
    assert table(tmp_path, "metadata.jsonl", f'{{"path": "{tmp_path}/a.wav", "text": "one"}}').entries == {"a.wav": {"prompt": "one"}}


def test_rows_that_cannot_be_used_are_named_with_their_line(tmp_path):
    made = table(tmp_path, "metadata.csv", 'path,prompt\na.wav,one\nb.wav,two,three\n,four\na.wav,"five\nlines"\nc.wav,six\n')
    assert made.entries == {"a.wav": {"prompt": "one"}, "c.wav": {"prompt": "six"}}
    assert [problem.split("metadata.csv")[1] for problem in made.problems] == [
        ":3: 3 cells under 2 columns; text with a comma must stand in double quotes",
        ":4: no 'file_name': which file is it about?",
        ":6: 'a.wav' stands in line 2 already",
    ]
    made = table(tmp_path, "metadata.jsonl", '{"path": "d.wav", "prompt": 5}\n{"path": 5}\n{"path"\n')
    assert [problem.split("metadata.jsonl")[1].split(";")[0] for problem in made.problems[3:]] == [
        ":1: 'prompt' is no text",
        ":2: no 'file_name': which file is it about?",
        ":3: not valid JSON: Expecting ':' delimiter",
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"name,prompt\na.wav,one\n", r"metadata\.csv:1: no column says which file a row is about; columns: name, prompt\n.*'file_name'"),
        (b"", r"metadata\.csv:1: no column says .* columns: none"),
        (b"path,prompt\na.wav,caf\xe9\n", r"metadata\.csv: not text in UTF-8"),
        (b"path,prompt\na.wav," + b"x" * 200_000, r"metadata\.csv: field larger than field limit"),
    ],
)
def test_a_table_of_which_nothing_can_be_used_ends_the_run(tmp_path, content, message):
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_tables(tmp_path)
