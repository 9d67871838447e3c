"""The Fréchet distance against formulas written independently, and against what Gaussians have in closed form."""

import pytest
import torch
from torchmetrics.image.fid import _compute_fid

from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.evaluation.frechet import extrapolated, frechet_distance, frechet_of, gaussian
from stable_audio_tools.evaluation.set_distances import FRACTIONS


def gaussians(n, m, d, seed=0, shift=0.5):
    generator = torch.Generator().manual_seed(seed)
    mixes = torch.randn(2, d, d, generator=generator, dtype=torch.float64)
    first, second = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, m))
    return first @ mixes[0], second @ mixes[1] + shift


def by_torchmetrics(first, second):
    return float(_compute_fid(first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T)))


@pytest.mark.parametrize(("n", "m", "d"), [(50, 60, 2), (300, 200, 8), (100, 400, 64)])
def test_it_is_what_torchmetrics_computes(n, m, d):
    first, second = gaussians(n, m, d)
    assert frechet_distance(first, second) == pytest.approx(by_torchmetrics(first, second), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (5, 200), (2, 2)])
def test_fewer_vectors_than_dimensions_are_no_trouble(n, m):
    first, second = gaussians(n, m, 40)
    product = torch.cov(first.T) @ torch.cov(second.T)
    root = torch.linalg.eigvals(product).real.clamp_min(0).sqrt().sum()  # noise around the zeros of a singular matrix has a root too
    expected = (first.mean(0) - second.mean(0)).square().sum() + torch.cov(first.T).trace() + torch.cov(second.T).trace() - 2 * root
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-5)


def test_two_normal_distributions_of_numbers_have_their_closed_form():
    first, second = (torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None] for _ in range(2))
    first, second = first / first.std() * 2 + 3, second / second.std() * 5 - 1
    assert frechet_distance(first, second) == pytest.approx(4**2 + (2 - 5) ** 2, rel=1e-12)


def test_a_set_is_at_no_distance_from_itself_and_a_shift_is_its_square():
    for n in (30, 500):
        rows, _ = gaussians(n, 2, 96)
        scale = float(rows.var(0).sum())
        assert frechet_distance(rows, rows) <= 1e-12 * scale
        assert frechet_distance(rows, rows.flip(0)) <= 1e-12 * scale
        assert frechet_distance(rows, rows + 0.25) == pytest.approx(96 / 16, rel=1e-9)


def test_a_constant_direction_is_no_trouble():
    first, second = gaussians(50, 50, 6)
    first[:, 2] = second[:, 2] = 7.0
    assert frechet_distance(first, second) == pytest.approx(
        frechet_distance(first[:, [0, 1, 3, 4, 5]], second[:, [0, 1, 3, 4, 5]]), rel=1e-9
    )


def test_counts_are_repetitions():
    first, _ = gaussians(20, 2, 6)
    counts = torch.tensor([0.0, 3.0, 1.0, 0.0] * 5, dtype=torch.float64)
    repeated = first.repeat_interleave(counts.long(), 0)
    assert frechet_of(torch.cat(gaussian(first, counts)), torch.cat(gaussian(repeated))) < 1e-10
    mean, root = gaussian(first, counts)
    torch.testing.assert_close(root.T @ root, torch.cov(repeated.T))
    torch.testing.assert_close(mean[0], repeated.mean(0))


def test_half_precision_vectors_are_taken_in_full():
    first, second = (rows.float() + 1000 for rows in gaussians(200, 200, 8))
    assert frechet_distance(first, second) == pytest.approx(by_torchmetrics(first.double(), second.double()), rel=1e-9)


def test_sets_that_have_no_covariance_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(1, 4\) and \(9, 4\); expected two rows or more"):
        frechet_distance(torch.zeros(1, 4), torch.zeros(9, 4))
    with pytest.raises(ValueError, match="as many columns"):
        frechet_distance(torch.zeros(3, 4), torch.zeros(9, 5))


def test_extrapolation_takes_out_the_bias_of_small_sets():
    """Two sets of one source are at 0 from each other; the plain distance says much more, and twice as many clips say half of it."""
    plain, endless = [], []
    for seed in range(12):
        rows = torch.randn(400, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        plain.append(frechet_distance(rows[:200], rows[200:]))
        endless.append(extrapolated(rows[:200], rows[200:], FRACTIONS, generator_for(seed))[0])
    plain, endless = torch.tensor(plain), torch.tensor(endless)
    assert plain.mean() > 1.0
    assert abs(endless.mean()) < 0.1 * plain.mean()
    shifted = torch.randn(400, 24, generator=torch.Generator().manual_seed(50), dtype=torch.float64)
    found, error = extrapolated(shifted[:200] + 0.5, shifted[200:], FRACTIONS, generator_for(0))
    assert found == pytest.approx(24 / 4, abs=2.5) and 0 < error < 1


def test_extrapolation_of_a_set_and_itself_is_nothing():
    rows, _ = gaussians(80, 2, 10)
    assert abs(extrapolated(rows, rows, FRACTIONS, generator_for(0))[0]) < 1e-9
