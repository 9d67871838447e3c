"""`evaluate` as a user runs it: on a tiny untrained model, whose report is bad, repeatable and complete."""

import json
import subprocess
import sys

import configs
import pytest
import torch

from stable_audio_tools.cli.main import main
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.models.factory import create_model_from_config

DATASET = {"dataset_type": "synthetic", "instruments": ["sine", "pluck", "noise"], "notes": "A3-A4", "hold_out": 0.2}


def save_run(folder, config=None, dataset=DATASET):
    """A run's folder with an untrained model."""
    config = config or configs.text_to_audio()
    (folder / "exports").mkdir(parents=True)
    torch.manual_seed(0)
    model = create_model_from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # not the zeros that output layers start with: the prompt must matter
    save_model(folder / "exports" / "model.safetensors", model, config)
    if dataset is not None:
        (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("evaluate") / "run")


def evaluate(*arguments):
    return main(["evaluate", *map(str, arguments)])


def test_a_run_is_evaluated_with_its_own_dataset(run_folder, tmp_path, capsys):
    out, clips = tmp_path / "report.json", tmp_path / "clips"
    quick = ("--steps", 2, "--num-prompts", 4, "--out", out, "--save-audio", clips)
    assert evaluate("--model", run_folder, *quick) == 0
    printed, report = capsys.readouterr().out, json.loads(out.read_text())
    assert "| real sounds " in printed and "held out of training" in printed
    assert report["pitched"]["model"]["pitch"]["of"] == 4
    assert report["pitched"]["real sounds"]["pitch"]["share"] == report["pitched"]["real sounds"]["instrument"]["share"] == 1
    assert report["recipe"]["steps"] == 2 and report["recipe"]["cfg_scale"] == 1.5 and report["recipe"]["noise_seed"] == 0
    names = sorted(path.name for path in clips.iterdir())
    assert len(names) == 4 + 12 and names[0].startswith("00_a_") and names[-1].startswith("15_a_noise_burst_")

    assert evaluate("--model", run_folder / "exports" / "model.safetensors", *quick[:6]) == 0
    again = json.loads(out.read_text())
    assert again["pitched"] == report["pitched"], "the file in a run is the run"


@pytest.mark.slow
def test_seed_steps_and_guidance_take_effect(run_folder, tmp_path):
    def clip(*arguments):
        folder = tmp_path / "_".join(map(str, arguments))
        assert evaluate("--model", run_folder, "--num-prompts", 2, "--save-audio", folder, *arguments) == 0
        return next(iter(sorted(folder.iterdir()))).read_bytes()

    made = [clip("--steps", 2), clip("--steps", 2, "--seed", 1), clip("--steps", 3), clip("--steps", 2, "--cfg-scale", 4)]
    assert len(set(made)) == 4


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("--model", "{tmp}/nowhere"), ("nowhere",)),
        (("--model", "{run}", "--steps", "0"), ("--steps", "expected a whole number of 1 or more, got '0'")),
        (("--model", "{run}", "--num-prompts", "one"), ("expected a whole number of 2 or more, got 'one'",)),
        (("--model", "{run}", "--cfg-scale", "nan"), ("expected a number of 0 or more, got 'nan'",)),
        (("--model", "{run}", "--out", "{tmp}/no/report.json"), ("there is no folder", "/no", "name a file in a folder that exists")),
        (("--model", "{run}", "--save-audio", "{run}/dataset.json"), ("this is a file; name a folder",)),
        (("--model", "{alone}"), ("this model does not lie in a run's folder with its dataset.json", "--reference FOLDER")),
        (
            ("--model", "{run}", "--dataset-config", "{tmp}/audio.json", "--metrics", "synthetic"),
            ("dataset_type is 'audio_dir'", "leave 'synthetic' out"),
        ),
        (("--model", "{run}", "--dataset-config", "{tmp}/long.json"), ("sounds of 9.0 s do not fit a clip of 2048 samples",)),
        (("--model", "{autoencoder}", "--metrics", "synthetic"), ("model_type is 'autoencoder'", "leave 'synthetic' out")),
        (("--model", "{autoencoder}", "--steps", "4", "--cfg-scale", "2"), ("--steps has no effect", "--cfg-scale has no effect")),
        (("--model", "{run}", "--metrics", "frechett"), ("frechett", 'did you mean "frechet"')),
        (("--model", "{run}", "--metrics", "mrstft"), ("'mrstft' needs the original of each clip",)),
        (("--model", "{run}", "--metrics", "synthetic", "--num-clips", "4"), ("--num-clips has no effect",)),
        (("--model", "{run}", "--metrics", "frechet", "--num-prompts", "4"), ("--num-prompts", "--num-clips is the number")),
        (("--model", "{run}", "--embedder", "logmel"), ('did you mean "log_mel"',)),
        (("--model", "{run}", "--embedder", "log_mel", "--embedder", "log_mel:x"), ("--embedder log_mel is given twice",)),
        (("--model", "{run}", "--embedder", "clap:{tmp}/no.pt"), ("embedder clap", "there is no", "no.pt")),
        (("--model", "{run}", "--embedder", "latents:{tmp}/no"), ("no such file or folder", "no")),
        (("--model", "{run}", "--metrics", "text_score"), ("'text_score' needs an embedder that knows text",)),
        (("--model", "{run}", "--metrics", "memorisation"), ("needs the clips that the model was trained on",)),
        (("--model", "{run}", "--sampler", "eulr"), ("eulr", "euler")),
        (("--model", "{run}", "--num-clips", "100000"), ("--num-clips", "100000 clips are asked for, and the data have 10000")),
        (("--model", "{run}", "--reference", "{tmp}/nowhere"), ("nowhere", "no such folder")),
        (
            ("--model", "{run}", "--reference", "{tmp}", "--dataset-config", "{tmp}/audio.json"),
            ("both say what to compare with", "keep one"),
        ),
        (("--model", "{run}", "--paired"), ("--paired has no effect with --model",)),
        (("--audio", "{tmp}/empty", "--steps", "4"), ("--steps has no effect with --audio",)),
        (("--audio", "{tmp}/empty"), ("--audio", "empty")),
        (("--audio", "{tmp}", "--paired"), ("--paired needs --reference",)),
        (("--model", "{run}", "--audio", "{tmp}"), ("--model and --audio exclude each other",)),
        ((), ("nothing to evaluate", "--model FILE or RUN_DIR, or --audio FOLDER")),
    ],
)
def test_bad_input_is_said_in_one_message(arguments, messages, run_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "audio.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path)}]}))
    (tmp_path / "long.json").write_text(json.dumps(DATASET | {"seconds": 9.0}))
    places = {"tmp": tmp_path, "run": run_folder, "alone": tmp_path / "alone", "autoencoder": tmp_path / "autoencoder"}
    if "{alone}" in arguments:
        save_run(tmp_path / "alone", dataset=None)
    if "{autoencoder}" in arguments:
        save_run(tmp_path / "autoencoder", config=configs.autoencoder())
    assert evaluate(*(text.format(**places) for text in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert all(message in captured.err for message in messages)


def test_the_options_are_listed_without_torch():
    code = "import argparse, sys; import stable_audio_tools.cli.evaluate as e; e.configure(argparse.ArgumentParser()); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "stable_audio_tools.cli.evaluate" in loaded and not {"torch", "numpy"} & set(loaded)
