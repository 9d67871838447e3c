"""Options of autoencoder training: warm-up and its modes, an encoder that is done, masked latents, mono, and the seed's own examples."""

import sys
from pathlib import Path

import pytest
import torch
from test_adversarial_training import BOTTLENECK_CONFIGS
from test_host import Recorder, Repeat, fit, loader, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.inference.generation import evaluation_mode, isolated_generators
from stable_audio_tools.training.config import parse_run_config


def without_discriminator(**training):
    config = configs.autoencoder(**training)
    del config["training"]["loss_configs"]["discriminator"]
    return config


@pytest.mark.parametrize("adversarial", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "adversarial"])
@pytest.mark.slow
def test_loss_goes_down_on_one_batch_in_twenty_steps(adversarial):
    config = (configs.autoencoder if adversarial else without_discriminator)(learning_rate=3e-3)
    recorder = Recorder()
    fit(wrapper(config), Repeat(next(iter(loader(config)))), 20, recorder)
    values = [float.fromhex(row["train/loss_mrstft"]) for row in recorder.losses if "train/loss_mrstft" in row]
    assert len(values) == (10 if adversarial else 20)
    assert sum(values[-3:]) < 0.95 * sum(values[:3])


@pytest.mark.parametrize(
    ("mode", "warmup_steps", "turns", "adversarial"),
    [
        ("adv", 3, "adadad", "....x."),
        ("full", 3, "aaadad", "....x."),
        ("adv", 0, "adadad", "x.x.x."),
    ],
)
@pytest.mark.slow
def test_who_moves_and_which_terms_count_while_warming_up(mode, warmup_steps, turns, adversarial):
    config = configs.autoencoder(warmup_mode=mode, warmup_steps=warmup_steps)
    module = wrapper(config)
    audio = next(iter(loader(config)))[0]
    updates = [update for step in range(6) for update in module.strategy.updates(module.model, audio, step)]
    assert "".join(update.player[0] for update in updates) == turns
    assert "".join("x" if "loss_adversarial" in update.output.logs else "." for update in updates) == adversarial
    assert all(("loss_feature_matching" in u.output.logs) == ("loss_adversarial" in u.output.logs) for u in updates)


def latents_of(model, audio):
    """As inference makes them."""
    with torch.no_grad(), evaluation_mode(model), isolated_generators(torch.device("cpu"), derive_seed(0)):
        return model.encode(audio)


@pytest.mark.parametrize(
    "bottleneck", [name if name == "rvq" else pytest.param(name, marks=pytest.mark.slow) for name in BOTTLENECK_CONFIGS]
)
def test_after_warm_up_a_frozen_encoder_keeps_its_latents_and_the_decoder_goes_on(bottleneck):
    """Codebooks and gains in front of the decoder are kept too: latents that were stored stay what the decoder knows."""
    config = configs.autoencoder(warmup_steps=2, encoder_freeze_on_warmup=True, learning_rate=1e-2)
    config["model"]["bottleneck"] = BOTTLENECK_CONFIGS[bottleneck]
    config["model"]["encoder"]["config"]["latent_dim"] = 8 if "vae" in bottleneck else 4
    del config["training"]["loss_configs"]["bottleneck"], config["training"]["loss_configs"]["discriminator"]
    module, batches = wrapper(config), loader(config)
    audio = next(iter(batches))[0]
    fresh = latents_of(module.model, audio)
    fit(module, batches, 2)
    warm, decoder = latents_of(module.model, audio), [p.clone() for p in module.model.decoder.parameters()]
    assert not torch.equal(fresh, warm)
    fit(module, batches, 5)
    assert torch.equal(latents_of(module.model, audio), warm)
    assert any(not torch.equal(a, b) for a, b in zip(decoder, module.model.decoder.parameters(), strict=True))


def test_a_frozen_encoder_is_decoded_in_training_mode_and_gets_no_gradient():
    config = without_discriminator(encoder_freeze_on_warmup=True)
    module = wrapper(config).train()
    (update,) = module.strategy.updates(module.model, next(iter(loader(config)))[0], 0)
    update.output.loss.backward()
    assert all(p.grad is None for p in module.model.encoder.parameters())
    assert all(p.grad is not None for p in module.model.decoder.parameters() if p.requires_grad)
    assert all(part.training for part in module.model.modules())


def test_a_share_of_the_latents_is_masked_in_training_and_none_elsewhere():
    module = wrapper(without_discriminator(latent_mask_ratio=0.25)).train()
    audio = 0.1 * torch.randn(8, 2, 2048)
    found = module.strategy.reconstruct(module.model, audio)
    masked = found.kept == 0
    assert 0.15 < masked.float().mean() < 0.35
    assert torch.equal(found.kept[~masked], found.latents[~masked]) and not (found.latents == 0).any()
    module.eval()
    found = module.strategy.reconstruct(module.model, audio)
    assert torch.equal(found.kept, found.latents)


def test_forced_mono_is_heard_and_the_channels_are_still_compared():
    module = wrapper(without_discriminator(force_input_mono=True)).eval()
    audio = 0.1 * torch.randn(2, 2, 2048)
    heard = []
    module.model.encoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    found = module.strategy.reconstruct(module.model, audio)
    assert torch.equal(found.audio, audio)
    assert torch.equal(heard[0][:, 0], heard[0][:, 1])
    torch.testing.assert_close(heard[0][:, 0], audio.mean(1))


def problems(config):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config)
    return {entry["path"]: (entry["message"], entry["fix"]) for entry in caught.value.to_dict()["problems"]}


SEED_EXAMPLE = {
    "learning_rate": 1e-4,
    "warmup_steps": 1000,
    "use_ema": True,
    "latent_mask_ratio": 0.1,
    "loss_configs": {"reconstruction": {"weight": 1.0}, "adversarial": {"weight": 0.1}},
    "demo": {"demo_every": 2000},
}


def test_the_seeds_usage_example_says_what_is_missing():
    example = {"model_type": "autoencoder", "training": SEED_EXAMPLE, "sample_rate": 48000, "sample_size": 1048576}
    found = problems(example)
    assert "model" in found
    reason, fix = found["training.loss_configs.reconstruction"]
    assert reason == 'unknown key "reconstruction"' and "spectral, time and mrmel" in fix
    reason, fix = found["training.loss_configs.adversarial"]
    assert reason == 'unknown key "adversarial"' and "discriminator" in fix


def test_the_seeds_usage_example_trains_with_a_model_and_losses_that_exist():
    config = configs.autoencoder()
    losses = {name: config["training"]["loss_configs"][name] for name in ("spectral", "discriminator")}
    config["training"] = SEED_EXAMPLE | {"loss_configs": losses}
    run = parse_run_config(config)
    assert run.training.warmup_steps == 1000 and run.training.latent_mask_ratio == 0.1 and run.training.use_ema
    fit(wrapper(config), loader(config), 2)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"learning_rate": 0.0}, "training.learning_rate"),
        ({"warmup_steps": -1}, "training.warmup_steps"),
        ({"warmup_mode": "none"}, "training.warmup_mode"),
        ({"latent_mask_ratio": 1.5}, "training.latent_mask_ratio"),
        ({"use_ema": "yes"}, "training.use_ema"),
        ({"demo": {"demo_every": 0}}, "training.demo.demo_every"),
    ],
    ids=str,
)
def test_the_seeds_rules_hold(change, path):
    assert path in problems(configs.autoencoder(**change))
