"""`export` as a user runs it: what is written is the model that was trained, whatever its kind, and is read everywhere."""

import json
from pathlib import Path

import configs
import pytest
import torch
from safetensors.torch import load_file
from trainings import ALWAYS_AVERAGED, KINDS, checkpoint, config_of, exact, outputs, trained

from stable_audio_tools import get_pretrained_model
from stable_audio_tools.cli.main import main
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import load_weights, save_model
from stable_audio_tools.training.start import StartingWeights

# the same model


@pytest.mark.parametrize("weights", ["ema", pytest.param("online", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_every_kind_of_model_gives_the_same_output_to_the_bit(export, kind, weights):
    """Averages are the default, and which weights it was is said."""
    wrapper = trained(config_of(kind))
    asked = () if weights == "ema" else ("--weights", weights)
    status, written, said = export(checkpoint("step.ckpt", wrapper), "--out", "model.safetensors", *asked)
    assert status == 0 and written == [Path("model.safetensors")]
    assert {"ema": "exported averaged (EMA) weights", "online": "exported online weights"}[weights] in said
    assert load_weights("model.safetensors").metadata.items() >= {"weights": weights, "train_step": "7"}.items()
    model, config = get_pretrained_model("model.safetensors")
    assert config == wrapper.model_config
    chosen, other = (wrapper.sampling_model, wrapper.model) if weights == "ema" else (wrapper.model, wrapper.sampling_model)
    exact(outputs(model, kind), wanted := outputs(chosen, kind))
    assert not torch.equal(wanted, outputs(other, kind))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("kind", ["autoencoder", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lm", "diffusion_autoencoder"))])
def test_folded_weight_norm_gives_the_same_output(export, kind):
    wrapper = trained(config_of(kind))
    export(checkpoint("step.ckpt", wrapper), "--out", "folded.safetensors", "--fold-weight-norm")
    assert not [key for key in load_file("folded.safetensors") if key.endswith(("weight_g", "weight_v"))]
    wanted = outputs(wrapper.sampling_model, kind)
    torch.testing.assert_close(outputs(get_pretrained_model("folded.safetensors")[0], kind), wanted, rtol=1e-5, atol=1e-5)
    assert [key for key in wrapper.sampling_model.state_dict() if key.endswith("weight_g")]


def test_frequencies_and_buffers_stay_exact_in_half_precision(export):
    export(checkpoint("step.ckpt", trained(config_of("diffusion_cond"))), "--out", "half.safetensors", "--precision", "bf16")
    kept = {key for key, tensor in load_file("half.safetensors").items() if tensor.dtype == torch.float32 and tensor.any()}
    assert kept == {"model.model.timestep_features.weight", "model.model.transformer.rotary_pos_emb.inv_freq"}


def test_weights_beyond_float16_are_refused(export):
    wrapper = trained(config_of("diffusion_uncond"))
    with torch.no_grad():
        next(wrapper.diffusion_ema.ema_model.parameters()).view(-1)[0] = 1.0
        wrapper.diffusion_ema.ema_model.model.to_timestep_embed[0].bias[0] = 1e5
    path = checkpoint("step.ckpt", wrapper)
    status, _, err = export(path, "--out", "half", "--precision", "fp16")
    assert status == 2 and "beyond 65,504, the largest of fp16" in err and "export it as bf16" in err and not Path("half").exists()
    assert export(path, "--out", "half", "--precision", "bf16")[0] == 0


def test_what_belongs_to_training_alone_is_left_out(export):
    """An adversarial training's discriminator, upstream's second copy of online weights, a strategy's and a teacher's weights."""
    wrapper = trained(config_of("autoencoder"))
    state = wrapper.state_dict()
    state |= {f"autoencoder_ema.online_model.{key}": torch.zeros_like(value) for key, value in wrapper.model.state_dict().items()}
    state |= {"teacher_model.encoder.weight": torch.ones(2), "losses_gen.losses.0.window": torch.ones(3)}
    assert any("discriminator" in key for key in state)
    export(checkpoint("step.ckpt", wrapper, state_dict=state), "--out", "model.safetensors")
    assert load_file("model.safetensors").keys() == wrapper.model.state_dict().keys()
    exact(outputs(get_pretrained_model("model.safetensors")[0], "autoencoder"), outputs(wrapper.sampling_model, "autoencoder"))


def test_arc_exports_the_student_alone(export):
    config = configs.text_to_audio()
    optimizer = {"optimizer": {"type": "AdamW", "config": {"lr": 1e-3}}}
    config["training"] = {
        "optimizer_configs": {"diffusion": optimizer, "discriminator": optimizer},
        "demo": config["training"]["demo"],
        "arc": {"use_model_as_discriminator": True, "discriminator": {"dit_hidden_layer": 0, "type": "conv"}},
    }
    wrapper = trained(config)
    assert any(key.startswith("strategy.") for key in wrapper.state_dict())
    export(checkpoint("step.ckpt", wrapper), "--out", "student")
    assert load_file("student/model.safetensors").keys() == wrapper.model.state_dict().keys()
    exact(outputs(get_pretrained_model("student")[0], "diffusion_cond"), outputs(wrapper.sampling_model, "diffusion_cond"))


def test_adapters_are_merged_with_their_strength(export):
    wrapper = trained(config_of("diffusion_cond"))
    key = "model.model.transformer.layers.0.self_attn.to_qkv"
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    lora = {f"base_model.model.{key}.lora_A.weight": down, f"base_model.model.{key}.lora_B.weight": up}
    save_model("lora.safetensors", lora, {}, {"adapter_config": json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4})})
    export(checkpoint("step.ckpt", wrapper), "--out", "merged.safetensors", "--adapter", "lora.safetensors:0.5")
    want = wrapper.sampling_model.state_dict()
    got = load_weights("merged.safetensors")
    torch.testing.assert_close(got.state_dict[f"{key}.weight"], want[f"{key}.weight"] + 0.5 * 2 * up @ down)
    assert all(torch.equal(got.state_dict[name], want[name]) for name in want if name != f"{key}.weight")
    assert json.loads(got.metadata["adapters"]) == ["lora.safetensors:0.5"]


def test_an_export_is_exported_again_to_half_precision(export):
    wrapper = trained(config_of("diffusion_uncond"))
    export(checkpoint("step.ckpt", wrapper), "--out", "whole")
    assert export("whole", "--out", "half", "--precision", "fp16")[0] == 0
    assert load_weights("half/model.safetensors").metadata["train_step"] == "7"
    assert json.loads(Path("half/model_config.json").read_text()) == wrapper.model_config


@pytest.mark.parametrize(
    "kind", ["diffusion_cond", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "diffusion_cond")]
)
def test_a_wrappers_own_export_leaves_it_as_it_was(tmp_path, kind):
    wrapper = trained(config_of(kind))
    before = {name: value.clone() for name, value in wrapper.state_dict().items() if isinstance(value, torch.Tensor)}
    online, wanted = wrapper.model, outputs(wrapper.sampling_model, kind)
    wrapper.export_model(tmp_path / "model.ckpt")
    wrapper.export_model(tmp_path / "model.safetensors", use_safetensors=True)
    assert wrapper.model is online and wrapper.state_dict().keys() >= before.keys()
    for name, value in before.items():
        exact(wrapper.state_dict()[name], value)
    for name in ("model.ckpt", "model.safetensors"):
        exact(outputs(get_pretrained_model(tmp_path / name)[0], kind), wanted)


def test_weights_that_share_memory_are_written_out(export):
    """Upstream's export gives up on them."""
    wrapper = trained(config_of("diffusion_cond"))
    state = wrapper.state_dict()
    first, second = (f"model.transformer.layers.{index}.ff_norm.gamma" for index in (0, 1))
    state[f"diffusion_ema.ema_model.{second}"] = state[f"diffusion_ema.ema_model.{first}"]
    assert export(checkpoint("step.ckpt", wrapper, state_dict=state), "--out", "model.safetensors")[0] == 0
    written = load_file("model.safetensors")
    exact(written[f"model.{first}"], written[f"model.{second}"])


# readers


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--precision", "fp16"), ("--format", "peer")], ids=" ".join)
@pytest.mark.parametrize("out", ["model.safetensors", "folder"])
def test_everything_that_is_written_is_read_by_generate_and_by_training(export, out, more, capsys):
    config = configs.text_to_audio()
    config["model"]["conditioning"]["configs"] = [{"id": "prompt", "type": "int", "config": {"min_val": 0, "max_val": 9}}]
    wrapper = trained(config)
    _, written, _ = export(checkpoint("step.ckpt", wrapper), "--out", out, *more)
    assert get_pretrained_model(out)[1] == config
    assert main(["generate", "--model", out, "--cond", "prompt=3", "--steps", "1", "--seed", "0", "--out", "clip.wav"]) == 0
    fresh = create_model_from_config(config)
    StartingWeights(pretrained=(str(written[0]),)).load_into(fresh)
    bound = 0 if more != ("--precision", "fp16") else 1e-3
    for key, value in wrapper.sampling_model.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[key], value, rtol=bound, atol=bound)
