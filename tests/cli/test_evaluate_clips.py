"""`evaluate` of clips beside clips: models of every type, folders of files, and what the printed and the written figures carry."""

import json
import math
from functools import partial

import configs
import pytest
import torch
from test_evaluate_command import DATASET, evaluate, save_run

from stable_audio_tools.audio.io import load_audio, save_audio

MODELS = {
    "text_to_audio": configs.text_to_audio,
    "inpainting": configs.inpainting,
    "unconditional": configs.unconditional,
    "autoencoder": configs.autoencoder,
    "diffusion_autoencoder": configs.diffusion_autoencoder,
    "language_model": configs.language_model,
}
PAIRED = ("mrstft", "mel", "si_sdr", "l1")


@pytest.fixture
def run(tmp_path):
    return partial(_run, tmp_path)


def _run(tmp_path, *flags):
    """The report that a command writes."""
    out = tmp_path / "report.json"
    assert evaluate(*flags, "--out", out) == 0
    return json.loads(out.read_text())


def values(report):
    return {metric["name"]: metric["value"] for metric in report["metrics"]}


def write_clips(folder, count=6, rate=8000, channels=1, change=lambda clip: clip):
    """Tones with noise, whose pitch and level differ."""
    folder.mkdir(parents=True)
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        time = torch.arange(rate) / rate
        clip = 0.3 * torch.sin(2 * torch.pi * (200 + 90 * index) * time) + 0.02 * torch.randn(rate, generator=generator)
        save_audio(folder / f"{index}.wav", change(clip.repeat(channels, 1)), rate, bit_depth=24)
    return folder


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "text_to_audio" else pytest.mark.slow) for k in MODELS])
def test_models_of_every_type_are_measured(kind, run, tmp_path, capsys):
    folder = save_run(tmp_path / "run", config=MODELS[kind]())
    steps = () if kind in ("autoencoder", "language_model") else ("--steps", 2)
    flags = ("--model", folder, "--num-clips", 8, "--metrics", "frechet,kernel" + (",l1,si_sdr" if "autoencoder" in kind else ""), *steps)
    report = run(*flags, "--save-audio", tmp_path / "clips")
    assert set(values(report)) == {"frechet_log_mel", "kernel_log_mel"} | ({"l1", "si_sdr"} if "autoencoder" in kind else set())
    for metric in report["metrics"]:
        assert metric["low"] <= metric["value"] <= metric["high"] and metric["n"] == 8
        assert metric["better"] == ("higher" if metric["name"] == "si_sdr" else "lower")
        assert metric["recipe"]["model"] == str(folder) and metric["recipe"]["noise_seed"] == 0
        assert metric["recipe"].get("steps") == (2 if steps else None)
    printed = capsys.readouterr().out
    assert "| frechet_log_mel" in printed and "95 % interval" in printed and "hash " in printed and "noise seed 0" in printed
    assert len(list((tmp_path / "clips").glob("*.wav"))) == 8

    assert values(run(*flags, "--batch-size", 3)) == pytest.approx(values(report), rel=1e-3), "a clip does not depend on its batch"
    if kind != "autoencoder":
        assert values(run(*flags, "--seed", 1)) != values(report)


@pytest.mark.slow
def test_the_clips_that_are_kept_are_those_that_are_measured(run, tmp_path):
    config = configs.autoencoder()
    config["model"]["decoder"]["config"]["final_tanh"] = True  # nothing is beyond full scale, which files cannot hold
    model, reference = save_run(tmp_path / "run", config=config), write_clips(tmp_path / "real", channels=2)
    for path in reference.glob("*.wav"):
        path.with_suffix(".txt").write_text(f"tone {path.stem}")
    flags = ("--reference", reference, "--metrics", "frechet,l1")
    made = run("--model", model, *flags, "--save-audio", tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [f"{i:02d}_tone_{i}.wav" for i in range(6)]
    for index in range(6):
        (tmp_path / "made" / f"{index:02d}_tone_{index}.wav").rename(tmp_path / "made" / f"{index}.wav")
    kept = run("--audio", tmp_path / "made", "--seconds", 2048 / 8000, "--paired", *flags)
    assert made["metrics"][0]["n"] == kept["metrics"][0]["n"] == 6
    assert values(kept) == pytest.approx(values(made), rel=0.01), "up to the rounding of 16 bits"


def test_a_folder_beside_itself_is_no_distance_away_and_damage_is_ranked(run, tmp_path):
    real = write_clips(tmp_path / "real")

    def distance(snr_db):
        def noisy(clip):
            noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(9))
            return clip + noise * clip.square().mean().sqrt() * 10 ** (-snr_db / 20)

        damaged = write_clips(tmp_path / f"noisy{snr_db}", change=noisy)
        return values(run("--audio", damaged, "--reference", real, "--metrics", "frechet,kernel"))

    same = values(run("--audio", real, "--reference", real, "--metrics", "frechet,kernel"))
    assert same["frechet_log_mel"] == pytest.approx(0, abs=1e-6) and same["kernel_log_mel"] <= 1e-6
    found = [distance(snr) for snr in (30, 15, 0)]
    for name in ("frechet_log_mel", "kernel_log_mel"):
        assert 0 < found[0][name] < found[1][name] < found[2][name]


def test_files_of_one_name_are_pairs(run, tmp_path):
    real = write_clips(tmp_path / "real")
    louder = write_clips(tmp_path / "louder", change=lambda clip: 1.5 * clip)
    found = values(run("--audio", louder, "--reference", real, "--paired", "--metrics", ",".join(PAIRED)))
    clips = [load_audio(path)[0] for path in sorted(real.glob("*.wav"))]
    assert found["l1"] == pytest.approx(sum(float(clip.abs().mean()) for clip in clips) / len(clips) / 2, rel=1e-3)
    assert found["si_sdr"] > 60 and found["mrstft"] > 0


def test_files_that_make_no_pair_are_named(tmp_path, capsys):
    real, more = write_clips(tmp_path / "real", 3), write_clips(tmp_path / "more", 4)
    assert evaluate("--audio", more, "--reference", real, "--paired") == 2
    said = capsys.readouterr().err
    assert "1 of 4 files have no original" in said and "3.wav" in said
    stereo = write_clips(tmp_path / "stereo", 3, channels=2)
    assert evaluate("--audio", stereo, "--reference", real, "--paired") == 2
    said = capsys.readouterr().err
    assert "0.wav" in said and "2 channels at 8000 Hz" in said and "1 channel at 8000 Hz" in said


def test_files_alone_are_described(run, tmp_path):
    report = run("--audio", write_clips(tmp_path / "real"), "--num-clips", 4)
    found = values(report)
    assert report["recipe"]["clips"] == 4 and not any("distance" in name or "frechet" in name for name in found)
    assert found["silence"] == 0 and 200 < found["centroid"] < 2000


@pytest.mark.slow
def test_a_model_that_repeats_its_training_clips_is_found_out(run, tmp_path):
    trained = write_clips(tmp_path / "trained", change=lambda clip: torch.cat([clip] * 4, 1))
    unseen = write_clips(tmp_path / "unseen", change=lambda clip: torch.cat([clip.flip(-1) ** 3] * 4, 1))
    copies = run("--audio", trained, "--train-dataset", trained, "--metrics", "memorisation")
    others = run("--audio", unseen, "--train-dataset", trained, "--metrics", "memorisation")
    assert values(copies)["copies"] == 1 and values(others)["copies"] < 0.5


@pytest.mark.slow
def test_labels_and_distances_come_in_one_report(run, tmp_path, capsys):
    model = save_run(tmp_path / "run")
    (model / "run.json").write_text("{}")
    flags = ("--steps", 2, "--num-prompts", 2, "--num-clips", 4, "--save-audio", tmp_path / "clips")
    report = run("--model", model, "--metrics", "synthetic,frechet", *flags)
    assert report["pitched"]["model"]["pitch"]["of"] == 2 and math.isfinite(values(report)["frechet_log_mel"])
    assert {path.name for path in (tmp_path / "clips").iterdir()} == {"synthetic", "clips"}
    assert json.loads((model / "evaluation.json").read_text()) == report
    page = (model / "index.html").read_text()
    assert "frechet log mel" in page
    capsys.readouterr()
    assert evaluate("--model", model, "--metrics", "frechet", "--num-clips", 4, "--steps", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"][0]["name"] == "frechet_log_mel"


@pytest.mark.slow
def test_a_synthetic_dataset_is_compared_with_what_training_never_heard(run, tmp_path):
    model = save_run(tmp_path / "run")
    flags = ("--model", model, "--steps", 2, "--num-clips", 4, "--metrics", "frechet")
    (tmp_path / "held.json").write_text(json.dumps(DATASET | {"split": "held_out"}))
    assert values(run(*flags)) == values(run(*flags, "--dataset-config", tmp_path / "held.json"))


def test_metrics_by_plugins(run, tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(
        "from stable_audio_tools.evaluation.measure import Measure\n"
        "from stable_audio_tools.evaluation.metrics import METRICS, Metric, register_metric\n"
        "def length(comparison):\n"
        "    seconds = [c.audio.shape[-1] / c.sample_rate for c in comparison.generated]\n"
        "    mean = sum(seconds) / len(seconds)\n"
        "    return [Measure('length', mean, min(seconds), max(seconds), len(seconds), {}, None, 's')]\n"
        "METRICS.pop('length', None) or register_metric('length', Metric(length, (), 'seconds'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = run("--audio", write_clips(tmp_path / "real"), "--plugins", "own_metric", "--metrics", "length")
    assert values(found) == {"length": 1.0}
