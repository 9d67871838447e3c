import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from stable_audio_tools.models.bottlenecks import BottleneckConfig

X = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(2))


def bottleneck(**config):
    return TypeAdapter(BottleneckConfig).validate_python(config).build()


def test_the_vae_draws_from_the_normal_distribution_it_describes():
    vae, x = bottleneck(type="vae"), torch.cat([torch.full((1, 1, 20000), 0.7), torch.full((1, 1, 20000), -1.0)], 1)
    latents = vae.encode(x)
    deviation = torch.nn.functional.softplus(torch.tensor(-1.0)) + 1e-4
    assert latents.mean() == pytest.approx(0.7, abs=0.01)
    assert latents.std() == pytest.approx(float(deviation), rel=0.02)
    assert vae.encode(x, sample=False).eq(0.7).all()


def test_the_mean_mode_of_the_vae_draws_in_training_only():
    vae, x = bottleneck(type="vae", config={"mode": "mean"}), X
    assert torch.equal(vae.eval().encode(x), x[:, :3])
    assert not torch.equal(vae.train().encode(x), x[:, :3])
    assert not torch.equal(bottleneck(type="vae").eval().encode(x), x[:, :3])  # published models draw there, too


def test_kl_is_twice_torchs_divergence_summed_over_channels():
    _, info = bottleneck(type="vae").encode(X, return_info=True)
    mean, scale = X.chunk(2, 1)
    deviation = torch.nn.functional.softplus(scale) + 1e-4
    normal, standard = torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(info["kl"], 2 * torch.distributions.kl_divergence(normal, standard).sum(1).mean())


def test_kl_is_never_negative_and_zero_at_the_standard_normal():
    vae = bottleneck(type="vae")
    for seed in range(5):
        x = 3 * torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(seed))
        assert vae.encode(x, return_info=True)[1]["kl"] >= 0
    unit = torch.log(torch.expm1(torch.tensor(1 - 1e-4)))  # softplus of it is 1 - 1e-4
    x = torch.cat([torch.zeros(1, 4, 8), unit.expand(1, 4, 8)], 1)
    assert vae.encode(x, return_info=True)[1]["kl"].abs() < 1e-6


def test_kl_of_half_precision_has_a_finite_gradient():
    x = torch.full((1, 2, 4), -30.0, dtype=torch.float16, requires_grad=True)
    bottleneck(type="vae").encode(x, return_info=True)[1]["kl"].backward()
    assert x.grad.isfinite().all()


def test_tanh_bounds_and_leaves_small_values():
    tanh = bottleneck(type="tanh", config={"scale": 2.0})
    assert tanh.encode(100 * X).abs().max() <= 2
    torch.testing.assert_close(tanh.encode(1e-3 * X), 1e-3 * X)


def test_l2_norm_has_unit_frames():
    sphere = bottleneck(type="l2_norm")
    for y in (sphere.encode(X), sphere.decode(X)):
        torch.testing.assert_close(y.norm(dim=1), torch.ones(2, 50))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "tanh", "config": {"scale": 0.0}}, "greater than 0"),
        ({"type": "vae", "config": {"beta": 1.0}}, "Extra inputs"),
        ({"type": "vae", "config": {"mode": "median"}}, "'sample' or 'mean'"),
        ({"type": "vea"}, 'unknown bottleneck "vea"'),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        bottleneck(**config)
