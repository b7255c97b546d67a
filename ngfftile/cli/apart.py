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
_SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}


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
        # Not forked: threads do not survive that. Not by a fork server: it wants a socket in a folder, and leaves that.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.name, self.threads = "", 0
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, work))
        # While the child starts, a signal waits for it.
        mask = getattr(signal, "pthread_sigmask", None)
        held = mask(signal.SIG_BLOCK, _SIGNALS) if mask else None
        try:
            self._process.start()
        finally:
            if mask:
                mask(signal.SIG_SETMASK, held)
            theirs.close()  # so that the pipe ends when the child does

    def start(self, name: str, threads: int) -> None:
        """Give it a slide; OSError where it is no more."""
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
        A name, and what ``work`` returned, or, where two processes ended over it, a `Crash`.

    Raises
    ------
    OSError
        No process can be started.
    """
    crew = _Crew(names, work, workers)
    try:
        while crew.fill():
            for pipe in wait([child.pipe for child in crew.busy]):
                child = next(child for child in crew.busy if child.pipe is pipe)
                name = child.name
                try:
                    kind, value = child.pipe.recv()
                except (EOFError, OSError):
                    if crash := crew.lost(child):
                        yield name, crash
                    continue
                if kind == "progress":
                    say(name, *value)
                else:
                    crew.done(child)
                    yield name, value
    finally:
        crew.end()


class _Crew:
    """Children at work, and those that wait for it."""

    def __init__(self, names: Sequence[str], work: Work, workers: int) -> None:
        self._waiting, self._work, self._workers = deque(names), work, workers
        self.busy: list[_Child] = []
        self._idle: list[_Child] = []
        self._again: set[str] = set()

    def fill(self) -> bool:
        """Give slides to children, while there are cores; False when all is done."""
        while self._waiting and len(self.busy) < self._workers:
            free = self._workers - sum(child.threads for child in self.busy)
            if self.busy and free < 1:
                break
            slots = min(self._workers - len(self.busy), len(self._waiting))
            child = self._given(self._waiting[0], max(1, free // slots))
            if child is None:
                break
            self._waiting.popleft()
            self.busy.append(child)
        return bool(self.busy)

    def _given(self, name: str, threads: int) -> _Child | None:
        """A child at work on a slide; None where no more can be had, and others are at work."""
        while self._idle:
            child = self._idle.pop()
            with suppress(OSError):  # it ended meanwhile
                child.start(name, threads)
                return child
            child.end(0.0)
        try:
            child = _Child(self._work)
            child.start(name, threads)
        except OSError:
            if not self.busy:
                raise
            return None
        return child

    def lost(self, child: _Child) -> Crash | None:
        """A child ended: its slide gets another, once, for it may not have been the slide's fault."""
        self.busy.remove(child)
        crash = child.crashed()
        if child.name in self._again:
            return crash
        self._again.add(child.name)
        self._waiting.appendleft(child.name)
        return None

    def done(self, child: _Child) -> None:
        """A child is free."""
        self.busy.remove(child)
        child.name = ""
        self._idle.append(child)

    def end(self) -> None:
        """Stop all."""
        for child in [*self._idle, *self.busy]:
            child.interrupt()
        until = time.monotonic() + _GRACE
        for child in [*self._idle, *self.busy]:
            child.end(until)


def _serve(pipe: Connection, work: Work) -> None:
    """Work until the parent closes the pipe, stops the run, or is no more."""
    silence()
    with suppress(KeyboardInterrupt, EOFError, OSError):
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _interrupted)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            while True:
                name, threads = pipe.recv()
                pipe.send(("result", work(name, threads, _Teller(pipe))))
        finally:
            _interrupted()


def _interrupted(*_: object) -> None:
    """Stop, and hear of no more signals: on its way out Python would answer them with a traceback."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


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
