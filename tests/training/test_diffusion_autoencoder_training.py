"""Diffusion autoencoders in training: what the loss is made of, where its gradient goes, demos, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_host import Recorder, Repeat, fit, loader, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.training import create_demo_callback_from_config
from stable_audio_tools.training.config import parse_run_config

REFERENCE = Path(__file__).parents[1] / "reference"
SPECTRAL = {"config": {"fft_sizes": [256, 64], "hop_sizes": [64, 16], "win_lengths": [256, 64]}, "weights": {"mrstft": 0.5}}


def without_pretransform(**training):
    config = configs.diffusion_autoencoder(**training)
    model = config["model"]
    del model["pretransform"]
    model["io_channels"] = model["encoder"]["config"]["in_channels"] = model["diffusion"]["config"]["io_channels"] = 1
    return config


def with_decoder(**training):
    config = configs.diffusion_autoencoder(**training)
    decoder = {"out_channels": 6, "channels": 8, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 4, "use_snake": True}
    config["model"]["decoder"] = {"type": "oobleck", "config": decoder}
    config["model"]["diffusion"]["config"]["input_concat_dim"] = 6
    return config


def recorded(name):
    """A tiny config of another network."""
    return json.loads((REFERENCE / f"tiny_diffae_{name}.json").read_text())


VARIANTS = {
    "pretransform": configs.diffusion_autoencoder,
    "audio": without_pretransform,
    "decoder": with_decoder,
    "adp": lambda **training: _trained(recorded("adp"), training),
    "dau1d": lambda **training: _trained(recorded("dau1d"), training),
}


def _trained(config, training):
    config["training"] |= training
    return config


def clips(config, items=2):
    shape = (items, config["audio_channels"], config["sample_size"])
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)), ({"prompt": "noise"},) * items


def update(config, step=0):
    module = wrapper(config)
    (found,) = module.strategy.updates(module.model, module.prepare(clips(config)), step)
    return module, found.output


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reconstruction", [False, True])
@pytest.mark.slow
def test_every_part_learns_with_and_without_a_reconstruction_loss(variant, reconstruction):
    """Without a pretransform, the peer's reconstruction loss does not find its prediction; DAU1d cannot be built there."""
    config = VARIANTS[variant](use_reconstruction_loss=reconstruction)
    if reconstruction and config["sample_size"] < 1025:
        config["training"]["loss_configs"] = {"spectral": SPECTRAL}
    module, output = update(config)
    assert output.loss.isfinite() and ("loss_mrstft" in output.logs) == reconstruction
    output.loss.backward()
    silent = [name for name, p in module.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


def test_the_loss_is_denoising_beside_latents_plus_weighted_terms():
    spectral = {**SPECTRAL, "decay": 0.5}
    losses = {"spectral": spectral, "bottleneck": {"weights": {"kl": 0.01}}}
    config = configs.diffusion_autoencoder(use_reconstruction_loss=True, loss_configs=losses)
    module = wrapper(config)
    batch = module.prepare(clips(config))
    noising, model = module.strategy.noising, module.model

    torch.manual_seed(5)
    (found,) = module.strategy.updates(model, batch, 2)
    module.strategy.start(seed=0, rank=0)
    noising.start(seed=0, rank=0)

    frames = model.pretransform.encode(batch.audio)
    assert torch.equal(batch.latents, frames)
    logs = found.output.logs
    torch.testing.assert_close(logs["loss"], logs["loss_mse"] + logs["loss_kl"] + logs["loss_mrstft"])

    t = noising.timesteps(model, batch)
    torch.manual_seed(5)
    noise = torch.randn_like(frames)
    latents, info = model.encode(batch.audio, return_info=True)
    alpha, sigma = (f(t * torch.pi / 2)[:, None, None] for f in (torch.cos, torch.sin))
    noisy = alpha * frames + sigma * noise
    output = model(noisy, t, latents)
    torch.testing.assert_close(logs["loss_mse"], (output - (alpha * noise - sigma * frames)).square().mean())
    torch.testing.assert_close(logs["loss_kl"], 0.01 * info["kl"])
    implied = model.pretransform.decode(alpha * noisy - sigma * output)
    distance = module.strategy.stft(batch.audio, implied)["mrstft"]
    torch.testing.assert_close(logs["loss_mrstft"], 0.5 * 0.5**2 * distance)


def test_the_reconstruction_loss_alone_is_the_published_one():
    config = configs.diffusion_autoencoder(use_reconstruction_loss=True)
    strategy = wrapper(config).strategy
    assert strategy.stft.params.fft_sizes == (2048, 1024, 512, 256, 128, 64, 32) and strategy.stft.params.perceptual_weighting
    assert (strategy.stft_term.weight, strategy.stft_term.decay) == (0.1, 1.0)


@pytest.mark.parametrize(
    "bottleneck, width",
    [
        ({"type": "vae"}, 8),
        ({"type": "tanh"}, 4),
        ({"type": "l2_norm"}, 4),
        ({"type": "wasserstein", "config": {"noise_augment_dim": 2}}, 4),
        ({"type": "rvq", "config": {"dim": 4, "codebook_size": 16, "num_quantizers": 2}}, 4),
        (
            {
                "type": "dac_rvq",
                "config": {"input_dim": 4, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 2, "quantize_on_decode": True},
            },
            4,
        ),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else "",
)
@pytest.mark.slow
def test_every_kind_of_bottleneck_trains_as_it_decodes(bottleneck, width):
    config = configs.diffusion_autoencoder()
    config["model"]["bottleneck"] = bottleneck
    config["model"]["encoder"]["config"]["latent_dim"] = width
    config["model"]["diffusion"]["config"]["input_concat_dim"] = 4 + bottleneck.get("config", {}).get("noise_augment_dim", 0)
    module = wrapper(config)
    recorder = Recorder()
    trainer = fit(module, loader(config), 2, recorder)
    trainer.validate(module, Repeat(clips(config)), verbose=False)
    assert trainer.callback_metrics["val/loss"].isfinite()
    with torch.no_grad():
        demos = create_demo_callback_from_config(config, demo_dl=loader(config)).render(module.eval())
    assert all(demo.audio.isfinite().all() for demo in demos)


def test_a_frozen_pretransform_gets_no_gradient():
    config = configs.diffusion_autoencoder(use_reconstruction_loss=True)
    body = configs.autoencoder()["model"]
    config["audio_channels"] = 2
    config["model"]["pretransform"] = {"type": "autoencoder", "config": body}
    module, output = update(config)
    before = [p.clone() for p in module.model.pretransform.parameters()]
    output.loss.backward()
    assert all(p.grad is None for p in module.model.pretransform.parameters())
    assert any(p.grad is not None and p.grad.any() for p in module.model.encoder.parameters())
    fit(module, Repeat(clips(config)), 1)
    assert all(torch.equal(a, b) for a, b in zip(before, module.model.pretransform.parameters(), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.slow
def test_demos_are_what_decoding_gives(variant):
    """With a decoder, decoding never ends in the peer."""
    config = VARIANTS[variant](demo={"demo_steps": 2, "max_demos": 2, "seed": 4})
    module = wrapper(config).eval()
    demos = create_demo_callback_from_config(config, demo_dl=loader(config))
    with torch.no_grad():
        shown = demos.render(module)
        original = torch.stack([demo.audio for demo in shown if demo.kind == "original"])
        model = module.sampling_model
        generators = [generator_for(4, index) for index in range(2)]
        expected = model.decode(model.encode(original, sample=False), 2, generator=generators)
    made = [demo for demo in shown if demo.title.endswith("reconstruction")]
    torch.testing.assert_close(torch.stack([demo.audio for demo in made]), expected)
    assert all(demo.latents.shape == module.model.encode(original)[0].shape for demo in made)


def test_demos_show_what_the_pretransform_alone_gives_back():
    config = configs.diffusion_autoencoder(demo={"demo_steps": 1, "max_demos": 1})
    config["audio_channels"] = 2
    config["model"]["pretransform"] = {"type": "autoencoder", "config": configs.autoencoder()["model"]}
    module = wrapper(config).eval()
    with torch.no_grad():
        original, _, alone = create_demo_callback_from_config(config, demo_dl=loader(config)).render(module)
        assert alone.title.endswith("pretransform alone") and alone.group == original.group
        assert alone.latents.shape == module.model.pretransform.encode(original.audio[None])[0].shape


@pytest.mark.parametrize(
    "training, path, message, fix",
    [
        ({"loss_configs": {"spectral": SPECTRAL}}, "training.loss_configs.spectral", "no effect without use_reconstruction_loss", "true"),
        ({"pre_encoded": True}, "training.pre_encoded", 'unknown key "pre_encoded"', ""),
        ({"demo": {"num_demos": 1}}, "training.demo.num_demos", 'unknown key "num_demos"', "max_demos"),
        ({"learning_rate": None}, "training.learning_rate", "no learning rate", "diffusion"),
        ({"optimizer_configs": {"diffae": {}}, "learning_rate": None}, "training.optimizer_configs", "", ""),
    ],
    ids=str,
)
def test_settings_that_cannot_act_are_refused(training, path, message, fix):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(configs.diffusion_autoencoder(**training))
    problem = caught.value.to_dict()["problems"][0]
    assert problem["path"].startswith(path) and message in problem["message"] and fix in problem["fix"]


def test_a_clip_too_short_for_the_spectra_is_refused():
    config = configs.diffusion_autoencoder(use_reconstruction_loss=True)
    config["sample_size"] = 1024
    with pytest.raises(ConfigError, match=r"1024 samples are too short for the losses(.|\n)*raise sample_size to at least 1025"):
        parse_run_config(config)


def test_weights_of_stereo_are_refused_for_mono():
    spectral = {**SPECTRAL, "config": {**SPECTRAL["config"], "w_sum": 2.0}}
    with pytest.raises(ConfigError) as caught:
        parse_run_config(configs.diffusion_autoencoder(use_reconstruction_loss=True, loss_configs={"spectral": spectral}))
    (problem,) = caught.value.to_dict()["problems"]
    assert problem["path"] == "training.loss_configs.spectral.config.w_sum"
    assert "this audio has 1 channel" in problem["message"] and problem["fix"] == "remove the key"
