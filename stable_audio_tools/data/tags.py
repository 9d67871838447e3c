"""Tags inside audio files as metadata: ID3 of MP3, WAV and AIFF, Vorbis comments of FLAC, Ogg and Opus, RIFF INFO, MP4 atoms.

Only the fields below are taken, since the rest of what players write, such as ratings and covers, is about no sound. Several
values of one field are one text, "rock, pop"; tempo and year are numbers.
"""

from __future__ import annotations

import re
from typing import Any

from tinytag import TinyTag, TinyTagException

from stable_audio_tools.audio.io import shown
from stable_audio_tools.data.captions import Metadata, number_or_text

FIELDS = {  # the tag's name in tinytag: ours
    "title": "title",
    "artist": "artist",
    "albumartist": "album_artist",
    "album": "album",
    "composer": "composer",
    "genre": "genre",
    "year": "year",
    "comment": "comment",
    "bpm": "bpm",
    "initial_key": "key",
    "mood": "mood",
    "language": "language",
}
NUMBERS = ("bpm", "year")
YEAR = re.compile(r"\d{4}(?!\d)")


def read_tags(path: str) -> tuple[Metadata, list[str]]:
    """What the tags inside a file say, and what is wrong with them as "file: cause"."""
    try:
        read = TinyTag.get(path, duration=False).as_dict()
    except (TinyTagException, OSError, ValueError, LookupError, RecursionError) as error:  # what damaged tags raise differs by format
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return {}, [f"{shown(path)}: its tags cannot be read: {cause}"]
    texts = {ours: _joined(read[name]) for name, ours in FIELDS.items() if name in read}
    return {name: _value(name, text) for name, text in texts.items() if text}, []


def _joined(values: Any) -> str:
    values = values if isinstance(values, list) else [values]
    return ", ".join(dict.fromkeys(text for value in values if (text := str(value).replace("\0", " ").strip())))


def _value(name: str, text: str) -> Any:
    if name == "year" and (found := YEAR.match(text)):
        return int(found[0])  # of a whole date
    return number_or_text(text) if name in NUMBERS else text
