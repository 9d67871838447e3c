"""What scores cost: each discriminator plays hinge, least squares and relativistic pairs, by the papers' formulas."""

import pytest
import torch
from torch.nn import functional as F

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.discriminators import DiscriminatorConfig

SCALES = {"n_ffts": [128], "hop_lengths": [32], "win_lengths": [128]}
SMALL = {
    "encodec": {"filters": 4, **SCALES},
    "dac": {"periods": [2], "fft_sizes": [128]},
    "oobleck": {},
    "big_vgan": {"periods": [2], "cqtd_filters": 4, "cqtd_hop_lengths": [64], "cqtd_n_octaves": [2], "cqtd_bins_per_octaves": [12]},
}
# arXiv:1705.02894, 1611.04076, 1807.00734 (each recording against its own reconstruction); loss of the discriminator, of the generator
FORMULAS = {
    "hinge": (lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda r, f: -f.mean()),
    "lsgan": (lambda r, f: ((r - 1) ** 2).mean() + (f**2).mean(), lambda r, f: ((f - 1) ** 2).mean()),
    "rpgan": (lambda r, f: F.softplus(f - r).mean(), lambda r, f: F.softplus(r - f).mean()),
}


def build(kind, **config):
    torch.manual_seed(0)
    block = {"type": kind, "config": SMALL[kind] | config, "weights": {"adversarial": 1.0, "feature_matching": 1.0}}
    return validate(DiscriminatorConfig, block, "config").build(16000, 2)


def parts(discriminator):
    return [discriminator.mpd, discriminator.cqt] if hasattr(discriminator, "cqt") else [discriminator]


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("loss_type", FORMULAS)
@pytest.mark.slow
def test_scores_cost_what_the_paper_says(kind, loss_type):
    discriminator = build(kind, loss_type=loss_type)
    reals, fakes = torch.randn(2, 2, 2, 4096).mul(0.3).unbind()
    of_discriminator, of_generator = FORMULAS[loss_type]
    with torch.no_grad():
        verdicts = [(part(reals)[0], part(fakes)[0]) for part in parts(discriminator)]
        expected = [
            sum(torch.stack([formula(*pair) for pair in zip(*verdict, strict=True)]).mean() for verdict in verdicts)
            for formula in (of_discriminator, of_generator)
        ]
        torch.testing.assert_close(discriminator.discriminator_loss(reals, fakes), expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(discriminator.generator_loss(reals, fakes)[0], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dac", "big_vgan"])
def test_two_keys_about_the_same_are_refused(kind):
    with pytest.raises(ConfigError) as error:
        build(kind, use_hinge=True, loss_type="hinge")
    (problem,) = error.value.problems
    assert problem.path[-2:] == ("config", "use_hinge")
    assert (problem.message, problem.fix) == ("loss_type says already what scores cost", "keep one of the two")
