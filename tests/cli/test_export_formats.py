"""`export --format`: models in the layout of other programs, and what cannot be expressed there."""

import json
from pathlib import Path

import configs
import pytest
import torch
from trainings import checkpoint, config_of, trained

from stable_audio_tools import get_pretrained_model
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.models.utils import load_ckpt_state_dict


def shapes(recorded):
    return {key: shape for key, (shape, *_) in recorded.items()}


# other programs


REFERENCE = sorted(path.name.split(".")[0] for path in (Path(__file__).parents[1] / "reference").glob("tiny_*.statedict.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_the_peers_layout_has_its_keys_and_shapes(export, name):
    """Recorded from its own models, which load a file strictly."""
    folder = Path(__file__).parents[1] / "reference"
    config = json.loads((folder / f"{name}.json").read_text())
    save_model("model.safetensors", create_model_from_config(config), config)
    status, written, err = export("model.safetensors", "--format", "peer", "--out", "model.ckpt")
    assert (status, written) == (0, [Path("model.ckpt")]), err
    content = torch.load("model.ckpt", weights_only=True)
    recorded = json.loads((folder / f"{name}.statedict.json").read_text())
    assert content.keys() == {"state_dict", "model_config"}
    assert {key: list(value.shape) for key, value in content["state_dict"].items()} == shapes(recorded)
    assert load_ckpt_state_dict("model.ckpt").keys() == shapes(recorded).keys()
    assert get_pretrained_model("model.ckpt")[1] == content["model_config"] == config


def test_what_the_peer_cannot_express_is_named_with_its_place(export):
    config = configs.text_to_audio()
    config["model"]["diffusion"] |= {"prediction": "x0", "distribution_shift_options": {"type": "constant", "shift": 3.0}}
    save_model("model.safetensors", create_model_from_config(config), config)
    status, _, err = export("model.safetensors", "--format", "peer", "--out", "peer")
    assert status == 2 and "3 problems" in err and not Path("peer").exists()
    for place, reason in (
        ("model.conditioning.configs[0].type", 'no conditioner of this type (got "bytes")'),
        ("model.diffusion.prediction", "predict the velocity"),
        ("model.diffusion.distribution_shift_options.type", "by length alone"),
    ):
        assert place in err and reason in err
    assert "--format native keeps it" in err


def test_the_peers_config_has_no_name_for_its_only_shift(export):
    config = configs.text_to_audio()
    config["model"]["conditioning"]["configs"] = [{"id": "prompt", "type": "int", "config": {"min_val": 0, "max_val": 9}}]
    for given, written in (({"type": "length", "max_shift": 1.5}, {"max_shift": 1.5}), ({"type": "none"}, None)):
        config["model"]["diffusion"]["distribution_shift_options"] = given
        save_model("model.safetensors", create_model_from_config(config), config)
        assert export("model.safetensors", "--format", "peer", "--out", "peer", "--force")[0] == 0
        diffusion = json.loads(Path("peer/model_config.json").read_text())["model"]["diffusion"]
        assert diffusion.get("distribution_shift_options") == written


def test_keys_that_change_nothing_are_left_out_for_the_peer_and_those_that_do_are_refused(export):
    config = configs.unconditional()
    network = config["model"]["config"]
    network |= {"activation_checkpointing": "selective", "attn_kwargs": {"backend": "sdpa"}}
    save_model("model.safetensors", create_model_from_config(config), config)
    assert export("model.safetensors", "--format", "peer", "--out", "peer")[0] == 0
    written = json.loads(Path("peer/model_config.json").read_text())
    network["attn_kwargs"] = {}
    assert written["model"]["config"] == {
        key: network[key] for key in network.keys() - {"activation_checkpointing", "causal_cross_attention"}
    }
    assert written["training"] == config["training"]

    config = configs.language_model()
    config["model"]["conditioning"]["configs"] = [{"id": "prompt", "type": "int", "config": {"min_val": 0, "max_val": 9}}]
    save_model("model.safetensors", create_model_from_config(config), config)
    status, _, said = export("model.safetensors", "--format", "peer", "--out", "lm")
    assert status == 2 and "model.lm.config.causal_cross_attention" in said and "behave as if it were true (got false)" in said


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True], ids=["an autoencoder", "inside a diffusion model"])
def test_diffusers_decodes_the_same_audio(export, inside):
    diffusers = pytest.importorskip("diffusers")
    wrapper = trained(config_of("autoencoder"))
    autoencoder = wrapper.sampling_model.eval()
    path = checkpoint("step.ckpt", wrapper)
    if inside:
        config = configs.unconditional()
        config["model"]["pretransform"] = {"type": "autoencoder", "config": wrapper.model_config["model"]}
        config["model"]["config"]["in_channels"] = 4
        config["audio_channels"] = 2
        model = create_model_from_config(config)
        model.pretransform.model.load_state_dict(autoencoder.state_dict())
        path = "uncond.safetensors"
        save_model(path, model, config)
    status, written, err = export(path, "--format", "diffusers", "--out", "vae")
    assert (status, written) == (0, [Path("vae/diffusion_pytorch_model.safetensors"), Path("vae/config.json")]), err
    theirs, info = diffusers.AutoencoderOobleck.from_pretrained("vae", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    audio, latents = torch.randn(2, 2, 2048), torch.randn(2, 4, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode(latents).sample, autoencoder.decode(latents), rtol=1e-5, atol=1e-5)
        posterior = theirs.encode(audio).latent_dist
        torch.testing.assert_close(posterior.mode(), autoencoder.encode(audio, sample=False), rtol=1e-5, atol=1e-5)
    assert theirs.config.sampling_rate == 8000 and theirs.hop_length == 16


def test_the_card_of_an_autoencoder_from_inside_is_about_it_alone(export):
    config = configs.unconditional()
    config["model"]["pretransform"] = {"type": "autoencoder", "config": config_of("autoencoder")["model"]}
    config["model"]["config"]["in_channels"] = 4
    config["audio_channels"] = 2
    model = create_model_from_config(config)
    save_model("uncond.safetensors", model, config, {"train_step": "7"})
    assert export("uncond.safetensors", "--format", "diffusers", "--out", "vae", "--card")[0] == 0
    card = Path("vae/README.md").read_text()
    count = sum(parameter.numel() for parameter in model.pretransform.parameters())
    assert "| Model type | autoencoder |" in card and f"| Parameters | {count:,} |" in card and "Train steps" not in card


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        ({"decoder.config.final_tanh": True}, "model.decoder.config.final_tanh", "can only have False here"),
        ({"encoder.config.channels": 6}, "model.encoder.config.latent_dim", "can only have 6 here, the encoder's channels"),
        ({"decoder.config.c_mults": [1, 4]}, "model.decoder.config.c_mults", "can only have [1, 2] here, as the encoder"),
        ({"bottleneck": None, "encoder.config.latent_dim": 4}, "model.bottleneck", "has a vae bottleneck, the model none"),
        ({"decoder.config.use_snake": False}, "model.decoder.config.use_snake", "can only have True here"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("model.") else "",
)
def test_autoencoders_that_diffusers_does_not_have_are_refused(export, change, place, reason):
    config = configs.autoencoder()
    for path, value in change.items():
        *parents, last = path.split(".")
        section = config["model"]
        for key in parents:
            section = section[key]
        section[last] = value
    save_model("model.safetensors", create_model_from_config(config), config)
    status, _, err = export("model.safetensors", "--format", "diffusers", "--out", "vae")
    assert status == 2 and place in err and reason in err and "--format native or peer" in err and not Path("vae").exists()


def test_a_model_without_an_autoencoder_has_nothing_for_diffusers(export):
    save_model("model.safetensors", create_model_from_config(configs.text_to_audio()), configs.text_to_audio())
    status, _, err = export("model.safetensors", "--format", "diffusers", "--out", "vae")
    assert status == 2 and "'diffusion_cond' and has no autoencoder inside" in err
