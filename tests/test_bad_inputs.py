"""What a user gets for bad input: exit status 2, one message with the place and the fix, no traceback, nothing written.

Each row is a command as it would be typed, in a fresh folder. `data.json` and a config of each model type are there, `model.json` among
them, and good; a row spoils something and says which words must come back.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent))
import configs

from stable_audio_tools.cli.main import main
from stable_audio_tools.data.scan_cache import NAME as SCAN_CACHE

GONE: Any = object()
TRAIN = ["train", "--model-config", "model.json", "--max-steps", "1", "--num-workers", "0", "--logger", "none"]
Spoil = Callable[[Path], None]


def put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set one key, `a.b.0.c`; GONE removes it."""
    *outer, last = path.split(".")
    for key in outer:
        document = document[int(key) if key.isdigit() else key]
    if value is GONE:
        del document[last]
    else:
        document[last] = value


def edited(name: str, changes: dict[str, Any]) -> Spoil:
    """Change keys of a good config, named by their paths."""

    def spoil(folder: Path) -> None:
        file = folder / f"{name}.json"
        document = json.loads(file.read_text())
        for path, value in changes.items():
            put(document, path, value)
        file.write_text(json.dumps(document, indent=2))

    return spoil


def model(changes: dict[str, Any]) -> Spoil:
    return edited("model", changes)


def autoencoder(changes: dict[str, Any]) -> Spoil:
    return edited("autoencoder", changes)


def optimizer(kind: str, player: str = "diffusion", scheduler: str = "", **config: Any) -> dict[str, Any]:
    group = {"optimizer": {"type": kind, "config": config}, **({"scheduler": {"type": scheduler}} if scheduler else {})}
    return {"training.optimizer_configs": {player: group}}


def text(name: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def data(**document: Any) -> Spoil:
    return text("data.json", json.dumps(document, indent=2))


def sounds(*files: tuple[str, bytes]) -> Spoil:
    """A folder `sounds` with these files, named by `data.json`."""

    def spoil(folder: Path) -> None:
        (folder / "sounds").mkdir()
        for name, content in files:
            (folder / "sounds" / name).write_bytes(content)
        audio_dir("sounds")(folder)

    return spoil


def audio_dir(path: str, **more: Any) -> Spoil:
    return data(dataset_type="audio_dir", datasets=[{"id": "sounds", "path": path, **more}])


def nothing(folder: Path) -> None:
    """The command line itself is at fault."""


CHECK_MODEL = ["check", "model.json"]
CHECK_AUTOENCODER = ["check", "autoencoder.json"]
CHECK_DATA = ["check", "data.json"]
TRAIN_ON_DATA = [*TRAIN, "--dataset-config", "data.json"]
DIT = "model.diffusion.config."

Row = tuple[str, list[str], Spoil, tuple[str, ...]]

FILES: list[Row] = [
    ("missing file", ["check", "modle.json"], nothing, ("modle.json: no such file",)),
    ("folder", ["check", "."], nothing, ("is a folder, not a JSON file",)),
    ("empty file", CHECK_MODEL, text("model.json", ""), ("model.json: the file is empty",)),
    ("not text", CHECK_MODEL, text("model.json", b"\x89PNG\r\n\xff"), ("model.json: not a JSON text in UTF-8",)),
    ("trailing comma", CHECK_MODEL, text("model.json", '{\n "a": 1,\n}'), ("model.json:", "not valid JSON", "remove the comma")),
    ("cut off", CHECK_MODEL, text("model.json", '{\n "a": [1'), ("model.json:2:8", "the file ends too early", "close every { and [")),
    ("comment", CHECK_MODEL, text("model.json", '{\n // size\n "a": 1}'), ("model.json:2:2", "JSON has no comments")),
    ("repeated key", CHECK_MODEL, text("model.json", '{"a": 1, "a": 2}'), ("model.json:1:10", 'the key "a" stands here twice')),
    ("NaN", CHECK_MODEL, text("model.json", '{"a": NaN}'), ("model.json:1:7", "NaN is not a number in JSON")),
    ("a list", CHECK_MODEL, text("model.json", "[]"), ("model.json: expected an object, got the list []",)),
    ("a trained model", CHECK_MODEL, text("model.json", bytes(range(256)) * 9), ("model.json: not a JSON text",)),
]

MODEL_CHANGES: list[tuple[Any, ...]] = [
    ("no model_type", {"model_type": GONE}, "model_type must be specified in model config", "autoencoder"),
    ("unknown model_type", {"model_type": "difusion_cond"}, "Unknown model type: difusion_cond", 'did you mean "diffusion_cond"?'),
    ("no training", {"training": GONE}, "training config must be specified in model config"),
    ("no model", {"model": GONE}, "model.json: model", 'missing key "model"'),
    ("no sample_rate", {"sample_rate": GONE}, 'missing key "sample_rate"'),
    ("unknown key", {"sampel_rate": 1}, "model.json:", "sampel_rate", 'unknown key "sampel_rate"'),
    ("typo far inside", {DIT + "embed_dm": 32, DIT + "embed_dim": GONE}, "model.diffusion.config.embed_dm", 'did you mean "embed_dim"?'),
    ("key one level too high", {"model.diffusion.depth": 2}, "model.diffusion.depth", "it belongs in model.diffusion.config"),
    ("number in quotes", {"training.learning_rate": "1e-3"}, "training.learning_rate", "remove the quotes: 1e-3"),
    ("half a layer", {DIT + "depth": 2.5}, "model.diffusion.config.depth", "expected a whole number", "got 2.5"),
    ("no layer", {DIT + "depth": 0}, "model.diffusion.config.depth", "got 0"),
    ("null", {DIT + "depth": None}, "expected a whole number", "got null", "leave the key out for the default, 12"),
    ("1 for true", {"training.use_ema": 1}, "training.use_ema", "expected true or false, got 1", "write true"),
    ("rate of nothing", {"sample_rate": 0}, "sample_rate", "got 0"),
    ("unknown denoiser", {"model.diffusion.type": "ditt"}, "model.diffusion.type", 'did you mean "dit"?'),
    ("unknown conditioner", {"model.conditioning.configs.0.type": "byte"}, "model.conditioning.configs[0].type", 'did you mean "bytes"?'),
    ("unknown pretransform", {"model.pretransform.type": "patchd"}, "model.pretransform.type", 'did you mean "patched"?'),
    ("bare name", {"model.pretransform": "patched"}, "model.pretransform", 'write {"type": "patched"}'),
    (
        "unknown objective",
        {"model.diffusion.diffusion_objective": "rectifed_flow"},
        "diffusion_objective",
        'did you mean "rectified_flow"?',
    ),
    ("heads do not divide", {DIT + "num_heads": 3}, "model.diffusion.config", "32", "3"),
    ("latent widths differ", {"model.io_channels": 8, DIT + "io_channels": 8}, "model.", "16", "8"),
    ("denoiser width differs", {DIT + "io_channels": 8}, "io_channels", "16", "8"),
    ("condition that is not there", {"model.diffusion.cross_attention_cond_ids": ["promt"]}, "cross_attention_cond_ids", "promt", "prompt"),
    ("condition width differs", {DIT + "cond_token_dim": 8}, "cond_token_dim", "16", "8"),
    ("sample_size between frames", {"sample_size": 2050}, "sample_size", "2050", "16"),
    ("unknown optimizer", optimizer("AdmW"), "training.optimizer_configs.diffusion.optimizer.type", 'did you mean "AdamW"?'),
    ("unknown optimizer key", optimizer("AdamW", beta=1), "optimizer.config.beta", 'did you mean "betas"?'),
    ("negative rate", optimizer("AdamW", lr=-1), "Invalid learning rate"),
    ("scheduler without steps", optimizer("SGD", scheduler="StepLR"), "scheduler.config.step_size", "missing"),
    ("optimizer of nobody", optimizer("SGD", player="difusion"), "optimizer_configs", "difusion", "diffusion"),
    ("no learning rate", {"training.learning_rate": GONE}, "training", "learning_rate", "optimizer_configs"),
    ("unknown timestep sampler", {"training.timestep_sampler": "logitnormal"}, "timestep_sampler", "logit_normal"),
    ("unknown sampler", {"training.demo.sampler_type": "eular"}, "sampler_type", "euler"),
    ("dropout above 1", {"training.cfg_dropout_prob": 1.5}, "training.cfg_dropout_prob", "expected a number from 0 to 1, got 1.5"),
    ("prompts and demos differ", {"training.demo.num_demos": 5}, "training.demo", "num_demos is 5", "2 entries"),
    ("ARC without its discriminator", {"training.arc": {}}, "training.arc.discriminator", "missing key", "one of conv, convnext"),
    ("several at once", {"sample_rate": "8000", "model.pretransform.type": "x", "training.use_emma": True}, "model.json: 3 problems"),
]

AUTOENCODER_CHANGES: list[tuple[Any, ...]] = [
    ("unknown encoder", {"model.encoder.type": "oobelck"}, "model.encoder.type", 'did you mean "oobleck"?'),
    ("unknown bottleneck", {"model.bottleneck.type": "vea"}, "model.bottleneck.type", 'did you mean "vae"?'),
    ("widths and strides differ", {"model.encoder.config.strides": [4]}, "model.encoder.config", "one width per stride"),
    ("ratio differs", {"model.downsampling_ratio": 32}, "model.encoder.config.strides", "16", "downsampling_ratio is 32"),
    (
        "half a variational latent",
        {"model.encoder.config.latent_dim": 4},
        "model.encoder.config.latent_dim",
        "set encoder.config.latent_dim to 8",
    ),
    (
        "unknown discriminator",
        {"training.loss_configs.discriminator.type": "encodex"},
        "loss_configs.discriminator.type",
        'did you mean "encodec"?',
    ),
    ("discriminator untrained", optimizer("SGD", player="autoencoder"), "optimizer_configs", "discriminator"),
    ("windows of another count", {"training.loss_configs.spectral.config.hop_sizes": [64]}, "loss_configs.spectral.config", "hop_sizes"),
]

TEXT_MODEL = {"id": "prompt", "type": "t5"}
COMPONENT_CHANGES: list[tuple[str, str, dict[str, Any], tuple[str, ...]]] = [
    (
        "misspelt T5",
        "model",
        {"model.conditioning.configs": [{**TEXT_MODEL, "config": {"t5_model_name": "t5-bse"}}]},
        ("configs[0].config.t5_model_name", 'the width of "t5-bse" is not known', 'did you mean "t5-base"?'),
    ),
    (
        "key of the config beside it",
        "model",
        {"model.conditioning.configs": [{"id": "prompt", "type": "number", "max_val": 512}]},
        ("configs[0].max_val", "it belongs in model.conditioning.configs[0].config"),
    ),
    (
        "conditioner without an id",
        "model",
        {"model.conditioning.configs": [{"type": "number", "config": {}}]},
        ("configs[0].id", 'missing key "id"', "add it: text in quotes (name of the condition"),
    ),
    (
        "fallback key of an unknown condition",
        "model",
        {"model.conditioning.default_keys": {"promt": "text"}},
        ("default_keys.promt", 'there is no conditioner "promt"', 'did you mean "prompt"?'),
    ),
    (
        "one id for a list of ids",
        "model",
        {"model.diffusion.cross_attention_cond_ids": "prompt"},
        ("cross_attention_cond_ids", "expected a list of texts in quotes", 'write ["prompt"]'),
    ),
    (
        "range the wrong way round",
        "model",
        {"model.conditioning.configs": [{"id": "prompt", "type": "int", "config": {"min_val": 9, "max_val": 3}}]},
        ("config.max_val", "min_val must be below max_val, got 9 and 3", "make max_val the larger one"),
    ),
    ("option of an inner block", "model", {DIT + "qk_norm": "ln"}, ("it belongs in model.diffusion.config.attn_kwargs",)),
    (
        "even kernel",
        "model",
        {DIT + "ff_kwargs": {"use_conv": True, "conv_kernel_size": 4}},
        ("ff_kwargs.conv_kernel_size", "must be odd, got 4", "nearest: 3 or 5"),
    ),
    ("half a window", "model", {DIT + "sliding_window": [64]}, ("sliding_window", "expected a list of 2 whole numbers, got 1 entry")),
    (
        "timestep without channels",
        "model",
        {DIT + "timestep_cond_type": "input_concat"},
        ("timestep_embed_dim", "timestep_cond_type input_concat needs timestep_embed_dim", "give a number of channels"),
    ),
    ("inpainting inputs left out", "model", {"model_type": "diffusion_cond_inpaint"}, ("add inpaint_mask, inpaint_masked_input",)),
    ("network of another model type", "model", {"model.diffusion.type": "DAU1d"}, ('unknown denoiser "DAU1d"', "known: dit, adp_1d")),
    (
        "tokens where latents are needed",
        "model",
        {"model.pretransform": {"type": "audiocraft_pretrained"}},
        ("model.pretransform", "audiocraft_pretrained makes tokens alone", "use one that makes latents"),
    ),
    (
        "a whole config as the pretransform's",
        "model",
        {"model.pretransform": {"type": "autoencoder", "config": configs.autoencoder()}},
        ("model.pretransform.config.model", "a whole model config stands here", 'put what is in "model" in its place'),
    ),
    (
        "misspelt wavelet",
        "model",
        {"model.pretransform": {"type": "wavelet", "config": {"channels": 1, "levels": 4, "wavelet": "bior22"}}},
        ("config.wavelet", 'did you mean "bior2.2"?'),
    ),
    (
        "bands that are no power of 2",
        "model",
        {"model.pretransform": {"type": "pqmf", "config": {"num_bands": 12}}},
        ("config.num_bands", "num_bands must be a power of 2, got 12", "choose 8 or 16"),
    ),
    (
        "codec that nobody released",
        "model",
        {"model.pretransform": {"type": "dac_pretrained", "config": {"model_type": "44.1khz"}}},
        ("config.model_type", 'did you mean "44khz"?'),
    ),
    (
        "numbers in quotes",
        "autoencoder",
        {"model.encoder.config.strides": "4,4"},
        ("encoder.config.strides", "expected a list of whole numbers", "write [4, 4]"),
    ),
    (
        "encoder of another decoder's width",
        "autoencoder",
        {"model.encoder": {"type": "taae", "config": {"channels": 100, "c_mults": [1, 2], "strides": [4, 4], "latent_dim": 8}}},
        ("encoder.config.c_mults[1]", "200 wide, which makes no attention heads", "make it a multiple of 128"),
    ),
    (
        "quantizer without sizes",
        "autoencoder",
        {"model.bottleneck": {"type": "dac_rvq", "config": {"n_codebooks": 4}}},
        ("bottleneck.config.codebook_size", 'missing key "codebook_size"', "add it: a whole number"),
    ),
    ("no bottleneck any more", "autoencoder", {"model.bottleneck": GONE}, ("no bottleneck need 4", "set encoder.config.latent_dim to 4")),
    (
        "mode beside the config",
        "autoencoder",
        {"model.bottleneck": {"type": "vae", "mode": "mean"}},
        ("bottleneck.mode", "it belongs in model.bottleneck.config"),
    ),
    (
        "network one level too deep",
        "unconditional",
        {"model": {"diffusion": {"type": "DAU1d", "config": {}}}},
        ("model.diffusion", 'stands in "model" itself', 'move its "type" and "config" up into "model"'),
    ),
    ("latents that nothing sees", "diffusion_autoencoder", {"model.latent_dim": 6}, ("model.", "latent_dim 6")),
    (
        "misspelt pattern",
        "language_model",
        {"model.lm.codebook_pattern": "music_lm"},
        ("lm.codebook_pattern", 'did you mean "musiclm"?'),
    ),
    (
        "language model of a continuous pretransform",
        "language_model",
        {"model.pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": 8}}},
        ("model.pretransform", "it has none", "such as an autoencoder with the bottleneck dac_rvq"),
    ),
]

MODELS: list[Row] = [
    *((name, ["check", f"{base}.json"], edited(base, changes), expected) for name, base, changes, expected in COMPONENT_CHANGES),
    *((name, CHECK_MODEL, model(changes), tuple(expected)) for name, changes, *expected in MODEL_CHANGES),
    *((name, CHECK_AUTOENCODER, autoencoder(changes), tuple(expected)) for name, changes, *expected in AUTOENCODER_CHANGES),
    ("one bad among good", ["check", "autoencoder.json", "model.json"], model({"sample_rate": 0}), ("model.json:", "sample_rate")),
    ("bad config, said by train", TRAIN, model({DIT + "embed_dm": 32}), ("error: model.json:", 'did you mean "embed_dim"?')),
]


def hiss() -> bytes:
    """A second of a good WAV file."""
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(8000), 8000, format="WAV")
    return file.getvalue()


WAV_HEADER = b"RIFF\x24\x00\x00\x00WAVEfmt "
DATASETS: list[Row] = [
    (
        "unknown dataset_type",
        CHECK_DATA,
        data(dataset_type="audiodir", datasets=[]),
        ("data.json:", "dataset_type", 'did you mean "audio_dir"?'),
    ),
    ("no dataset_type", CHECK_DATA, data(datasets=[]), ("dataset_type",)),
    ("no folder named", CHECK_DATA, data(dataset_type="audio_dir", datasets=[]), ("data.json:", "datasets")),
    ("typo in a dataset", CHECK_DATA, audio_dir("sounds", custom_metadata_modul="x.py"), ("datasets[0]", "custom_metadata_module")),
    ("unknown instrument", CHECK_DATA, data(dataset_type="synthetic", instruments=["kazoo"]), ("instruments[0]", "kazoo")),
    ("missing folder", TRAIN_ON_DATA, audio_dir("nowhere"), ("nowhere",)),
    ("file for a folder", TRAIN_ON_DATA, audio_dir("model.json"), ("model.json",)),
    ("empty folder", TRAIN_ON_DATA, sounds(), ("sounds: no audio files in this folder", ".wav")),
    (
        "only broken files",
        TRAIN_ON_DATA,
        sounds(("a.wav", WAV_HEADER), ("b.flac", b"")),
        ("sounds: none of 2 audio files can be used", "a.wav", "b.flac"),
    ),
    ("too few files for a batch", TRAIN_ON_DATA, sounds(("a.wav", hiss())), ("1 items do not fill one batch of 4", "drop_last")),
    ("missing dataset config", [*TRAIN, "--dataset-config", "dta.json"], nothing, ("dta.json: no such file",)),
    ("code without leave", TRAIN_ON_DATA, audio_dir("sounds", custom_metadata_module="x.py"), ("custom_metadata_module", "--allow-code")),
]

FLAGS: list[Row] = [
    ("unknown command", ["trian"], nothing, ("unknown command 'trian'", 'did you mean "train"?')),
    ("unknown flag", ["train", "--max-step", "5"], nothing, ("--max-step", 'did you mean "--max-steps"?')),
    ("flag without value", ["train", "--max-steps"], nothing, ("--max-steps",)),
    ("word for a number", ["train", "--batch-size", "four"], nothing, ("--batch-size: expected a whole number or auto, got 'four'",)),
    ("batch of nothing", ["train", "--batch-size", "0"], nothing, ("--batch-size: expected 1 or more, got 0",)),
    ("unknown logger", ["train", "--logger", "tensorbord"], nothing, ("--logger: expected one of auto", "tensorbord")),
    ("missing model config", ["train", "--model-config", "modl.json"], nothing, ("modl.json: no such file",)),
    ("missing ini", ["train", "--config-file", "my.ini"], nothing, ("my.ini",)),
    (
        "unknown option in an ini",
        ["train", "--config-file", "my.ini"],
        text("my.ini", "[DEFAULTS]\nbatchsize = 3\n"),
        ("my.ini", 'did you mean "batch_size"?'),
    ),
    ("missing plugin", [*TRAIN, "--plugins", "nowhere_to_be_found"], nothing, ("--plugins", "nowhere_to_be_found")),
    ("unknown kind of schema", ["schema", "modle"], nothing, ("modle", "model")),
    ("check of nothing", ["check"], nothing, ("CONFIG",)),
    ("run folder under a file", [*TRAIN, "--save-dir", "model.json"], nothing, ("--save-dir model.json",)),
]


class Payload:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def weights(kind: str, name: str = "weights.ckpt") -> Spoil:
    """A file of weights that is bad in one way."""

    def spoil(folder: Path) -> None:
        import torch

        file = folder / name
        if kind == "cut":
            torch.save({"state_dict": {"model.weight": torch.zeros(4000)}}, file)
            file.write_bytes(file.read_bytes()[:900])
        elif kind == "payload":
            torch.save({"state_dict": Payload()}, file)
        elif kind == "pickle":
            file.write_bytes(pickle.dumps(Payload()))
        elif kind == "other model":
            torch.save({"state_dict": {"generator.conv.weight": torch.zeros(3, 3)}}, file)
        elif kind == "bare":
            from safetensors.torch import save_file

            save_file({"generator.conv.weight": torch.zeros(3, 3)}, file)
        elif kind == "smaller model":
            from stable_audio_tools.models.factory import create_model_from_config

            document = configs.text_to_audio()
            put(document, DIT + "depth", 1)
            torch.save({"state_dict": create_model_from_config(document).state_dict()}, file)

    return spoil


PRETRAINED = [*TRAIN, "--pretrained-ckpt-path", "weights.ckpt"]
CHECKPOINTS: list[Row] = [
    ("missing weights", PRETRAINED, nothing, ("weights.ckpt", "no such file")),
    ("folder for weights", [*TRAIN, "--pretrained-ckpt-path", "."], nothing, ("folder",)),
    ("empty weights", PRETRAINED, text("weights.ckpt", b""), ("weights.ckpt", "empty")),
    ("random bytes", PRETRAINED, text("weights.ckpt", np.random.default_rng(0).bytes(2000)), ("weights.ckpt",)),
    ("cut weights", PRETRAINED, weights("cut"), ("weights.ckpt",)),
    ("text for weights", [*TRAIN, "--pretrained-ckpt-path", "model.json"], nothing, ("model.json",)),
    ("broken safetensors", [*TRAIN, "--pretrained-ckpt-path", "w.safetensors"], text("w.safetensors", b"\xff" * 64), ("w.safetensors",)),
    ("weights of another model", PRETRAINED, weights("other model"), ("weights.ckpt: does not fit this model", "generator.conv.weight")),
    ("weights of a smaller model", PRETRAINED, weights("smaller model"), ("weights.ckpt: does not fit this model", "--allow-partial")),
    ("program in a checkpoint", PRETRAINED, weights("payload"), ("weights.ckpt",)),
    ("program in a pickle", PRETRAINED, weights("pickle"), ("weights.ckpt",)),
    (
        "weights of a pretransform that has none",
        [*TRAIN, "--pretransform-ckpt-path", "weights.ckpt"],
        weights("other model"),
        ("--pretransform-ckpt-path",),
    ),
    ("missing checkpoint", [*TRAIN, "--ckpt-path", "last.ckpt"], nothing, ("last.ckpt", "no such")),
    ("checkpoint that is none", [*TRAIN, "--ckpt-path", "weights.ckpt"], weights("other model"), ("weights.ckpt",)),
    ("cut checkpoint", [*TRAIN, "--ckpt-path", "weights.ckpt"], weights("cut"), ("weights.ckpt",)),
]


GENERATE = ["generate", "--prompt", "a bell", "--model", "weights.safetensors"]
TRAINED: list[Row] = [
    ("generate without a model", ["generate", "--prompt", "a bell"], nothing, ("--model",)),
    ("generate with a missing model", GENERATE, nothing, ("weights.safetensors", "no such")),
    (
        "generate with a folder that is no run",
        ["generate", "--prompt", "a bell", "--model", "."],
        nothing,
        ("model.safetensors", "exports/"),
    ),
    ("generate with weights that lack a config", GENERATE, weights("bare", "weights.safetensors"), ("weights.safetensors", "config")),
    ("generate in no steps", [*GENERATE, "--steps", "0"], nothing, ("--steps", "0")),
    ("generate into a strange format", [*GENERATE, "--out", "a.m4a"], nothing, ("a.m4a", ".wav")),
    ("evaluate of a missing run", ["evaluate", "--model", "no/such/run"], nothing, ("no/such/run", "no such")),
    ("evaluate of one prompt", ["evaluate", "--model", "runs/mine", "--num-prompts", "1"], nothing, ("--num-prompts", "1")),
]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """All files but what scans of audio keep beside it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SCAN_CACHE)
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with good configs."""
    (tmp_path / "model.json").write_text(json.dumps(configs.text_to_audio(), indent=2))
    for make in (configs.autoencoder, configs.unconditional, configs.diffusion_autoencoder, configs.language_model):
        (tmp_path / f"{make.__name__}.json").write_text(json.dumps(make(), indent=2))
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "synthetic"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_refused(status: int, message: str, expected: tuple[str, ...], folder: Path, before: Any) -> None:
    assert status == 2, message
    assert f"\n{message}".count("\nerror: ") == 1
    assert "Traceback" not in message
    for words in expected:
        assert words in message
    assert listing(folder) == before


ROWS = [*FILES, *MODELS, *DATASETS, *FLAGS, *CHECKPOINTS, *TRAINED]


@pytest.mark.parametrize(("argv", "spoil", "expected"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_bad_input_is_refused(argv, spoil, expected, folder, capsys):
    spoil(folder)
    before = listing(folder)
    status = main(argv)
    assert_refused(status, capsys.readouterr().err, expected, folder, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["typo far inside", "only broken files", "program in a checkpoint", "unknown flag"])
def test_bad_input_is_refused_by_a_real_process(name, folder):
    _, argv, spoil, expected = next(row for row in ROWS if row[0] == name)
    spoil(folder)
    before = listing(folder)
    done = subprocess.run([sys.executable, "-m", "stable_audio_tools", *argv], capture_output=True, text=True, timeout=120)
    assert_refused(done.returncode, done.stderr, expected, folder, before)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("what", ["config", "folder of sounds", "run folder"])
def test_permission_is_missing(what, folder, capsys):
    (folder / "sounds").mkdir()
    for name in "abcd":
        (folder / "sounds" / f"{name}.wav").write_bytes(hiss())
    (folder / "runs").mkdir()
    audio_dir("sounds")(folder)
    locked = folder / {"config": "model.json", "folder of sounds": "sounds", "run folder": "runs"}[what]
    locked.chmod(0o500 if what == "run folder" else 0)
    before = {p.name for p in folder.iterdir()}
    status = main([*TRAIN, "--dataset-config", "data.json"])
    locked.chmod(0o700)
    message = capsys.readouterr().err
    assert status == 2 and locked.name in message and "ermission" in message
    assert {p.name for p in folder.iterdir()} == before


def test_there_are_at_least_forty_rows_with_names_of_their_own():
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 40
