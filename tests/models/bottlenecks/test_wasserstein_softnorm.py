"""Losses on the distribution of latents."""

import pytest
import torch
from pydantic import TypeAdapter

from stable_audio_tools.models.bottlenecks import BottleneckConfig
from stable_audio_tools.models.bottlenecks.softnorm import softnorm_loss
from stable_audio_tools.models.bottlenecks.wasserstein import ROWS, discrepancy, mean_kernel


def bottleneck(kind, **config):
    return TypeAdapter(BottleneckConfig).validate_python({"type": kind, "config": config}).build()


@pytest.mark.parametrize("rows", [7, ROWS + 3])
def test_the_kernel_in_parts_is_the_kernel_of_all_pairs(rows):
    x, y = torch.randn(rows, 5, requires_grad=True), torch.randn(40, 5)
    got = mean_kernel(x, y)
    want = torch.exp(-(x[:, None] - y[None]).square().mean(2) / 5).mean()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(want, x)[0], rtol=1e-4, atol=1e-9)


def test_discrepancy_is_small_for_normal_latents_and_grows_with_distance():
    torch.manual_seed(0)
    normal = torch.randn(8, 6, 100)
    values = [discrepancy(latents) for latents in (normal, normal + 1, normal + 3, 4 * normal)]
    assert values[0].abs() < 2e-3
    assert values[0] < values[1] < values[2] and values[3] > 0.01


def test_mmd_is_of_training_and_can_be_left_out():
    module, x = bottleneck("wasserstein", use_tanh=True, tanh_scale=2.0), 10 * torch.randn(2, 4, 20)
    assert set(module.train().encode(x, return_info=True)[1]) == {"mmd"}
    assert module.eval().encode(x, return_info=True)[1] == {}
    assert module.encode(x).abs().max() <= 2
    assert bottleneck("wasserstein", bypass_mmd=True).train().encode(x, return_info=True)[1]["mmd"] == 0


def test_noise_stands_beside_the_latents():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 500)
    for kind, config in (("wasserstein", {}), ("softnorm", {"dim": 4})):
        out = bottleneck(kind, noise_augment_dim=3, **config).decode(x)
        assert torch.equal(out[:, :4], x) and out[:, 4:].std().item() == pytest.approx(1, abs=0.05)


def test_softnorm_is_a_gain_and_an_offset_that_learn():
    module, x = bottleneck("softnorm", dim=4, noise_augment_dim=1).train(), 3 + 2 * torch.randn(2, 4, 400)
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == {
        "scaling_factor": (1, 4, 1),
        "bias": (1, 4, 1),
        "noise_scaling_factor": (1, 1, 1),
    }
    assert torch.equal(module.encode(x), x)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(200):
        loss = module.encode(x, return_info=True)[1]["softnorm_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    latents = module.encode(x).detach()
    assert latents.mean().abs() < 0.1 and latents.std() == pytest.approx(1, abs=0.1)


def test_softnorm_loss_is_the_divergence_of_channels_and_frames():
    x = torch.randn(3, 8, 50, generator=torch.Generator().manual_seed(0))
    want = 0.0
    for dim, weight in ((-1, 1.0), (-2, 0.4)):
        normal = torch.distributions.Normal(x.mean(dim), x.std(dim))
        want += weight * 2 * torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(softnorm_loss(x), want)


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 1, 9), (2, 4, 9)])
def test_softnorm_loss_of_silence_and_of_single_frames_is_finite(shape):
    x = torch.zeros(shape, requires_grad=True)
    softnorm_loss(x).backward()
    assert softnorm_loss(x).isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("noise", [0, 3])
def test_softnorm_has_a_gradient_for_every_parameter(noise):
    bottleneck = (
        TypeAdapter(BottleneckConfig).validate_python({"type": "softnorm", "config": {"dim": 4, "noise_augment_dim": noise}}).build()
    )
    out = bottleneck.decode(bottleneck.encode(torch.randn(2, 4, 8)))
    assert out.shape == (2, 4 + noise, 8)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in bottleneck.parameters())
