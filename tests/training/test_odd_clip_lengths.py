"""Training on clips that are no whole number of latent frames, and with odd strides, which lose samples."""

import sys
from pathlib import Path

import pytest
import torch
from test_diffusion_wrappers import KINDS, drawing
from test_host import Recorder, Repeat, fit, loader, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.inference.generation import generate_diffusion_cond_inpaint, generate_diffusion_uncond
from stable_audio_tools.models.factory import parse_model_config
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.sections import AutoencoderTrainingConfig
from stable_audio_tools.training.strategies.adversarial import AdversarialReconstruction

BOTTLENECKS = {
    "vae": ({"type": "vae"}, 8),
    "rvq": ({"type": "rvq", "config": {"dim": 4, "codebook_size": 8, "num_quantizers": 2, "kmeans_iters": 3}}, 4),
    "dac_rvq_on_decode": (
        {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 2, "codebook_size": 8, "quantize_on_decode": True}},
        4,
    ),
    "softnorm": ({"type": "softnorm", "config": {"dim": 4}}, 4),
    "wasserstein": ({"type": "wasserstein"}, 4),
    "fsq": ({"type": "fsq", "config": {"levels": [5, 5, 5, 5]}}, 4),
}


def document(bottleneck="vae", strides=(3, 5), sample_size=1000):
    data = configs.autoencoder(warmup_steps=0)
    data["sample_size"] = sample_size
    data["model"]["bottleneck"], width = BOTTLENECKS[bottleneck]
    data["model"]["encoder"]["config"] |= {"strides": list(strides), "latent_dim": width}
    data["model"]["decoder"]["config"] |= {"strides": list(strides)}
    data["model"]["downsampling_ratio"] = strides[0] * strides[1]
    return data


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_both_players_train_on_a_clip_that_ends_between_frames(bottleneck):
    data = document(bottleneck)
    config = parse_model_config(data)
    torch.manual_seed(0)
    model = config.build().train()
    training = AutoencoderTrainingConfig.model_validate(data["training"])
    strategy = AdversarialReconstruction(training, sample_rate=config.sample_rate, channels=2)
    audio = 0.1 * torch.randn(2, 2, config.sample_size)
    for step, player in enumerate(("autoencoder", "discriminator")):
        for update in strategy.updates(model, audio, step):
            assert update.player == player and update.output.loss.isfinite()
            update.output.loss.backward()
    weights = [p for p in model.encoder.parameters() if p.requires_grad]
    assert weights and all(p.grad is not None and p.grad.isfinite().all() for p in weights)


def test_what_is_compared_is_as_long_as_the_shorter():
    data = document()
    model = parse_model_config(data).build()
    strategy = AdversarialReconstruction(AutoencoderTrainingConfig.model_validate(data["training"]), sample_rate=8000, channels=2)
    audio = torch.randn(1, 2, 1000)
    found = strategy.reconstruct(model, audio)
    assert found.latents.shape[-1] == 66  # 990 samples
    assert found.audio.shape == found.decoded.shape and 980 < found.decoded.shape[-1] <= 990
    assert torch.equal(found.audio, audio[..., : found.decoded.shape[-1]])


def test_a_pretransform_still_needs_whole_patches():
    data = document(strides=(2, 2), sample_size=1001)
    data["model"] |= {"downsampling_ratio": 16, "pretransform": {"type": "patched", "config": {"channels": 2, "patch_size": 4}}}
    for side, key in (("encoder", "in_channels"), ("decoder", "out_channels")):
        data["model"][side]["config"][key] = 8
    with pytest.raises(ConfigError, match="sample_size 1001 is no multiple of 4") as caught:
        parse_model_config(data)
    assert caught.value.problems[0].path == ("sample_size",) and caught.value.problems[0].fix == "nearest: 1000 or 1004"
    assert parse_model_config(data | {"sample_size": 1004}).sample_size == 1004


@pytest.mark.parametrize("kind", ["uncond", "inpaint"])
def test_a_denoiser_of_latents_takes_clips_that_end_between_frames(kind):
    """Released configs say 20 s, 882000 samples, over latents of 2048 samples each; what is generated is as long as asked for."""
    data = drawing(KINDS[kind](mask_padding=True)) | {"sample_size": 2053}
    config = parse_run_config(data)
    module = wrapper(data)
    recorder = Recorder()
    fit(module, loader(data), 2, recorder)
    assert len(recorder.losses) == 2
    module.trainer.validate(module, Repeat(next(iter(loader(data)))), verbose=False)
    generate = generate_diffusion_uncond if kind == "uncond" else generate_diffusion_cond_inpaint
    given = {} if kind == "uncond" else {"conditioning": [{"prompt": "a bell"}]}
    made = generate(module.model.eval(), 2, **given, batch_size=1, sample_size=config.sample_size, seed=0)
    assert made.shape == (1, 1, 2053)


def test_only_a_network_of_any_length_and_an_encoder_that_takes_it_whole_may_have_such_clips():
    data = drawing(KINDS["inpaint"]()) | {"sample_size": 2053}
    assert parse_model_config(data).sample_size == 2053
    data["model"]["pretransform"]["chunked"] = True
    with pytest.raises(ConfigError, match=r"sample_size 2053 is no multiple of 16 \(what model.pretransform takes\)"):
        parse_model_config(data)
    data["model"]["pretransform"]["chunked"] = False
    data["model"]["diffusion"]["config"]["patch_size"] = 2
    with pytest.raises(ConfigError, match=r"sample_size 2053 is no multiple of 32 .*ratio 16 x patch_size 2"):
        parse_model_config(data)
    with pytest.raises(ConfigError, match="sample_size 10 is shorter than the model can take, 16"):
        parse_model_config(drawing(KINDS["inpaint"]()) | {"sample_size": 10})
