"""`export` as a user runs it, in process: what is written is the model that was trained, whatever its kind and the format."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools import get_pretrained_model
from stable_audio_tools.cli.main import main
from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_cond_inpaint, generate_diffusion_uncond
from stable_audio_tools.inference.reconstruction import reconstruct
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import load_weights
from stable_audio_tools.training.factory import create_training_wrapper_from_config


def arc():
    teacher = {"use_model_as_teacher": True, "teacher_model_ckpt": "teacher.safetensors"}
    heads = {"type": "conv", "weights": {"gen": 1.0, "dis": 1.0}, "config": {"dit_hidden_layer": 1}}
    return configs.text_to_audio(arc={**teacher, "discriminator_base_ckpt": "teacher.safetensors", "discriminator": heads})


KINDS = {
    "autoencoder": configs.autoencoder,
    "diffusion_cond": configs.text_to_audio,
    "diffusion_cond_inpaint": configs.inpainting,
    "diffusion_uncond": configs.unconditional,
    "diffusion_autoencoder": configs.diffusion_autoencoder,
    "lm": configs.language_model,
}
ALWAYS_AVERAGED = ("diffusion_uncond", "diffusion_autoencoder")


def config_of(kind, *, averaged=True):
    return KINDS[kind](**({} if kind in ALWAYS_AVERAGED else {"use_ema": averaged}))


def moved(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def trained(config):
    """A training whose averages differ from its online weights."""
    torch.manual_seed(0)
    wrapper = create_training_wrapper_from_config(config, create_model_from_config(config))
    moved(wrapper.model, 1)
    for average, _ in wrapper.averages().values():
        moved(average.ema_model, 2)
    return wrapper


def checkpoint(path, wrapper, **more):
    content = {"state_dict": wrapper.state_dict(), "pytorch-lightning_version": "2.6.0", "model_config": wrapper.model_config}
    torch.save(content | {"stable_audio_tools": {"train_step": 7}, "optimizer_states": [], "global_step": 14} | more, path)
    return str(path)


def outputs(model, kind):
    """What the model makes, the same every time."""
    model.eval()
    audio = torch.sin(torch.arange(2048) / 7)[None]
    match kind:
        case "autoencoder" | "diffusion_autoencoder":
            return reconstruct(model, (8000, audio), seed=0, **({"steps": 2} if kind == "diffusion_autoencoder" else {}))
        case "diffusion_uncond":
            return generate_diffusion_uncond(model, steps=2, sample_size=2048, seed=0)
        case "diffusion_cond":
            return generate_diffusion_cond(model, 2, 2.0, conditioning=[{"prompt": "a bell"}], sample_size=2048, seed=0)
        case "diffusion_cond_inpaint":
            more = {"inpaint_audio": (8000, audio), "regenerate_s": [(0.0, 0.1)]}
            return generate_diffusion_cond_inpaint(model, 2, 2.0, conditioning=[{"prompt": "a bell"}], sample_size=2048, seed=0, **more)
    codes = torch.arange(3 * 16).reshape(1, 3, 16) % 16
    with torch.no_grad():
        logits = model.compute_logits(codes, model.conditioner([{"prompt": "a bell"}], "cpu")).logits.nan_to_num()
        return torch.cat([logits.flatten(), model.pretransform.decode_tokens(codes).flatten()])


@pytest.fixture
def export(tmp_path, monkeypatch, capsys, caplog):
    """Runs the command in an empty folder; gives the status, the files written, and what was said beside."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def call(*arguments):
        status = main(["export", *arguments])
        out, err = capsys.readouterr()
        return status, [Path(line) for line in out.splitlines()], caplog.text + err

    return call


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# the same model


@pytest.mark.parametrize("weights", ["ema", "online"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_the_same_output_to_the_bit(export, kind, weights):
    wrapper = trained(config_of(kind))
    status, written, _ = export(checkpoint("step.ckpt", wrapper), "--out", "model.safetensors", "--weights", weights)
    assert status == 0 and written == [Path("model.safetensors")]
    model, config = get_pretrained_model("model.safetensors")
    assert config == wrapper.model_config
    wanted = outputs(wrapper.sampling_model if weights == "ema" else wrapper.model, kind)
    exact(outputs(model, kind), wanted)
    assert not torch.equal(wanted, outputs(wrapper.model if weights == "ema" else wrapper.sampling_model, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_averages_are_the_default_and_it_is_said(export, kind):
    wrapper = trained(config_of(kind))
    _, _, err = export(checkpoint("step.ckpt", wrapper), "--out", "model.safetensors")
    assert "averaged (EMA) weights" in err
    assert load_weights("model.safetensors").metadata.items() >= {"weights": "ema", "train_step": "7"}.items()
    exact(outputs(get_pretrained_model("model.safetensors")[0], kind), outputs(wrapper.sampling_model, kind))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ALWAYS_AVERAGED])
def test_a_training_without_averages_exports_its_online_weights(export, kind):
    wrapper = trained(config_of(kind, averaged=False))
    path = checkpoint("step.ckpt", wrapper)
    _, _, err = export(path, "--out", "model.safetensors")
    assert "online weights" in err
    exact(outputs(get_pretrained_model("model.safetensors")[0], kind), outputs(wrapper.model, kind))
    status, _, err = export(path, "--out", "other.safetensors", "--weights", "ema")
    assert status == 2 and "holds no averaged (EMA) weights" in err


PRECISE = {"fp16": 0.003, "bf16": 0.02}  # of the output's own deviation; measured: 0.0009 and 0.0071 at most


@pytest.mark.parametrize("precision", PRECISE)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_halves_the_file_and_stays_near(export, kind, precision):
    wrapper = trained(config_of(kind))
    path = checkpoint("step.ckpt", wrapper)
    export(path, "--out", "whole.safetensors")
    export(path, "--out", "half.safetensors", "--precision", precision)
    tensors = load_file("half.safetensors")
    halves = sum(t.numel() for t in tensors.values() if t.element_size() == 2)
    assert halves > 0.9 * sum(t.numel() for t in tensors.values() if t.is_floating_point())
    wanted, got = outputs(wrapper.sampling_model, kind), outputs(get_pretrained_model("half.safetensors")[0], kind)
    assert 0 < (got - wanted).square().mean().sqrt() < PRECISE[precision] * wanted.std()
