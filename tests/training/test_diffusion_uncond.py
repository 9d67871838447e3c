"""Unconditional diffusion in training: every network, every setting that can act, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_host import Repeat, fit, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.training import create_demo_callback_from_config
from stable_audio_tools.training.config import parse_run_config

REFERENCE = Path(__file__).parents[1] / "reference"


def network(name):
    """A recorded tiny config of another network."""
    return json.loads((REFERENCE / f"tiny_uncond_{name}.json").read_text())


def batch(channels=1, length=2048, real=2048, items=4):
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(items, channels, length, generator=generator)
    return audio, tuple({"padding_mask": torch.arange(length) < real} for _ in range(items))


@pytest.mark.parametrize("name", ["adp", "dau1d", "dit"])
@pytest.mark.slow
def test_every_network_trains_and_shows_demos(name):
    """DAU1d cannot even be built in the peer."""
    config = network(name)
    config["training"]["demo"] = {"demo_steps": 2, "num_demos": 2}
    module = wrapper(config)
    fit(module, Repeat(batch(2, 512)), 2)
    assert {type(optimizer) for optimizer in module.trainer.optimizers} == {torch.optim.Adam}
    with torch.no_grad():
        demos = create_demo_callback_from_config(config).render(module.eval())
    assert [demo.audio.shape for demo in demos] == [(2, 512)] * 2
    assert not torch.equal(demos[0].audio, demos[1].audio)


def test_the_loss_is_that_of_the_velocity_at_the_drawn_timesteps():
    module = wrapper(configs.unconditional())
    prepared = module.prepare(batch())
    assert prepared.conditions is None and prepared.latents.shape == (4, 16, 128)
    module.strategy.start(seed=1, rank=0)
    torch.manual_seed(5)
    loss = module.strategy.loss(module.model, prepared).loss

    module.strategy.start(seed=1, rank=0)
    t = module.strategy.noising.timesteps(module.model, prepared)
    torch.manual_seed(5)
    noise = torch.randn_like(prepared.latents)
    alpha, sigma = (f(t * torch.pi / 2)[:, None, None] for f in (torch.cos, torch.sin))
    output = module.model(alpha * prepared.latents + sigma * noise, t)
    torch.testing.assert_close(loss, (output - (alpha * noise - sigma * prepared.latents)).square().mean())


def test_settings_that_the_peer_does_not_read_act():
    training = {
        "timestep_sampler": "log_snr",
        "timestep_sampler_options": {"mean_logsnr": 40.0, "std_logsnr": 0.1},
        "log_loss_info": True,
        "optimizer_configs": {"diffusion": {"optimizer": {"type": "SGD", "config": {"lr": 1e-3}}}},
    }
    module = wrapper(configs.unconditional(**training))
    output = module.strategy.loss(module.model, module.prepare(batch()))
    counts = {name: float(value.count) for name, value in output.logs.items() if name.startswith("loss_t_")}
    assert counts.pop("loss_t_0.0-0.1") == 4 and len(counts) == 9 and not any(counts.values())
    fit(module, Repeat(batch()), 1)
    assert isinstance(module.trainer.optimizers[0], torch.optim.SGD)
    one_shot = wrapper(configs.unconditional(p_one_shot=1.0))
    assert one_shot.strategy.noising.timesteps(one_shot.model, one_shot.prepare(batch())).eq(1).all()


def test_padding_is_left_out_of_the_loss():
    loud = (torch.cat((batch()[0][..., :1024], 1e3 * torch.ones(4, 1, 1024)), -1), batch(real=1024)[1])
    losses = {}
    for masked in (False, True):
        module = wrapper(configs.unconditional(mask_padding=masked))
        losses[masked] = float(module.strategy.loss(module.model, module.prepare(loud)).loss.detach())
    assert losses[True] < 10 < 1e4 < losses[False]


@pytest.mark.parametrize("wrapped", [lambda mask: mask, lambda mask: [mask], lambda mask: mask.tolist(), lambda mask: [mask.tolist()]])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_masks_of_any_type_are_read(wrapped, dtype):
    """As an index, the whole numbers of stored masks pick other elements in the peer; float ones stop it."""
    module = wrapper(configs.unconditional(pre_encoded=True))
    metadata = tuple({"padding_mask": wrapped((torch.arange(128) < real).to(dtype))} for real in (128, 60))
    prepared = module.prepare((torch.randn(2, 16, 128), metadata))
    assert prepared.mask.dtype == torch.bool and prepared.mask.sum(1).tolist() == [128, 60]


def test_stored_latents_are_taken_as_they_are_and_a_batch_of_batches_is_unwrapped():
    module = wrapper(configs.unconditional(pre_encoded=True))
    latents = torch.randn(1, 3, 16, 128)
    prepared = module.prepare((latents, [{}] * 3))
    assert torch.equal(prepared.latents, latents[0]) and prepared.mask.all() and prepared.mask.shape == (3, 128)


def test_a_pretransform_that_is_to_learn_gets_a_gradient_and_another_does_not():
    for enable_grad in (False, True):
        config = configs.unconditional()
        body = {**configs.autoencoder()["model"], "bottleneck": {"type": "tanh"}}
        body["encoder"]["config"]["latent_dim"] = 4
        config["audio_channels"], config["model"]["config"]["in_channels"] = 2, 4
        config["model"]["pretransform"] = {"type": "autoencoder", "enable_grad": enable_grad, "config": body}
        module = wrapper(config)
        module.strategy.loss(module.model, module.prepare(batch(2))).loss.backward()
        encoder = module.model.pretransform.model.encoder
        assert all((p.grad is not None) == enable_grad for p in encoder.parameters())
        assert all(p.grad is not None for p in module.model.model.parameters())


@pytest.mark.parametrize(
    "training, path, message, fix",
    [
        ({"cfg_dropout_prob": 0.1}, "training.cfg_dropout_prob", 'unknown key "cfg_dropout_prob"', ""),
        ({"inpainting": {}}, "training.inpainting", 'unknown key "inpainting"', ""),
        ({"timestep_sampler": "cosin"}, "training", "cosin", "cosine"),
        ({"demo": {"demo_cfg_scales": [3]}}, "training.demo.demo_cfg_scales", 'unknown key "demo_cfg_scales"', ""),
        ({"demo": {"sampler_type": "dpmpp"}}, "training.demo.sampler_type", "'dpmpp' does not fit the objective 'v'", "v-ddim"),
        ({"demo": {"num_demos": 0}}, "training.demo.num_demos", "0", ""),
        ({"learning_rate": None}, "training.learning_rate", "no learning rate: give one here", "diffusion"),
    ],
    ids=str,
)
def test_settings_that_cannot_act_are_refused(training, path, message, fix):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(configs.unconditional(**training))
    (problem,) = caught.value.to_dict()["problems"]
    assert problem["path"].startswith(path) and message in problem["message"] and fix in problem["fix"]
