"""Optimizers and schedulers from JSON: names, arguments and values are checked first, then torch's own classes are built."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.training.optim import OPTIMIZERS, SCHEDULERS, OptimizerGroup, default_optimizers

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "inverse_lr.json").read_text())
SCHEDULER_ARGUMENTS = {
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 4]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 5},
    "WarmupStableDecay": {"total_steps": 10},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 20},
}


def group(optimizer: str, config: dict | None = None, scheduler: str | None = None, scheduler_config: dict | None = None) -> OptimizerGroup:
    data = {"optimizer": {"type": optimizer, "config": config or {}}}
    if scheduler:
        data["scheduler"] = {"type": scheduler, "config": scheduler_config or {}}
    return validate(OptimizerGroup, data, "x.json")


def weights() -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(4, 3, generator=generator)), Parameter(torch.randn(3, generator=generator))]


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: json.dumps(case["config"]))
def test_inverse_lr_agrees_with_the_published_schedule(case):
    optimizer, scheduler = group("SGD", {"lr": REFERENCE["base_lr"]}, "InverseLR", case["config"]).build(weights())
    rates = []
    for _ in range(max(REFERENCE["steps"]) + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [rates[step] for step in REFERENCE["steps"]] == pytest.approx(case["lr"], rel=1e-12)


def test_inverse_lr_goes_on_from_its_state():
    def make():
        return group("SGD", {"lr": 0.1}, "InverseLR", {"inv_gamma": 10, "warmup": 0.9}).build(weights())

    optimizer, scheduler = make()
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    resumed_optimizer, resumed = make()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    optimizer.step()
    scheduler.step()
    resumed_optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_built_by_name_and_moves_the_weights(name):
    params = weights()
    optimizer, scheduler = group(name, {"lr": 0.1}).build(params)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert scheduler is None
    assert all(not torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_built_by_name(name):
    optimizer, scheduler = group("AdamW", {"lr": 0.1}, name, SCHEDULER_ARGUMENTS.get(name, {})).build(weights())
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert type(scheduler).__name__ == name


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "FusedAdam"])
def test_the_fused_kernel_is_chosen_unless_the_config_chooses(name):
    fused = group(name, {"lr": 0.01}).build(weights())[0]
    plain = group(name, {"lr": 0.01, "fused": False}).build(weights())[0]
    assert fused.defaults["fused"] is True
    assert not plain.defaults["fused"]
    for optimizer in (fused, plain):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = p.detach().sin()
        optimizer.step()
    for a, b in zip(fused.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_bfloat16_weights_step_as_float32_ones_do_but_for_rounding(name):
    """Torch's fused SGD does not, on a CPU."""
    exact = [torch.nn.Parameter(torch.randn(16)) for _ in range(20)]
    rounded = [torch.nn.Parameter(weight.detach().bfloat16()) for weight in exact]
    optimizers = [group(name, {"lr": 0.05}).build(each)[0] for each in (exact, rounded)]
    for _ in range(3):
        for a, b in zip(exact, rounded, strict=True):
            a.grad = torch.randn(16)
            b.grad = a.grad.bfloat16()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(exact, rounded, strict=True):
        torch.testing.assert_close(b.float(), a, rtol=0.05, atol=0.05)


def test_fused_adam_decouples_the_weight_decay_unless_told_otherwise():
    def after_a_step(name, config):
        params = weights()
        for p in params:
            p.grad = torch.ones_like(p)
        group(name, {"lr": 0.1, "weight_decay": 0.5, **config}).build(params)[0].step()
        return params[0].detach()

    torch.testing.assert_close(after_a_step("FusedAdam", {}), after_a_step("AdamW", {}))
    torch.testing.assert_close(after_a_step("FusedAdam", {"adam_w_mode": False}), after_a_step("Adam", {}))


def test_lists_become_the_tuples_that_torch_wants():
    optimizer, _ = group("AdamW", {"lr": 1e-4, "betas": [0.8, 0.99]}).build(weights())
    assert optimizer.defaults["betas"] == (0.8, 0.99)


BAD = [
    (("AdmW",), "optimizer.type", 'unknown optimizer "AdmW"', 'did you mean "AdamW"?'),
    (("LBFGS",), "optimizer.type", 'optimizer "LBFGS" cannot be used here', "known: "),
    (("AdamW", {"beta": [0.9, 0.99]}), "optimizer.config.beta", 'unknown key "beta" of AdamW', 'did you mean "betas"?'),
    (("AdamW", {"params": []}), "optimizer.config.params", 'unknown key "params"', ""),
    (("AdamW", {"lr": "1e-4"}), "optimizer.config.lr", 'expected a number, got "1e-4"', "remove the quotes: 1e-4"),
    (("AdamW", {"lr": None}), "optimizer.config.lr", "expected a number, got null", ""),
    (("AdamW", {"lr": -1}), "optimizer.config", "Invalid learning rate: -1", ""),
    (("AdamW", {"lr": float("inf")}), "optimizer.config.lr", "expected a finite number", ""),
    (("AdamW", {"betas": [0.9]}), "optimizer.config.betas", "expected a list of 2 numbers, got [0.9]", ""),
    (("AdamW", {"betas": [0.9, None]}), "optimizer.config.betas", "expected a list of 2 numbers, got [0.9, null]", ""),
    (("AdamW", {"lr": [1]}), "optimizer.config.lr", "expected a number, got [1]", ""),
    (("AdamW", {"amsgrad": 1}), "optimizer.config.amsgrad", "expected true or false, got 1", ""),
    (("SGD", {}, "StepLR"), "scheduler.config.step_size", 'missing key "step_size"', "StepLR needs it"),
    (("SGD", {}, "StepLR", {"stepsize": 3}), "scheduler.config.stepsize", 'unknown key "stepsize"', 'did you mean "step_size"?'),
    (("SGD", {}, "StepLR", {"step_size": "3"}), "scheduler.config.step_size", 'expected a number, got "3"', "remove the quotes: 3"),
    (("SGD", {}, "InvreseLR"), "scheduler.type", 'unknown scheduler "InvreseLR"', 'did you mean "InverseLR"?'),
    (("SGD", {}, "InverseLR", {"warmup": 1}), "scheduler.config", "warmup must be at least 0 and below 1, got 1", ""),
    (("SGD", {}, "InverseLR", {"inv_gamma": 0}), "scheduler.config", "inv_gamma must be above 0", ""),
    (("SGD", {}, "CosineAnnealingLR", {"T_max": 0}), "scheduler.config", "torch refuses it", ""),
    (("Adagrad", {}, "OneCycleLR", {"max_lr": 1, "total_steps": 9}), "scheduler.config", "must support momentum", ""),
    (("SGD", {}, "LambdaLR"), "scheduler.type", "it needs a function, which JSON cannot hold", ""),
]


@pytest.mark.parametrize(("arguments", "path", "message", "fix"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_refused_with_its_place(arguments, path, message, fix):
    with pytest.raises(ConfigError) as caught:
        group(*arguments)
    (problem,) = caught.value.problems
    assert ".".join(problem.path) == path
    assert message in problem.message
    assert fix in problem.fix


def test_learning_rate_alone_stands_for_the_published_optimizers():
    training = SimpleNamespace(optimizer_configs=None, learning_rate=3e-4)
    defaults = {
        name: made.build(weights())[0] for name, made in default_optimizers(training, "autoencoder", "discriminator", "diffusion").items()
    }
    assert {name: (type(o).__name__, o.defaults["lr"], o.defaults["betas"]) for name, o in defaults.items()} == {
        "autoencoder": ("AdamW", 3e-4, (0.8, 0.99)),
        "discriminator": ("AdamW", 3e-4, (0.8, 0.99)),
        "diffusion": ("Adam", 3e-4, (0.9, 0.999)),
    }


def test_optimizer_configs_win_over_learning_rate_and_say_so_once(caplog):
    training = SimpleNamespace(optimizer_configs={"diffusion": group("SGD", {"lr": 0.5})}, learning_rate=3e-4)
    with caplog.at_level(logging.WARNING):
        optimizer, _ = default_optimizers(training, "diffusion")["diffusion"].build(weights())
    assert optimizer.defaults["lr"] == 0.5
    assert [record.getMessage() for record in caplog.records] == ["learning_rate 0.0003 has no effect: optimizer_configs is given and wins"]


def test_warmup_stable_decay_has_its_three_phases_and_stays_at_the_end():
    config = {"total_steps": 100, "warmup_steps": 10, "decay_start": 0.6, "final_ratio": 0.02}
    optimizer, scheduler = group("SGD", {"lr": 2.0}, "WarmupStableDecay", config).build(weights())
    rates = []
    for _ in range(120):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.2) and rates[9:60] == [2.0] * 51
    assert rates[80] == pytest.approx(1.02) and rates[100:] == pytest.approx([0.04] * 20)
    assert all(a <= b for a, b in itertools.pairwise(rates[:11]))
