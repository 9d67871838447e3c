"""How well clips fit their prompts, in a space that text and audio share, such as a CLAP's (arXiv:2211.06687)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.diffusion.seeds import generator_for

from .bootstrap import COSINE, Bootstrap, central_range
from .comparison import Comparison
from .embedders.base import TextEmbedder
from .measure import Measure

_DEALS = 4  # a random stream


def text_score(comparison: Comparison) -> list[Measure]:
    """`<embedder>_score` for each embedder that knows text: the mean cosine between a clip and its prompt."""
    return [_score(comparison, embedder) for embedder in comparison.text_embedders]


def _score(comparison: Comparison, embedder: TextEmbedder) -> Measure:
    assert comparison.prompts is not None
    heard = comparison.embedded("generated", embedder)
    if not heard.places:
        return comparison.bootstrap.mean(f"{embedder.name}_score", torch.zeros(0), comparison.recipe_of(embedder), "higher")
    texts = embedder.embed_texts([comparison.prompts[place] for place in heard.places])
    clips, prompts = (F.normalize(rows.double(), dim=-1) for rows in (heard.vectors, texts))
    recipe = {**comparison.recipe_of(embedder), "score": "cosine of clip and prompt"}
    if heard.left_out:
        recipe["left_out"] = heard.left_out
    score = comparison.bootstrap.mean(f"{embedder.name}_score", (clips * prompts).sum(-1), recipe, "higher", span=COSINE)
    return replace(score, same_source=_dealt(clips @ prompts.T, comparison.bootstrap))


def _dealt(cosines: Tensor, bootstrap: Bootstrap) -> tuple[float, float]:
    """The 95 % range of the mean where prompts are dealt out to clips at random, from the (N, N) cosines of all with all."""
    n, generator = len(cosines), generator_for(bootstrap.seed, _DEALS)
    if n < 2:
        return math.nan, math.nan
    rows = torch.arange(n)
    means = torch.stack([cosines[rows, torch.randperm(n, generator=generator)].mean() for _ in range(bootstrap.resamples)])
    return central_range(means)
