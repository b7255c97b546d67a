"""Slides in processes of their own, several at a time: one that ends its process is one failed slide, and no more.

A slide that has a core to itself needs no other thread, so many small slides keep all cores busy; the last ones of a
batch, and a single one, share out the cores that are free.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

Report = Callable[[int, int], None]
Work = Callable[[str, int | None, Report], Any]
_PAUSE = 0.1  # seconds between two reports of a slide
_GRACE = 20.0  # seconds to end a task, when a run is stopped
# What children share from the start; a fork server makes the next one at once, where the system has it.
_PRELOAD = ["ngfftile.cli", "ngfftile.writer"]


@dataclass(frozen=True, slots=True)
class Crash:
    """A process that ended over a slide.

    Parameters
    ----------
    how
        What ended it, such as ``SIGSEGV``.
    """

    how: str


class _Child:
    """A process that works on one slide after the other."""

    def __init__(self, work: Work) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            context.set_forkserver_preload(_PRELOAD)
        self.pipe, theirs = context.Pipe()
        self.name, self.threads = "", 0
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, work))
        self._process.start()
        theirs.close()  # so that the pipe ends when the child does

    def start(self, name: str, threads: int) -> None:
        """Give it a slide."""
        self.name, self.threads = name, threads
        self.pipe.send((name, threads))

    def crashed(self) -> Crash:
        """How it ended."""
        self._process.join()
        code = self._process.exitcode or 0
        with suppress(ValueError):
            return Crash(signal.Signals(-code).name)
        return Crash(f"exit code {code}")

    def interrupt(self) -> None:
        """Ask it to stop."""
        self.pipe.close()
        if self.name and self._process.pid:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)

    def end(self, until: float) -> None:
        """Wait for its end, and bring it about when that is late."""
        self._process.join(max(0.0, until - time.monotonic()))
        self._process.kill()
        self._process.join()


def apart(
    names: Sequence[str], work: Work, workers: int, say: Callable[[str, int, int], None]
) -> Iterator[tuple[str, Any]]:
    """Call ``work`` with each name, in processes of their own; give the results as they come.

    Parameters
    ----------
    names
        Of the slides.
    work
        Called with a name, the threads that it may use, and what to report progress to; picklable, as its result.
    workers
        Cores to use: the most processes, and threads, at one time.
    say
        Called with a name and its progress.

    Yields
    ------
    tuple
        A name, and what ``work`` returned, or a `Crash`.
    """
    waiting, idle, busy = deque(names), list[_Child](), list[_Child]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                free = workers - sum(child.threads for child in busy)
                if busy and free < 1:
                    break
                slots = min(workers - len(busy), len(waiting))
                child = idle.pop() if idle else _Child(work)
                busy.append(child)
                child.start(waiting.popleft(), max(1, free // slots))
            for pipe in wait([child.pipe for child in busy]):
                child = next(child for child in busy if child.pipe is pipe)
                try:
                    kind, value = child.pipe.recv()
                except (EOFError, OSError):
                    busy.remove(child)
                    yield child.name, child.crashed()
                    continue
                if kind == "progress":
                    say(child.name, *value)
                    continue
                busy.remove(child)
                name, child.name = child.name, ""
                idle.append(child)
                yield name, value
    finally:
        for child in [*idle, *busy]:
            child.interrupt()
        until = time.monotonic() + _GRACE
        for child in [*idle, *busy]:
            child.end(until)


def _serve(pipe: Connection, work: Work) -> None:
    """Work until the parent closes the pipe, stops the run, or is no more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    silence()
    with suppress(KeyboardInterrupt, EOFError, OSError):
        while True:
            name, threads = pipe.recv()
            pipe.send(("result", work(name, threads, _Teller(pipe))))


class _Teller:
    """Sends progress, now and then."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._next = pipe, 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next or done >= total:
            self._next = time.monotonic() + _PAUSE
            self._pipe.send(("progress", (done, total)))


def silence() -> None:
    """Keep libraries from saying what our own errors say."""
    for name in ("tifffile", "asyncio", "bioio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
