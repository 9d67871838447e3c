"""`check model.json data.json --data` says which items lack what the model reads, and which settings fit no item; it runs no code."""

import json

import pytest
from audio_files import signal, write
from configs import SAMPLE_RATE, text_to_audio

from stable_audio_tools.cli.main import main


@pytest.fixture
def files(tmp_path):
    """A model of prompt and tempo, and three clips, of which one has a tempo."""
    model = text_to_audio()
    model["model"]["conditioning"]["configs"].append({"id": "tempo", "type": "number", "config": {"min_val": 0, "max_val": 300}})
    model["model"]["conditioning"]["default_keys"] = {"tempo": "bpm"}
    model["model"]["diffusion"]["cross_attention_cond_ids"].append("tempo")
    (tmp_path / "model.json").write_text(json.dumps(model))
    for number in range(3):
        write(tmp_path / "in" / f"{number}.wav", signal(0.3, SAMPLE_RATE, 1, number), SAMPLE_RATE)
        (tmp_path / "in" / f"{number}.txt").write_text("a sound")
    (tmp_path / "in" / "1.json").write_text('{"bpm": 90}')

    def write_data(**item):
        document = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path / "in"), **item}]}
        (tmp_path / "data.json").write_text(json.dumps(document, indent=1))
        return [str(tmp_path / "model.json"), str(tmp_path / "data.json")]

    return write_data


def test_items_that_lack_what_the_model_reads_are_counted(files, capsys):
    paths = files()
    assert main(["check", *paths, "--data"]) == 2
    out, error = capsys.readouterr()
    assert "3 of 3 audio files can be used" in out
    assert f'{paths[1]}: 2 of 3 items have no "tempo" or "bpm", which the conditioner "tempo" reads: 0.wav, 2.wav' in error
    assert main(["check", *paths]) == main(["check", paths[1], "--data"]) == 0
    capsys.readouterr()
    assert main(["check", *paths, "--data", "--json"]) == 2
    assert "2 of 3 items have no" in json.loads(capsys.readouterr().out)[1]["problems"][0]["message"]


def test_with_the_metadata_all_is_good(files):
    assert main(["check", *files(path_pattern="{bpm}"), "--data"]) == 0


def test_a_template_that_fits_no_item_is_shown_in_its_line(files, capsys):
    paths = files(path_pattern="{bpm}", prompts={"templates": ["{bmp} bpm"]})
    assert main(["check", *paths, "--data"]) == 2
    error = capsys.readouterr().err
    assert 'no item has "bmp"' in error and 'did you mean "bpm"?' in error and '"{bmp} bpm"' in error and "data.json:10:" in error


def test_code_is_not_run(files, tmp_path):
    (tmp_path / "meta.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    assert main(["check", *files(custom_metadata_module=str(tmp_path / "meta.py")), "--data"]) == 0
    assert not (tmp_path / "canary").exists()
