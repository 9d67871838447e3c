"""Tar files wherever they lie, on this machine or in S3: which there are, and any range of their bytes.

A name is only a name: nothing here goes through a shell, and no part of a name is anything but a place. What S3 cannot
answer now is asked for again, with growing pauses, until a deadline; what it never will answer is told at once.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from stable_audio_tools.audio.io import shown
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.draws import hashed
from stable_audio_tools.data.range_cache import RangeCache
from stable_audio_tools.data.types import Fault

log = logging.getLogger(__name__)

TAR = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SCHEME = "s3://"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 20.0  # chosen
LIST_S = 30.0  # the longest that a bucket may not answer at the start, where somebody waits; chosen
CONNECT_S, READ_S = 10, 60  # of one attempt, chosen
MAX_EXPANDED = 1_000_000  # names out of braces
FOR_EVER = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG)  # what s3fs makes of requests that are wrong in themselves
CREDENTIALS = 'set "profile", or AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket: "anonymous": true'
_T = TypeVar("_T")


class Shard(NamedTuple):
    """A tar file. url: its path, or s3://bucket/key. size: bytes. version: another one for other content."""

    url: str
    size: int
    version: str


@dataclass
class Listing:
    """The tar files of a place, in the order of their names; those that cannot be read; and other files, by extension."""

    shards: list[Shard] = field(default_factory=list)
    bad: list[Fault] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def sort_in(self, name: str, make: Callable[[], Shard]) -> None:
        extension = "".join(Path(name).suffixes[-2:]).lower()
        if name.lower().endswith(TAR):
            self.shards.append(make())
        elif name.lower().endswith(COMPRESSED):
            self.bad.append(Fault(shown(name), f"{extension}: nothing can be found in it without reading it from the start; decompress it"))
        else:
            self.others[os.path.splitext(name)[1].lower()] += 1


class GoneError(Exception):
    """The bytes are not there any more, and why."""


class Store(Protocol):
    """Where the tar files of one dataset lie."""

    @property
    def root(self) -> str:
        """For messages."""

    @property
    def remote(self) -> bool:
        """Whether reading takes a request over a network."""

    def listing(self) -> Listing:
        """Raises ConfigError: there is no such place, it may not be read, or it holds no tar file."""

    def read(self, shard: Shard, start: int, stop: int) -> bytes:
        """Bytes [start, stop), all of them.

        Raises:
            GoneError: the shard is gone, or shorter than it was.
            ConfigError: its place does not answer.
        """

    def kept(self, shard: Shard, start: int, stop: int) -> bytes:
        """As `read`, for what is read again and again."""


# on this machine


@dataclass(frozen=True)
class LocalStore:
    """A folder, a tar file, or a pattern with `*`, `?`, `[...]`, `{000..099}` and `{a,b}`."""

    root: str
    remote: ClassVar[bool] = False

    def listing(self) -> Listing:
        top = os.path.expanduser(self.root)
        if os.path.isdir(top):
            listing = _listed(_below(top), Listing())
        elif os.path.isfile(top):
            listing = _listed([top], Listing())
        else:
            listing = Listing()
            for name in expand_braces(top):
                names = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
                _listed([name for name in names if os.path.isfile(name)], listing)
                if not glob.has_magic(name) and not os.path.isfile(name) and name != top:
                    listing.bad.append(Fault(shown(name), "no such file"))
        return _not_empty(listing, shown(self.root), exists=os.path.exists(top) or bool(listing.bad))

    def read(self, shard: Shard, start: int, stop: int) -> bytes:
        try:
            with open(shard.url, "rb") as file:
                file.seek(start)
                content = file.read(stop - start)
        except OSError as error:
            raise GoneError(f"the tar file cannot be read any more: {error.strerror or error}") from None
        if len(content) != stop - start:
            raise GoneError("the tar file is shorter than it was")
        return content

    kept = read


def _below(top: str) -> list[str]:
    """Files of a folder and all below it, without names that start with a dot; a folder met twice, through a link, is read once."""
    found, met = [], set()
    for folder, folders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in met else [name for name in folders if not name.startswith(".")]
        found += [] if real in met else [os.path.join(folder, name) for name in names if not name.startswith(".")]
        met.add(real)
    return found


def _listed(names: list[str], listing: Listing) -> Listing:
    for name in sorted(names):
        try:
            listing.sort_in(name, lambda name=name: _local_shard(name))  # type: ignore[misc]
        except OSError as error:
            listing.bad.append(Fault(shown(name), f"cannot be read: {error.strerror}"))
    return listing


def _local_shard(name: str) -> Shard:
    status = os.stat(name)
    return Shard(os.path.abspath(name), status.st_size, f"{status.st_mtime_ns}-{status.st_ino}")


def expand_braces(pattern: str) -> Iterator[str]:
    """`a{00..02}` as a00, a01, a02, and `{x,y}` as x, y; leading zeros set the width. Other braces are names."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, choices = match.groups()
    width = len(first) if first and first.startswith("0") else 0
    if first and abs(int(last) - int(first)) > MAX_EXPANDED:
        raise ConfigError([Problem((), f"{match[0]} is more than {MAX_EXPANDED} names", "name a folder", pattern)], "dataset config")
    middles = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1)) if first else choices.split(",")
    for middle in middles:
        yield from expand_braces(pattern[: match.start()] + middle + pattern[match.end() :])


def _not_empty(listing: Listing, root: str, *, exists: bool) -> Listing:
    if listing.shards or listing.bad:
        return listing
    if not exists:
        raise ConfigError([Problem((), "no such folder or file", '"path" is relative to where the program starts')], root)
    others = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in listing.others.most_common(5))
    message = f"no tar files here{f'; there are {others}' if others else ''}"
    raise ConfigError(
        [Problem((), message, "audio_dir reads folders of audio files; a bucket of tar files has names ending in .tar")], root
    )


# in S3


@dataclass(frozen=True)
class S3Store:
    """Objects below `s3://bucket/prefix`, or that match a pattern as on this machine.

    Credentials, region and endpoint come from the usual places of AWS: variables, `~/.aws` files, the machine's role.

    profile: of the `~/.aws` files; None: the default one. anonymous: no credentials, for public buckets.
    patience_s: how long a request that fails is repeated. cache: of ranges that are read again.
    """

    root: str
    profile: str | None
    anonymous: bool
    patience_s: float
    cache: RangeCache
    remote: ClassVar[bool] = True

    def listing(self) -> Listing:
        bucket, _, prefix = self.root.removeprefix(SCHEME).partition("/")
        patterns = [*expand_braces(prefix)]
        try:
            objects = self._patiently(lambda: self._find(f"{bucket}/{_fixed_part(prefix)}"), self.root, min(self.patience_s, LIST_S))
        except GoneError:
            objects = {}
        listing = Listing()
        for name, facts in sorted(objects.items()):
            key = name.removeprefix(f"{bucket}/")
            if key.startswith(prefix) or any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns):
                listing.sort_in(SCHEME + name, lambda name=name, facts=facts: _remote_shard(name, facts))  # type: ignore[misc]
        return _not_empty(listing, self.root, exists=True)

    def read(self, shard: Shard, start: int, stop: int) -> bytes:
        return self._patiently(lambda: self._range(shard, start, stop), shard.url, self.patience_s)

    def kept(self, shard: Shard, start: int, stop: int) -> bytes:
        name = (shard.url, shard.version, start, stop)
        content = self.cache.get(*name)
        if content is None or len(content) != stop - start:
            content = self.read(shard, start, stop)
            self.cache.put(content, *name)
        return content

    @property
    def _connection(self) -> Any:
        return connection(self.profile, self.anonymous, os.getpid())

    def _find(self, place: str) -> dict[str, Any]:
        return self._connection.find(place, detail=True)

    def _range(self, shard: Shard, start: int, stop: int) -> bytes:
        content = self._connection.cat_file(shard.url.removeprefix(SCHEME), start=start, end=stop)
        if len(content) != stop - start:
            raise ConnectionError(f"{len(content)} of {stop - start} bytes came")
        return content

    def _patiently(self, ask: Callable[[], _T], what: str, patience_s: float) -> _T:
        started = time.monotonic()
        for attempt in itertools.count():
            try:
                return ask()
            except ConfigError:
                raise
            except Exception as error:  # noqa: BLE001  # botocore, aiohttp and s3fs have no common ancestor
                refusal = self._final(error, what)
                if refusal is not None:
                    raise refusal from None
                cause = _words(error)
            pause = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) * (0.5 + hashed(what, attempt, os.getpid()) / 2**64)
            waited = time.monotonic() - started
            if waited + pause > patience_s:
                message = f"does not answer: {attempt + 1} requests in {waited:.0f} s failed, the last one: {cause}"
                raise ConfigError([Problem((), message, "is the endpoint right (AWS_ENDPOINT_URL) and the network up?")], shown(what))
            log.log(logging.WARNING if attempt else logging.INFO, "%s: %s; once more in %.1f s", shown(what), cause, pause)
            time.sleep(pause)
        raise AssertionError("the loop ends by a return or an error")

    def _final(self, error: Exception, what: str) -> Exception | None:
        """What to raise where another request would fail, too."""
        name, place = type(error).__name__, shown(what)
        if isinstance(error, FileNotFoundError):
            if "bucket" in str(error).lower():
                return ConfigError([Problem((), "there is no such bucket", "is it spelled right, and the endpoint its own?")], place)
            return GoneError("the object is not there any more")
        if isinstance(error, PermissionError):
            who = f"with profile {self.profile!r}" if self.profile else "with the default credentials"
            asked = "without credentials" if self.anonymous else who
            return ConfigError([Problem((), f"access {asked} is refused: {_words(error)}", CREDENTIALS)], place)
        if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"):
            return ConfigError([Problem((), f"no credentials: {_words(error)}", CREDENTIALS)], place)
        if name in ("ProfileNotFound", "ParamValidationError", "InvalidRegionError", "ConfigParseError"):
            return ConfigError([Problem((), _words(error), "the profiles are in ~/.aws/config and ~/.aws/credentials")], place)
        if isinstance(error, OSError) and error.errno in FOR_EVER:
            return ConfigError([Problem((), f"the request is refused: {_words(error)}")], place)
        return None


@lru_cache
def connection(profile: str | None, anonymous: bool, process: int) -> Any:
    """An `s3fs.S3FileSystem`, for all threads of a process; it does not survive a fork.

    Raises:
        ConfigError: s3fs is not installed.
    """
    try:
        import s3fs
    except ImportError:
        raise ConfigError([Problem((), "S3 needs the package s3fs", 'pip install -e ".[s3]"')], "dataset config") from None
    once = {"retries": {"total_max_attempts": 1, "mode": "standard"}, "connect_timeout": CONNECT_S, "read_timeout": READ_S}
    named = {} if profile is None else {"profile": profile}
    made = s3fs.S3FileSystem(anon=anonymous, use_listings_cache=False, config_kwargs=once, skip_instance_cache=True, **named)
    made.retries = 1  # `S3Store` repeats, with a deadline
    return made


def _fixed_part(prefix: str) -> str:
    """The folders of a key before its first pattern."""
    plain = re.split(r"[*?\[{]", prefix, maxsplit=1)[0]
    return prefix if plain == prefix else plain.rpartition("/")[0]


def _remote_shard(name: str, facts: dict[str, Any]) -> Shard:
    return Shard(SCHEME + name, int(facts["size"]), str(facts.get("ETag") or facts.get("LastModified")))


def _words(error: Exception) -> str:
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return shown(said.splitlines()[0])
