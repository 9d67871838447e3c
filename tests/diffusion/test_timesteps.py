"""Timestep distributions: the right shape, exactly resumable, different on every rank, strict about options."""

import json
import math
from pathlib import Path

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.diffusion.timesteps import TIMESTEP_SAMPLERS, parse_timestep_sampler

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "timesteps.json").read_text())
N = 20_000
CRITICAL = 1.63 / math.sqrt(N)  # Kolmogorov-Smirnov, 1 % level


def gaussian(z):
    return torch.special.ndtr(z)


def truncated_cdf(t):
    low = gaussian(torch.logit(torch.tensor(0.075, dtype=torch.float64)))
    return 1 - (gaussian(torch.logit(0.075 + 0.925 * (1 - t))) - low) / (1 - low)


CDFS = [
    ("uniform", {}, lambda t: t),
    ("logit_normal", {}, lambda t: gaussian(torch.logit(t))),
    ("logit_normal", {"mean": 0.5, "std": 0.7}, lambda t: gaussian((torch.logit(t) - 0.5) / 0.7)),
    ("trunc_logit_normal", {}, truncated_cdf),
    ("log_snr", {}, lambda t: gaussian((torch.logit(t) - 1.2) / 2)),
    ("log_snr", {"mean_logsnr": 0, "std_logsnr": 1}, lambda t: gaussian(torch.logit(t))),
    ("log_snr_uniform", {}, lambda t: (torch.logit(t) + 5) / 11),
    ("logsnr_uniform", {"min_logsnr": -6, "max_logsnr": 2}, lambda t: (torch.logit(t) + 2) / 8),
    ("cosine", {}, lambda t: 2 / math.pi * torch.atan(t / (1 - t))),
    ("shifted_logit_normal", {"uniform_prob": 1.0, "eps": 1e-6}, lambda t: t),
]


def draw(name, options=None, count=N, length=1024, seed=0):
    return parse_timestep_sampler(name, options, seed=seed).sample(count, length=length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name, options, cdf", CDFS, ids=[f"{name}{options or ''}" for name, options, _ in CDFS])
def test_distribution(name, options, cdf):
    t = draw(name, options)
    assert t.shape == (N,) and t.dtype == torch.float32 and t.min() >= 0 and t.max() <= 1
    expected = cdf(t.double().sort().values)
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    assert max((expected - steps[:-1]).abs().max(), (steps[1:] - expected).abs().max()) < CRITICAL


@pytest.mark.parametrize(
    "key, name, options",
    [
        ("logit_normal sigmoid(randn)", "logit_normal", {}),
        ("trunc_logit_normal 1-truncated_logistic_normal_rescaled", "trunc_logit_normal", {}),
        ("log_snr default(-1.2,2.0)", "log_snr", {}),
        ("log_snr(mean 0, std 1)", "log_snr", {"mean_logsnr": 0.0, "std_logsnr": 1.0}),
        ("uniform Sobol(1, scramble) first draw of 200000", "uniform", {}),
    ],
)
def test_published_quantiles(key, name, options):
    t = draw(name, options).double()
    expected = REFERENCE[key]
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    torch.testing.assert_close(
        t.quantile(levels), torch.tensor(expected["quantiles_5_25_50_75_95"], dtype=torch.float64), rtol=0, atol=0.015
    )
    assert abs(t.mean() - expected["mean"]) < 0.01 and abs(t.std() - expected["std"]) < 0.01


def test_log_snr_stays_off_the_ends():
    t = draw("log_snr", {"std_logsnr": 50.0}, count=100)
    assert t.min() == pytest.approx(1e-4) and t.max() == pytest.approx(1 - 1e-4)


def test_shifted_logit_normal_goes_to_noise_with_length_and_reaches_both_ends():
    means = [draw("shifted_logit_normal", {"min_tokens": 256}, length=n).mean() for n in (128, 256, 1024, 4096)]
    assert means == sorted(means)
    t = draw("shifted_logit_normal", {"uniform_prob": 0.0})
    assert t.max() == 1 and 0 < t.min() < 2e-3
    share_at_the_end = (t == 1).double().mean()
    assert share_at_the_end == pytest.approx(1e-3, abs=1e-3)  # beyond the 99.9 % quantile


def test_shifted_logit_normal_needs_the_length():
    with pytest.raises(ValueError, match="depends on the sequence length; pass length="):
        draw("shifted_logit_normal", length=None)


@pytest.mark.parametrize("name", [name for name in TIMESTEP_SAMPLERS.names if name != "uniform"])
def test_samplers_draw_from_the_generator_they_are_given_or_the_global_one(name):
    assert torch.equal(draw(name, count=8), draw(name, count=8))
    sampler = parse_timestep_sampler(name)
    torch.manual_seed(3)
    first = sampler.sample(8, length=512)
    torch.manual_seed(3)
    assert torch.equal(first, sampler.sample(8, length=512))
    assert sampler.state_dict() == {}


def test_every_block_of_the_uniform_sequence_covers_the_range():
    sampler = parse_timestep_sampler("uniform", seed=5)
    for _ in range(3):
        cells = (sampler.sample(16) * 16).long()
        assert cells.sort().values.tolist() == list(range(16))


@pytest.mark.parametrize("drawn", [(), (1,), (7,), (3, 1, 60)], ids=str)
def test_the_uniform_sequence_resumes_exactly(drawn):
    sampler = parse_timestep_sampler("uniform", seed=11, rank=2)
    for count in drawn:
        sampler.sample(count)
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = [sampler.sample(5), sampler.sample(1), sampler.sample(32)]

    resumed = parse_timestep_sampler("uniform", seed=0, rank=2)
    resumed.load_state_dict(state)
    assert all(torch.equal(e, resumed.sample(len(e))) for e in expected)
    assert resumed.state_dict() == sampler.state_dict()


def test_the_uniform_sequence_is_the_same_however_it_is_cut():
    whole = parse_timestep_sampler("uniform").sample(40)
    sampler = parse_timestep_sampler("uniform")
    assert torch.equal(whole, torch.cat([sampler.sample(n) for n in (1, 4, 35)]))


def test_ranks_and_seeds_have_sequences_of_their_own_also_after_loading_one_checkpoint():
    samplers = [parse_timestep_sampler("uniform", seed=seed, rank=rank) for seed, rank in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(s.sample(4).tolist()) for s in samplers}) == 4
    state = samplers[0].state_dict()
    for sampler in samplers[:2]:
        sampler.load_state_dict(state)
    assert not torch.equal(samplers[0].sample(4), samplers[1].sample(4))


def test_the_uniform_sequence_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    parse_timestep_sampler("uniform").sample(9)
    assert torch.equal(before, torch.get_rng_state())


def test_the_state_of_another_sampler_leaves_the_sequence_at_its_start():
    sampler = parse_timestep_sampler("uniform")
    sampler.load_state_dict(parse_timestep_sampler("cosine").state_dict())
    assert torch.equal(sampler.sample(4), parse_timestep_sampler("uniform").sample(4))
    parse_timestep_sampler("cosine").load_state_dict(sampler.state_dict())


def test_derived_seeds_differ_and_fit_a_generator():
    seeds = {derive_seed(seed, index) for seed in range(-2, 40) for index in range(40)}
    assert len(seeds) == 42 * 40 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert len(seeds | {derive_seed(seed) for seed in range(-2, 40)}) == 42 * 41  # also where a seed has one stream alone


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("unifrom", {}, r'unknown timestep sampler "unifrom"(.|\n)*did you mean "uniform"\?'),
        ("uniform", {"mean": 0.0}, 'unknown key "mean"'),
        ("log_snr", {"mean_logsrn": 0.0}, 'did you mean "mean_logsnr"'),
        ("logit_normal", {"std": 0}, "std"),
        ("logit_normal", {"std": "1"}, "std"),
        ("log_snr_uniform", {"min_logsnr": 3, "max_logsnr": 2}, "min_logsnr must be below max_logsnr, got 3.0 and 2.0"),
        ("shifted_logit_normal", {"min_tokens": 5000}, "min_tokens must be below max_tokens, got 5000 and 4096"),
    ],
)
def test_bad_names_and_options_are_told(name, options, message):
    with pytest.raises(ConfigError, match=message):
        parse_timestep_sampler(name, options)


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        parse_timestep_sampler("uniform").sample(0)
