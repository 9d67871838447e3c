"""Sampling schedules: exact ends, strictly falling, the shift of training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stable_audio_tools.diffusion.grids import linear_grid, logsnr_grid, schedule
from stable_audio_tools.diffusion.objectives import OBJECTIVES, parse_objective
from stable_audio_tools.diffusion.timesteps import ConstantShift, FluxShift, LengthShift, LogSNRShift, NoShift

REFERENCE = load_file(Path(__file__).parents[1] / "reference" / "samplers.safetensors")
SHIFTS = [None, LengthShift(), LengthShift(use_sine=True), ConstantShift(shift=5.0), FluxShift(alpha_max=4.0), LogSNRShift(), NoShift()]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("shift", SHIFTS, ids=repr)
@pytest.mark.parametrize("sigma_max", [1.0, 0.999, 0.7, 0.2])
@pytest.mark.parametrize("steps", [1, 2, 8, 100])
def test_a_schedule_falls_from_its_start_to_exactly_zero(objective, shift, sigma_max, steps):
    ts = schedule(objective, steps, length=700, shift=shift, sigma_max=sigma_max)
    assert ts.shape == (steps + 1,) and ts.dtype == torch.float64
    assert ts[0] == sigma_max and ts[-1] == 0
    assert (ts.diff() < 0).all()


@pytest.mark.parametrize("sigma_max", [0.001, 0.05, 0.119, 0.12, 0.9999])
def test_a_logsnr_grid_falls_wherever_it_starts(sigma_max):
    assert (logsnr_grid(20, sigma_max=sigma_max).diff() < 0).all()


def test_a_flow_without_shift_is_sampled_on_the_published_logsnr_grid():
    ts = schedule(parse_objective("rectified_flow"), 8, length=32)
    torch.testing.assert_close(ts.float(), REFERENCE["rf.schedule_steps8_smax1"], rtol=0, atol=1e-6)


def test_v_without_shift_is_sampled_evenly():
    assert torch.equal(schedule(parse_objective("v"), 4, length=32), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_model_with_a_shift_is_sampled_where_it_was_trained(name):
    shift = ConstantShift(shift=5.0)
    expected = shift.shift(torch.linspace(1, 0, 51, dtype=torch.float64), 64)
    assert torch.equal(schedule(parse_objective(name), 50, length=64, shift=shift), expected)


def test_a_later_start_follows_the_same_density():
    shift = ConstantShift(shift=3.0)
    whole = linear_grid(10, shift=shift)
    torch.testing.assert_close(linear_grid(6, sigma_max=float(whole[4]), shift=shift), whole[4:])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: linear_grid(0), "steps must be at least 1, got 0"),
        (lambda: logsnr_grid(-1), "steps must be at least 1, got -1"),
        (lambda: linear_grid(4, sigma_max=1.2), "must be above 0 and at most 1, got 1.2"),
        (lambda: logsnr_grid(4, sigma_max=0.0), "must be above 0 and at most 1, got 0.0"),
        (lambda: linear_grid(4, sigma_max=0.05, shift=LogSNRShift(), length=700), "0.05, is below all that the model's distribution shift"),
    ],
)
def test_bad_grids_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
