"""Long audio in overlapping chunks: bounded memory, and the result of one pass as far as the receptive field allows.

Sizes are in latent frames. Each chunk gives its middle; the seam between two chunks lies half an overlap inside the later one,
so with an overlap of at least twice the receptive field every frame is what one pass would have computed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def map_chunks(function: Callable[[Tensor], Tensor], x: Tensor, *, frame_in: int, frame_out: int, chunk_size: int, overlap: int) -> Tensor:
    """Apply `function` to overlapping chunks of `x` and join the results; a single call where `x` fits one chunk.

    Args:
        function: (B, C, n * frame_in) -> about (B, C', n * frame_out); it may leave out samples at the end.
        x: (B, C, frames * frame_in).
        frame_in, frame_out: samples that one latent frame covers in the input and in the output.
        chunk_size: frames of one chunk; the last chunk ends where `x` ends.
        overlap: frames that neighbouring chunks share, at least.

    Raises:
        ValueError: `overlap` does not lie in 0..chunk_size-1, `x` ends within a frame, or `function` leaves out more than the overlap.
    """
    frames, rest = divmod(x.shape[-1], frame_in)
    if not 0 <= overlap < chunk_size:
        raise ValueError(f"overlap must lie in 0..{chunk_size - 1} (chunk_size - 1), got {overlap}")
    if rest:
        raise ValueError(f"{x.shape[-1]} samples are no multiple of {frame_in}: pad the input, or preprocess_audio_for_encoder does")
    if frames <= chunk_size:
        return function(x)

    starts = [*range(0, frames - chunk_size, chunk_size - overlap), frames - chunk_size]
    seams = [0, *(start + overlap // 2 for start in starts[1:])]
    pieces = []
    for start, begin, end in zip(starts, seams, [*seams[1:], None], strict=True):
        y = function(x[..., start * frame_in : (start + chunk_size) * frame_in])
        last = y.shape[-1] if end is None else (end - start) * frame_out
        if last > y.shape[-1]:
            raise ValueError(f"chunks lose {chunk_size * frame_out - y.shape[-1]} samples at their end: overlap {overlap} is too small")
        pieces.append(y[..., (begin - start) * frame_out : last])
    return torch.cat(pieces, dim=-1)
