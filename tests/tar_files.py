"""Tar files made for a test: good ones, damaged ones, and hostile ones."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile
from audio_files import signal

RATE = 16000


def audio_bytes(seed=0, seconds=0.5, form="FLAC", rate=RATE, channels=1):
    file = io.BytesIO()
    soundfile.write(file, signal(seconds, rate, channels, seed), rate, format=form)
    return file.getvalue()


def packed(members, form=tarfile.PAX_FORMAT):
    """A tar file of (name or TarInfo, content) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in members:
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(content) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(content) if entry.isreg() else None)
    return file.getvalue()


def sample(number, **metadata):
    """The members of one item."""
    about = {"text": f"sound {number}", "number": number, **metadata}
    return [(f"{number:05d}.flac", audio_bytes(number)), (f"{number:05d}.json", json.dumps(about).encode())]


def shard_folder(folder: Path, shards=3, items=4):
    """Tar files 000.tar and on, with items numbered through."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = [member for number in range(items) for member in sample(shard * items + number)]
        (folder / f"{shard:03d}.tar").write_bytes(packed(members))
    return folder


def latent_shard(folder, count=5, frames=20, **about):
    """A tar file of latents that say where they are from, with padding at their ends."""
    members = []
    for number in range(count):
        file = io.BytesIO()
        np.save(file, np.arange(3 * frames, dtype=np.float16).reshape(3, frames) + 100 * number)
        mask = [1] * (frames - number) + [0] * number
        text = {"prompt": f"sound {number}", "seconds_start": 0, "seconds_total": 10, "padding_mask": mask, "number": number, **about}
        members += [(f"{number}.npy", file.getvalue()), (f"{number}.json", json.dumps(text).encode())]
    folder.mkdir(exist_ok=True)
    (folder / "x.tar").write_bytes(packed(members))
    return folder
