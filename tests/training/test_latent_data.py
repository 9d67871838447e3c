"""Training from stored latents: the same losses as encoding on the fly, and latents of another model refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import configs
import pytest
import torch
from audio_files import signal as tone
from audio_files import write

from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.data_module import AudioDataModule

RATE = configs.SAMPLE_RATE


def latent_diffusion(mode: str = "mean", **training: Any) -> dict[str, Any]:
    """`configs.text_to_audio` over the autoencoder of `configs.autoencoder`."""
    document = configs.text_to_audio(**training)
    encoder = configs.autoencoder()["model"]
    encoder["bottleneck"] = {"type": "vae", "config": {"mode": mode}}
    document["model"] |= {"io_channels": 4, "pretransform": {"type": "autoencoder", "config": encoder, "scale": 0.7}}
    document["model"]["diffusion"]["config"]["io_channels"] = 4
    return {**document, "audio_channels": 2}


def encoder_file(folder: Path, mode: str = "mean", seed: int = 0) -> str:
    torch.manual_seed(seed)
    document = configs.autoencoder()
    document["model"]["bottleneck"] = {"type": "vae", "config": {"mode": mode}}
    save_model(folder / f"vae{seed}.safetensors", create_model_from_config(document).state_dict(), document)
    return str(folder / f"vae{seed}.safetensors")


def written(path: Path, document: dict[str, Any]) -> str:
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def data(tmp_path):
    """Config files: audio, and its latents by `vae0`."""
    for number in range(8):
        write(tmp_path / "audio" / f"{number}.wav", tone(0.2 + number / 20, RATE, 2, number), RATE)
        (tmp_path / "audio" / f"{number}.txt").write_text(f"clip {number}")
    datasets = [{"id": "set", "path": str(tmp_path / "audio")}]
    audio = written(tmp_path / "audio.json", {"dataset_type": "audio_dir", "datasets": datasets, "random_crop": False})
    encoded = [{"id": "set", "path": str(tmp_path / "latents")}]
    return audio, written(tmp_path / "latents.json", {"dataset_type": "pre_encoded", "datasets": encoded})


def pre_encode(tmp_path: Path, audio: str, weights: str, *options: str) -> None:
    command = ["pre-encode", "--model", weights, "--dataset-config", audio, "--output-path", str(tmp_path / "latents")]
    assert main([*command, "--num-workers", "0", "--dtype", "float32", *options]) == 0


def train(tmp_path: Path, name: str, model: dict[str, Any], dataset: str, *flags: str, steps: int = 6) -> int:
    config = written(tmp_path / f"model_{name}.json", model)
    command = ["train", "--model-config", config, "--dataset-config", dataset, "--save-dir", str(tmp_path / "runs"), "--name", name]
    command += ["--max-steps", str(steps), "--batch-size", "4", "--num-workers", "0", "--logger", "none", "--log-every", "1"]
    return main([*command, "--accelerator", "cpu", "--checkpoint-every", "0", *flags])


def losses(tmp_path: Path, name: str) -> list[float]:
    header, *rows = (tmp_path / "runs" / name / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/loss")
    return [float(row.split(",")[column]) for row in rows if row.split(",")[column]]


@pytest.mark.parametrize("mask_padding", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_losses_are_those_of_encoding_on_the_fly(tmp_path, data, mask_padding):
    audio, latents = data
    weights = encoder_file(tmp_path)
    pre_encode(tmp_path, audio, weights)
    on_the_fly, stored = (latent_diffusion(mask_padding=mask_padding, **pre) for pre in ({}, {"pre_encoded": True}))
    assert train(tmp_path, "audio", on_the_fly, audio, "--pretransform-ckpt-path", weights) == 0
    assert train(tmp_path, "latents", stored, latents, "--pretransform-ckpt-path", weights) == 0
    expected = losses(tmp_path, "audio")
    assert len(expected) == 6
    torch.testing.assert_close(losses(tmp_path, "latents"), expected, rtol=1e-4, atol=1e-5)


def test_conditions_of_time_are_those_of_the_audio(tmp_path, data):
    audio, latents = data
    pre_encode(tmp_path, audio, encoder_file(tmp_path))
    batches = []
    for dataset, pre in ((audio, {}), (latents, {"pre_encoded": True})):
        module = AudioDataModule(dataset, batch_size=4, num_workers=0)
        module.build(parse_run_config(latent_diffusion(**pre)))
        batches.append([metadata for _, metadata in module.train_dataloader()])
    for of_audio, of_latents in zip(*batches, strict=True):
        for first, second in zip(of_audio, of_latents, strict=True):
            for key in ("prompt", "path", "seconds_start", "seconds_total", "sample_rate", "dataset_id"):
                assert first[key] == second[key] and type(first[key]) is type(second[key]), key
            assert first["timestamps"] == pytest.approx(second["timestamps"])
            assert second["padding_mask"].sum() == -(-int(first["padding_mask"].sum()) // 16)


def test_latents_of_another_encoder_are_refused_with_both_named(tmp_path, data, capsys):
    audio, latents = data
    weights, other = encoder_file(tmp_path), encoder_file(tmp_path, seed=1)
    pre_encode(tmp_path, audio, weights)
    for flags in ([], ["--pretransform-ckpt-path", other]):
        assert train(tmp_path, f"refused{len(flags)}", latent_diffusion(pre_encoded=True), latents, *flags) == 2
        message = capsys.readouterr().err
        assert (
            "datasets[0].path" in message and f"was encoded by {weights}" in message and "makes other latents of the same audio" in message
        )
        assert f"--pretransform-ckpt-path {weights}" in message and "encode the audio again" in message
        assert not list((tmp_path / "runs").glob("refused*/checkpoints/*"))


@pytest.mark.slow
def test_a_run_that_goes_on_has_its_encoder_in_the_checkpoint(tmp_path, data):
    audio, latents = data
    weights = encoder_file(tmp_path)
    pre_encode(tmp_path, audio, weights)
    model = latent_diffusion(pre_encoded=True)
    assert train(tmp_path, "run", model, latents, "--pretransform-ckpt-path", weights, steps=2) == 0
    assert train(tmp_path, "run", model, latents, "--recover", steps=4) == 0


@pytest.mark.parametrize(
    "kind, message, fix",
    [
        ("audio", "training.pre_encoded\n(.|\n)*the audio_dir data are audio", "set it to false, or encode them: pre-encode"),
        (
            "latents",
            "training.pre_encoded\n(.|\n)*the pre_encoded data are latents, and the model would encode them once more",
            "set it to true",
        ),
    ],
)
def test_audio_and_latents_are_not_taken_for_each_other(tmp_path, data, kind, message, fix):
    dataset = dict(zip(("audio", "latents"), data, strict=True))[kind]
    with pytest.raises(ConfigError, match=f"{message}(.|\n)*{fix}"):
        AudioDataModule(dataset).build(parse_run_config(latent_diffusion(pre_encoded=kind == "audio")))


def test_an_autoencoder_trains_on_audio(data):
    with pytest.raises(ConfigError, match=r"model_type(.|\n)*autoencoder models train on audio(.|\n)*name a dataset of audio"):
        AudioDataModule(data[1]).build(parse_run_config(configs.autoencoder()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"latent_dim": 8}, "holds latents of 4 channels, and the model has 8"),
        ({"strides": [4, 8]}, "its frames are 16 samples of audio each, and the model's 32"),
        ({"sample_rate": 16000}, "made of audio at 8000 Hz, and the model has 16000 Hz"),
    ],
)
def test_latents_of_another_shape_are_refused_before_a_weight_exists(tmp_path, data, changes, message):
    audio, latents = data
    pre_encode(tmp_path, audio, encoder_file(tmp_path))
    document = latent_diffusion(pre_encoded=True)
    encoder = document["model"]["pretransform"]["config"]
    if channels := changes.get("latent_dim"):
        encoder["latent_dim"] = encoder["decoder"]["config"]["latent_dim"] = channels
        encoder["encoder"]["config"]["latent_dim"] = 2 * channels
        document["model"]["io_channels"] = document["model"]["diffusion"]["config"]["io_channels"] = channels
    if strides := changes.get("strides"):
        encoder["encoder"]["config"]["strides"] = encoder["decoder"]["config"]["strides"] = strides
        encoder["downsampling_ratio"] = 32
    document["sample_rate"] = changes.get("sample_rate", RATE)
    with pytest.raises(ConfigError, match=rf"datasets\[0\]\.path\n(.|\n)*{message}(.|\n)*encode with the model's own encoder"):
        AudioDataModule(latents, num_workers=0).build(parse_run_config(document))


def test_tokens_and_latents_are_told_apart(tmp_path, data):
    audio, latents = data
    pre_encode(tmp_path, audio, encoder_file(tmp_path))
    document = configs.language_model(pre_encoded=True)
    with pytest.raises(ConfigError, match="holds latents, and the model trains on tokens"):
        AudioDataModule(latents, num_workers=0).build(parse_run_config(document))


@pytest.mark.slow
def test_a_language_model_trains_on_stored_tokens_as_on_audio(tmp_path, data):
    audio, latents = data
    documents = [configs.language_model(**pre) for pre in ({}, {"pre_encoded": True})]
    torch.manual_seed(0)
    weights = str(tmp_path / "lm.safetensors")
    save_model(weights, create_model_from_config(documents[0]).state_dict(), documents[0])
    pre_encode(tmp_path, audio, weights, "--is-discrete")
    for name, document, dataset in zip(("audio", "latents"), documents, (audio, latents), strict=True):
        assert train(tmp_path, name, document, dataset, "--pretrained-ckpt-path", weights, steps=4) == 0
    torch.testing.assert_close(losses(tmp_path, "latents"), losses(tmp_path, "audio"), rtol=1e-5, atol=1e-6)
