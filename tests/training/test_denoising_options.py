"""What may be chosen about the loss of a denoiser: which frames and noise levels count how much, and against what errors are held."""

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import configs
import pytest
import torch
from test_host import Recorder, Repeat, fit, loader, wrapper

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.objectives import OBJECTIVES
from stable_audio_tools.diffusion.timesteps import TIMESTEP_SAMPLERS
from stable_audio_tools.models.conditioners import Condition
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.losses.denoising import min_snr_weight, target_variance, weighted_mean
from stable_audio_tools.training.losses.terms import masked_mean
from stable_audio_tools.training.noising import NoisyBatch
from stable_audio_tools.training.plan import make_plan
from stable_audio_tools.training.strategies.base import LatentBatch

REFERENCE = Path(__file__).parents[1] / "reference"
KINDS = {
    "uncond": configs.unconditional,
    "cond": configs.text_to_audio,
    "inpaint": configs.inpainting,
    "diffae": configs.diffusion_autoencoder,
}
GIVEN = {"mask_kwargs": {"max_mask_segments": 3, "mask_type_probabilities": [1.0, 0.0, 0.0]}}


def noising(make=configs.text_to_audio, **training):
    return wrapper(make(**training)).strategy.noising


def example(seed=0, real=(8, 5, 3), given=None):
    """A noisy batch of three clips of 4 channels and 8 frames, the output of some model, and which frames are real and given."""
    generator = torch.Generator().manual_seed(seed)
    output, target, latents = torch.randn(3, 3, 4, 8, generator=generator)
    mask = torch.arange(8) < torch.tensor(real)[:, None]
    conditions = None if given is None else {"inpaint_mask": Condition((torch.arange(8) >= given).float().expand(3, 1, 8), None)}
    batch = LatentBatch(latents, mask, conditions, ({}, {}, {}))
    return output, NoisyBatch(latents, torch.tensor([0.1, 0.5, 0.95]), target), batch


def counting(batch, given_weight=1.0, padding=True):
    """(3, 8) weights of the frames, written out."""
    weights = torch.zeros(3, 8)
    for item in range(3):
        for frame in range(8):
            weights[item, frame] = 0.0 if padding and not batch.mask[item, frame] else 1.0
            if batch.conditions is not None and batch.conditions["inpaint_mask"].tensor[item, 0, frame]:
                weights[item, frame] *= given_weight
    return weights


# means


def test_a_mean_under_weights_of_0_and_1_is_that_under_a_mask():
    value, mask = torch.randn(3, 4, 8), torch.rand(3, 1, 8) < 0.5
    for dim in ((0, 1, 2), (1, 2), (2,)):
        torch.testing.assert_close(weighted_mean(value, mask.float(), dim), masked_mean(value, mask, dim))
        torch.testing.assert_close(weighted_mean(value, None, dim), value.mean(dim))
    loud = value.masked_fill(~mask, float("inf"))
    torch.testing.assert_close(weighted_mean(loud, mask.float()), masked_mean(value, mask))
    assert weighted_mean(value, torch.zeros(3, 1, 8)) == 0


def test_without_options_the_loss_is_the_mean_over_all_counting_values():
    output, noisy, batch = example()
    error = (output - noisy.target).square()
    for masked in (False, True):
        found = noising(mask_padding=masked).denoising_loss(output, noisy, batch)
        kept = error[batch.mask[:, None].expand_as(error)] if masked else error
        torch.testing.assert_close(found.loss, kept.mean())
        each = [e[:, m].mean() if masked else e.mean() for e, m in zip(error, batch.mask, strict=True)]
        torch.testing.assert_close(found.per_example, torch.stack(each))
        assert "mse" not in found.logs


def test_padding_counts_again_on_a_share_of_batches():
    output, noisy, batch = example()
    drawn = noising(mask_padding=True, mask_padding_dropout=0.3)
    whole = (output - noisy.target).square().mean()
    torch.manual_seed(0)
    shares = [bool(torch.isclose(drawn.denoising_loss(output, noisy, batch).loss, whole)) for _ in range(400)]
    assert 0.2 < sum(shares) / 400 < 0.4


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_the_loss_leaves_out_the_padding_of_stored_latents_whatever_masks_are_made_of(dtype):
    """The peer takes whole numbers for places in the batch and stops at others; a batch of batches stops it as well."""
    module = wrapper(configs.text_to_audio(pre_encoded=True, mask_padding=True))
    latents = torch.randn(1, 2, 16, 128, generator=torch.Generator().manual_seed(0))
    real = torch.arange(128) < torch.tensor([[128], [40]])
    metadata = tuple({"prompt": "a bell", "padding_mask": [mask.to(dtype)]} for mask in real)
    prepared = module.prepare((latents, metadata))
    noisy = module.strategy.noising.draw(module.model, prepared)
    output = torch.randn_like(noisy.target)
    found = module.strategy.noising.denoising_loss(output, noisy, prepared)
    error = (output - noisy.target).square()
    torch.testing.assert_close(found.loss, torch.cat((error[0].flatten(), error[1, :, :40].flatten())).mean())


# frames that the model is given


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_given_frames_count_as_much_as_they_are_said_to(weight, padding):
    output, noisy, batch = example(given=4)
    loss = noising(configs.inpainting, mask_padding=padding, inpainting={**GIVEN, "given_loss_weight": weight})
    found = loss.denoising_loss(output, noisy, batch)
    weights = counting(batch, weight, padding)
    error = (output - noisy.target).square().mean(1)
    torch.testing.assert_close(found.loss, (error * weights).sum() / weights.sum())
    torch.testing.assert_close(found.per_example, (error * weights).sum(1) / weights.sum(1))


def test_with_weight_0_no_gradient_comes_from_given_frames():
    module = wrapper(configs.inpainting(inpainting={**GIVEN, "given_loss_weight": 0.0}))
    prepared = module.prepare(next(iter(loader(configs.inpainting()))))
    noisy = module.strategy.noising.draw(module.model, prepared)
    output = torch.randn_like(noisy.target).requires_grad_()
    module.strategy.noising.denoising_loss(output, noisy, prepared).loss.backward()
    given = prepared.conditions["inpaint_mask"].tensor[:, 0].bool()
    moved = output.grad.abs().sum(1) > 0
    assert given.any() and moved[~given].all() and not moved[given].any()


def test_validation_looks_where_training_looks():
    losses = {}
    for weight in (0.0, 1.0):
        module = wrapper(configs.inpainting(inpainting={**GIVEN, "given_loss_weight": weight}))
        output, noisy, batch = example(given=4)
        module.velocity = lambda model, noisy, batch, output=output: output
        losses[weight] = module._loss_at(module.model, batch, noisy.target, 0.5)
        target = noisy.target - batch.latents  # of a flow, from this noise
        expected = (output - target).square()[..., : 4 if weight == 0 else 8].mean()
        torch.testing.assert_close(losses[weight], expected)


def test_validation_is_at_the_levels_that_are_named():
    config = configs.text_to_audio(validation_timesteps=[0.25, 1.0])
    module = wrapper(config)
    trainer = fit(module, loader(config), 1)
    trainer.validate(module, Repeat(next(iter(loader(config)))), verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert set(found) == {"val/loss", "val/loss_t_0.25", "val/loss_t_1"}
    assert found["val/loss"] == pytest.approx((found["val/loss_t_0.25"] + found["val/loss_t_1"]) / 2)


# noise levels


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_minimum_snr_weighs_the_error_of_the_clean_data(name, gamma):
    """In double precision, the weighted error of v is min(SNR, gamma) times the error of the x0 that it stands for."""
    objective, generator = OBJECTIVES[name], torch.Generator().manual_seed(0)
    x_t, output, other = torch.randn(3, 20, 2, 4, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.02, 0.98, 20, dtype=torch.float64)
    alpha, sigma = objective.alpha_sigma(t)
    of_data = (objective.denoised(x_t, output, t) - objective.denoised(x_t, other, t)).square().mean((1, 2))
    expected = (alpha**2 / sigma**2).clamp(max=gamma) * of_data
    weights = min_snr_weight(alpha, sigma, gamma)
    torch.testing.assert_close(weights * (output - other).square().mean((1, 2)), expected)
    if name == "v":
        snr = alpha**2 / sigma**2
        torch.testing.assert_close(weights, snr.clamp(max=gamma) / (snr + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_weighed_by_the_noise_levels_that_were_drawn(kind):
    module = wrapper(KINDS[kind](min_snr_gamma=5.0))
    prepared = module.prepare(next(iter(loader(KINDS[kind]()))))
    draws = module.strategy.noising
    noisy = draws.draw(module.model, prepared)
    alpha, sigma = module.model.objective.alpha_sigma(noisy.t)
    weights = [min(float(a) ** 2 / float(s) ** 2, 5.0) * float(s) ** 2 for a, s in zip(alpha, sigma, strict=True)]
    torch.testing.assert_close(noisy.weight, torch.tensor(weights))
    output = torch.randn_like(noisy.target)
    each = torch.tensor(weights) * (output - noisy.target).square().mean((1, 2))
    found = draws.denoising_loss(output, noisy, prepared)
    torch.testing.assert_close(found.per_example, each)
    torch.testing.assert_close(found.loss, each.mean())
    torch.testing.assert_close(found.logs["mse"], (output - noisy.target).square().mean())


# errors against the size of the target


def variances(target, weights, kind, eps):
    """(3, 4, 8) what each error is divided by, written out."""
    found = torch.empty_like(target)
    for item in range(3):
        kept = target[item][:, weights[item] > 0]
        for channel in range(4):
            for frame in range(8):
                values = {"timestep": target[item, :, frame], "sample": kept.flatten(), "sample_channel": kept[channel]}[kind]
                found[item, channel, frame] = (values - values.mean()).square().mean() + eps
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["timestep", "sample", "sample_channel"])
def test_errors_are_held_against_the_variance_of_the_target(kind, masked):
    output, noisy, batch = example()
    found = noising(loss_normalization=kind, loss_norm_eps=1e-3, mask_padding=masked).denoising_loss(output, noisy, batch)
    weights = counting(batch, padding=masked)
    error = (output - noisy.target).square() / variances(noisy.target, weights, kind, 1e-3)
    each = torch.stack([e[:, w > 0].mean() for e, w in zip(error, weights, strict=True)])
    torch.testing.assert_close(found.per_example, each)
    torch.testing.assert_close(found.loss, each.mean())  # every example counts the same, whatever its length


@pytest.mark.parametrize("kind", ["timestep", "sample", "sample_channel"])
def test_loud_examples_weigh_as_much_as_quiet_ones(kind):
    output, noisy, batch = example()
    loudness = torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    scaled = NoisyBatch(noisy.x_t, noisy.t, noisy.target * loudness)
    losses = noising(loss_normalization=kind)
    plain, loud = (losses.denoising_loss(o, n, batch).per_example for o, n in ((output, noisy), (output * loudness, scaled)))
    torch.testing.assert_close(plain, loud, rtol=1e-4, atol=1e-4)


def test_the_divisor_has_no_gradient_and_a_clip_without_counting_frames_a_finite_loss():
    output, noisy, batch = example(real=(8, 5, 0))
    target = noisy.target.clone().requires_grad_()
    assert not target_variance(target, None, "sample", 1e-6).requires_grad
    output.requires_grad_()
    found = noising(loss_normalization="sample_channel", mask_padding=True).denoising_loss(output, noisy, batch)
    found.loss.backward()
    assert found.per_example[2] == 0 and output.grad.isfinite().all() and not output.grad[2].any()


# the loss by noise level


def test_the_loss_by_noise_level_is_that_of_the_examples_there():
    output, noisy, batch = example()
    noisy = NoisyBatch(noisy.x_t, torch.tensor([0.12, 0.19, 1.0]), noisy.target)
    found = noising(log_loss_info=True).denoising_loss(output, noisy, batch)
    buckets = {name: value for name, value in found.logs.items() if name.startswith("loss_t_")}
    assert len(buckets) == 10
    low, high = buckets["loss_t_0.1-0.2"], buckets["loss_t_0.9-1.0"]
    torch.testing.assert_close(low.total / low.count, found.per_example[:2].mean())
    torch.testing.assert_close(high.total, found.per_example[2])
    assert sum(float(value.count) for value in buckets.values()) == 3


def test_a_run_logs_the_loss_of_the_noise_levels_that_occurred():
    """The peer stops here on one device."""
    training = {"timestep_sampler": "log_snr", "timestep_sampler_options": {"mean_logsnr": 9.0, "std_logsnr": 0.1}}
    recorder = Recorder()
    fit(wrapper(configs.text_to_audio(log_loss_info=True, **training)), loader(configs.text_to_audio()), 2, recorder)
    for record in recorder.losses:
        assert [name for name in record if "loss_t_" in name] == ["train/loss_t_0.0-0.1"]
        assert float.fromhex(record["train/loss_t_0.0-0.1"]) == pytest.approx(float.fromhex(record["train/loss"]))


# everything together

OPTIONS = {
    "plain": {},
    "ot_coupling": {"ot_coupling": True},
    "min_snr_gamma": {"min_snr_gamma": 5.0},
    "timestep": {"loss_normalization": "timestep"},
    "sample": {"loss_normalization": "sample"},
    "sample_channel": {"loss_normalization": "sample_channel"},
    "mask_padding": {"mask_padding": True, "mask_padding_dropout": 0.5, "log_loss_info": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_goes_down_on_one_batch_in_20_steps(kind, option):
    config, recorder = KINDS[kind](learning_rate=5e-3, **OPTIONS[option]), Recorder()
    fit(wrapper(config), Repeat(next(iter(loader(config, 8)))), 20, recorder)
    values = [float.fromhex(record["train/loss"]) for record in recorder.losses]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


@pytest.mark.slow
def test_the_loss_of_made_frames_goes_down_in_20_steps():
    config, recorder = configs.inpainting(learning_rate=5e-3, inpainting={**GIVEN, "given_loss_weight": 0.0}), Recorder()
    fit(wrapper(config), Repeat(next(iter(loader(config, 8)))), 20, recorder)
    values = [float.fromhex(record["train/loss"]) for record in recorder.losses]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_needs_no_numbers(kind):
    """What depends on numbers is decided without them: a plan runs the step on tensors that have none."""
    options = {"ot_coupling": True, "min_snr_gamma": 5.0, "loss_normalization": "sample", "log_loss_info": True, "mask_padding": True}
    given = {"inpainting": {**GIVEN, "given_loss_weight": 0.5}} if kind == "inpaint" else {}
    config = KINDS[kind](**options, **given, mask_padding_dropout=0.5)
    assert make_plan(parse_run_config(config), batch_size=4).flops > 0


# samplers, and where they look

SETTINGS = {"log_snr": {"mean_logsnr": -1.0}, "shifted_logit_normal": {"min_tokens": 64, "max_tokens": 256}}


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sampler", TIMESTEP_SAMPLERS.names)
def test_every_sampler_serves_every_objective(sampler, objective):
    config = configs.text_to_audio(timestep_sampler=sampler, timestep_sampler_options=SETTINGS.get(sampler, {}))
    config["model"]["diffusion"]["diffusion_objective"] = objective
    module = wrapper(config)
    prepared = module.prepare(next(iter(loader(config))))
    t = module.strategy.noising.timesteps(module.model, prepared)
    assert t.shape == (4,) and t.dtype == torch.float32 and (t >= 0).all() and (t <= 1).all()
    assert module.strategy.loss(module.model, prepared).loss.isfinite()


@pytest.mark.parametrize("shift", [{}, {"use_sine": True}, {"type": "flux", "alpha_max": 4.0}, {"type": "logsnr"}])
def test_training_draws_timesteps_where_the_models_shift_takes_them(shift):
    """The object that demos and generation take their grid from, `model.dist_shift`, at the number of latent frames."""
    config = configs.text_to_audio(timestep_sampler="uniform")
    config["model"]["diffusion"]["distribution_shift_options"] = {**shift, **({} if shift.get("type") == "logsnr" else {"min_length": 64})}
    module = wrapper(config)
    prepared = module.prepare(next(iter(loader(config))))
    module.strategy.start(seed=4, rank=0)
    drawn = module.strategy.noising.timesteps(module.model, prepared)
    module.strategy.start(seed=4, rank=0)
    even = module.strategy.noising.sampler.sample(4)
    torch.testing.assert_close(drawn, module.model.dist_shift.shift(even, 128))
    assert not torch.allclose(drawn, even)


def test_one_shot_comes_after_the_shift():
    config = configs.text_to_audio(p_one_shot=0.25)
    config["model"]["diffusion"]["distribution_shift_options"] = {}
    module = wrapper(config)
    batch = LatentBatch(torch.zeros(2000, 1, 128), torch.ones(2000, 128, dtype=torch.bool), None, ())
    share = (module.strategy.noising.timesteps(module.model, batch) == 1).float().mean()
    assert 0.2 < share < 0.3


# weights that nothing reaches would stop plain DDP


def adp_cfg(timed, **training):
    """In latents of its own, with the timestep as a token or without."""
    config = json.loads((REFERENCE / "tiny_cond_adp_cfg.json").read_text())
    config["model"]["diffusion"]["config"]["use_xattn_time"] = timed
    config["training"] = {**config["training"], "pre_encoded": False, **training}
    config["audio_channels"] = 8
    return config


NETWORKS = {
    "adp_cfg_1d": partial(adp_cfg, False),
    "timed": partial(adp_cfg, True),
    "dit": configs.text_to_audio,
    "inpaint": configs.inpainting,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.slow
def test_every_weight_in_training_has_a_gradient(dropout, make):
    config = make(cfg_dropout_prob=dropout)
    module = wrapper(config)
    audio = torch.randn(2, config["audio_channels"], config["sample_size"])
    ids = [c["id"] for c in config["model"]["conditioning"]["configs"]]
    metadata = tuple({name: "a bell" if name == "prompt" else 1 for name in ids} for _ in range(2))
    module.strategy.loss(module.model, module.prepare((audio, metadata))).loss.backward()
    (players,) = module.strategy.players(module.model).values()
    assert players and all(parameter.grad is not None for parameter in players)
    null = [*module.model.model.null_parameters()]
    assert all(parameter.requires_grad == (dropout > 0) for parameter in null) and bool(null) == isinstance(make, partial)


# two processes

TRAIN = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py")]
TWO = "--strategy ddp --devices 2 --accelerator cpu --max-steps 4 --log-every 2 --batch-size 4 --num-workers 0 --logger csv --name run"


def trained_by_two(folder, config):
    """The rows of the metrics of a short run."""
    (folder / "model.json").write_text(json.dumps(config))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TRAIN, "--model-config", "model.json", *TWO.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with (folder / "runs" / "run" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_loss_by_noise_level_is_that_of_all_ranks(tmp_path):
    """The peer gathers it, and stops where there is one device. Ranks draw other levels, so a bucket may be empty on one of them."""
    options = {"log_loss_info": True, "ot_coupling": True, "loss_normalization": "sample", "mask_padding": True}
    rows = trained_by_two(tmp_path, configs.text_to_audio(timestep_sampler="logit_normal", **options))
    buckets = [{name: float(value) for name, value in row.items() if "loss_t_" in name and value} for row in rows]
    assert len(rows) == 2 and all(len(row) > 3 for row in buckets)
    for row, bucket in zip(rows, buckets, strict=True):
        assert min(bucket.values()) <= float(row["train/loss"]) <= max(bucket.values())


@pytest.mark.slow
def test_two_processes_train_a_learned_null_that_no_one_asks_for(tmp_path):
    config = adp_cfg(False, cfg_dropout_prob=0.0)
    config["training"]["demo"] = {"demo_every": 100, "demo_steps": 1, "demo_cond": [{"pitch": 1, "seconds_start": 0, "seconds_total": 1}]}
    encoder = {"type": "oobleck", "config": {"in_channels": 1, "channels": 4, "c_mults": [1], "strides": [4], "latent_dim": 8}}
    decoder = {"type": "oobleck", "config": {"out_channels": 1, "channels": 4, "c_mults": [1], "strides": [4], "latent_dim": 8}}
    body = {"encoder": encoder, "decoder": decoder, "latent_dim": 8, "downsampling_ratio": 4, "io_channels": 1}
    config["model"] = {**config["model"], "pretransform": {"type": "autoencoder", "config": body}}
    config["model"]["conditioning"]["default_keys"] = {"pitch": "seconds_start"}
    config["model"]["conditioning"]["configs"][2]["type"] = "number"
    config |= {"audio_channels": 1, "sample_size": 256}
    assert [float(row["train/loss"]) > 0 for row in trained_by_two(tmp_path, config)] == [True, True]


# what is refused


def one_channel(**training):
    config = configs.text_to_audio(**training)
    config["model"]["io_channels"] = config["model"]["diffusion"]["config"]["io_channels"] = 1
    del config["model"]["pretransform"]
    return config


ARC = {"use_model_as_discriminator": True, "discriminator": {"type": "conv", "dit_hidden_layer": 1}}
inpaint_fully = partial(configs.inpainting, inpainting={"given_loss_weight": 0.5, "mask_kwargs": {"mask_type_probabilities": [0, 1, 0]}})


@pytest.mark.parametrize(
    ("config", "path", "message", "fix"),
    [
        (configs.text_to_audio(mask_padding_dropout=0.2), "mask_padding_dropout", "no effect without mask_padding", "set mask_padding"),
        (configs.text_to_audio(loss_norm_eps=1e-4), "loss_norm_eps", "no effect without loss_normalization", "name a loss_normalization"),
        (configs.text_to_audio(p_one_shot=0.1, min_snr_gamma=5.0), "p_one_shot", "gives pure noise the weight 0", "one of the two"),
        (configs.text_to_audio(min_snr_gamma=0.0), "min_snr_gamma", "a number above 0", ""),
        (configs.text_to_audio(loss_normalization="frame"), "loss_normalization", '"none", "timestep"', ""),
        (one_channel(loss_normalization="timestep"), "loss_normalization", "no variance over channels", 'use "sample"'),
        (inpaint_fully(), "inpainting.given_loss_weight", "the masks never give a frame", "another kind of mask"),
        (configs.text_to_audio(validation_timesteps=[0.0]), "validation_timesteps[0]", "a number above 0", ""),
        (configs.text_to_audio(arc=ARC, ot_coupling=True), "ot_coupling", "no effect with arc", "remove it"),
        (configs.text_to_audio(arc=ARC, min_snr_gamma=5.0), "min_snr_gamma", "no effect with arc", "remove it"),
        (configs.text_to_audio(arc=ARC, loss_normalization="sample"), "loss_normalization", "no effect with arc", "remove it"),
        (
            configs.inpainting(arc=ARC, inpainting={"given_loss_weight": 0.0}),
            "inpainting.given_loss_weight",
            "no effect with arc",
            "remove it",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "." not in value and " " not in value else "",
)
def test_settings_that_cannot_act_are_refused(config, path, message, fix):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config)
    problems = {problem["path"]: problem for problem in caught.value.to_dict()["problems"]}
    found = problems[f"training.{path}"]
    assert message in found["message"] and fix in found["fix"]
