"""Long audio in overlapping chunks: bounded memory, and the result of one pass as far as the receptive field allows.

Sizes are in latent frames. Each chunk gives its middle; the seam between two chunks lies half an overlap inside the later one,
so with an overlap of at least twice the receptive field every frame is what one pass would have computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """Long audio in chunks of `size` latent frames, of which neighbours share `overlap`."""

    size: int = 128
    overlap: int = 32

    def starts(self, frames: int) -> list[int]:
        """Where chunks of so many frames begin; the last ends where the audio ends.

        Raises:
            ValueError: `overlap` does not lie in 0..size-1.
        """
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"overlap must lie in 0..{self.size - 1} (chunk_size - 1), got {self.overlap}")
        return [*range(0, frames - self.size, self.size - self.overlap), max(frames - self.size, 0)]


def map_chunks(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    frame_in: int,
    frame_out: int,
    chunk_size: int,
    overlap: int,
    fade: int = 0,
) -> Tensor:
    """Apply `function` to overlapping chunks of `x` and join the results; a single call where `x` fits one chunk.

    Args:
        function: (B, C, n * frame_in) -> about (B, C', n * frame_out); it may leave out samples at the end.
        x: (B, C, frames * frame_in).
        frame_in, frame_out: samples that one latent frame covers in the input and in the output.
        chunk_size: frames of one chunk; the last chunk ends where `x` ends.
        overlap: frames that neighbouring chunks share, at least.
        fade: samples of the output around each seam over which one chunk goes over into the next; at most the overlap.

    Raises:
        ValueError: `overlap` does not lie in 0..chunk_size-1, `x` ends within a frame, or `function` leaves out more than the overlap.
    """
    frames, rest = divmod(x.shape[-1], frame_in)
    starts = Chunks(chunk_size, overlap).starts(frames)
    if rest:
        raise ValueError(f"{x.shape[-1]} samples are no multiple of {frame_in}: pad the input, or preprocess_audio_for_encoder does")
    if len(starts) == 1:
        return function(x)

    seams = [(start + overlap // 2) * frame_out for start in starts[1:]]
    joined: Tensor | None = None
    for index, start in enumerate(starts):
        y = function(x[..., start * frame_in : (start + chunk_size) * frame_in])
        if joined is None:
            joined = y.new_empty(*y.shape[:-1], (frames - chunk_size) * frame_out + y.shape[-1])
        begin = seams[index - 1] - fade // 2 if index else 0
        end = min(seams[index] + fade - fade // 2, joined.shape[-1]) if start != starts[-1] else joined.shape[-1]
        piece = y[..., begin - start * frame_out : end - start * frame_out]
        if piece.shape[-1] < end - begin:
            raise ValueError(f"chunks lose {chunk_size * frame_out - y.shape[-1]} samples at their end: overlap {overlap} is too small")
        if index and fade:
            piece = _faded(joined[..., begin : begin + fade], piece)
        joined[..., begin:end] = piece
    assert joined is not None
    return joined


def _faded(before: Tensor, after: Tensor) -> Tensor:
    """`after`, which begins as `before` and goes over into itself, in even steps."""
    fade = before.shape[-1]
    share = (torch.arange(1, fade + 1, device=after.device) / (fade + 1)).to(after.dtype)
    return torch.cat([torch.lerp(before, after[..., :fade], share), after[..., fade:]], dim=-1)
