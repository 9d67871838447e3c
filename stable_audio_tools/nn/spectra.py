"""Short-time spectra and distances between them. S signals, N examples, then frames and bins; each distance gives (S,), the mean over
examples.

`magnitude_distance` is what training spends its time on, so it brings its own gradient and works in place: a stereo pair is transformed
once for four signals, and what a pass over memory costs decides over its speed. The other functions are plain autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

COMPLEX_FLOOR = 1e-7
CACHED_SAMPLES = 2**17  # chosen: of a channel, so many at once keep a CPU's caches warm and its interpreter idle


class ShortTime:
    """Windowed Fourier transforms of frames, and the adjoint that their gradient takes.

    Args:
        window: (fft_size,).
        hop: samples between frames.
    """

    def __init__(self, window: Tensor, hop: int):
        self.window, self.hop = window, hop

    def __call__(self, audio: Tensor) -> Tensor:
        """(..., T) to complex (..., frames, bins); frames lie wholly inside the audio."""
        frames = audio.unfold(-1, len(self.window), self.hop) * self.window
        # As a list of frames: with more dimensions, compiled code expects another order in memory than it gets (torch 2.11).
        return torch.fft.rfft(frames.flatten(0, -2)).unflatten(0, frames.shape[:-1])

    def adjoint(self, gradient: Tensor, samples: int) -> Tensor:
        """The gradient (..., T) in the audio of `samples` samples for one in its spectra, which is overwritten.

        A half-spectrum inverse transform counts the inner bins twice; autograd would transform whole complex spectra instead.
        """
        size = len(self.window)
        gradient[..., :1] *= 2
        if size % 2 == 0:
            gradient[..., -1:] *= 2
        frames = torch.fft.irfft(gradient, size, norm="forward").mul_(self.window / 2)
        audio = self._overlap_add(frames)[..., :samples]
        return F.pad(audio, (0, samples - audio.shape[-1]))

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(..., frames, size) to (..., T), a hop's worth of each frame at a time."""
        count, parts = frames.shape[-2], -(-frames.shape[-1] // self.hop)
        frames = F.pad(frames, (0, parts * self.hop - frames.shape[-1]))
        audio = frames.new_zeros(*frames.shape[:-2], count + parts - 1, self.hop)
        for part in range(parts):
            audio[..., part : part + count, :] += frames[..., part * self.hop : (part + 1) * self.hop]
        return audio.flatten(-2)


def signals(spectra: Tensor) -> Tensor:
    """The compared signals (S, N, frames, bins) of (P, N, frames, bins): sum, difference, left and right of a pair, or the only part."""
    if len(spectra) == 1:
        return spectra
    left, right = spectra
    return torch.stack([left + right, left - right, left, right])


@dataclass(frozen=True)
class MagnitudeWeights:
    """What counts how much between the magnitudes of an original and of a reconstruction; `floor` is the least magnitude."""

    convergence: float
    log: float
    linear: float
    floor: float


def magnitude_distance(target: Tensor, estimate: Tensor, transform: ShortTime, weights: MagnitudeWeights) -> Tensor:
    """convergence * spectral convergence + log * mean|log M - log W| + linear * mean|M - W|, M the estimate's magnitudes, W the target's.

    The same as the sum of the functions below, with the gradient written out. Bins at the floor get no gradient, as under a clamp.

    Args:
        target: (P, N, T) audio; P is 2 for stereo, whose sum and difference are compared too, else 1. It gets no gradient.
        estimate: the same.

    Returns:
        (S,) as of `signals`.
    """
    examples, samples = target.shape[1:]
    at_once = examples if target.is_cuda else max(1, CACHED_SAMPLES // samples)
    pairs = zip(estimate.split(at_once, 1), target.split(at_once, 1), strict=True)
    return torch.stack([_MagnitudeDistance.apply(*pair, transform, weights) * (pair[0].shape[1] / examples) for pair in pairs]).sum(0)


class _MagnitudeDistance(torch.autograd.Function):
    """With dM/dX = X / M, the gradient of a signal in its spectrum X is X times a real factor; factors and channels' spectra are kept."""

    @staticmethod
    def forward(ctx: Any, estimate: Tensor, target: Tensor, transform: ShortTime, weights: MagnitudeWeights) -> Tensor:
        wanted = _magnitudes(transform(target), weights.floor)
        spectra = transform(estimate)
        given = _magnitudes(spectra, weights.floor)
        difference = given - wanted
        distance, energy = (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (difference, wanted))
        log_ratio = torch.div(given, wanted, out=wanted).log_()
        examples, elements = len(given[0]), given[0].numel()
        loss = weights.convergence * (distance / energy).mean((1, 2, 3))
        loss += weights.log / elements * _absolute_sum(log_ratio)
        if weights.linear:
            loss += weights.linear / elements * _absolute_sum(difference)
        if ctx.needs_input_grad[0]:
            scale = (weights.convergence / examples / (distance * energy)).nan_to_num_(posinf=0.0)  # a perfect copy has nowhere to move
            factor = _factor(given, difference.mul_(scale), log_ratio.sign_(), weights, elements)
            ctx.save_for_backward(spectra, factor)
            ctx.transform, ctx.samples = transform, estimate.shape[-1]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        spectra, factors = ctx.saved_tensors
        gradient = _of_channels(spectra, factors, grads[0][:, None, None, None])
        return ctx.transform.adjoint(gradient, ctx.samples), None, None, None


def _magnitudes(spectra: Tensor, floor: float) -> Tensor:
    """Magnitudes, at least `floor`, of the `signals` of (P, N, frames, bins). Without a graph."""
    scratch = torch.empty_like(spectra[0])
    mixes = [torch.add, torch.sub] if len(spectra) == 2 else []
    power = scratch.real.new_empty(len(mixes) + len(spectra), *scratch.shape)
    for row, mix in zip(power, mixes, strict=False):
        _power(mix(*spectra, out=scratch), scratch, row)
    for row, channel in zip(power[len(mixes) :], spectra, strict=True):
        _power(channel, scratch, row)
    return power.sqrt_().clamp_(min=floor)


def _power(spectrum: Tensor, scratch: Tensor, out: Tensor) -> None:
    """|X|^2 into `out`; `scratch` is like the spectrum, and may be it."""
    squares = torch.square(torch.view_as_real(spectrum), out=torch.view_as_real(scratch))
    torch.add(squares[..., 0], squares[..., 1], out=out)


def _absolute_sum(x: Tensor) -> Tensor:
    """(S, ...) to (S,); several times as fast as the norm of order 1."""
    return torch.stack([signal.abs().sum() for signal in x])


def _factor(given: Tensor, convergence_slope: Tensor, sign: Tensor, weights: MagnitudeWeights, elements: int) -> Tensor:
    """What each bin's X is multiplied by in its gradient, (S, N, frames, bins); all tensors are overwritten, `sign` is the difference's."""
    F.threshold(given, weights.floor, torch.inf, inplace=True)  # no slope at the floor
    if weights.linear:
        convergence_slope.add_(sign, alpha=weights.linear / elements)
    log_slope = sign.mul_(weights.log / elements).div_(given)
    return log_slope.add_(convergence_slope).div_(given)


def _of_channels(spectra: Tensor, factors: Tensor, weights: Tensor) -> Tensor:
    """The gradient (P, N, frames, bins) in the channels' spectra, for factors of their signals and weights (S, 1, 1, 1) of those."""
    if len(spectra) == 1:
        return spectra * (weights * factors)
    total, difference = (factor * weight for factor, weight in zip(factors[:2], weights[:2], strict=True))
    shared, crossed = total + difference, total - difference
    gradient = torch.empty_like(spectra)
    for channel in (0, 1):
        own = torch.addcmul(shared, factors[2 + channel], weights[2 + channel])
        parts = (torch.view_as_real(x).unbind(-1) for x in (gradient[channel], spectra[channel], spectra[1 - channel]))
        for into, this, other in zip(*parts, strict=True):
            torch.mul(this, own, out=into).addcmul_(other, crossed)
    return gradient


def spectral_convergence(wanted: Tensor, given: Tensor) -> Tensor:
    """|wanted - given| / |wanted| of magnitudes in the Frobenius norm, one for each example (arXiv:1808.06719)."""
    distance = torch.linalg.vector_norm(wanted - given, dim=(-2, -1)) / torch.linalg.vector_norm(wanted, dim=(-2, -1))
    return distance.mean(1)


def complex_distance(wanted: Tensor, given: Tensor) -> Tensor:
    """Mean over the bins of |wanted - given| relative to their mean magnitude; both complex."""
    scale = (wanted.abs() + given.abs()) / 2 + COMPLEX_FLOOR
    return ((wanted - given).abs() / scale).mean((1, 2, 3))
