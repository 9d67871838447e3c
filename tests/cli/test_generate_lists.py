"""Many clips from a file: what a line may say, how lines become batches, and what is wrong with which line."""

import json
import logging
from pathlib import Path

import configs
import pytest
import torch

from stable_audio_tools.audio.io import load_audio, save_audio

MANY = '{"prompt": "a saw", "seed": 3}\n\n{"prompt": "a bell", "seconds": 0.1, "name": "bell", "negative_prompt": "noise", "seed": 9}\n'
TABLE = 'prompt,seconds,seed,name,negative_prompt\na saw,,3,,\n\n"a bell",0.1,9,bell,noise\n'


def settings(path):
    return json.loads(Path(path).with_suffix(".json").read_text())


@pytest.fixture
def from_file(generate, models):
    """Runs the command on a file of that name and text."""

    def call(name, text, *arguments, kind="text_to_audio"):
        Path(name).write_text(text)
        return generate("--model", models(kind), "--prompts-file", name, "--steps", "2", *arguments)

    return call


@pytest.mark.parametrize("name, text", [("list.jsonl", MANY), ("list.csv", TABLE)])
def test_a_line_says_all_of_its_clip(from_file, generate, models, name, text):
    status, paths, err = from_file(name, text, "--bits", "32")
    assert status == 0, err
    assert sorted(map(str, paths)) == ["generated/a_saw_seed3.wav", "generated/bell.wav"]
    bell = settings("generated/bell.wav")
    assert (bell["prompt"], bell["seconds"], bell["seed"], bell["negative_prompt"]) == ("a bell", 0.1, 9, "noise")
    assert "negative_prompt" not in settings("generated/a_saw_seed3.wav")
    flags = ["--prompt", "a bell", "--seconds", "0.1", "--negative-prompt", "noise", "--seed", "9", "--bits", "32", "--steps", "2"]
    _, (alone,), _ = generate("--model", models("text_to_audio"), *flags, "--out", "alone.wav")
    assert torch.equal(load_audio(alone)[0], load_audio("generated/bell.wav")[0])


def test_flags_hold_where_a_line_says_nothing_and_lines_without_a_seed_count_on(from_file):
    text = '{"prompt": "a"}\n{"prompt": "b", "seconds": 0.2, "negative_prompt": "y"}\n{"prompt": "c", "seed": 1}\n{"prompt": "d"}\n'
    _, paths, _ = from_file("list.jsonl", text, "--seed", "10", "--seconds", "0.1", "--negative-prompt", "x")
    said = {path.name: settings(path) for path in paths}
    assert set(said) == {"a_seed10.wav", "b_seed11.wav", "c_seed1.wav", "d_seed13.wav"}
    assert [said[name]["seconds"] for name in sorted(said)] == [0.1, 0.2, 0.1, 0.1]
    assert [said[name]["negative_prompt"] for name in sorted(said)] == ["x", "y", "x", "x"]


def test_lines_of_one_length_share_a_batch_and_a_clip_does_not_depend_on_it(from_file, caplog):
    text = "".join(f'{{"prompt": "tone {i}", "seconds": {0.1 if i % 2 else 0.2}, "name": "c{i}"}}\n' for i in range(5))
    options = ("--seed", "0", "--bits", "32", "--normalize", "never")
    caplog.set_level(logging.INFO)
    _, together, _ = from_file("list.jsonl", text, *options, "--out", "together")
    assert [path.name for path in together] == ["c0.wav", "c2.wav", "c4.wav", "c1.wav", "c3.wav"]
    first, second = [record.getMessage() for record in caplog.records if record.name.endswith("progress")]
    assert first == "clips 1 to 3 of 5" and second.startswith("clips 4 to 5 of 5, about ") and second.endswith(" s left")
    _, apart, _ = from_file("list.jsonl", text, *options, "--out", "apart", "--batch-size", "1")
    for one, other in zip(sorted(together), sorted(apart), strict=True):
        torch.testing.assert_close(load_audio(one)[0], load_audio(other)[0], atol=1e-5, rtol=1e-5)


def conditioned():
    config = configs.text_to_audio()
    kinds = {
        "genre": {"type": "list", "config": {"options": ["jazz", "rock"]}},
        "tempo": {"type": "int", "config": {"min_val": 40, "max_val": 200}},
        "seconds_total": {"type": "number", "config": {"min_val": 0, "max_val": 60}},
    }
    config["model"]["conditioning"]["configs"] += [{"id": name, **kind} for name, kind in kinds.items()]
    section = config["model"]["diffusion"]
    section["global_cond_ids"] += list(kinds)
    section["config"]["global_cond_dim"] = 16 * (1 + len(kinds))
    return config


@pytest.fixture(scope="module")
def conditioned_model(saved):
    return saved(conditioned())


@pytest.mark.parametrize(
    "name, text",
    [
        ("list.csv", "prompt,tempo,seconds\na,90,0.1\nb,,0.2\n"),
        ("list.jsonl", '{"prompt": "a", "tempo": 90, "seconds": 0.1}\n{"prompt": "b", "seconds": 0.2, "conditions": {}}'),
    ],
)
def test_lines_name_conditions_over_those_of_flags(generate, conditioned_model, name, text):
    Path(name).write_text(text)
    flags = ["--cond", "genre=rock", "--cond", "tempo=120", "--steps", "1", "--seed", "0"]
    status, paths, err = generate("--model", conditioned_model, "--prompts-file", name, *flags)
    assert status == 0, err
    assert [settings(path)["conditions"] for path in sorted(paths)] == [
        {"seconds_total": 0.1, "genre": "rock", "tempo": 90},
        {"seconds_total": 0.2, "genre": "rock", "tempo": 120},
    ]


@pytest.mark.parametrize(
    "text, messages",
    [
        ('{"prompt": "a"}\n{"prompt": "b", "genre": "jazz", "tempo": 90}\n', ["line 1: its conditions are", "missing: genre, tempo"]),
        (
            '{"prompt": "b", "gnre": "jazz", "tempo": 90}\n',
            ["line 1: gnre: the model has no such condition", 'did you mean "genre"?', "missing: genre\n  = add --cond genre=VALUE"],
        ),
        ('{"prompt": "b", "genre": "jazz", "tempo": "fast"}\n', ["line 1: tempo: ", "fast"]),
        (
            '{"prompt": "b", "genre": "jazz", "tempo": 300}\n',
            ["line 1: tempo: 300 is outside of what the model tells apart, 40 to 200\n  = choose a number inside"],
        ),
        (
            '{"prompt": "b", "genre": "jazz", "tempo": 90, "seconds": 100}\n',
            ["seconds_total: 100 is outside of what the model tells apart, 0 to 60", "--seconds inside, or say --cond seconds_total=60"],
        ),
    ],
)
def test_lines_that_the_model_cannot_use_are_told_before_it_is_read(generate, conditioned_model, text, messages):
    Path("list.jsonl").write_text(text)
    status, paths, err = generate("--model", conditioned_model, "--prompts-file", "list.jsonl")
    assert (status, paths) == (2, []) and "Traceback" not in err
    for message in messages:
        assert message in err


@pytest.mark.parametrize(
    "name, text, messages",
    [
        ("list.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n[1]\n', ["2 problems", "line 2: not JSON: ", "line 3: expected an object"]),
        (
            "list.jsonl",
            '{"prompt": 3, "seed": -1, "seconds": "long"}',
            ["3 problems", "prompt: expected text, got 3", "seed: expected a whole"],
        ),
        ("list.jsonl", '{"prompt": "a", "seconds": true}', ["line 1: seconds: expected a number, got true"]),
        ("list.jsonl", '{"prompt": "a", "conditions": [1]}', ["line 1: conditions: expected an object, got [1]"]),
        ("list.jsonl", '{"prompt": "a", "name": "../a"}', ['line 1: name: "../a" cannot be the name of a file']),
        ("list.jsonl", '{"prompt": "a", "name": "x"}\n{"prompt": "a", "name": "x"}', ['line 2: name: "x" is that of line 1 too']),
        ("list.csv", "prompt,seconds\na,0\n", ["line 2: seconds: expected a number above 0, got '0'"]),
        ("list.csv", "prompt\na bell, soft\n", ["line 2: 2 cells for 1 columns", "put quotes around what holds a comma"]),
        ("list.csv", "prompt,,seed\na,b,3\n", ["line 1: column 2 has no name"]),
        ("list.csv", "prompt\n", ["has no prompt; write one a line"]),
        ("list.csv", "prmpt\na\n", ["line 2: prmpt: the model has no such condition", 'did you mean "prompt"?']),
        ("list.json", "[]", ["one JSON document\n  = write one object a line, in a file that ends in .jsonl"]),
    ],
)
def test_bad_lines_are_told_with_their_numbers(from_file, name, text, messages):
    status, paths, err = from_file(name, text)
    assert ((status, paths) == (2, []) and f"--prompts-file {name}" in err) or "prmpt" in text
    for message in messages:
        assert message in err


def test_a_table_of_another_program_is_read(from_file):
    text = b'\xef\xbb\xbfprompt,seed\r\n"a ""loud"" bell,\r\nwith a second line",5\r\n'.decode("utf-8")
    status, (path,), err = from_file("list.csv", text)
    assert status == 0 and settings(path)["prompt"] == 'a "loud" bell,\nwith a second line' and settings(path)["seed"] == 5, err


def heard(kind):
    """`text_to_audio` that also hears a sound, by input concatenation."""
    config = configs.text_to_audio()
    encoder = {"sample_rate": 16000, "pretransform_config": {"type": "patched", "config": {"channels": 1, "patch_size": 32}}}
    mix = {"source_keys": ["drums", "bass"]} if kind == "source_mix" else {}
    config["model"]["conditioning"]["configs"].append({"id": "reference", "type": kind, "config": {**encoder, **mix}})
    section = config["model"]["diffusion"]
    section["input_concat_ids"] = ["reference"]
    section["config"]["input_concat_dim"] = 16
    return config


@pytest.mark.parametrize("kind", ["pretransform", "source_mix"])
def test_a_condition_that_is_a_sound_is_given_by_its_file(generate, saved, kind):
    for name, hertz in (("low", 100), ("high", 900)):
        save_audio(f"{name}.wav", 0.5 * torch.sin(torch.arange(3000) * hertz / 8000 * 6.283)[None], 8000)

    def given(file):
        return json.dumps({"drums": file}) if kind == "source_mix" else file

    def audio(file):
        flags = ["--seed", "0", "--steps", "2", "--out", f"{file}.clip.wav", "--cond", f"reference={given(file)}"]
        status, (path,), err = generate("--model", saved(heard(kind)), "--prompt", "a", *flags)
        assert status == 0, err
        assert settings(path)["conditions"] == {"reference": {"drums": file} if kind == "source_mix" else file}
        _, (again,), err = generate("--from-settings", str(path.with_suffix(".json")), "--out", "again.wav")
        assert again.read_bytes() == path.read_bytes(), err
        return load_audio(path)[0]

    low, high = audio("low.wav"), audio("high.wav")
    assert low.shape == (1, 2048) and not torch.allclose(low, high, atol=1e-3)
    status, _, err = generate("--model", saved(heard(kind)), "--prompt", "a", "--cond", f"reference={given('none.wav')}")
    assert status == 2 and "reference: none.wav: no such file" in err
    status, _, err = generate("--model", saved(heard(kind)), "--prompt", "a", "--cond", "reference=3")
    wanted = "expected an object of files by source, got 3" if kind == "source_mix" else "expected the name of an audio file, got 3"
    assert status == 2 and f"reference: {wanted}" in err


def test_a_source_of_another_name_is_told(generate, saved):
    status, _, err = generate("--model", saved(heard("source_mix")), "--prompt", "a", "--cond", 'reference={"drum": "a.wav"}')
    assert status == 2 and 'reference: drum: no such source\n  = did you mean "drums"?' in err
