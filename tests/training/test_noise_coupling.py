"""Noise by optimal transport: the order is the best there is, and nothing but the noise moves."""

from itertools import permutations

import configs
import numpy as np
import pytest
import torch
from test_host import loader, wrapper
from torch._subclasses.fake_tensor import FakeTensorMode

from stable_audio_tools.training.coupling import best_order, nearest_noise, shortest_augmentation


def has_better_cycle(cost, order):
    """Whether some items could pass their columns round and pay less: Floyd and Warshall's shortest way from each item back to itself."""
    own = cost[np.arange(len(cost)), order]
    gain = cost[:, order] - own[:, None]  # what row i pays more for the column of row j
    for middle in range(len(cost)):
        gain = np.minimum(gain, gain[:, middle, None] + gain[None, middle])
    return bool((np.diag(gain) < -1e-9).any())


@pytest.mark.parametrize("size", range(1, 7))
def test_no_order_is_better(size):
    generator = np.random.default_rng(size)
    for _ in range(50):
        cost = generator.normal(size=(size, size)).round(1)  # rounded, so that some are equal
        order = shortest_augmentation(cost)
        assert sorted(order) == list(range(size))
        every = [cost[range(size), list(other)].sum() for other in permutations(range(size))]
        assert cost[range(size), order].sum() == pytest.approx(min(every))


@pytest.mark.parametrize("size", [16, 61])
def test_no_exchange_is_better_in_a_large_batch(size):
    cost = np.random.default_rng(size).normal(size=(size, size))
    order = shortest_augmentation(cost)
    assert sorted(order) == list(range(size)) and not has_better_cycle(cost, order)
    assert has_better_cycle(cost, np.roll(order, 1))


def test_costs_that_are_not_finite_leave_the_order():
    cost = np.array([[0.0, np.nan], [-1.0, 0.0]])
    assert shortest_augmentation(cost).tolist() == [0, 1]


def test_each_clip_gets_the_noise_that_is_nearest_to_all_of_them_together():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 3, 8, generator=generator)
    found = nearest_noise(latents, noise)
    assert {tuple(n.flatten().tolist()) for n in found} == {tuple(n.flatten().tolist()) for n in noise}
    distances = [float((latents - noise[list(order)]).square().sum()) for order in permutations(range(5))]
    assert float((latents - found).square().sum()) == pytest.approx(min(distances))
    assert torch.equal(nearest_noise(latents[:1], noise[:1]), noise[:1])


def test_the_order_has_a_shape_where_there_are_no_numbers():
    with FakeTensorMode():
        assert best_order(torch.zeros(4, 4)).shape == (4,)


def test_only_the_noise_moves():
    """The same draws as without: timesteps, clips and their conditions stay where they are."""
    found = {}
    for coupled in (False, True):
        module = wrapper(configs.text_to_audio(ot_coupling=coupled))
        prepared = module.prepare(next(iter(loader(configs.text_to_audio()))))
        torch.manual_seed(3)
        found[coupled] = module.strategy.noising.draw(module.model, prepared)
    plain, coupled = found[False], found[True]
    assert torch.equal(plain.t, coupled.t)
    noise = {name: noisy.target + prepared.latents for name, noisy in found.items()}  # of a flow: v = noise - x0
    torch.testing.assert_close(noise[True], nearest_noise(prepared.latents, noise[False]))
    t = plain.t[:, None, None]
    torch.testing.assert_close(coupled.x_t, (1 - t) * prepared.latents + t * noise[True])
    assert coupled.target.square().sum() <= plain.target.square().sum()
