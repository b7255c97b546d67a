"""A store on its way: written in a draft beside its target, it appears in one step when it is whole.

::

    slide.ome.zarr.partial/plan.json    what is being written, from which source: a resumed run must agree
    slide.ome.zarr.partial/store/       becomes slide.ome.zarr by one rename, its root zarr.json written last
    slide.ome.zarr.partial/replaced/    the store that was there before, until the new one is in its place
    slide.ome.zarr.partial/lock         held by the process that is at work

Whenever the process is killed, or the power fails, what is on disk is one of: a draft to go on with; two finished
stores of which the old one has made room (`Draft.recover` ends it); remains beside a finished store, which go away.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngfftile.errors import ExistsError, StoreError
from ngfftile.store import ROOTS, Store, Written, sync_folder

try:
    import fcntl
except ImportError:  # Windows, where two processes on one target are not kept apart
    fcntl = None  # type: ignore[assignment]

PLAN, LOCK = "plan.json", "lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


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

    @property
    def _replaced(self) -> Path:
        return self.folder / "replaced"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, where the file system has locks; it lets go of a process that dies.

        Raises
        ------
        ExistsError
            Another process is at work on this draft.
        """
        fd = self._lock()
        try:
            yield
        finally:
            if fd is not None:
                os.close(fd)

    def _lock(self) -> int | None:
        for _ in range(9):
            self.folder.mkdir(parents=True, exist_ok=True)
            if fcntl is None:
                return None
            try:
                fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # another process has just finished, and removed the folder
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still(self.folder / LOCK, fd):
                    return fd
            except BlockingIOError:
                os.close(fd)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return fd
                os.close(fd)
                raise
            os.close(fd)
        raise ExistsError("another process is converting into it", str(self.target), "Wait for it, or stop it.")

    def begin(self, plan: dict[str, Any], *, overwrite: bool) -> None:
        """Start, or go on with what an interrupted run left; only while `held`.

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
        self._settle()
        if (self.folder / PLAN).exists():
            if self._plan() == json.loads(json.dumps(plan)):
                Store(self.folder).sweep()
                self.store.root.mkdir(parents=True, exist_ok=True)
                return
            if not overwrite:
                raise ExistsError(
                    "an unfinished conversion of another source, or with other parameters, is there",
                    str(self.folder),
                    "Finish it with its own parameters, or use --overwrite (overwrite=True) to drop it.",
                )
        # Without a plan, or with another: what lies there is of no known source.
        self._clear()
        self.store.root.mkdir()
        Store(self.folder).write_json(PLAN, plan)
        # Without its plan a draft is lost, all shards with it; a shard whose name is lost is only written again.
        sync_folder(self.folder)
        sync_folder(self.folder.parent)

    def _plan(self) -> dict[str, Any] | None:
        try:
            return Store(self.folder).json(PLAN)
        except StoreError:
            return None

    def commit(
        self, attributes: dict[str, Any], expected: set[str], written: Iterable[Written] = (), zarr_format: int = 3
    ) -> None:
        """Write manifest and root, and put the store in its place; what was there stays until then.

        Raises
        ------
        StoreError
            An object of ``expected`` is not there: somebody removed it.
        """
        missing = expected - set(self.store.keys())
        if missing:
            raise StoreError(
                f"objects are gone: {min(missing)}, {len(missing)} in all", str(self.folder), "Convert the slide again."
            )
        self.store.sweep()  # of a cluster's workers that were killed
        self.store.finish(attributes, written, zarr_format)
        self.store.sync()  # all names, before the one that shows the store
        if self.target.exists():
            self.target.rename(self._replaced)
        self.store.root.rename(self.target)
        sync_folder(self.target.parent)
        self.discard()

    def recover(self) -> None:
        """End what a run left that was killed while it put its store in the target's place, or just after."""
        if self._swapping or self._spent:
            with self.held():
                self._settle()
                self._leave()

    @property
    def _swapping(self) -> bool:
        """Whether an old store has made room for one that is not there yet."""
        return not self.target.exists() and _is_store(self._replaced)

    @property
    def _spent(self) -> bool:
        """Whether the store has left the draft for its place, or was never begun: what remains is of no use."""
        return self.folder.is_dir() and self.target.exists() and not self.store.root.exists()

    def _settle(self) -> None:
        if self._swapping:
            (self.store.root if _is_store(self.store.root) else self._replaced).rename(self.target)
        if self._spent:
            sync_folder(self.target.parent)
            with suppress(OSError):  # what cannot be removed does no harm beside a finished store
                self._clear()
        elif self._replaced.exists() and _is_store(self.target):  # somebody put another one in its place
            self._drop_replaced()

    def discard(self) -> None:
        """Remove the draft; its plan in any case, so that what is left is never taken for one."""
        (self.folder / PLAN).unlink(missing_ok=True)
        with suppress(OSError):
            self._clear()
            self._leave()

    def _clear(self) -> None:
        """Remove what a draft holds; first what would let a part of it be taken for the whole."""
        (self.folder / PLAN).unlink(missing_ok=True)
        self._drop_replaced()
        for old in self.folder.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            elif old.name != LOCK:
                old.unlink()

    def _drop_replaced(self) -> None:
        if self._replaced.exists():
            for name in ROOTS:
                (self._replaced / name).unlink(missing_ok=True)
            shutil.rmtree(self._replaced)

    def _leave(self) -> None:
        """Remove the folder; the lock last, for who takes the next one may use the folder at once."""
        (self.folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # another process is in it by now
            self.folder.rmdir()


def _is_store(folder: Path) -> bool:
    return any((folder / name).exists() for name in ROOTS)


def _is_still(path: Path, fd: int) -> bool:
    """Whether an open file is the one at its path; another process may have removed it in between."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
