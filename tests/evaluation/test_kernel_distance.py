"""The kernel distance against a double loop; that it has no bias; that blocks change nothing."""

import pytest
import torch

from stable_audio_tools.evaluation import kernel_distance as module
from stable_audio_tools.evaluation.kernel_distance import gaussian_kernel, kernel_distance, polynomial_distance


def rows(n, d=5, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def polynomial(reference):
    return lambda x, y: (x @ y.T / (x.shape[1] * reference.square().mean()) + 1) ** 3


def once(x, y):
    return torch.ones(1, len(x), dtype=torch.float64), torch.ones(1, len(y), dtype=torch.float64)


DISTANCES = {
    "polynomial": (polynomial, lambda x, y: float(polynomial_distance(x, y, once(x, y)))),
    "gaussian": (gaussian_kernel, lambda x, y: float(kernel_distance(x, y, gaussian_kernel(y)))),
}


def by_loops(x, y, kernel):
    """Gretton et al. 2012, JMLR 13, equation 3; of equally many, equation 4."""

    def mean(a, b, leave_out):
        values = [float(kernel(p[None], q[None])) for i, p in enumerate(a) for j, q in enumerate(b) if not (leave_out and i == j)]
        return sum(values) / len(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, len(x) == len(y))


@pytest.mark.parametrize("m", [7, 12])
@pytest.mark.parametrize("name", DISTANCES)
def test_it_is_what_loops_compute_in_blocks_of_any_size(m, name, monkeypatch):
    kernel, distance = DISTANCES[name]
    x, y = rows(12), rows(m, seed=1, shift=0.3)
    expected = by_loops(x, y, kernel(y))
    for block in (1, 5, 1024):
        monkeypatch.setattr(module, "BLOCK", block)
        assert distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_units_do_not_matter():
    x, y = rows(12), rows(9, seed=1, shift=0.3)
    for _, distance in DISTANCES.values():
        assert distance(1e-3 * x, 1e-3 * y) == pytest.approx(distance(x, y), rel=1e-9)


def test_the_gaussian_kernel_is_as_wide_as_the_median_distance():
    reference = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)  # distances 2, 2, 4
    assert float(gaussian_kernel(reference)(reference[:1], reference[2:])) == pytest.approx(torch.tensor(-2.0).exp().item())


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("m", [10, 15])
def test_sets_of_one_source_are_at_zero_on_average(name, m):
    found = []
    for seed in range(300):
        both = rows(10 + m, seed=seed)
        found.append(DISTANCES[name][1](both[:10], both[10:]))
    found = torch.tensor(found)
    assert abs(found.mean()) < 3 * found.std() / 300**0.5
    assert (found < 0).any() and (found > 0).any()


def test_a_set_and_itself_are_at_exactly_zero():
    x = rows(40)
    for _, distance in DISTANCES.values():
        assert distance(x, x) == 0


def test_counts_are_repetitions():
    x, y = rows(6), rows(9, seed=3)
    counts = torch.tensor([[1.0, 1, 1, 1, 1, 1], [0, 2, 0, 1, 1, 2]], dtype=torch.float64)
    others = torch.tensor([[1.0] * 9, [0, 0, 3] * 3], dtype=torch.float64)
    one, other = polynomial_distance(x, y, (counts, others)).tolist()
    assert one == pytest.approx(DISTANCES["polynomial"][1](x, y))
    drawn, reference = x.repeat_interleave(counts[1].long(), 0), y.repeat_interleave(others[1].long(), 0)
    kernel = polynomial(reference)

    def within(rows):  # a clip drawn twice is not compared with itself
        return kernel(rows, rows)[(rows[:, None] != rows).any(-1)].mean()

    assert other == pytest.approx(float(within(drawn) + within(reference) - 2 * kernel(drawn, reference).mean()))


def test_a_reference_of_equal_vectors_has_a_distance():
    same = torch.ones(5, 3, dtype=torch.float64)
    for _, distance in DISTANCES.values():
        assert distance(same + 1, same) > 0
    assert DISTANCES["polynomial"][1](same, 0 * same) > 0
