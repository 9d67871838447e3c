"""`check`: what it says about good configs and bad ones, to people and to machines."""

import json
import sys
from pathlib import Path

import pytest
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
def test_the_configs_that_come_with_the_project_are_good(path, capsys):
    assert main(["check", str(path)]) == 0
    assert "good" in capsys.readouterr().out
