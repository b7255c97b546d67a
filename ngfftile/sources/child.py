"""Processes for libraries that can end the one they run in: a child serves one object, a pool keeps a few of them.

Both sides are here. The parent asks with a line of JSON, and the child answers with one; what is large lies in memory
that they share. The child runs this file by its path: it starts in a tenth of a second, since of ngfftile it loads only
the module that it serves, and nothing that a damaged child says is more than text and numbers.

What a library says, and how it crashes, is the fault of what it reads. A child that cannot be started, is ended by
others, lacks memory or files, or gives no answer in time, is the machine's: it is asked for once more, and then told.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from mmap import mmap
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryFile
from threading import Timer
from typing import IO, Any
from uuid import uuid4
from weakref import finalize

try:
    import fcntl
    import resource
except ImportError:  # Windows, which has no limits
    resource = None  # type: ignore[assignment]

SECONDS = 60.0  # for one answer
MOST_MEMORY = 4 << 30  # addresses of a child
_MOST_ANSWER = 64 << 20
_PAUSE = 0.2  # seconds before a child is asked for again
_CRASHES = {int(getattr(signal, f"SIG{name}", 0)) for name in ("SEGV", "ABRT", "BUS", "ILL", "FPE")} - {0}
_WINDOWS_CRASH = 0xC0000000  # exit codes from here on are exceptions of Windows, access violations among them
_SHORTAGES = ("EIO", "ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "ENODEV", "ENOTCONN", "ESTALE", "ETIMEDOUT")
# Threads of a linear algebra that nobody asks for would take most of the addresses on a machine of many cores.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class AnswerError(Exception):
    """The object in the child raised an error; the child is as good as before."""


class CrashError(AnswerError):
    """The child crashed over what it was asked."""


class LostError(Exception):
    """The machine lacks something, or the child was late or was ended: nothing is known of what was asked."""


class _Memory:
    """Memory of two processes: an unlinked file by its descriptor, or on Windows a name."""

    def __init__(self, name: str = "") -> None:
        self._file = None if name or os.name == "nt" else _unlinked()
        self.descriptors: tuple[int, ...] = (self._file.fileno(),) if self._file else ()
        self.name = name or "".join(map(str, self.descriptors)) or f"ngfftile-{uuid4().hex}"
        self._map: mmap | None = None

    def room(self, count: int) -> memoryview:
        """The first ``count`` bytes."""
        if not count:
            return memoryview(b"")
        if self._map is None or len(self._map) < count:
            self._map = self._mapped(count)
        return memoryview(self._map)[:count]

    def close(self) -> None:
        """Give the file back; what is mapped stays until nobody has it."""
        if self._file:
            self._file.close()

    def _mapped(self, count: int) -> mmap:
        if sys.platform == "win32":
            return mmap(-1, count, tagname=f"{self.name}-{count}")
        if self._file:
            os.ftruncate(self._file.fileno(), count)
        return mmap(int(self.name), count)


def _unlinked() -> IO[bytes]:
    # Of memory alone where the system has such files: those on a disk are written out again and again.
    with os.fdopen(os.memfd_create("ngfftile"), "w+b") if hasattr(os, "memfd_create") else TemporaryFile() as file:
        # Where 0 to 2 are free, it must not be one of them: in the child those are the pipes.
        return os.fdopen(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3), "w+b")


class Child:
    """A process that made one object, and calls its methods.

    Parameters
    ----------
    module
        Path of the module that has the object's class, ``Served``.
    arguments
        The class's, such as JSON can hold.
    """

    def __init__(self, module: Path, arguments: tuple[Any, ...]) -> None:
        memory = None
        try:
            memory = _Memory()
            self._process = Popen(  # noqa: S603 (our own file)
                [sys.executable, "-P", __file__, str(module), memory.name],
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                pass_fds=memory.descriptors,
                env=os.environ | _ENVIRONMENT,
            )
        except (OSError, MemoryError) as error:
            if memory:
                memory.close()
            raise LostError(f"cannot be started ({error})") from error
        self._memory, self._late = memory, False
        try:
            self.ask("__init__", [entry for entry in sys.path if entry], *arguments)
        except (AnswerError, LostError):
            self.close()
            raise

    def ask(self, method: str, *arguments: Any, room: int = 0) -> tuple[Any, memoryview]:
        """Call a method, and give its answer and the memory that it filled.

        Parameters
        ----------
        room
            Bytes of memory that the method gets as its first argument; with 0 it gets none.

        Raises
        ------
        AnswerError
            The method raised an error.
        CrashError
            The process crashed.
        LostError
            It was ended, did not answer in time, or there is too little memory for it.
        """
        timer = Timer(SECONDS, self._end_late)
        timer.daemon = True
        try:
            memory = self._memory.room(room)
            timer.start()
        except (OSError, MemoryError, RuntimeError) as error:  # no memory, or no thread
            raise LostError(f"cannot be asked ({error})") from error
        try:
            answer = self._exchanged([method, room, *arguments])
        except BaseException:  # an interrupt too: what it would answer later is not what is asked next
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()  # so that it is known whether it was late
        if "lost" in answer:
            self.close()
            raise LostError(f"lacks something ({answer['lost']})")
        if "error" in answer:
            raise AnswerError(str(answer["error"]))
        return answer.get("value"), memory

    def _exchanged(self, question: list[Any]) -> Mapping[str, Any]:
        into, out = self._process.stdin, self._process.stdout
        assert into is not None
        assert out is not None
        try:
            into.write(json.dumps(question).encode() + b"\n")
            into.flush()
            answer = json.loads(out.readline(_MOST_ANSWER))
        except (OSError, ValueError) as error:
            raise self._end() from error
        if not isinstance(answer, dict):
            raise LostError("says what is no answer")
        return answer

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return not self._late and self._process.poll() is None

    def _end_late(self) -> None:
        self._late = True
        self._process.kill()

    def _end(self) -> CrashError | LostError:
        """How the process ended."""
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        code = self._process.wait()
        if self._late:
            return LostError(f"gave no answer in {SECONDS:g} s")
        if -code in _CRASHES or code >= _WINDOWS_CRASH:
            return CrashError(f"crashed ({signal.Signals(-code).name if code < 0 else hex(code)})")
        with suppress(ValueError):
            return LostError(f"was ended ({signal.Signals(-code).name})")
        return LostError(f"ended (exit code {code})")

    def close(self) -> None:
        """End the process; it has nothing to save."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]  # they are pipes
        self._memory.close()


class Pool:
    """Children that serve equal objects, one for each thread that asks at once; they end with the pool.

    Parameters
    ----------
    module, arguments
        As of `Child`.
    """

    def __init__(self, module: Path, *arguments: Any) -> None:
        self._module, self._arguments = module, arguments
        self._made = False
        self._renew()

    def _renew(self) -> None:
        self._owner = os.getpid()
        self._idle: deque[Child] = deque()
        finalize(self, _close, self._idle, self._owner)

    def ask[Answer](self, use: Callable[[Child], Answer]) -> Answer:
        """What is made of a child; where that one is lost, of a new one.

        Raises
        ------
        AnswerError
            The object cannot be made, or a method of it raised an error.
        CrashError
            The process crashed over it.
        LostError
            Both were lost.
        """
        try:
            with self.child() as child:
                return use(child)
        except LostError:
            time.sleep(_PAUSE)
        with self.child(fresh=True) as child:
            return use(child)

    @contextmanager
    def child(self, *, fresh: bool = False) -> Iterator[Child]:
        """A child for one caller; a new one where all are busy, or where that is asked for."""
        if self._owner != os.getpid():  # after a fork: the children are our parent's
            self._renew()
        child = (None if fresh else self._rested()) or self._new()
        try:
            yield child
        finally:
            if child.alive:
                self._idle.append(child)
            else:
                child.close()

    def _rested(self) -> Child | None:
        """The idle child that was used last, so that the others stay idle; those that have ended are dropped."""
        with suppress(IndexError):
            while not (child := self._idle.pop()).alive:
                child.close()
            return child
        return None

    def _new(self) -> Child:
        try:
            child = Child(self._module, self._arguments)
        except AnswerError as error:
            if self._made:  # what could be opened, and now cannot, is out of reach
                raise LostError(f"cannot be had again ({error})") from error
            raise
        self._made = True
        return child


def _close(idle: deque[Child], owner: int) -> None:
    while idle and owner == os.getpid():
        idle.pop().close()


def _limit() -> None:
    """Take from this process what it must not use up."""
    # Ctrl-C reaches every process of a terminal; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if resource is not None:
        # Some systems have not all of them, or have lower ones already.
        for limit, most in ((resource.RLIMIT_AS, MOST_MEMORY), (resource.RLIMIT_CORE, 0)):
            with suppress(ValueError, OSError):
                resource.setrlimit(limit, (most, most))


def _short(error: Exception) -> bool:
    """Whether an error is the machine's: its own kinds, or a library's words for one."""
    told = (os.strerror(getattr(errno, name)) for name in _SHORTAGES if hasattr(errno, name))
    return isinstance(error, OSError | MemoryError) or any(words in str(error) for words in told)


def _serve(module: str, name: str) -> None:
    """Make the object, and answer until the parent closes the pipe, or is no more."""
    _limit()
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    memory = _Memory(name)
    served: Any = None
    for line in iter(questions.readline, b""):
        method, room, *arguments = json.loads(line)
        if hasattr(signal, "alarm"):
            signal.alarm(int(SECONDS) + 5)  # the system ends it, though the parent is gone
        try:
            if served is None:
                sys.path[:], *arguments = arguments
                served, value = runpy.run_path(module)["Served"](*arguments), None
            else:
                value = getattr(served, method)(*[memory.room(room)] * bool(room), *arguments)
            answer = {"value": value}
        except Exception as error:  # noqa: BLE001 (whatever a library raises, the parent says)
            answer = {"lost" if _short(error) else "error": str(error) or repr(error)}
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
