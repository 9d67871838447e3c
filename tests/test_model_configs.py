"""The configs in `model_configs/`: each is good, is what docs/models.md says, and has a nano sibling that really trains.

Also what configs made for the peer may carry that has no effect: it is accepted, so that they work as they are.
"""

import hashlib
import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from stable_audio_tools import get_pretrained_model
from stable_audio_tools.cli.check import check_file
from stable_audio_tools.cli.main import main
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training.config import parse_run_config

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "model_configs"
DOCUMENTS = {str(path.relative_to(FOLDER).with_suffix("")): json.loads(path.read_text()) for path in sorted(FOLDER.rglob("*.json"))}
MODELS = {name: document for name, document in DOCUMENTS.items() if "model_type" in document}
NANOS = [name for name in MODELS if name.endswith("_nano")]
# The quickstart and the small autoencoder are themselves made for a CPU.
FULL = [name for name in MODELS if name not in NANOS and name.split("/")[-1] not in ("text_to_audio", "oobleck_vae_16k_mono_small")]
TOP_LEVEL = ["model_type", "sample_rate", "sample_size", "audio_channels", "model", "training"]
TEXT_ENCODERS = ("t5", "clap_text", "bytes")  # nano configs have the last, which needs no download


def load(name):
    return deepcopy(MODELS[name])


# what is shipped


def documented(facts):
    """The figures of a config's row in docs/models.md."""
    count, size, rate = sum(facts["parameters"].values()), facts["sample_size"], facts["sample_rate"]
    channels = facts["latent_shape"][0]
    what = f"{channels} codebooks" if "codebook_size" in facts else f"{channels} channels"
    ratio = facts["downsampling_ratio"]
    latents = f"{what}, {facts['frame_rate']:.1f} Hz" if ratio > 1 else "audio itself"
    heard = "mono" if facts["audio_channels"] == 1 else "stereo"
    return f"| {count / 1e6:.4g} M | {latents} | {size / rate:.1f} s {heard}, {rate / 1000:g} kHz |"


@pytest.mark.parametrize("name", FULL)
def test_a_config_is_good_and_documented_as_it_is(name):
    assert list(MODELS[name]) == TOP_LEVEL
    checked = check_file(str(FOLDER / f"{name}.json"))
    assert checked.error is None
    (row,) = [
        line for line in (ROOT / "docs" / "models.md").read_text().splitlines() if f"({name}.json)" in line.replace("../model_configs/", "")
    ]
    assert documented(checked.facts) in row


def words(value, path=()):
    """Where a document has which word: types, ids, names. Text encoders count as one, and their settings as nothing."""
    if isinstance(value, dict):
        text = value.get("type") in TEXT_ENCODERS
        items = {**value, "type": "text", "config": {}} if text else value
        return {place: word for key, item in items.items() for place, word in words(item, (*path, key)).items()}
    if isinstance(value, list):
        return {place: word for index, item in enumerate(value) for place, word in words(item, (*path, index)).items()}
    return {path: value} if isinstance(value, str) else {}


@pytest.mark.parametrize("name", FULL)
@pytest.mark.slow
def test_its_nano_sibling_is_the_same_model_with_small_numbers(name):
    full, nano = load(name), load(f"{name}_nano")
    assert list(nano) == TOP_LEVEL and nano["model_type"] == full["model_type"]
    assert words(nano["model"]) == words(full["model"])
    with torch.device("meta"):
        model = create_model_from_config(nano)
    assert sum(p.numel() for p in model.parameters()) < 200_000
    assert nano["sample_size"] / nano["sample_rate"] < 20


def test_every_nano_config_is_a_sibling():
    assert {f"{name}_nano" for name in FULL} == set(NANOS)


LAYOUTS = {
    "autoencoder/dac_44k_vae": (240, "c1b7dc15a99230e3"),
    "autoencoder/dac_44k_rvq": (303, "5f294baa4b0dcdde"),
    "autoencoder/stable_audio_2_0_vae": (365, "5036a6cb030d2d19"),
    "autoencoder/encodec_32k_rvq": (140, "369f78264680623f"),
    "autoencoder/stable_audio_1_0_vae": (240, "608a52dcaa93809e"),
    "text_to_audio/stable_audio_1_0": (1048, "ba3b486ebddf12fe"),
    "unconditional/dance_diffusion_16k": (932, "39d7f24446a027d4"),
    "unconditional/dance_diffusion_44k": (932, "39d7f24446a027d4"),
    "unconditional/dance_diffusion_48k": (932, "39d7f24446a027d4"),
}
"""Number of entries and a digest of the `state_dict` that the peer's model of the same config has: its keys, sorted, with their
shapes."""


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.slow
def test_published_weights_have_a_place(name):
    with torch.device("meta"):
        state = create_model_from_config(load(name)).state_dict()
    lines = "\n".join(f"{key} {list(state[key].shape)}" for key in sorted(state))
    assert (len(state), hashlib.sha256(lines.encode()).hexdigest()[:16]) == LAYOUTS[name]


# what trains

SOUNDS = {"dataset_type": "synthetic", "num_items": 8, "instruments": ["bell", "noise"], "notes": "A4-B4", "hold_out": 0.3}


def train(name, folder, *argv):
    """Two steps through the command; the run's folder."""
    data, run = folder / "data.json", folder / name.split("/")[1]
    data.write_text(json.dumps(SOUNDS))
    where = ["--model-config", str(FOLDER / f"{name}.json"), "--dataset-config", str(data), "--save-dir", str(folder)]
    how = ["--max-steps", "2", "--batch-size", "2", "--num-workers", "0", "--logger", "csv", "--accelerator", "cpu", "--log-every", "1"]
    assert main(["train", *where, *how, *argv]) == 0
    return run


def exported(run):
    return str(run / "exports" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", NANOS)
def test_a_nano_config_trains_makes_demos_and_reloads(name, tmp_path):
    run = train(name, tmp_path)
    rows = (run / "metrics.csv").read_text().splitlines()
    assert "train/loss" in rows[0].split(",") and len(rows) >= 3
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    demos = {folder.name for folder in (run / "demos").iterdir() if [*folder.glob("*.wav")]}
    assert demos == {"step_00000000", "step_00000002"}
    log = (run / "train.log").read_text()
    assert "Traceback" not in log and "WARNING" not in log

    model, config = get_pretrained_model(run)
    assert config == MODELS[name]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
def test_one_model_starts_from_another_as_the_docs_say(tmp_path):
    vae = train("autoencoder/stable_audio_2_0_vae_nano", tmp_path)
    small = train("text_to_audio/stable_audio_open_small_nano", tmp_path, "--pretransform-ckpt-path", exported(vae))
    arc = train("arc/stable_audio_open_small_arc_nano", tmp_path, "--pretrained-ckpt-path", exported(small))
    base = train("text_to_audio/stable_audio_open_1_0_nano", tmp_path, "--pretransform-ckpt-path", exported(vae))
    inpaint = train("inpainting/stable_audio_open_1_0_inpaint_nano", tmp_path, "--pretrained-ckpt-path", exported(base), "--allow-partial")

    codec = get_pretrained_model(vae)[0].state_dict()
    for run in (small, arc, base, inpaint):
        frozen = get_pretrained_model(run)[0].pretransform.model.state_dict()
        assert all(torch.equal(frozen[key], value) for key, value in codec.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder/encodec_32k_rvq_nano", "autoencoder/dac_44k_rvq_nano"])
def test_a_codec_can_be_planned_although_its_codebooks_start_from_data(name, capsys):
    assert main(["plan", str(FOLDER / f"{name}.json")]) == 0
    assert "activations" in capsys.readouterr().out


# what published configs carry besides

BOTH_RATES = {
    "learning_rate": 1e-4,
    "optimizer_configs": {
        player: {"optimizer": {"type": "AdamW", "config": {"lr": 3e-5}}, "scheduler": {"type": "ExponentialLR", "config": {"gamma": 0.9}}}
        for player in ("autoencoder", "discriminator")
    },
}
CARRIED = {
    "losses by a type that nothing reads": ("autoencoder/stable_audio_1_0_vae_nano", "training.loss_configs.spectral", {"type": "mrstft"}),
    "a time loss of no weight": (
        "autoencoder/stable_audio_1_0_vae_nano",
        "training.loss_configs",
        {"time": {"type": "l1", "config": {}, "weights": {"l1": 0.0}}, "bottleneck": {"type": "kl", "weights": {"kl": 1e-6}}},
    ),
    "a learning rate beside optimizers": ("autoencoder/stable_audio_1_0_vae_nano", "training", BOTH_RATES),
    "the name of the only transformer": (
        "text_to_audio/stable_audio_2_0_nano",
        "model.diffusion.config",
        {"transformer_type": "continuous_transformer"},
    ),
    "defaults of the U-Net": (
        "text_to_audio/stable_audio_1_0_nano",
        "model.diffusion.config",
        {"use_nearest_upsample": False, "use_skip_scale": True, "use_context_time": True, "kernel_multiplier_downsample": 2},
    ),
    "demos counted twice": ("text_to_audio/stable_audio_2_0_nano", "training.demo", {"num_demos": 2, "demo_cond_from_batch": False}),
    "what is switched off": (
        "text_to_audio/stable_audio_2_0_nano",
        "training",
        {"log_loss_info": False, "pre_encoded": False, "mask_padding": False, "inpainting": None},
    ),
    "displays that are switched off": (
        "text_to_audio/stable_audio_2_0_nano",
        "training.demo",
        {"display_audio_cond": False, "cond_display_configs": None},
    ),
    "no teacher": ("autoencoder/stable_audio_2_0_vae_nano", "training", {"teacher_model": None, "eval_loss_configs": None}),
    "many steps of a demo": ("unconditional/dance_diffusion_16k_nano", "training.demo", {"demo_every": 2000, "demo_steps": 250}),
}


def changed(name, path, change):
    document = load(name)
    place = document
    for key in path.split("."):
        place = place[key]
    place.update(deepcopy(change))
    return document


@pytest.mark.parametrize("name, path, change", CARRIED.values(), ids=CARRIED)
@pytest.mark.slow
def test_what_published_configs_carry_is_accepted(name, path, change):
    plain, carrying = parse_run_config(load(name)), parse_run_config(changed(name, path, change))
    shapes = []
    for config in (plain, carrying):
        with torch.device("meta"):
            shapes.append({key: value.shape for key, value in config.build().state_dict().items()})
    assert shapes[0] == shapes[1]


def test_optimizers_win_over_the_learning_rate_beside_them():
    training = parse_run_config(changed("autoencoder/stable_audio_1_0_vae_nano", "training", BOTH_RATES)).training
    assert {group.optimizer.config["lr"] for group in training.optimizer_configs.values()} == {3e-5}


def test_audio_channels_may_be_left_out_where_they_are_two():
    document = load("unconditional/dance_diffusion_16k_nano")
    del document["audio_channels"]
    assert parse_run_config(document).audio_channels == 2
