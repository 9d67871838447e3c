"""`export --card` says what is known and nothing else, and its lines of Python run."""

import json
from pathlib import Path

import pytest
import torch
from trainings import KINDS, checkpoint, config_of, trained

from stable_audio_tools.audio.io import load_audio, save_audio
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model

RECIPE = {"embedder": "log_mel", "audio": "/home/someone/reference"}
METRIC = {"name": "frechet_log_mel", "value": 1.234, "low": 1.1, "high": 1.4, "n": 48, "recipe": RECIPE}
SOURCE = {"id": "my|bells", "path": "/home/someone/secret", "files": 320, "captioned": 80, "hours": 1.5}
SOURCE |= {"kind": "latents", "encoder": "/home/someone/vae.safetensors"}
STATE = {"name": "bells", "updated": "2026-01-02T03:04:05+00:00", "wall_s": 90.0, "device": "cpu", "parameters": 12345, "batch_size": 4}


@pytest.fixture
def run(export):
    """The folder of a run after seven steps, as training leaves it."""
    folder = Path("runs/bells")
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint(folder / "checkpoints" / "step=00000007.ckpt", trained(config_of("diffusion_cond")))
    sources = [{"id": "my|bells", "path": "/home/someone/secret"}]
    files = {
        "run.json": STATE,
        "args.json": {"seed": 42, "batch_size": "auto"},
        "dataset.json": {"dataset_type": "audio_dir", "datasets": sources},
        "data.json": {"folders": [SOURCE]},
        "evaluation.json": {"recipe": {}, "metrics": [METRIC]},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    for step in (5, 9):
        demos = folder / "demos" / f"step_{step:08d}"
        demos.mkdir(parents=True)
        save_audio(demos / "00.wav", torch.full((1, 100), step / 10), 8000)
        entry = {"title": f"<b>step {step}</b>", "audio": "00.wav", "kind": "generated", "group": "a"}
        (demos / "demos.json").write_text(json.dumps([entry, {**entry, "audio": "gone.wav"}]))
    return folder


def card_of(export, *arguments):
    status, written, said = export(*arguments, "--card")
    assert status == 0, said
    return next(path for path in written if path.name == "README.md").read_text()


def test_what_the_run_knows_is_in_the_card(export, run):
    card = card_of(export, str(run), "--out", "published", "--precision", "fp16")
    assert card.startswith("---\n# license: ") and "library_name: stable-audio-tools\npipeline_tag: text-to-audio\n" in card
    for row in (
        "| Model type | diffusion_cond |",
        "| Sample rate | 8,000 Hz, mono |",
        "| Length of training clips | 0.256 s |",
        "| Network | dit, rectified_flow |",
        "| Conditions | prompt (bytes) |",
        "| Train steps | 7 |",
        "| Weights | averaged (EMA), fp16 |",
        "| Run updated | 2026-01-02 |",
        "| Batch | 4 clips |",
        "| Seed | 42 |",
        "| Sources | my\\|bells |",
        "| Items | 320 |",
        "| Kind | latents, made by vae.safetensors |",
        "| Length in all | 1.50 hours |",
        "| frechet log mel | 1.234 | 1.1 to 1.4 | 48 |",
        "Recipe: embedder log_mel, audio reference.",
        "- [&lt;b&gt;step 5&lt;/b&gt;](demos/00.wav)",
    ):
        assert row in card
    assert "/home/someone" not in card and "gone.wav" not in card and "<b>" not in card
    torch.testing.assert_close(load_audio("published/demos/00.wav")[0], torch.full((1, 100), 0.5), rtol=0, atol=1e-4)


def test_what_is_not_known_is_left_out(export):
    card = card_of(export, checkpoint("alone.ckpt", trained(config_of("diffusion_uncond")), stable_audio_tools={}), "--out", "published")
    assert "# published\n" in card and "## Use" in card and "Not stated yet" in card
    for absent in ("## Training", "## Measured", "## Demos", "Train steps", "Conditions", "pipeline_tag", "None", "nan"):
        assert absent not in card


@pytest.mark.parametrize("broken", ["evaluation.json", "run.json", "dataset.json", "data.json"])
def test_damaged_files_of_a_run_leave_their_part_out(export, run, broken):
    (run / broken).write_text('[{"a": 1}')
    assert "## Use" in card_of(export, str(run), "--out", "published")


def test_a_card_replaces_nothing_without_force(export, run):
    Path("published").mkdir()
    Path("published/README.md").write_text("mine")
    status, _, said = export(str(run), "--out", "published", "--card")
    assert status == 2 and "there is already published/README.md" in said
    assert Path("published/README.md").read_text() == "mine" and len([*Path("published").iterdir()]) == 1
    assert export(str(run), "--out", "published")[0] == 0


def run_python(card, folder, monkeypatch):
    """Runs the card's lines in its folder; gives their variables."""
    variables = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(card.split("```python\n")[1].split("```")[0], variables)
    return variables


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "out"), [*((kind, "published") for kind in KINDS), ("diffusion_cond", "published/bells.safetensors")])
def test_the_cards_python_runs(export, monkeypatch, kind, out):
    config = config_of(kind)
    config["training"]["demo"] = {key: value for key, value in config["training"]["demo"].items() if key != "demo_cond"}
    card = card_of(export, checkpoint("step.ckpt", trained(config)), "--out", out)
    save_audio("published/sound.wav", torch.rand(2, 5000) - 0.5, 16000)
    run_python(card, "published", monkeypatch)
    audio, rate = load_audio("published/clip.wav")
    expected = 2500 if "autoencoder" in kind else 2048
    assert rate == 8000 and audio.shape == (config["audio_channels"], expected) and audio.isfinite().all()


@pytest.mark.slow
def test_the_python_for_diffusers_runs(export, monkeypatch):
    pytest.importorskip("diffusers")
    card = card_of(export, checkpoint("step.ckpt", trained(config_of("autoencoder"))), "--out", "vae", "--format", "diffusers")
    assert "library_name: diffusers" in card
    variables = run_python(card, "vae", monkeypatch)
    assert variables["decoded"].shape == variables["audio"].shape


def test_a_model_whose_conditions_are_audio_has_no_lines_that_could_not_run(export):
    config = config_of("diffusion_cond")
    config["training"]["demo"] = {"demo_every": 1000}
    config["model"]["conditioning"]["configs"][0]["id"] = "melody"
    config["model"]["conditioning"]["pre_encoded_keys"] = ["melody"]
    config["model"]["diffusion"] |= {"cross_attention_cond_ids": ["melody"], "global_cond_ids": []}
    config["model"]["diffusion"]["config"] |= {"global_cond_dim": 0}
    save_model("model.safetensors", create_model_from_config(config), config)
    assert "## Use" not in card_of(export, "model.safetensors", "--out", "published")
