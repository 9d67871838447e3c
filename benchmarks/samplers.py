"""Samplers at equal cost: how far the distribution that they draw from is from the data's, by evaluations of the field.

    python benchmarks/samplers.py [--objective v rectified_flow] [--evaluations 4 8 16 32 64] [--items 200000]

The data are two narrow bells, N(-1, 0.1^2) and N(1, 0.1^2) at 3 to 1, whose field is known, so that a table holds the sampler's error
alone: the mean distance between quantiles (Wasserstein-1) in hundredths. Each sampler takes its own schedule, as generation does, in as
many steps as the evaluations pay for; `k-dpm-adaptive` takes what its tolerance asks for, given in brackets. The last line is the
distance between two sets of true data: nothing can be told below it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from stable_audio_tools.diffusion.objectives import Objective, expand, parse_objective
from stable_audio_tools.diffusion.samplers import Field, Prediction, find_sampler
from stable_audio_tools.diffusion.seeds import generator_for

CENTRES, WEIGHTS, STD = torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor([0.75, 0.25], dtype=torch.float64), 0.1
PER_STEP = {"heun": 2, "rk4": 4, "k-heun": 2, "k-dpm-2": 2, "k-dpmpp-2s-ancestral": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", nargs="+", default=["v", "rectified_flow"])
    parser.add_argument("--evaluations", nargs="+", type=int, default=[4, 8, 16, 32, 64])
    parser.add_argument("--items", type=int, default=200_000)
    args = parser.parse_args()
    truth = data(args.items, seed=0)
    for name in args.objective:
        objective = parse_objective(name)
        print(f"\n{name:22}" + "".join(f"{count:>8}" for count in args.evaluations))
        for sampler in objective.samplers:
            print(f"{sampler:22}" + row(sampler, objective, args.evaluations, truth))
    print(f"\n{'true data':22}{distance(data(args.items, seed=1), truth):8.2f}")


def row(sampler: str, objective: Objective, evaluations: list[int], truth: Tensor) -> str:
    if sampler == "k-dpm-adaptive":
        found, count = drawn(sampler, objective, 8, len(truth))
        return f"{distance(found, truth):8.2f} ({count})"
    cells = []
    for budget in evaluations:
        # The last step of two-stage methods, to clean data, asks once.
        steps = (budget + 1) // 2 if PER_STEP.get(sampler) == 2 else budget // PER_STEP.get(sampler, 1)
        cells.append(distance(drawn(sampler, objective, steps, len(truth))[0], truth))
    return "".join(f"{cell:8.2f}" for cell in cells)


def drawn(name: str, objective: Objective, steps: int, items: int) -> tuple[Tensor, int]:
    """(items,) of a sampler, and the evaluations that it made."""
    asked = [0]
    sampler = find_sampler(name, objective)
    ts = sampler.schedule(steps, length=1)
    noise = torch.randn(1, 1, items, generator=generator_for(0, 2), dtype=torch.float64)
    x = objective.add_noise(torch.zeros_like(noise), noise, ts[0])
    counted = counting(field_of(objective), asked)
    return sampler.sample(counted, x, ts, generator=generator_for(0, 3)).flatten(), asked[0]


def counting(field: Field, asked: list[int]) -> Field:
    def count(x: Tensor, t: Tensor) -> Prediction:
        asked[0] += 1
        return field(x, t)

    return count


def field_of(objective: Objective) -> Callable[[Tensor, Tensor], Prediction]:
    def field(x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = (expand(weight, x) for weight in objective.alpha_sigma(t))
        variance = alpha**2 * STD**2 + sigma**2
        away = x[..., None] - alpha[..., None] * CENTRES
        share = torch.softmax(WEIGHTS.log() - away**2 / (2 * variance[..., None]), dim=-1)
        x0 = (share * (CENTRES + (alpha * STD**2 / variance)[..., None] * away)).sum(dim=-1)
        noise = (x - alpha * x0) / sigma.clamp(min=1e-9)
        return Prediction(objective.target(x0, noise, t), x0, noise)

    return field


def data(items: int, *, seed: int) -> Tensor:
    generator = generator_for(0, seed)
    centres = CENTRES[torch.multinomial(WEIGHTS, items, replacement=True, generator=generator)]
    return centres + STD * torch.randn(items, generator=generator, dtype=torch.float64)


def distance(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 of two sets of one size, in hundredths."""
    return 100 * float((a.sort().values - b.sort().values).abs().mean())


if __name__ == "__main__":
    main()
