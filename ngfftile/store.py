"""The only door to stored bytes: files, and OME-Zarr stores in folders.

Each object is written to a temporary name, synced and renamed: an object that is present is whole, and stays so when
the power fails. Whether its name stays is up to its folder, which `sync` keeps: once for a store, not for each object.

A finished store has a manifest: size and crc32c of every object, as attributes of the group ``ngfftile``, so that no
reader meets anything but Zarr. The root's attributes hold the manifest's crc32c, and their own document's, taken with
that number as zeros: so any byte that changes is found. Labels, which come and go, have manifests of their own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, Self
from uuid import uuid4

import google_crc32c
import zarr
import zarr.storage

from ngfftile.errors import MissingError, StoreError

try:
    import fcntl
except ImportError:  # Windows, where two processes on one target are not kept apart
    fcntl = None  # type: ignore[assignment]

ROOT, ROOT2 = "zarr.json", ".zattrs"
MANIFEST, LABELS = "ngfftile", "labels"
MOST_METADATA = 16 << 20  # bytes of one zarr.json
MOST_MANIFEST = 1 << 30
_SEAL = re.compile(rb'"document_crc32c": "([0-9a-f]{8})"')
_OPEN_SEAL = "0" * 8


class Written(NamedTuple):
    """An object that was written: its key, bytes and crc32c."""

    key: str
    size: int
    crc32c: str


def crc_of(*parts: bytes) -> str:
    """crc32c of bytes, as eight hexadecimal digits."""
    value = 0
    for part in parts:
        value = google_crc32c.extend(value, part)
    return f"{value:08x}"


def seal(document: bytes) -> bytes:
    """A JSON document whose ``document_crc32c`` is zeros, with its own crc32c in their place."""
    place = _SEAL.search(document)
    assert place is not None
    return document[: place.start(1)] + crc_of(document).encode() + document[place.end(1) :]


def sealed(document: bytes) -> bool | None:
    """Whether a document is as `seal` left it; None where it has no seal."""
    places = list(_SEAL.finditer(document))
    if len(places) != 1:
        return None if not places else False
    place = places[0]
    zeros = document[: place.start(1)] + _OPEN_SEAL.encode() + document[place.end(1) :]
    return crc_of(zeros).encode() == place[1]


class LocalFile:
    """A file open for reads at any place, from any thread; ``version`` changes when the file is replaced."""

    _end = staticmethod(os.close)  # at the interpreter's end the module may be gone before the last file

    def __init__(self, path: Path) -> None:
        self.path = path
        # Without waiting: a pipe in the place of a file must not hang us.
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        about = os.fstat(self._fd)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        self.size = about.st_size
        self.version = (about.st_ino, about.st_mtime_ns, about.st_size)

    def ahead(self, spans: Iterable[tuple[int, int]]) -> None:
        """Say which parts will be read: of a file it makes no difference."""

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``.

        Raises
        ------
        StoreError
            The file is shorter.
        """
        data = self._some(offset, count)
        while len(data) < count:
            more = self._some(offset + len(data), count - len(data))
            if not more:
                raise StoreError(
                    f"ends at byte {offset + len(data)}, {offset + count} was asked", str(self.path), "It is truncated."
                )
            data += more
        return data

    def _some(self, offset: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, count, offset)
        except OSError as error:
            raise StoreError(f"cannot be read ({error.strerror})", str(self.path), "Is the disk failing?") from error

    def close(self) -> None:
        """Give the file handle back."""
        if self._fd >= 0:
            self._end(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class StoredFile(Protocol):
    """An object open for reads at any place; ``version`` changes when it is replaced."""

    size: int

    @property
    def path(self) -> object:
        """Where it is."""

    @property
    def version(self) -> object:
        """Of its bytes."""

    def ahead(self, spans: Iterable[tuple[int, int]]) -> None:
        """Say which parts, (offset, bytes), will be read."""

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Readable(ABC):
    """A store to read, wherever its bytes are: objects named by keys such as ``0/c/0/1/2``."""

    __slots__ = ()
    lists: ClassVar[bool]  # whether it can tell what objects it has

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its folder."""

    @abstractmethod
    def open(self, key: str) -> StoredFile:
        """An object, for reads of its parts.

        Raises
        ------
        StoreError
            It is missing.
        """

    @abstractmethod
    def whole(self, key: str, most: int | None = None) -> bytes:
        """A whole object, of at most ``most`` bytes if that is given."""

    @abstractmethod
    def small(self, key: str, most: int) -> bytes:
        """A whole object.

        Raises
        ------
        MissingError, StoreError
            It is missing; it is larger than ``most`` bytes.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such an object, or folder."""

    @abstractmethod
    def below(self, path: str) -> Self:
        """The store in a folder of this one."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Names of all objects; temporary ones are left out."""

    @abstractmethod
    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder."""

    @abstractmethod
    def sizes(self, path: str) -> list[tuple[str, int]]:
        """Names and sizes of the objects below a path, in order."""

    @abstractmethod
    def _array(self, path: str) -> zarr.Array[Any]:
        """An array by zarr-python, read only."""

    def opened(self) -> tuple[Self, dict[str, Any]]:
        """The store as it is now, and its root's attributes."""
        return self, self.attributes("")

    def confirm(self) -> None:  # noqa: B027
        """See that the store is still the one that was opened; of a folder nothing is asked.

        Raises
        ------
        StoreError
            It was replaced, or is gone.
        """

    def json(self, key: str, most: int = MOST_METADATA) -> dict[str, Any]:
        """A small JSON object.

        Raises
        ------
        MissingError, StoreError
            It is missing; it is no JSON object, or larger than ``most`` bytes.
        """
        return self.parsed(key, self.small(key, most))

    def parsed(self, key: str, data: bytes) -> dict[str, Any]:
        """The JSON object that an object's bytes are."""
        try:
            document = json.loads(data)
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
        if not clean or not self._holds(path):
            raise StoreError(f"path {path!r} leaves the store", str(self), "It is damaged, or not to be trusted.")
        return path

    def _holds(self, path: str) -> bool:  # noqa: ARG002
        """Whether no link leads out of the store."""
        return True

    def open_array(self, path: str, *, whole: bool = False) -> zarr.Array[Any]:
        """An array by zarr-python, read only: any version, codec and layout.

        Parameters
        ----------
        whole
            Whether a missing object is an error, not fill value.

        Raises
        ------
        StoreError
            No array there, or one that zarr-python cannot open.
        """
        try:
            array = self._array(path)
            about = array.metadata.to_dict()
        except StoreError:
            raise
        # Wrong metadata make zarr-python fail in many ways, OverflowError among them.
        except Exception as error:
            raise StoreError(f"array {path!r} cannot be opened ({error})", str(self)) from error
        if "pickle" in repr([about.get(part) for part in ("codecs", "compressor", "filters")]):
            raise StoreError(f"array {path!r} has the codec pickle, which runs code that a chunk holds", str(self))
        return array.with_config({"read_missing_chunks": False}) if whole else array

    def attributes(self, path: str, most: int = MOST_METADATA) -> dict[str, Any]:
        """A group's attributes, Zarr v3's or v2's.

        Raises
        ------
        MissingError, StoreError
            No group there; no attributes that can be read.
        """
        prefix = f"{path}/" if path else ""
        try:
            return self.attributes_in(prefix + ROOT, self.json(prefix + ROOT, most))
        except MissingError:
            return self.attributes_in(prefix + ROOT2, self.json(prefix + ROOT2, most))

    def attributes_in(self, key: str, document: dict[str, Any]) -> dict[str, Any]:
        """Those that a group's document holds."""
        found = document.get("attributes", {}) if key.endswith(ROOT) else document
        if not isinstance(found, dict):
            raise StoreError(f"the attributes in {key} are not a JSON object", str(self))
        return found

    def labels(self) -> tuple[str, ...]:
        """Names of the label images that the store lists."""
        try:
            found = self.attributes(LABELS)
        except MissingError:
            return ()
        ome = found.get("ome", found)
        listed = ome.get("labels", []) if isinstance(ome, dict) else []
        return tuple(name for name in listed if isinstance(name, str)) if isinstance(listed, list) else ()

    def manifest(self, zarr_format: int = 3) -> str:
        """Key of the document that holds the manifest."""
        return f"{MANIFEST}/{ROOT if zarr_format == 3 else ROOT2}"

    def listed(self, zarr_format: int = 3) -> dict[str, tuple[int, str]]:
        """The manifest: size and crc32c of each object."""
        key = self.manifest(zarr_format)
        document = self.json(key, MOST_MANIFEST)
        try:
            objects = (document["attributes"] if zarr_format == 3 else document)["objects"]
            return {name: (int(size), str(crc)) for name, (size, crc) in objects.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{key} is no manifest", str(self), "It is damaged.") from error


@dataclass(frozen=True, slots=True)
class Store(Readable):
    """A folder of objects named by keys such as ``0/c/0/1/2``.

    Parameters
    ----------
    root
        The folder.
    """

    root: Path
    lists: ClassVar[bool] = True

    def __str__(self) -> str:
        return str(self.root)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.root.name

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
        except OSError as error:
            raise StoreError(f"{key} cannot be read ({error.strerror})", str(self)) from error

    def small(self, key: str, most: int) -> bytes:
        """A whole object of at most ``most`` bytes."""
        path = self.root / key
        try:
            data = path.read_bytes() if path.stat().st_size <= most else None
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingError(f"{key} is missing", str(self)) from error
        except OSError as error:
            raise StoreError(f"{key} cannot be read ({error.strerror})", str(self)) from error
        if data is None:
            raise StoreError(f"{key} is larger than {most} bytes", str(self))
        return data

    def _holds(self, path: str) -> bool:
        return (self.root / path).resolve().is_relative_to(self.root.resolve())

    def exists(self, key: str) -> bool:
        """Whether there is such an object, or folder."""
        return (self.root / key).exists()

    def below(self, path: str) -> Self:
        """The store in a folder of this one."""
        return replace(self, root=self.root / path)

    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder."""
        folder = self.root / path
        return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []

    def whole(self, key: str, most: int | None = None) -> bytes:
        """A whole object, of at most ``most`` bytes if that is given."""
        with self.open(key) as file:
            if most is not None and file.size > most:
                raise StoreError(f"{key} is larger than {most} bytes", str(self))
            return file.read(0, file.size)

    def write(self, key: str, *parts: bytes) -> Written:
        """Write one object: temporary name, sync, rename."""
        path = self.root / key
        if not self.root.is_dir():
            raise StoreError("the folder is gone", str(self), "Was it removed while it was written?")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of its own: workers on several machines may be at the same object, after one was thought lost.
        temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
        size, crc = 0, 0
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
                    size, crc = size + len(part), google_crc32c.extend(crc, part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(path)  # a full disk does not say where
            raise
        return Written(key, size, f"{crc:08x}")

    def write_json(self, key: str, document: dict[str, Any]) -> Written:
        """Write one JSON object; the same document gives the same bytes."""
        return self.write(key, _bytes(document))

    def keys(self) -> Iterator[str]:
        """Names of all objects; temporary ones are left out."""
        for folder, _, files in os.walk(self.root, onerror=_fail):
            inside = Path(folder).relative_to(self.root)
            yield from ((inside / name).as_posix() for name in files if not _temporary(name))

    def sizes(self, path: str) -> list[tuple[str, int]]:
        """Names and sizes of the objects below a path, in order."""
        root = self.root / path
        return sorted((p.relative_to(root).as_posix(), p.stat().st_size) for p in root.rglob("*") if p.is_file())

    def sweep(self) -> None:
        """Remove what killed runs had half written."""
        for folder, _, files in os.walk(self.root, onerror=_fail):
            for name in filter(_temporary, files):
                Path(folder, name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make the names of all objects as lasting as their bytes are."""
        for folder, _, _ in os.walk(self.root, onerror=_fail):
            sync_folder(Path(folder))

    def size(self) -> int:
        """Bytes of all objects together."""
        return sum((self.root / key).stat().st_size for key in self.keys())

    def _array(self, path: str) -> zarr.Array[Any]:
        return zarr.open_array(zarr.storage.LocalStore(self.root / path, read_only=True), mode="r")

    def create_group(self, path: str, attributes: dict[str, Any], zarr_format: int = 3) -> list[Written]:
        """Write a group's metadata."""
        prefix = f"{path}/" if path else ""
        return [self.write(prefix + name, data) for name, data in _group(attributes, zarr_format).items()]

    def list_labels(self, names: Iterable[str], version: str) -> None:
        """Add names to the list of label images, for a version of OME-Zarr; sealed, since no manifest covers it."""
        folder = self.root / LABELS
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            for stray in folder.glob(".*.tmp"):
                stray.unlink()  # what a killed run had half written
            self._list_labels(sorted({*self.labels(), *names}), version)

    def _list_labels(self, names: list[str], version: str) -> None:
        seal_ = {"ngfftile": {"document_crc32c": _OPEN_SEAL}}
        plain = {"labels": names}
        attributes = plain if version == "0.4" else {"ome": {"version": version, **plain}}
        for name, data in _group(attributes | seal_, 2 if version == "0.4" else 3).items():
            self.write(f"{LABELS}/{name}", seal(data) if _SEAL.search(data) else data)

    def finish(self, attributes: dict[str, Any], written: Iterable[Written], zarr_format: int = 3) -> None:
        """Write the manifest of all objects, then the root: the store is complete.

        Parameters
        ----------
        attributes
            Of the root group; those of ``ngfftile`` get the manifest's checksum and the seal.
        written
            What is known of the objects; the others are read.
        """
        known = {one.key: one for one in written}
        mine = (key for key in self.keys() if not key.startswith((f"{LABELS}/", f"{MANIFEST}/")) and key not in ROOTS)
        every = [known.get(key) or self._written(key) for key in sorted(mine)]
        if zarr_format == 2:
            every.append(self.write(_GROUP2, group_document()))
        objects = {one.key: [one.size, one.crc32c] for one in every}
        *_, manifest = self.create_group(MANIFEST, {"objects": objects}, zarr_format)
        about = {"path": manifest.key, "objects": len(objects), "bytes": manifest.size, "crc32c": manifest.crc32c}
        ours = {"document_crc32c": _OPEN_SEAL} | attributes["ngfftile"] | {"manifest": about}
        *_, (name, document) = _group(attributes | {"ngfftile": ours}, zarr_format).items()
        self.write(name, seal(document))

    def _written(self, key: str) -> Written:
        data = self.whole(key)
        return Written(key, len(data), crc_of(data))


_GROUP2 = ".zgroup"
ROOTS = (ROOT, ROOT2, _GROUP2)


def group_document() -> bytes:
    """The document that makes a folder a Zarr v2 group."""
    return _bytes({"zarr_format": 2})


def sync_folder(folder: Path) -> None:
    """Make the names in a folder lasting; where the system cannot, it orders renames itself."""
    if os.name == "nt":  # Windows has no handle on a folder
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems know it of files only
            error.filename = str(folder)
            raise
    finally:
        os.close(fd)


def _fail(error: OSError) -> NoReturn:
    """What `os.walk` does with a folder that cannot be read: its objects must not be passed over."""
    raise error


def _temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _bytes(document: Mapping[str, Any]) -> bytes:
    # UTF-8; a file's name may hold what is none, which other readers would refuse.
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from what this one reads and writes again, where the system has locks on folders."""
    if fcntl is None:
        yield
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _group(attributes: Mapping[str, Any], zarr_format: int) -> dict[str, bytes]:
    """Names and bytes of the documents that are a group; the attributes last."""
    if zarr_format == 2:
        return {_GROUP2: group_document(), ROOT2: _bytes(attributes)}
    return {ROOT: _bytes({"zarr_format": 3, "node_type": "group", "attributes": attributes})}
