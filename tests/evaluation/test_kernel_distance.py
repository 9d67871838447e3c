"""The kernel distance against a double loop; that it has no bias; that blocks change nothing."""

import pytest
import torch

from stable_audio_tools.evaluation import kernel_distance as module
from stable_audio_tools.evaluation.kernel_distance import gaussian_kernel, kernel_distance, polynomial_kernel


def rows(n, d=5, seed=0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_loops(x, y, kernel):
    """Gretton et al. 2012, JMLR 13, equation 3; of equally many, equation 4."""

    def mean(a, b, leave_out):
        values = [float(kernel(p[None], q[None])) for i, p in enumerate(a) for j, q in enumerate(b) if not (leave_out and i == j)]
        return sum(values) / len(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, len(x) == len(y))


@pytest.mark.parametrize("m", [7, 12])
@pytest.mark.parametrize("make", [polynomial_kernel, gaussian_kernel], ids=["polynomial", "gaussian"])
def test_it_is_what_loops_compute_in_blocks_of_any_size(m, make, monkeypatch):
    x, y = rows(12), rows(m, seed=1, shift=0.3)
    expected = by_loops(x, y, make(y))
    for block in (1, 5, 1024):
        monkeypatch.setattr(module, "BLOCK", block)
        assert float(kernel_distance(x, y, make(y))) == pytest.approx(expected, rel=1e-9)


def test_the_kernels_are_those_of_their_papers():
    x, y = rows(1, 3), rows(1, 3, seed=2)
    unit = torch.cat((torch.eye(3), -torch.eye(3))).double() * 3**0.5  # a root mean square of 1
    assert float(polynomial_kernel(unit)(x, y)) == pytest.approx((float((x * y).sum()) / 3 + 1) ** 3)
    assert float(polynomial_kernel(5 * unit)(5 * x, 5 * y)) == pytest.approx(float(polynomial_kernel(unit)(x, y)))
    reference = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)  # distances 2, 2, 4
    assert float(gaussian_kernel(reference)(reference[:1], reference[2:])) == pytest.approx(torch.tensor(-2.0).exp().item())


@pytest.mark.parametrize("make", [polynomial_kernel, gaussian_kernel], ids=["polynomial", "gaussian"])
@pytest.mark.parametrize("m", [10, 15])
def test_sets_of_one_source_are_at_zero_on_average(make, m):
    found = []
    for seed in range(300):
        both = rows(10 + m, seed=seed)
        found.append(float(kernel_distance(both[:10], both[10:], make(both[10:]))))
    found = torch.tensor(found)
    assert abs(found.mean()) < 3 * found.std() / 300**0.5
    assert (found < 0).any() and (found > 0).any()


def test_a_set_and_itself_are_at_exactly_zero():
    x = rows(40)
    for kernel in (polynomial_kernel(x), gaussian_kernel(x)):
        assert float(kernel_distance(x, x, kernel)) == 0


def test_counts_are_repetitions():
    x, y = rows(6), rows(9, seed=3)
    polynomial = polynomial_kernel(y)
    counts = torch.tensor([[1.0, 1, 1, 1, 1, 1], [0, 2, 0, 1, 1, 2]], dtype=torch.float64)
    ones = torch.ones(2, 9, dtype=torch.float64)
    one, other = kernel_distance(x, y, polynomial, (counts, ones)).tolist()
    assert one == pytest.approx(float(kernel_distance(x, y, polynomial)))
    drawn = x.repeat_interleave(counts[1].long(), 0)
    values = polynomial(drawn, drawn)
    apart = (drawn[:, None] != drawn).any(-1)  # a clip drawn twice is not compared with itself
    within = polynomial(y, y)
    within = (within.sum() - within.diagonal().sum()) / 72
    assert other == pytest.approx(float(values[apart].mean() + within - 2 * polynomial(drawn, y).mean()))


def test_a_reference_of_equal_vectors_has_a_kernel():
    same = torch.ones(5, 3, dtype=torch.float64)
    for make in (gaussian_kernel, polynomial_kernel):
        assert float(kernel_distance(same + 1, same, make(same))) > 0
