"""`check`: what it says about good configs and bad ones, to people and to machines."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.cli.main import main

MODEL_CONFIGS = sorted((Path(__file__).resolve().parents[2] / "model_configs").rglob("*.json"))


def write(path, document):
    path.write_text(json.dumps(document, indent=2))
    return str(path)


def test_a_good_model_config_is_described(tmp_path, capsys):
    assert main(["check", write(tmp_path / "m.json", configs.text_to_audio())]) == 0
    out = capsys.readouterr().out
    assert "m.json: good model config" in out
    assert "type        diffusion_cond" in out
    assert "clip        2048 samples at 8000 Hz, 0.26 s, mono" in out
    assert "latents     16 channels x 128 frames of 16 samples, 500 a second" in out
    assert "parameters" in out and "model" in out and "conditioner" in out


def test_the_parameter_count_is_the_built_models(tmp_path, capsys):
    from stable_audio_tools.models.factory import create_model_from_config

    assert main(["check", "--json", write(tmp_path / "m.json", configs.autoencoder())]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    model = create_model_from_config(configs.autoencoder())
    assert sum(facts["parameters"].values()) == sum(p.numel() for p in model.parameters())
    assert facts["latent_shape"] == [4, 128] and facts["frame_rate"] == 500.0 and facts["ok"] is True


def test_no_weight_is_allocated(tmp_path, capsys):
    huge = configs.text_to_audio()
    huge["model"]["diffusion"]["config"].update(embed_dim=16384, depth=64, num_heads=64)  # 800 GB of weights
    assert main(["check", "--json", write(tmp_path / "m.json", huge)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["parameters"]["model"] > 10**11
    assert torch.get_default_device().type == "cpu"


def test_several_files_are_all_checked(tmp_path, capsys):
    good = write(tmp_path / "good.json", configs.text_to_audio())
    bad = write(tmp_path / "bad.json", configs.text_to_audio(use_emma=True, learning_rate="1"))
    data = write(tmp_path / "data.json", {"dataset_type": "synthetic"})
    assert main(["check", bad, good, data]) == 2
    shown = capsys.readouterr()
    assert "good.json: good model config" in shown.out and "data.json: good dataset config" in shown.out
    assert shown.err.startswith(f"error: {bad}: 2 problems\n")
    assert 'did you mean "use_ema"?' in shown.err


def test_machines_get_every_problem_with_its_place(tmp_path, capsys):
    bad = write(tmp_path / "bad.json", configs.text_to_audio(use_emma=True))
    assert main(["check", "--json", bad, str(tmp_path / "none.json")]) == 2
    shown = capsys.readouterr()
    first, second = json.loads(shown.out)
    assert shown.err == ""
    assert first["ok"] is False and first["problems"][0]["path"] == "training.use_emma"
    assert (
        first["problems"][0]["line"]
        == (tmp_path / "bad.json").read_text()[: (tmp_path / "bad.json").read_text().index("use_emma")].count("\n") + 1
    )
    assert second["problems"] == [{"path": "", "message": "no such file", "fix": ""}]


@pytest.mark.parametrize("path", MODEL_CONFIGS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_the_configs_that_come_with_the_project_are_good(path, capsys):
    assert main(["check", str(path)]) == 0
    assert "good" in capsys.readouterr().out


@pytest.fixture
def sounds(tmp_path):
    """Two good files at two rates, one with a caption, and a broken one."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name, rate in (("a", 8000), ("b", 16000)):
        soundfile.write(folder / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(2 * rate), rate)
    (folder / "a.txt").write_text("a hiss")
    (folder / "broken.flac").write_bytes(b"fLaC")
    return folder


def test_the_data_are_read_and_counted(sounds, tmp_path, capsys):
    data = write(tmp_path / "data.json", {"dataset_type": "audio_dir", "datasets": [{"id": "hiss", "path": str(sounds)}]})
    assert main(["check", data]) == 0
    assert "broken" not in capsys.readouterr().out
    assert main(["check", "--data", data, write(tmp_path / "m.json", configs.text_to_audio())]) == 0
    out = capsys.readouterr().out
    assert "data.json: good dataset config" in out and "2 of 3 audio files can be used" in out
    assert "/broken.flac: not audio" in out and "1 with, 1 without" in out
    assert main(["check", "--data", "--json", data]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["ok"] and facts["data"]["folders"][0]["files"] == 2


def test_a_folder_with_nothing_usable_is_an_error_with_its_counts(sounds, tmp_path, capsys):
    for file in sounds.glob("*.wav"):
        file.unlink()
    data = write(tmp_path / "data.json", {"dataset_type": "audio_dir", "datasets": [{"id": "hiss", "path": str(sounds)}]})
    assert main(["check", "--data", data]) == 2
    shown = capsys.readouterr()
    assert "0 of 1 audio files can be used" in shown.out and "/broken.flac: not audio" in shown.out and "good" not in shown.out
    assert "data.json:6:15  datasets[0].path" in shown.err and f"no usable audio file in {sounds}" in shown.err
    assert main(["check", "--data", "--json", data]) == 2
    (facts,) = json.loads(capsys.readouterr().out)
    assert not facts["ok"] and facts["problems"][0]["path"] == "datasets[0].path" and facts["data"]["usable"] is False


def test_a_missing_folder_is_found_when_the_data_are_read(tmp_path, capsys):
    data = write(tmp_path / "data.json", {"dataset_type": "audio_dir", "datasets": [{"id": "hiss", "path": str(tmp_path / "none")}]})
    assert main(["check", "--data", data]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
