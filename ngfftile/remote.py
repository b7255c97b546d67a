"""Stores behind urls, read only: the same objects as in a folder, one request for a part of one.

Nothing that a server does is silence. A missing object, a refusal, an answer of other length or range than was asked, a
stall: each is an error that names the url. Requests are tried again, with growing pauses, and bounded in time.

What is read is of one version. A store that was opened holds its root's version; each object is known by its own, and
every answer must have it. A store that is replaced meanwhile is an error.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self
from urllib.parse import quote, unquote, urlsplit

import zarr
import zarr.abc.store
import zarr.storage

from ngfftile.errors import MissingError, NgfftileError, OptionError, StoreError
from ngfftile.locations import is_url, local_path
from ngfftile.store import MOST_METADATA, ROOT, ROOT2, Readable, Store, StoredFile

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, HTTPStore

# Seconds: to connect; without a byte; for one request, 4 MiB at 70 KB/s; until the last new try.
CONNECT, SILENCE, REQUEST, TRIES = 5.0, 10.0, 60.0, 30.0
RETRIES = 4
PAUSES: BackoffConfig = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2}
_TAIL = 16 << 10  # bytes: the index of most shards, and all of a small object
_MOST_KNOWN = 1 << 14
_GAP, _MOST_RUN = 64 << 10, 4 << 20  # bytes between parts that come in one request, and of all of them
_MOST_CHUNK = 1 << 30  # bytes of one object that zarr-python asks for


class Seen(NamedTuple):
    """An object as an answer had it."""

    version: str
    size: int


class Pin(NamedTuple):
    """The root that a store was opened with: its path from the origin, and how it was."""

    place: str
    seen: Seen


class _Known:
    """Objects as they were seen first, of stores that were opened; the oldest are forgotten."""

    def __init__(self) -> None:
        self._held: OrderedDict[object, Seen] = OrderedDict()
        self._lock = Lock()

    def get(self, store: RemoteStore, key: str) -> Seen | None:
        with self._lock:
            return self._held.get((store, key))

    def keep(self, store: RemoteStore, key: str, seen: Seen) -> None:
        if store.pin is None:
            return
        with self._lock:
            self._held[store, key] = seen
            if len(self._held) > _MOST_KNOWN:
                self._held.popitem(last=False)

    def forget(self, store: RemoteStore, key: str) -> None:
        with self._lock:
            self._held.pop((store, key), None)


_known = _Known()


def store_at(url: str | os.PathLike[str]) -> Readable:
    """The store at a local path or url; nothing is read.

    Raises
    ------
    OptionError
        A scheme, or a form of url, that is not read.

    Examples
    --------
    >>> str(store_at("https://example.org/slides/1.ome.zarr/"))
    'https://example.org/slides/1.ome.zarr'
    """
    return RemoteStore.at(os.fspath(url)) if is_url(url) else Store(local_path(url))


class RemoteFile:
    """An object behind a url, opened by its last bytes where it is not known yet; each read is one request or none."""

    def __init__(self, store: RemoteStore, key: str) -> None:
        self._store, self._key, self._tail = store, key, b""
        self._runs: list[tuple[int, int]] = []
        self._run, self._held = (0, 0), b""
        self.path = store.url_of(key)
        known = _known.get(store, key)
        if known is None:
            known, self._tail = store.tail(key)
            store.confirm()
            _known.keep(store, key, known)
        self._seen = known
        self.version, self.size = known

    def ahead(self, spans: Iterable[tuple[int, int]]) -> None:
        """Say which parts, (offset, bytes), will be read: those side by side come in one request."""
        self._runs = []
        for offset, count in sorted(spans):
            first, last = self._runs[-1] if self._runs else (0, 0)
            if self._runs and offset - last <= _GAP and offset + count - first <= _MOST_RUN:
                self._runs[-1] = first, max(last, offset + count)
            else:
                self._runs.append((offset, offset + count))

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``.

        Raises
        ------
        StoreError
            The object is shorter, was replaced, or cannot be read.
        """
        if offset + count > self.size:
            raise StoreError(f"has {self.size} bytes, {offset + count} were asked", self.path, "It is truncated.")
        at = offset - (self.size - len(self._tail))
        if at >= 0:
            return self._tail[at : at + count]
        first, last = self._runs[bisect(self._runs, (offset, self.size)) - 1] if self._runs else (0, 0)
        if not first <= offset <= offset + count <= min(last, self.size):
            return self._part(offset, count)
        if self._run != (first, last):
            self._run, self._held = (first, last), self._part(first, last - first)
        return self._held[offset - first : offset - first + count]

    def _part(self, offset: int, count: int) -> bytes:
        try:
            seen, data = self._store.part(self._key, offset, count)
        except MissingError:
            seen, data = None, b""
        if seen != self._seen:
            raise _replaced(self.path)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        if any(failed):
            _known.forget(self._store, self._key)  # whatever was wrong with it, the next one to read it asks anew


@dataclass(frozen=True, slots=True)
class RemoteStore(Readable):
    """A store behind a url; see `ngfftile.store.Readable`.

    Parameters
    ----------
    origin
        Scheme, host and port.
    path
        Of the store, as the words of a url stand for.
    pin
        The root that it was opened with: what is read later must be of that time.
    """

    origin: str
    path: str
    pin: Pin | None = None
    lists: ClassVar[bool] = False

    @classmethod
    def at(cls, url: str) -> Self:
        """The store at a url.

        Raises
        ------
        OptionError
            Not a plain http or https url.
        """
        try:
            parts = urlsplit(url)
            known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError as error:
            raise OptionError(f"{url!r} is no url ({error})", mend="Correct it.") from error
        path = unquote(parts.path).strip("/")
        if not known:
            raise OptionError(f"{url!r} has a scheme that is not read", mend="Give a path, an http:// or https:// url.")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise OptionError(f"{url!r} has a query, fragment or user", mend="Give a url of host and path alone.")
        if ":" in path or {"", ".", ".."} & set(path.split("/") if path else ()):
            raise OptionError(f"{url!r} leads through '..', '//' or ':'", mend="Give the url of the store itself.")
        return cls(f"{parts.scheme}://{parts.netloc}", path)

    def __str__(self) -> str:
        return self.url_of("")

    def url_of(self, key: str) -> str:
        """Where an object is."""
        return f"{self.origin}/{quote(self._place(key))}"

    def _place(self, key: str) -> str:
        return "/".join(part for part in (self.path, key) if part)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    def below(self, path: str) -> Self:
        """The store in a folder of this one."""
        return replace(self, path=self._place(path))

    def open(self, key: str) -> StoredFile:
        """An object, for reads of its parts."""
        try:
            return RemoteFile(self, key)
        except MissingError as error:
            raise StoreError(f"{key} is missing", str(self), "Convert the slide again.") from error

    def whole(self, key: str, most: int | None = None) -> bytes:
        """A whole object; by default metadata, of at most 16 MiB."""
        try:
            data = self.small(key, most or MOST_METADATA)
        except MissingError as error:
            raise StoreError(f"{key} is missing", str(self), "Convert the slide again.") from error
        self.confirm()
        return data

    def small(self, key: str, most: int) -> bytes:
        """A whole object of at most ``most`` bytes."""
        return self._whole(key, most)[1]

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            return _known.get(self, key) is not None or bool(self._head(self._place(key)))
        except MissingError:
            return False

    def keys(self) -> Iterator[str]:
        """None: a server does not tell."""
        return iter(())

    def folders(self, path: str) -> list[str]:  # noqa: ARG002
        """None: a server does not tell."""
        return []

    def sizes(self, path: str) -> list[tuple[str, int]]:  # noqa: ARG002
        """None: a server does not tell."""
        return []

    def opened(self) -> tuple[Self, dict[str, Any]]:
        """The store as it is now, and its root's attributes."""
        for name in (ROOT, ROOT2):
            try:
                seen, data = self._whole(name, MOST_METADATA)
            except MissingError:
                continue
            return replace(self, pin=Pin(self._place(name), seen)), self.attributes_in(name, self.parsed(name, data))
        raise MissingError("nothing there, or no OME-Zarr store", str(self), "Check the url.")

    def confirm(self) -> None:
        """See that the store is still the one that was opened."""
        if self.pin is None:
            return
        try:
            same = self._head(self.pin.place) == self.pin.seen
        except MissingError:
            same = False
        if not same:
            raise _replaced(str(self))

    def tail(self, key: str) -> tuple[Seen, bytes]:
        """How an object is, and its last bytes."""
        try:
            return self._some(key, {"suffix": _TAIL}, _TAIL)
        except _RangesError:
            # Of a small object the tail is all of it, and a server may answer so.
            if self._head(self._place(key)).size > _TAIL:
                raise
            return self._whole(key, _TAIL)

    def part(self, key: str, offset: int, count: int) -> tuple[Seen, bytes]:
        """How an object is, and ``count`` bytes of it from ``offset``."""
        seen, data = self._some(key, (offset, offset + count), count)
        if len(data) != count:
            raise StoreError(f"ends at byte {offset + len(data)}, {offset + count} was asked", self.url_of(key))
        return seen, data

    def asked(self, key: str, wanted: zarr.abc.store.ByteRequest | None) -> bytes:
        """What zarr-python asks for."""
        if wanted is None:
            return self.small(key, _MOST_CHUNK)
        if isinstance(wanted, zarr.abc.store.RangeByteRequest):
            seen, data = self.part(key, wanted.start, wanted.end - wanted.start)
        elif isinstance(wanted, zarr.abc.store.SuffixByteRequest):
            seen, data = self._some(key, {"suffix": wanted.suffix}, wanted.suffix)
        else:
            seen, data = self._some(key, {"offset": wanted.offset}, _MOST_CHUNK)
        known = _known.get(self, key)
        if known is None:
            _known.keep(self, key, seen)
        elif known != seen:
            _known.forget(self, key)
            raise _replaced(self.url_of(key))
        return data

    def _some(self, key: str, span: Any, most: int) -> tuple[Seen, bytes]:
        """How an object is, and a part of it."""
        with self._telling(self._place(key)):
            answer = _obstore().get(_client(self.origin), self._place(key), options={"range": span})
            start, stop = answer.range
            return _seen(answer.meta), _body(answer, stop - start, most)

    def _whole(self, key: str, most: int) -> tuple[Seen, bytes]:
        with self._telling(self._place(key)):
            answer = _obstore().get(_client(self.origin), self._place(key))
            return _seen(answer.meta), _body(answer, answer.meta["size"], most)

    def _head(self, place: str) -> Seen:
        with self._telling(place):
            return _seen(_obstore().head(_client(self.origin), place))

    @contextmanager
    def _telling(self, place: str) -> Iterator[None]:
        """Errors of obstore as ours."""
        url, known = f"{self.origin}/{quote(place)}", _obstore().exceptions
        try:
            yield
        except NgfftileError:
            raise
        except FileNotFoundError as error:
            raise MissingError("is missing", url) from error
        except known.NotSupportedError as error:
            raise _RangesError(
                "the server answers with the whole object where a part was asked", url, "Use one that answers ranges."
            ) from error
        except (known.BaseError, OSError, ValueError) as error:
            raise StoreError(f"cannot be read ({_why(error)})", url, "Is the server well? Try again.") from error

    def _array(self, path: str) -> zarr.Array[Any]:
        prefix = f"{path}/" if path else ""
        try:
            document = self.json(prefix + ROOT)
        except MissingError:
            document = {"attributes": {}} | self.json(prefix + ".zarray")
        place = zarr.storage.StorePath(_Chunks(self.below(path)))
        return zarr.Array(zarr.AsyncArray(document, place))  # type: ignore[call-overload]


class _RangesError(StoreError):
    """A server that answers with everything."""


class _Chunks(zarr.storage.ObjectStore[Any]):
    """What zarr-python reads a store through: our requests, bounded and of one version."""

    def __init__(self, store: RemoteStore) -> None:
        super().__init__(_client(store.origin), read_only=True)
        self._remote = store

    async def get(
        self,
        key: str,
        prototype: zarr.core.buffer.BufferPrototype,
        byte_range: zarr.abc.store.ByteRequest | None = None,
    ) -> zarr.core.buffer.Buffer | None:
        """A chunk, or a part of a shard; None where it is missing."""
        try:
            data = await asyncio.to_thread(self._remote.asked, key, byte_range)
        except MissingError:
            return None
        return prototype.buffer.from_bytes(data)


def _replaced(url: str) -> StoreError:
    return StoreError("was replaced while it was read", url, "Open it again.")


def _seen(meta: Any) -> Seen:
    return Seen(str(meta["e_tag"] or meta["last_modified"]), meta["size"])


def _body(answer: Any, count: int, most: int) -> bytes:
    """The bytes of an answer; of more than were told, or wanted, no more is read."""
    if count > most:
        raise ValueError(f"{count} bytes, at most {most} are read")
    parts, held = [], 0
    for part in answer.stream(min_chunk_size=max(count, 1)):
        parts.append(bytes(part))
        held += len(part)
        if held > count:
            break
    if held != count:
        raise ValueError(f"{'more than ' * (held > count)}{min(held, count)} bytes came where {count} were told")
    return b"".join(parts)


def _why(error: Exception) -> str:
    """What obstore says, in a line."""
    text = str(error)
    line = text.split("\n", 1)[0].rsplit(" - ", 1)[-1].removeprefix("Generic HTTP error: ").strip(" :")[:200]
    return f"{line}: timed out" if "TimedOut" in text else line


@cache
def _obstore() -> Any:
    """The library, which only those who read urls need."""
    import obstore

    return obstore


@cache
def _process() -> int:
    return os.getpid()


def _client(origin: str) -> HTTPStore:
    """The connections to a server.

    Raises
    ------
    StoreError
        They are another process's, whose threads a fork does not take along: every request would wait for ever.
    """
    if _process() != os.getpid():
        raise StoreError(
            "this process was forked from one that has read urls", origin, 'Start it by "spawn" or "forkserver".'
        )
    return _connections(origin)


@lru_cache(maxsize=64)
def _connections(origin: str) -> HTTPStore:
    from obstore.store import HTTPStore

    return HTTPStore(
        origin,
        client_options={
            "allow_http": origin.startswith("http:"),
            "connect_timeout": timedelta(seconds=CONNECT),
            "read_timeout": timedelta(seconds=SILENCE),
            "timeout": timedelta(seconds=REQUEST),
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=TRIES), "backoff": PAUSES},
    )
