"""Every kind of denoising on its host: runs, resumption, validation, averages, checkpoints, demos and exports."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_host import Recorder, Repeat, fit, loader, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools import get_pretrained_model
from stable_audio_tools.inference.generation import generate_diffusion_cond_inpaint, generate_diffusion_uncond
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import load_into, load_weights
from stable_audio_tools.training import create_demo_callback_from_config, diffusion
from stable_audio_tools.training.checkpoints import RunCheckpoint
from stable_audio_tools.training.factory import create_training_wrapper_from_config

KINDS = {"uncond": configs.unconditional, "inpaint": configs.inpainting, "diffae": configs.diffusion_autoencoder}
CLASSES = {
    "uncond": (diffusion.DiffusionUncondTrainingWrapper, diffusion.DiffusionUncondDemoCallback),
    "inpaint": (diffusion.DiffusionCondTrainingWrapper, diffusion.DiffusionCondInpaintDemoCallback),
    "diffae": (diffusion.DiffusionAutoencoderTrainingWrapper, diffusion.DiffusionAutoencoderDemoCallback),
}
TRAIN = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py")]


def drawing(config):
    """With a pretransform whose encoder draws its latents at random."""
    body = configs.autoencoder()["model"]
    for part, key in (("encoder", "in_channels"), ("decoder", "out_channels")):
        body[part]["config"][key] = 1
    body["io_channels"] = 1
    config["model"]["pretransform"] = {"type": "autoencoder", "config": body}
    model = config["model"]
    if config["model_type"] == "diffusion_uncond":
        model["config"]["in_channels"] = 4
    elif config["model_type"] == "diffusion_cond_inpaint":
        model["io_channels"] = model["diffusion"]["config"]["io_channels"] = 4
        model["diffusion"]["config"]["input_concat_dim"] = 5
    else:
        model["encoder"]["config"]["in_channels"] = 4
    return config


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_loss_goes_down_on_one_batch(kind):
    config, recorder = KINDS[kind](learning_rate=3e-3), Recorder()
    fit(wrapper(config), Repeat(next(iter(loader(config)))), 40, recorder)
    values = [float.fromhex(record["train/loss"]) for record in recorder.losses]
    assert sum(values[-10:]) < 0.8 * sum(values[:10])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(kind, tmp_path):
    config = drawing(KINDS[kind](p_one_shot=0.2))
    straight, first, second = Recorder(), Recorder(), Recorder()
    whole = wrapper(config)
    fit(whole, loader(config), 7, straight)
    fit(wrapper(config), loader(config), 3, first, RunCheckpoint(tmp_path, every=0, keep=1))
    resumed = wrapper(config, seed=9)
    fit(resumed, loader(config), 7, second, ckpt_path=tmp_path / "last.ckpt")
    assert first.losses + second.losses == straight.losses
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_the_same_twice_and_draws_nothing_of_training(kind):
    """With an inpainting model, the peer's stops here: nobody made its mask."""
    config = drawing(KINDS[kind]())
    module = wrapper(config)
    trainer = fit(module, loader(config), 1)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        batches = [next(iter(loader(config)))]
        trainer.validate(module, Repeat(batches[0]), verbose=False)
        assert torch.equal(torch.get_rng_state(), state)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")})
    assert found[0] == found[1] and {"val/loss", "val/loss_t_0.1", "val/loss_t_0.9"} <= set(found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_of_the_averaged_weights(kind):
    config = KINDS[kind]()
    module = wrapper(config)
    trainer = fit(module, loader(config), 1)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.fill_(float("nan"))
    trainer.validate(module, Repeat(next(iter(loader(config)))), verbose=False)
    assert trainer.callback_metrics["val/loss"].isfinite()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_padding_counts_in_validation_unless_it_is_masked(kind):
    """Noise in the padding of latents, which no model foresees, moves the loss only where it counts."""
    losses = {}
    for masked in (False, True):
        config = KINDS[kind](mask_padding=masked)
        module = wrapper(config)
        trainer = fit(module, loader(config), 1)
        audio, _ = next(iter(loader(config)))
        audio = torch.cat((audio[..., :1024], 5 * torch.randn_like(audio[..., 1024:])), -1)
        metadata = tuple({"prompt": "a bell", "padding_mask": [torch.arange(2048) < 1024]} for _ in audio)
        trainer.validate(module, Repeat((audio, metadata)), verbose=False)
        losses[masked] = float(trainer.callback_metrics["val/loss"])
    assert losses[False] > 3 * losses[True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_checkpoints_have_the_published_names_and_load_as_a_model(kind, tmp_path):
    config = KINDS[kind]()
    module = wrapper(config)
    fit(module, loader(config), 3, RunCheckpoint(tmp_path, every=0, keep=1))
    part = {"uncond": "diffusion", "inpaint": "diffusion", "diffae": "diffae"}[kind]
    keys = [key for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)]
    averages = [key for key in keys if key.startswith(f"{part}_ema.ema_model.")]
    averaged = module.model if kind == "diffae" else module.model.model
    assert [key.removeprefix(f"{part}_ema.ema_model.") for key in averages] == list(averaged.state_dict())
    assert not any("online_model" in key for key in keys)  # the online weights are there once
    for average in (False, True):
        loaded = create_model_from_config(config)
        load_into(loaded, load_weights(tmp_path / "last.ckpt", average=average))
        wanted = (module.sampling_model if average else module.model).state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_without_averages_the_model_itself_is_shown(kind):
    config = KINDS[kind](use_ema=False)
    module = wrapper(config)
    assert module.sampling_model is module.model and not module.averages()
    fit(module, loader(config), 1)
    assert not any("_ema." in key for key in module.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_the_factories_take_plain_dicts_and_leave_them_as_they_were(kind):
    config = KINDS[kind]()
    before = copy.deepcopy(config)
    module = create_training_wrapper_from_config(config, create_model_from_config(config))
    demos = create_demo_callback_from_config(config, demo_dl=loader(config))
    assert (type(module), type(demos)) == CLASSES[kind]
    assert config == before == module.model_config


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_demos_neither_move_the_random_numbers_of_training_nor_differ_for_the_same_weights(kind, tmp_path):
    config = drawing(KINDS[kind]())
    config["training"]["demo"]["demo_every"] = 1
    plain, with_demos = Recorder(), Recorder()
    fit(wrapper(config), loader(config), 2, plain)
    module = wrapper(config)
    demos = create_demo_callback_from_config(config, demo_dl=loader(config), folder=tmp_path)
    fit(module, loader(config), 2, with_demos, demos)
    assert plain.losses == with_demos.losses
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}" for step in range(3)]
    folder = tmp_path / "step_00000002"
    entries = json.loads((folder / "demos.json").read_text())
    assert entries and all((folder / entry["audio"]).stat().st_size > 1000 and (folder / entry["image"]).exists() for entry in entries)
    module.eval()
    with torch.no_grad():
        first, second = demos.render(module), demos.render(module)
    if kind != "diffae":  # which draws in its pretransform; `show` starts the generators anew
        assert all(torch.equal(a.audio, b.audio) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_demos_are_of_the_averaged_weights(kind):
    """The inpainting demos of the peer show the online weights."""
    config = KINDS[kind]()
    module = wrapper(config)
    demos = create_demo_callback_from_config(config, demo_dl=loader(config))
    with torch.no_grad():
        for parameter in (module.diffae if kind == "diffae" else module.diffusion.model).parameters():
            parameter.fill_(float("nan"))
        assert all(demo.audio.isfinite().all() for demo in demos.render(module.eval()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_half_precision(kind):
    config = KINDS[kind]()
    module = wrapper(config)
    fit(module, loader(config), 1, precision="bf16-mixed")
    module = wrapper(config).bfloat16().eval()
    demos = create_demo_callback_from_config(config, demo_dl=loader(config))
    with torch.no_grad():
        assert all(demo.audio.shape == (1, 2048) and demo.audio.isfinite().all() for demo in demos.render(module))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_weights_that_load_and_generate_demos_and_metrics(kind, tmp_path):
    demo = {"demo_every": 2, "demo_steps": 2} | ({"max_demos": 1} if kind == "diffae" else {"num_demos": 1})
    (tmp_path / "model.json").write_text(json.dumps(KINDS[kind](demo=demo)))
    options = ["--max-steps", "2", "--name", "run", "--num-workers", "0", "--logger", "csv", "--log-every", "1", "--val-every", "2"]
    command = [*TRAIN, "--model-config", "model.json", "--save-dir", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert "the demo at step" not in (run / "train.log").read_text()
    assert [path.name for path in sorted((run / "demos").iterdir())] == ["step_00000000", "step_00000002"]
    assert all(list(folder.glob("*.wav")) and list(folder.glob("*.png")) for folder in (run / "demos").iterdir())
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/loss"} <= set(header)

    model, config = get_pretrained_model(run)
    assert config["model_type"] == KINDS[kind]()["model_type"]
    if kind == "uncond":
        audio = generate_diffusion_uncond(model, steps=2)
    elif kind == "inpaint":
        given = (8000, torch.zeros(1, 2048))
        audio = generate_diffusion_cond_inpaint(
            model, 2, conditioning=[{"prompt": "a bell"}], sample_size=2048, inpaint_audio=given, regenerate_s=[(0.1, 0.2)]
        )
    else:
        audio = model.decode(model.encode(torch.zeros(1, 1, 2048)), steps=2)
    assert audio.shape == (1, 1, 2048) and audio.isfinite().all()
