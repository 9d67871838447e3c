"""Distances between spectra. S signals, N examples, then frames and bins, in any order; each gives (S,), the mean over examples.

`magnitude_distance` is what training spends its time on, so it brings its own gradient: everything about one resolution is computed
in a dozen passes over memory and a single tensor is kept for the backward pass. The other functions are plain autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

COMPLEX_FLOOR = 1e-7


def power(spectra: Tensor, floor: float) -> Tensor:
    """|X|^2 of complex spectra, at least `floor`. Without a graph: it works in place."""
    real, imaginary = torch.view_as_real(spectra).unbind(-1)
    return (real * real).addcmul_(imaginary, imaginary).clamp_(min=floor)


def magnitude_distance(spectra: Tensor, wanted_power: Tensor, *, convergence: float, log: float, linear: float, floor: float) -> Tensor:
    """convergence * spectral convergence + log * mean|log M - log W| + linear * mean|M - W|, M = |spectra|, W = sqrt(wanted_power).

    The same as the sum of the functions below, with the gradient written out. Bins below `floor` get no gradient, as under a clamp.

    Args:
        spectra: (S, N, frames, bins) complex.
        wanted_power: (S, N, frames, bins) of the original, as of `power`; it gets no gradient.
    """
    return _MagnitudeDistance.apply(spectra, wanted_power, convergence, log, linear, floor)


class _MagnitudeDistance(torch.autograd.Function):
    """With P = |X|^2, M = sqrt(P) and dM/dX = X / M, each term's gradient is X times a real factor; their sum is kept."""

    @staticmethod
    def forward(ctx: Any, spectra: Tensor, wanted_power: Tensor, convergence: float, log: float, linear: float, floor: float) -> Tensor:
        given_power = power(spectra, floor)
        given, wanted = given_power.sqrt(), wanted_power.sqrt()
        difference = given - wanted
        distance, energy = (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (difference, wanted))
        log_ratio = (given_power / wanted_power).log_()  # twice the difference of log magnitudes, in one logarithm
        examples, elements = len(given[0]), given[0].numel()
        loss = convergence * (distance / energy).mean((1, 2, 3))
        loss += log / (2 * elements) * torch.linalg.vector_norm(log_ratio, 1, dim=(1, 2, 3))
        if linear:
            loss += linear / elements * torch.linalg.vector_norm(difference, 1, dim=(1, 2, 3))
        if ctx.needs_input_grad[0]:
            scale = (convergence / examples / (distance * energy)).nan_to_num_(posinf=0.0)  # a perfect copy has no direction to move in
            sign = log_ratio.sign_()  # the difference's too
            factor = (sign * (log / elements)).div_(given).addcmul_(difference, scale)
            if linear:
                factor.add_(sign, alpha=linear / elements)
            factor.div_(given).masked_fill_(given_power <= floor, 0)
            ctx.save_for_backward(spectra * factor)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None, None, None], None, None, None, None, None


def spectral_convergence(wanted: Tensor, given: Tensor) -> Tensor:
    """|wanted - given| / |wanted| of magnitudes in the Frobenius norm, one for each example (arXiv:1808.06719)."""
    distance = torch.linalg.vector_norm(wanted - given, dim=(-2, -1)) / torch.linalg.vector_norm(wanted, dim=(-2, -1))
    return distance.mean(1)


def complex_distance(wanted: Tensor, given: Tensor) -> Tensor:
    """Mean over the bins of |wanted - given| relative to their mean magnitude; both complex."""
    scale = (wanted.abs() + given.abs()) / 2 + COMPLEX_FLOOR
    return ((wanted - given).abs() / scale).mean((1, 2, 3))
