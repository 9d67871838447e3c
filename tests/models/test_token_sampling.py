import pytest
import torch

from stable_audio_tools.models.token_sampling import Sampling, draw, guided_logits, keep_top_k, keep_top_p, probabilities

PROBS = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])


@pytest.mark.parametrize(("k", "kept"), [(1, [0, 0.4, 0, 0]), (2, [0, 0.4, 0, 0.3]), (4, [0.1, 0.4, 0.2, 0.3]), (99, [0.1, 0.4, 0.2, 0.3])])
def test_top_k(k, kept):
    assert torch.equal(keep_top_k(PROBS, k)[0], torch.tensor(kept))


def test_top_k_keeps_what_is_equally_likely():
    assert torch.equal(keep_top_k(PROBS, 2)[1], PROBS[1])


@pytest.mark.parametrize(
    ("p", "kept"), [(0.1, [0, 0.4, 0, 0]), (0.5, [0, 0.4, 0, 0.3]), (0.75, [0, 0.4, 0.2, 0.3]), (1.0, [0.1, 0.4, 0.2, 0.3])]
)
def test_top_p(p, kept):
    assert torch.equal(keep_top_p(PROBS, p)[0], torch.tensor(kept))


def test_neither_changes_its_argument():
    before = PROBS.clone()
    keep_top_k(PROBS, 1), keep_top_p(PROBS, 0.1)
    assert torch.equal(PROBS, before)


def test_temperature_sharpens_and_flattens():
    logits = PROBS.log()
    entropies = [
        torch.distributions.Categorical(probabilities(logits[:1], Sampling(temperature, 0))).entropy().item() for temperature in (0.5, 1, 2)
    ]
    assert entropies == sorted(entropies)
    torch.testing.assert_close(probabilities(logits, Sampling(1.0, 0)), PROBS)


def test_a_temperature_of_zero_leaves_the_most_likely():
    assert torch.equal(probabilities(PROBS.log(), Sampling(0.0)).argmax(-1), torch.tensor([1, 0]))
    assert probabilities(PROBS.log(), Sampling(0.0)).count_nonzero() == 2


def test_top_p_takes_the_place_of_top_k():
    assert probabilities(PROBS[:1].log(), Sampling(1.0, 1, 1.0)).count_nonzero() == 4
    assert probabilities(PROBS[:1].log(), Sampling(1.0, 1, 0.0)).count_nonzero() == 1


def test_half_precision_logits_are_drawn_from_in_float32():
    assert probabilities(PROBS.log().bfloat16(), Sampling()).dtype == torch.float32


def test_draws_follow_the_probabilities():
    noise = torch.empty(20000, 4).exponential_(generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(draw((5 * PROBS[0]).expand(20000, 4), noise), minlength=4) / 20000
    torch.testing.assert_close(shares, PROBS[0], atol=0.015, rtol=0)  # four standard errors


def test_what_was_left_out_is_never_drawn():
    noise = torch.empty(2000, 4).exponential_(generator=torch.Generator().manual_seed(0))
    assert set(draw(keep_top_k(PROBS[:1], 2).expand(2000, 4), noise).tolist()) == {1, 3}


def test_guidance_interpolates_and_goes_beyond():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert torch.equal(guided_logits(a, b, 1.0), a) and torch.equal(guided_logits(a, b, 0.0), b)
    assert torch.equal(guided_logits(a, b, 3.0), torch.tensor([3.0, -2.0]))


@pytest.mark.parametrize(
    ("sampling", "text"),
    [(Sampling(-1.0), "temp must be 0"), (Sampling(1.0, -1), "top_k must be"), (Sampling(1.0, 0, 1.5), "top_p must be")],
)
def test_values_that_mean_nothing(sampling, text):
    with pytest.raises(ValueError, match=text):
        sampling.check()
