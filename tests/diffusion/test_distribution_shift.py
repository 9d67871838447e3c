"""Distribution shifts: monotone maps of [0, 1] onto itself, with fixed ends, that round-trip through JSON."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.diffusion.timesteps import DistributionShiftConfig

REFERENCE = load_file(Path(__file__).parents[1] / "reference" / "distribution_shift.safetensors")
SHIFTS = [
    {},
    {"use_sine": True},
    {"type": "full", "base_shift": -0.5, "max_shift": 2.0},
    {"type": "constant", "shift": 5},
    {"type": "constant", "shift": 0.3},
    {"type": "flux", "alpha_min": 1.5, "alpha_max": 6.93},
    {"type": "logsnr"},
    {"type": "logsnr", "rate": 0},
    {"type": "none"},
]
shifts = pytest.mark.parametrize("options", SHIFTS, ids=str)


def shift_of(options):
    return validate(DistributionShiftConfig, options, "distribution_shift_options").build()


@shifts
@pytest.mark.parametrize("length", [16, 1000, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_shift_is_monotone_and_fixes_both_ends(options, length, dtype):
    t = torch.linspace(0, 1, 201, dtype=dtype)
    shifted = shift_of(options).shift(t, length)
    assert shifted.dtype == dtype and shifted[0] == 0 and shifted[-1] == 1
    assert (shifted.diff() > 0).all()


@pytest.mark.parametrize("options", [{}, {"type": "flux", "alpha_min": 1.5, "alpha_max": 6.0}, {"type": "logsnr"}], ids=str)
def test_longer_sequences_are_shifted_further_towards_noise(options):
    t = torch.tensor([0.5])
    levels = [float(shift_of(options).shift(t, length)) for length in (256, 1000, 4000)]
    assert levels == sorted(set(levels))


def test_a_constant_shift_is_the_documented_formula():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_of({"type": "constant", "shift": 5}).shift(t, 64), 5 * t / (1 + 4 * t))


def test_logsnr_shift_spaces_evenly_in_logsnr():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[1:-1]
    logsnr = -torch.logit(shift_of({"type": "logsnr", "rate": 0, "anchor_logsnr": -6.0}).shift(t, 7))
    torch.testing.assert_close(logsnr, 2 - 8 * t)


@pytest.mark.parametrize(
    "tag, options",
    [
        ("default", {}),
        ("sine", {"use_sine": True}),
        ("b0.3_m2_16_256", {"base_shift": 0.3, "max_shift": 2.0, "min_length": 16, "max_length": 256}),
    ],
)
@pytest.mark.parametrize("length", [64, 1024, 10000])
def test_published_values(tag, options, length):
    shifted = shift_of(options).shift(REFERENCE["shift.t"], length)
    torch.testing.assert_close(shifted, REFERENCE[f"shift.{tag}.len{length}"], rtol=0, atol=1e-6)


@shifts
def test_a_shift_survives_json(options):
    shift = shift_of(options)
    again = validate(DistributionShiftConfig, shift.model_dump(mode="json"), "x")
    assert again == shift
    assert set(options) <= set(shift.model_dump(exclude_unset=True))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"type": "constnat", "shift": 2}, 'did you mean "constant"'),
        ({"type": "constant"}, 'missing key "shift"'),
        ({"type": "constant", "shift": 0}, "shift"),
        ({"shift": 2}, 'unknown key "shift"'),
        ({"min_length": 5000}, "min_length must be below max_length, got 5000 and 4096"),
        ({"type": "flux", "min_length": 5000}, "min_length must be below max_length"),
        ({"type": "logsnr", "logsnr_end": -7}, "anchor_logsnr must be below logsnr_end, got -6.2 and -7.0"),
    ],
    ids=str,
)
def test_bad_options_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        shift_of(options)


def test_a_logsnr_shift_says_when_a_sequence_is_too_short_for_it():
    with pytest.raises(ValueError, match=r"starts at logSNR 4.77 for a length of 1, not below its logsnr_end 2.0; raise logsnr_end"):
        shift_of({"type": "logsnr"}).shift(torch.tensor([0.5]), 1)
