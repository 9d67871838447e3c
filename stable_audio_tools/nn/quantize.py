"""Residual vector quantisation with codebooks that follow the vectors they stand for (arXiv:2107.03312, arXiv:1711.00937).

B batch, T frames, D width, N = B T vectors, K codebook entries, Q codebooks. Tokens are (B, Q, T) int64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from .exact import at_least_single, no_autocast

TINY = 1e-12  # under square roots, whose gradient at zero is infinite


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` to the bit, with the gradient of `x` (arXiv:1308.3432)."""
    return quantized.detach() + (x - x.detach())


class Codebook(nn.Module):
    """K entries of width D, each the moving average of the vectors that chose it.

    Vectors choose the nearest entry, or the one of the smallest angle with `cosine`. Only `follow` changes the entries; all
    processes then hold the same ones, unless `sync` is False.

    Args:
        decay: of the moving averages.
        eps: added to the entries' counts, so that none is divided by zero (Laplace smoothing).
        kmeans_iters: the first vectors to be followed are clustered with so many rounds; None: entries start at random.
        dead_below: an entry chosen less often than this, on average, moves to one of the batch's vectors; 0: never.
        temperature: above 0, training draws the entry with probabilities softmax(-distance / temperature) (arXiv:1611.01144).
        learnable: the entries are a parameter, for losses on the codebook.
        follows: False leaves the moving average out.
        sync: False: each process follows its own vectors.
    """

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        decay: float = 0.8,
        eps: float = 1e-5,
        kmeans_iters: int | None = None,
        dead_below: float = 0,
        cosine: bool = False,
        temperature: float = 0.0,
        learnable: bool = False,
        follows: bool = True,
        sync: bool = True,
    ):
        super().__init__()
        self.decay, self.eps, self.kmeans_iters, self.dead_below = decay, eps, kmeans_iters, dead_below
        self.cosine, self.temperature, self.follows, self.sync = cosine, temperature, follows, sync
        embed = torch.zeros(1, size, dim)
        if kmeans_iters is None:
            nn.init.kaiming_uniform_(embed)
            embed = unit(embed) if cosine else embed
        self.register_buffer("initted", torch.full((1,), float(kmeans_iters is None)))
        self.register_buffer("cluster_size", torch.zeros(1, size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        self.checked = False  # whether `initted` was looked at since it was written, which waits for the device

    def prepare(self, x: Tensor) -> Tensor:
        """Vectors (..., D) as they are compared with the entries."""
        return unit(x) if self.cosine else x

    def entries(self, like: Tensor) -> Tensor:
        """(K, D) in the dtype of `like`, a copy: what the backward pass reads must not move before it."""
        return self.embed[0].to(like.dtype, copy=True)

    def scores(self, x: Tensor, entries: Tensor) -> Tensor:
        """(N, D) and (K, D) -> (N, K): cosine, or negative distance. The largest is chosen."""
        return _scores(x, entries, cosine=self.cosine)

    def choose(self, scores: Tensor) -> Tensor:
        """(N, K) -> (N,) int64."""
        if self.training and self.temperature > 0:
            uniform = torch.rand_like(scores).clamp(min=torch.finfo(scores.dtype).tiny)
            scores = scores / self.temperature - torch.log(-torch.log(uniform))
        return scores.argmax(-1)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Cluster the first vectors (N, D), if entries are to start so and have not yet."""
        if self.checked:
            return
        if not bool(self.initted):
            means, counts = kmeans(x, self.embed.shape[1], self.kmeans_iters or 0, cosine=self.cosine, sync=self.sync)
            self._write(means, means * counts[:, None], counts)
            self.initted.fill_(1.0)
        self.checked = True

    @torch.no_grad()
    def follow(self, x: Tensor, indices: Tensor) -> None:
        """Move the entries towards the vectors (N, D) that chose them by `indices` (N,)."""
        counts, sums = _sums(x, indices, self.embed.shape[1])
        for tensor in (counts, sums):
            _add_processes(tensor, self.sync)
        size = self.cluster_size[0].lerp(counts.to(self.cluster_size), 1 - self.decay)
        average = self.embed_avg[0].lerp(sums.to(self.embed_avg), 1 - self.decay)
        total = size.sum()
        smoothed = (size + self.eps) / (total + len(size) * self.eps) * total
        means = self.prepare(average / smoothed[:, None])
        if self.dead_below:
            dead = size < self.dead_below
            drawn = draw_vectors(x, dead, sync=self.sync).to(means)
            means, size = torch.where(dead[:, None], drawn, means), size.masked_fill(dead, self.dead_below)
            average = torch.where(dead[:, None], drawn * self.dead_below, average)
        self._write(means, average, size)

    def _write(self, means: Tensor, sums: Tensor, counts: Tensor) -> None:
        for buffer, value in ((self.embed, means), (self.embed_avg, sums), (self.cluster_size, counts)):
            buffer[0].copy_(value)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.checked = False
        super()._load_from_state_dict(state_dict, prefix, *args)


def unit(x: Tensor) -> Tensor:
    """Vectors (..., D) at length one."""
    return F.normalize(x, dim=-1)


def _scores(x: Tensor, entries: Tensor, *, cosine: bool) -> Tensor:
    if cosine:
        return x @ entries.mT
    squared = x.square().sum(-1, keepdim=True) + entries.square().sum(-1) - 2 * (x @ entries.mT)
    return -squared.clamp(min=TINY).sqrt()


def _sums(x: Tensor, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many of the vectors (N, D) chose each of `size` entries, and their sums (size, D)."""
    counts = x.new_zeros(size).index_add_(0, indices, x.new_ones(len(indices)))
    return counts, x.new_zeros(size, x.shape[-1]).index_add_(0, indices, x)


def _add_processes(x: Tensor, sync: bool) -> None:
    """Sum over the processes, in place."""
    if sync and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(x)


def _of_first_process(x: Tensor, sync: bool) -> Tensor:
    """The first process's values, in every one."""
    if sync and distributed.is_initialized() and distributed.get_world_size() > 1:
        x = x.contiguous()
        distributed.broadcast(x, src=0)
    return x


def draw_vectors(x: Tensor, wanted: Tensor, *, sync: bool = True) -> Tensor:
    """A vector of `x` (N, D) for every True in `wanted` (K,), none twice before all were drawn; (K, D), other rows arbitrary."""
    rank = wanted.cumsum(0) - 1
    order = torch.randperm(len(x), device=x.device)
    return _of_first_process(x[order[rank.clamp(min=0) % len(x)]], sync)


def kmeans(x: Tensor, clusters: int, iterations: int, *, cosine: bool = False, sync: bool = True) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from `clusters` of the vectors (N, D).

    Returns:
        means (clusters, D), of length one with `cosine`, and how many vectors each had (clusters,), over all processes.
    """
    means = draw_vectors(x, x.new_ones(clusters, dtype=torch.bool), sync=sync)
    counts = x.new_zeros(clusters)
    for _ in range(iterations):
        counts, sums = _sums(x, _scores(x, means, cosine=cosine).argmax(-1), clusters)
        for tensor in (counts, sums):
            _add_processes(tensor, sync)
        moved = sums / counts.clamp(min=1)[:, None]
        means = torch.where(counts[:, None] > 0, unit(moved) if cosine else moved, means)
    return means, counts


class VectorQuantizer(nn.Module):
    """One stage: vectors to their entries, and the loss that keeps the encoder near them.

    Args:
        codebook: what is chosen from; several stages may share one.
        commitment_weight: of the mean squared distance of a vector to its entry.
        entries_commit: that loss moves the entries too, which must be learnable.
        cross_entropy_commitment: take the cross entropy of choosing the chosen entry instead of that distance.
        orthogonal_weight: of the mean squared cosine between entries (arXiv:2112.00384, eq. 2), which needs a learnable codebook.
        orthogonal_active_only, orthogonal_max_codes: count the entries of this batch only; draw so many of them at most.
    """

    def __init__(
        self,
        codebook: Codebook,
        *,
        commitment_weight: float = 1.0,
        entries_commit: bool = False,
        cross_entropy_commitment: bool = False,
        orthogonal_weight: float = 0.0,
        orthogonal_active_only: bool = False,
        orthogonal_max_codes: int | None = None,
    ):
        super().__init__()
        self._codebook = codebook
        self.commitment_weight, self.entries_commit = commitment_weight, entries_commit
        self.cross_entropy_commitment, self.orthogonal_weight = cross_entropy_commitment, orthogonal_weight
        self.orthogonal_active_only, self.orthogonal_max_codes = orthogonal_active_only, orthogonal_max_codes

    def forward(self, x: Tensor, *, follow: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> entries (B, T, D) with the gradient of `x`, tokens (B, T), and the loss, a scalar, 0 outside of training."""
        book = self._codebook
        flat = book.prepare(x.flatten(0, -2))
        if follow:
            book.start(flat.detach())
        entries = book.entries(flat)
        scores = book.scores(flat, entries)
        indices = book.choose(scores)
        loss = self._commitment(flat, scores, indices, entries) if self.training else flat.new_zeros(())
        if follow and book.follows:
            book.follow(flat.detach(), indices)
        if self.training and self.orthogonal_weight:
            loss = loss + self.orthogonal_weight * self._alikeness(book.entries(flat), indices)
        return straight_through(flat, entries[indices]).view_as(x), indices.view(x.shape[:-1]), loss

    def left_out(self) -> Tensor:
        """0, in a graph with the entries where they are learned: distributed training waits for a gradient of every parameter."""
        return 0 * self._codebook.embed.sum()

    def tokenize(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T), whatever the mode."""
        flat = self._codebook.prepare(x.flatten(0, -2))
        return self._codebook.scores(flat, self._codebook.entries(flat)).argmax(-1).view(x.shape[:-1])

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return self._codebook.embed[0][tokens]

    def _commitment(self, x: Tensor, scores: Tensor, indices: Tensor, entries: Tensor) -> Tensor:
        if self.cross_entropy_commitment:
            return self.commitment_weight * F.cross_entropy(scores, indices)
        chosen = entries[indices] if self.entries_commit else entries[indices].detach()
        return self.commitment_weight * F.mse_loss(x, chosen)

    def _alikeness(self, entries: Tensor, indices: Tensor) -> Tensor:
        """Mean squared cosine between different entries."""
        if self.orthogonal_active_only:
            entries = entries[indices.unique()]
        if self.orthogonal_max_codes is not None and len(entries) > self.orthogonal_max_codes:
            entries = entries[torch.randperm(len(entries), device=entries.device)[: self.orthogonal_max_codes]]
        cosines = unit(entries) @ unit(entries).mT
        return cosines.square().mean() - 1 / len(entries)


class ResidualVQ(nn.Module):
    """(B, T, dim) as a sum of Q entries, each the nearest to what those before it left (arXiv:2107.03312, algorithm 1).

    Every stage hands its gradient on, so the encoder gets the Q-fold gradient of the output, as published models were trained.

    Args:
        dim, codebook_dim: width outside and of the codebooks; a linear map between them where they differ.
        quantizers: the stages.
        dropout: in training, use a random number of stages, `cutoff` + 1 or more, rounded up to a multiple of `multiple_of`.
        frozen: never change a codebook.
    """

    def __init__(
        self,
        dim: int,
        codebook_dim: int,
        quantizers: list[VectorQuantizer],
        *,
        dropout: bool = False,
        cutoff: int = 0,
        multiple_of: int = 1,
        sync: bool = True,
        frozen: bool = False,
    ):
        super().__init__()
        projected = codebook_dim != dim
        self.project_in = nn.Linear(dim, codebook_dim) if projected else nn.Identity()
        self.project_out = nn.Linear(codebook_dim, dim) if projected else nn.Identity()
        self.layers = nn.ModuleList(quantizers)
        self.dropout, self.cutoff, self.multiple_of = dropout and len(quantizers) > 1, cutoff, multiple_of
        self.sync, self.frozen = sync, frozen

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, dim) -> the sum of entries (B, T, dim), tokens (B, Q, T), and the loss, a scalar averaged over all stages.

        In training codebooks follow their vectors; a stage left out gives tokens -1 and adds nothing to sum and loss.
        """
        x = self.project_in(x)
        active = self._active_stages(x.device)
        with no_autocast(x):
            residual = at_least_single(x)
            total, loss, tokens = torch.zeros_like(residual), residual.new_zeros(()), []
            for layer in self._stages[:active]:
                entries, indices, term = layer(residual, follow=self.training and not self.frozen)
                residual, total, loss = residual - entries.detach(), total + entries, loss + term
                tokens.append(indices)
            for layer in self._stages[active:]:
                loss = loss + layer.left_out()
        absent = [torch.full_like(tokens[0], -1)] * (len(self.layers) - active)
        return self.project_out(total.to(x.dtype)), torch.stack(tokens + absent, dim=1), loss / len(self.layers)

    def tokenize(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, Q, T) by all stages, and no codebook changes, whatever the mode."""
        x = self.project_in(x)
        with no_autocast(x):
            residual, tokens = at_least_single(x), []
            for layer in self._stages:
                tokens.append(layer.tokenize(residual))
                residual = residual - layer.lookup(tokens[-1])
        return torch.stack(tokens, dim=1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, q, T) tokens of the first q stages -> (B, T, dim)."""
        codes = [layer.lookup(indices) for layer, indices in zip(self._stages, tokens.unbind(1), strict=False)]
        total = torch.zeros_like(codes[0], dtype=torch.promote_types(codes[0].dtype, torch.float32))
        for code in codes:  # in the order of `forward`, so that the sums agree to the bit
            total = total + code
        return self.project_out(total.to(codes[0].dtype))

    @property
    def _stages(self) -> list[VectorQuantizer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _active_stages(self, device: torch.device) -> int:
        """How many stages this step uses; the same in every process, whose codebooks else could not be summed."""
        count = len(self.layers)
        if not (self.training and self.dropout):
            return count
        last = int(_of_first_process(torch.randint(self.cutoff, count, (1,), device=device), self.sync))
        return min(-(-(last + 1) // self.multiple_of) * self.multiple_of, count)
