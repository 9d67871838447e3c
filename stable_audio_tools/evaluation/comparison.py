"""What is there to be measured: clips, what they are compared with, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from .bootstrap import Bootstrap
from .clip_sets import Clips
from .embedded import Embedded, embed_clips, loudness_rule
from .embedders.base import Embedder, RatingEmbedder, TextEmbedder

Need = Literal["reference", "pairs", "prompts", "training", "embedder", "text_embedder", "rating_embedder"]
NEEDS: Mapping[Need, str] = {
    "reference": "real clips to compare with",
    "pairs": "the original of each clip",
    "prompts": "the prompt of each clip",
    "training": "the clips that the model was trained on",
    "embedder": "an embedder",
    "text_embedder": "an embedder that knows text, such as clap",
    "rating_embedder": "an embedder that rates, such as audiobox_aesthetics",
}


@dataclass(frozen=True)
class Comparison:
    """Clips that a model made, and what they can be measured against. Embeddings are computed once for all metrics.

    generated: the clips.
    reference: real clips; of reconstructions, the originals.
    paired: clip i of `generated` is a reconstruction of clip i of `reference`.
    prompts: what was asked for, one a clip.
    training: what the model was trained on.
    embedders: in which distances are taken, one number for each.
    loudness: LUFS that clips are brought to before they are embedded; None: as they are.
    recipe: what every measure's recipe begins with, such as how the clips were made.
    """

    generated: Clips
    reference: Clips | None = None
    paired: bool = False
    prompts: Sequence[str] | None = None
    training: Clips | None = None
    embedders: Sequence[Embedder] = ()
    loudness: float | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    _embedded: dict[tuple[str, int], Embedded] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.paired and (self.reference is None or len(self.reference) != len(self.generated)):
            raise ValueError("paired clips need one original each")
        if self.prompts is not None and len(self.prompts) != len(self.generated):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.generated)} clips")
        names = [embedder.name for embedder in self.embedders]
        if len(set(names)) < len(names):
            raise ValueError(f"embedders {', '.join(names)}: measures are named after them, so their names must differ")

    @property
    def needs_met(self) -> frozenset[Need]:
        there: dict[Need, bool] = {
            "reference": self.reference is not None,
            "pairs": self.paired,
            "prompts": self.prompts is not None,
            "training": self.training is not None,
            "embedder": bool(self.embedders),
            "text_embedder": bool(self.text_embedders),
            "rating_embedder": bool(self.rating_embedders),
        }
        return frozenset(need for need, met in there.items() if met)

    @property
    def text_embedders(self) -> list[TextEmbedder]:
        return [cast(TextEmbedder, embedder) for embedder in self.embedders if hasattr(embedder, "embed_texts")]

    @property
    def rating_embedders(self) -> list[RatingEmbedder]:
        return [cast(RatingEmbedder, embedder) for embedder in self.embedders if hasattr(embedder, "axes")]

    def embedded(self, part: Literal["generated", "reference"], embedder: Embedder) -> Embedded:
        """The vectors of one part, whose clips must be there."""
        key = (part, id(embedder))
        if key not in self._embedded:
            clips = getattr(self, part)
            self._embedded[key] = embed_clips(embedder, clips, self.loudness)
        return self._embedded[key]

    def recipe_of(self, embedder: Embedder) -> dict[str, Any]:
        return {**self.recipe, **embedder.recipe, **loudness_rule(self.loudness)}
