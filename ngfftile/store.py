"""The only door to stored bytes: files, and OME-Zarr stores in folders.

A store is written in a *draft* beside its target, and appears in one step when it is whole::

    slide.ome.zarr.partial/plan.json    what is being written, from which source: a resumed run must agree
    slide.ome.zarr.partial/store/       becomes slide.ome.zarr by one rename, its root zarr.json written last

Each object is written to a temporary name, synced and renamed: an object that is present is whole and durable, so a
resumed run needs no journal, only a listing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import zarr
import zarr.errors
import zarr.storage
from zarr.core.buffer import default_buffer_prototype

from ngfftile.errors import ExistsError, MissingError, StoreError

try:
    import fcntl
except ImportError:  # Windows, where two processes on one target are not kept apart
    fcntl = None  # type: ignore[assignment]

PLAN, LOCK, ROOT = "plan.json", "lock", "zarr.json"
MOST_METADATA = 16 << 20  # bytes of one zarr.json


class LocalFile:
    """A file open for reads at any place, from any thread; ``version`` changes when the file is replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        about = os.fstat(self._fd)
        self.size = about.st_size
        self.version = (about.st_ino, about.st_mtime_ns, about.st_size)

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``.

        Raises
        ------
        StoreError
            The file is shorter.
        """
        data = os.pread(self._fd, count, offset)
        while len(data) < count:
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                raise StoreError(
                    f"ends at byte {offset + len(data)}, {offset + count} was asked", str(self.path), "It is truncated."
                )
            data += more
        return data

    def close(self) -> None:
        """Give the file handle back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of objects named by keys such as ``0/c/0/1/2``.

    Parameters
    ----------
    root
        The folder.
    """

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def open(self, key: str) -> LocalFile:
        """An object, for reads of its parts.

        Raises
        ------
        StoreError
            It is missing.
        """
        try:
            return LocalFile(self.root / key)
        except FileNotFoundError as error:
            raise StoreError(f"{key} is missing", str(self), "Convert the slide again.") from error

    def json(self, key: str) -> dict[str, Any]:
        """A small JSON object.

        Raises
        ------
        MissingError, StoreError
            It is missing; it is no JSON object, or larger than 16 MiB.
        """
        path = self.root / key
        try:
            if path.stat().st_size > MOST_METADATA:
                raise StoreError(f"{key} is larger than {MOST_METADATA} bytes", str(self))
            document = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingError(f"{key} is missing", str(self)) from error
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{key} is not JSON ({error})", str(self), "The store is damaged.") from error
        if not isinstance(document, dict):
            raise StoreError(f"{key} holds no JSON object", str(self), "The store is damaged.")
        return document

    def inside(self, path: str) -> str:
        """A path that metadata name, if it stays in the store.

        Raises
        ------
        StoreError
            It leads out of the store, by its words or by a link.
        """
        clean = bool(path) and not path.startswith("/") and ":" not in path and ".." not in path.split("/")
        if not clean or not (self.root / path).resolve().is_relative_to(self.root.resolve()):
            raise StoreError(f"path {path!r} leaves the store", str(self), "It is damaged, or not to be trusted.")
        return path

    def whole(self, key: str) -> bytes:
        """A whole object."""
        with self.open(key) as file:
            return file.read(0, file.size)

    def write(self, key: str, *parts: bytes) -> None:
        """Write one object: temporary name, sync, rename."""
        path = self.root / key
        if not self.root.is_dir():
            raise StoreError("the folder is gone", str(self), "Was it removed while it was written?")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def write_json(self, key: str, document: dict[str, Any]) -> None:
        """Write one JSON object; the same document gives the same bytes."""
        self.write(key, json.dumps(document, indent=1).encode())

    def keys(self) -> Iterator[str]:
        """Names of all objects; temporary ones are left out."""
        for folder, _, files in os.walk(self.root):
            inside = Path(folder).relative_to(self.root)
            yield from ((inside / name).as_posix() for name in files if not name.startswith("."))

    def sizes(self, path: str) -> list[tuple[str, int]]:
        """Names and sizes of the objects below a path, in order."""
        root = self.root / path
        return sorted((p.relative_to(root).as_posix(), p.stat().st_size) for p in root.rglob("*") if p.is_file())

    def size(self) -> int:
        """Bytes of all objects together."""
        return sum((self.root / key).stat().st_size for key in self.keys())

    def open_array(self, path: str) -> zarr.Array[Any]:
        """An array by zarr-python, read only: any version, codec and layout.

        Raises
        ------
        StoreError
            No array there, or one that zarr-python cannot open.
        """
        try:
            return zarr.open_array(zarr.storage.LocalStore(self.root / path, read_only=True), mode="r")
        except (OSError, ValueError, KeyError, TypeError, zarr.errors.BaseZarrError) as error:
            raise StoreError(f"array {path!r} cannot be opened ({error})", str(self)) from error

    def create_array(self, path: str, **spec: Any) -> None:
        """Write an array's metadata, as zarr-python has them; ``spec`` is `zarr.create_array`'s."""
        # In memory, since zarr would neither sync the file nor leave out the groups above it: the root comes last.
        array = zarr.create_array(zarr.storage.MemoryStore(), **spec)
        document = array.metadata.to_buffer_dict(default_buffer_prototype())[ROOT]
        self.write(f"{path}/{ROOT}", document.to_bytes())

    def create_group(self, path: str, attributes: dict[str, Any]) -> None:
        """Write a group's metadata."""
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        self.write_json(f"{path}/{ROOT}".lstrip("/"), document)


@dataclass(frozen=True, slots=True)
class Draft:
    """An unfinished store beside its target."""

    target: Path

    @property
    def folder(self) -> Path:
        """Where the draft lives."""
        return self.target.with_name(self.target.name + ".partial")

    @property
    def store(self) -> Store:
        """The store to write into."""
        return Store(self.folder / "store")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, where the file system has locks; it lets go of a process that dies.

        Raises
        ------
        ExistsError
            Another process is at work on this draft.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("wb") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ExistsError(
                    "another process is converting into it", str(self.target), "Wait for it, or stop it."
                ) from error
            except OSError as error:
                if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
                    raise
            yield

    def begin(self, plan: dict[str, Any], *, overwrite: bool) -> None:
        """Start, or go on with what an interrupted run left.

        Parameters
        ----------
        plan
            What is written, and from what.
        overwrite
            Drop a draft with another plan.

        Raises
        ------
        ExistsError
            A draft of another source or with other parameters is there.
        """
        home = Store(self.folder)
        if (self.folder / PLAN).exists():
            if home.json(PLAN) == json.loads(json.dumps(plan)):
                for stray in self.store.root.rglob(".*.tmp"):
                    stray.unlink()  # what a killed run had half written
                self.store.root.mkdir(parents=True, exist_ok=True)
                return
            if not overwrite:
                raise ExistsError(
                    "an unfinished conversion of another source, or with other parameters, is there",
                    str(self.folder),
                    "Finish it with its own parameters, or use --overwrite (overwrite=True) to drop it.",
                )
        # Without a plan, or with another: what lies there is of no known source.
        shutil.rmtree(self.store.root, ignore_errors=True)
        self.store.root.mkdir(parents=True, exist_ok=True)
        home.write_json(PLAN, plan)

    def commit(self, attributes: dict[str, Any], expected: set[str]) -> None:
        """Write the root, and put the store in its place; what was there stays until then.

        Raises
        ------
        StoreError
            An object of ``expected`` is not there: somebody removed it.
        """
        missing = expected - set(self.store.keys())
        if missing:
            raise StoreError(
                f"{len(missing)} objects are gone, {min(missing)} first", str(self.folder), "Convert the slide again."
            )
        self.store.create_group("", attributes)
        for folder, _, _ in os.walk(self.store.root):
            _sync_folder(Path(folder))
        old = self.target.with_name(self.target.name + ".replaced")
        if self.target.exists():
            if old.exists():
                shutil.rmtree(old)  # left by a run that was killed while it removed it
            self.target.rename(old)
        self.store.root.rename(self.target)
        _sync_folder(self.target.parent)
        if old.exists():
            shutil.rmtree(old)
        self.discard()

    def discard(self) -> None:
        """Remove the draft; its plan first, so that what a kill leaves of it is never taken for a draft."""
        (self.folder / PLAN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no handle on a folder; its journal orders renames
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
