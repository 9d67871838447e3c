"""Demos as the page's script reads them: where each sound and picture is, and what to say about it."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stable_audio_tools.report.demos import Clip
from stable_audio_tools.report.media import WHOLE, Media, MediaCache


class Players:
    """The players of one page.

    Args:
        embedded: files that are inside the page; those that cannot be read (yet) are linked.
        folder: the page's, which links are relative to.
    """

    def __init__(self, embedded: Set[Path], cache: MediaCache, folder: Path):
        self._cache, self._folder = cache, os.path.abspath(folder)
        cache.keep_only(embedded)
        self.media: dict[Path, Media] = {path: found for path in embedded if (found := cache.get(path))}

    def embeds(self, clip: Clip) -> bool:
        return clip.audio in self.media

    def row(self, first: Clip, clips: Sequence[Clip | None]) -> dict[str, Any]:
        """One thing to follow through training: what it is, and a clip or None for each step."""
        made = [self._clip(clip) if clip else None for clip in clips]
        return {"kind": first.kind, "title": first.title, "settings": first.settings, "clips": made}

    def _clip(self, clip: Clip) -> dict[str, Any]:
        """`sound` and `picture` name embedded media by key, or else the file by URL; `file` is the exact file's URL.
        `loudness` is in LUFS."""
        media = self.media.get(clip.audio) if clip.audio else None
        return {
            "step": clip.step,
            "sound": self._source(clip.audio),
            "picture": self._source(clip.image) | {"plot": self._cache.plot_area(clip.image) if clip.image else WHOLE},
            "latents": self._source(clip.latents),
            "file": self._url(clip.audio) if clip.audio else None,
            "lossy": media is not None and media.lossy,
            "loudness": clip.loudness if clip.loudness is not None else media.loudness if media else None,
            "info": clip.info,
        }

    def _source(self, path: Path | None) -> dict[str, Any]:
        if path is None:
            return {}
        return {"media": self.media[path].key} if path in self.media else {"url": self._url(path)}

    def _url(self, path: Path) -> str:
        """Address of a file, relative to the page."""
        return quote(os.path.relpath(os.path.abspath(path), self._folder).replace(os.sep, "/"))
