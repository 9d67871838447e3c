"""Autoencoder training in the real host: every bottleneck's losses, every discriminator, every precision; who is moved by what."""

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import Logger

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
import lightning.pytorch as pl

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.bottlenecks import BOTTLENECKS
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.checkpoints import StopAtStep
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.losses.terms import BOTTLENECK_TERMS
from stable_audio_tools.training.plan import make_plan

RVQ = {"dim": 4, "codebook_size": 8, "num_quantizers": 2}
DAC_RVQ = {"input_dim": 4, "n_codebooks": 2, "codebook_size": 8, "codebook_dim": 2, "quantizer_dropout": 0.5}
BOTTLENECK_CONFIGS = {
    "vae": {"type": "vae"},
    "tanh": {"type": "tanh"},
    "l2_norm": {"type": "l2_norm"},
    "softnorm": {"type": "softnorm", "config": {"dim": 4}},
    "wasserstein": {"type": "wasserstein"},
    "rvq": {"type": "rvq", "config": RVQ},
    "rvq_vae": {"type": "rvq_vae", "config": RVQ},
    "dac_rvq": {"type": "dac_rvq", "config": DAC_RVQ},
    "dac_rvq on decode": {"type": "dac_rvq", "config": {**DAC_RVQ, "quantize_on_decode": True}},
    "dac_rvq_vae": {"type": "dac_rvq_vae", "config": DAC_RVQ},
    "dac_rvq_vae on decode": {"type": "dac_rvq_vae", "config": {**DAC_RVQ, "quantize_on_decode": True}},
    "fsq": {"type": "fsq", "config": {"levels": [5, 5, 5, 5]}},
    "dithered_fsq": {"type": "dithered_fsq", "config": {"levels": 5, "dim": 4}},
}
CQT = {"cqtd_filters": 4, "cqtd_hop_lengths": [64], "cqtd_n_octaves": [6], "cqtd_bins_per_octaves": [12]}
DISCRIMINATOR_CONFIGS = {
    "encodec": {"filters": 4, "n_ffts": [256, 128], "hop_lengths": [64, 32], "win_lengths": [256, 128], "loss_type": "rpgan"},
    "dac": {"periods": [2], "rates": [4], "fft_sizes": [128]},
    "oobleck": {},
    "big_vgan": {"periods": [3], **CQT},
}
STEREO, STEPS = 2, 4


def document(bottleneck="vae", discriminator="encodec", *, sample_size=2048, **training):
    """A tiny autoencoder whose clips may end between latent frames."""
    data = configs.autoencoder(**training)
    data["sample_size"] = sample_size
    data["model"]["bottleneck"] = BOTTLENECK_CONFIGS[bottleneck]
    data["model"]["encoder"]["config"]["latent_dim"] = 8 if "vae" in bottleneck else 4
    losses = data["training"]["loss_configs"]
    del losses["bottleneck"]
    weights = losses["discriminator"]["weights"]
    losses["discriminator"] = {"type": discriminator, "config": DISCRIMINATOR_CONFIGS[discriminator], "weights": weights}
    return data


class Recorder(Logger):
    """What was logged."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.seen = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.seen |= metrics


def train(data, precision="32-true", accelerator="cpu"):
    """STEPS steps of both players; the host, its weights before, and what was logged."""
    module = create_training_wrapper_from_config(data, create_model_from_config(data))
    module.log_every_n_steps = 1
    before = {name: p.detach().clone().float() for name, p in module.named_parameters()}
    recorder = Recorder()
    loader = create_dataloader_from_config(
        {"dataset_type": "synthetic", "num_items": 8},
        2,
        sample_size=data["sample_size"],
        sample_rate=data["sample_rate"],
        audio_channels=STEREO,
        num_workers=0,
    )
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        max_epochs=-1,
        logger=recorder,
        callbacks=[StopAtStep(STEPS)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(module, loader)
    return module, before, recorder.seen


def moved(module, before):
    return {name for name, p in module.named_parameters() if not torch.equal(p.detach().float().cpu(), before[name])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bottleneck", "sample_size"), [(name, 2048 if i % 2 else 2041) for i, name in enumerate(BOTTLENECK_CONFIGS)], ids=str
)
def test_every_bottleneck_trains_with_its_losses(bottleneck, sample_size):
    data = document(bottleneck, sample_size=sample_size, learning_rate=1e-2)
    module, before, logs = train(data)
    terms = parse_run_config(data).model.bottleneck.loss_terms
    assert {f"train/loss_{name}" for name in terms} <= logs.keys()
    assert all(torch.tensor(value).isfinite() for value in logs.values())
    assert moved(module, before) == {name for name, p in module.named_parameters() if p.requires_grad and p.numel()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("discriminator", "precision"),
    [("encodec", "bf16-true"), ("encodec", "bf16-mixed"), ("dac", "bf16-mixed"), ("oobleck", "32-true"), ("big_vgan", "bf16-true")],
)
def test_every_discriminator_trains_in_any_precision(discriminator, precision):
    module, before, logs = train(document(discriminator=discriminator, learning_rate=1e-2), precision)
    assert {"train/loss_discriminator", "train/loss_adversarial", "train/loss_feature_matching"} <= logs.keys()
    assert all(torch.tensor(value).isfinite() for value in logs.values())
    changed = moved(module, before)
    for player in ("autoencoder.encoder", "autoencoder.decoder", "strategy.discriminator"):
        assert any(name.startswith(player) for name in changed)
    wanted = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {p.dtype for p in module.parameters()} == {wanted}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"])
@pytest.mark.parametrize("discriminator", DISCRIMINATOR_CONFIGS)
def test_every_discriminator_trains_in_any_precision_on_a_gpu(discriminator, precision):
    _, _, logs = train(document(discriminator=discriminator), precision, "gpu")
    assert all(torch.tensor(value).isfinite() for name, value in logs.items() if "loss" in name)


def strategy_and_info(bottleneck, **weights):
    """The strategy and a model in training mode, and what encoding some audio reports."""
    data = document(bottleneck)
    if weights:
        data["training"]["loss_configs"]["bottleneck"] = {"weights": weights}
    model = create_model_from_config(data).train()
    strategy = create_training_wrapper_from_config(data, model).strategy
    return strategy, model, 0.1 * torch.randn(2, STEREO, 2048)


def reached(term, weights):
    """Whether a gradient of `term` reaches some of `weights`; all of it is finite."""
    gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True) if weights else ()
    found = [gradient for gradient in gradients if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in found)
    return any(bool(gradient.any()) for gradient in found)


@pytest.mark.parametrize("bottleneck", BOTTLENECK_CONFIGS)
@pytest.mark.slow
def test_terms_and_gradients_of_each_bottleneck(bottleneck):
    strategy, model, audio = strategy_and_info(bottleneck)
    found = strategy.reconstruct(model, audio)
    terms = strategy.losses(found.audio, found.decoded, found.info)
    names = BOTTLENECKS[BOTTLENECK_CONFIGS[bottleneck]["type"]].loss_terms
    assert {term.name for term in BOTTLENECK_TERMS.values()} & terms.keys() == set(names)
    weights = [p for p in model.encoder.parameters() if p.requires_grad]
    for name in names:
        assert terms[name].isfinite() and reached(terms[name], weights) == (name != "codebook")
        quantizer = [p for p in model.bottleneck.parameters() if p.requires_grad]
        assert reached(terms[name], quantizer) == (name in ("codebook", "commitment", "softnorm"))
    assert reached(terms["mrstft"], weights)


@pytest.mark.parametrize(
    ("bottleneck", "name", "default"),
    [
        ("vae", "kl", 1e-6),
        ("wasserstein", "mmd", 100.0),
        ("softnorm", "softnorm", 0.01),
        ("rvq", "quantizer", 1.0),
        ("rvq_vae", "quantizer", 1.0),
        ("rvq_vae", "kl", 1e-6),
        ("dac_rvq", "codebook", 1.0),
        ("dac_rvq", "commitment", 0.25),
        ("dac_rvq_vae", "commitment", 0.25),
        ("dac_rvq on decode", "codebook", 1.0),
    ],
)
@pytest.mark.slow
def test_each_term_has_the_published_weight_unless_the_config_says_otherwise(bottleneck, name, default):
    key = next(key for key, term in BOTTLENECK_TERMS.items() if term.name == name)
    for weights, weight in (({}, default), ({name: 0.5}, 0.5), ({name: 0.0}, 0.0)):
        strategy, model, audio = strategy_and_info(bottleneck, **weights)
        found = strategy.reconstruct(model, audio)
        torch.testing.assert_close(strategy.losses(found.audio, found.decoded, found.info)[name], weight * found.info[key])


@pytest.mark.parametrize(
    ("bottleneck", "name", "message"),
    [
        ("vae", "commitment", "no effect: the model's bottleneck has only kl"),
        ("rvq", "codebook", "no effect: the model's bottleneck has only quantizer"),
        ("dac_rvq_vae", "softnorm", "no effect: the model's bottleneck has only kl and codebook and commitment"),
        ("fsq", "quantizer", "no effect: the model's bottleneck has no loss of its own"),
    ],
)
def test_weights_of_terms_that_the_bottleneck_lacks_are_refused(bottleneck, name, message):
    data = document(bottleneck)
    data["training"]["loss_configs"]["bottleneck"] = {"weights": {name: 1.0}}
    with pytest.raises(ConfigError) as error:
        parse_run_config(data)
    (problem,) = error.value.problems
    assert problem.path == ("training", "loss_configs", "bottleneck", "weights", name)
    assert (problem.message, problem.fix) == (message, "remove the key")


@pytest.mark.parametrize("name", ["kl", "mmd"])
def test_weights_that_published_configs_carry_along_are_accepted(name):
    data = document("fsq")
    data["training"]["loss_configs"]["bottleneck"] = {"type": "kl", "weights": {name: 1.0}}
    parse_run_config(data)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"discriminator": {"type": "oobleck", "config": {"in_channels": 1}}}, ("discriminator", "config", "in_channels")),
        ({"discriminator": {"type": "big_vgan", "config": {"fmin": 5000.0}}}, ("discriminator", "config", "fmin")),
    ],
)
def test_a_discriminator_that_does_not_fit_the_audio_is_refused_before_anything_is_built(change, path):
    data = document()
    data["training"]["loss_configs"]["discriminator"] |= change["discriminator"]
    with pytest.raises(ConfigError) as error:
        parse_run_config(data)
    assert [problem.path for problem in error.value.problems] == [("training", "loss_configs", *path)]


def test_clips_too_short_for_the_discriminator_are_refused():
    data = document(discriminator="dac")
    data["training"]["loss_configs"]["discriminator"]["config"] = {"fft_sizes": [4096]}
    with pytest.raises(ConfigError) as error:
        parse_run_config(data)
    (problem,) = error.value.problems
    assert problem.path == ("sample_size",) and "at least 2305" in problem.fix


@pytest.mark.slow
@pytest.mark.parametrize("discriminator", DISCRIMINATOR_CONFIGS)
def test_what_a_discriminator_costs_can_be_planned(discriminator):
    turns = {turn.player: turn for turn in make_plan(parse_run_config(document(discriminator=discriminator)), batch_size=2).turns}
    assert turns["discriminator"].flops > 0 and turns["discriminator"].gradients > 0


def test_mono_input_feeds_an_encoder_of_one_channel_and_is_compared_in_stereo():
    data = document(force_input_mono=True)
    data["model"] |= {"in_channels": 1, "out_channels": 2}
    data["model"]["encoder"]["config"]["in_channels"] = 1
    model = create_model_from_config(data).train()
    strategy = create_training_wrapper_from_config(data, model).strategy
    audio = torch.randn(2, STEREO, 2048)
    found = strategy.reconstruct(model, audio)
    assert found.audio.shape == found.decoded.shape == audio.shape
