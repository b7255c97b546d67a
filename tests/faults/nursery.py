"""A process that has the imports done, and forks a child for each command: hundreds of runs in a minute.

Run as a script it is the server: a JSON line for each command on its standard input, one for each outcome on its
output. A child that is to fail does so at one file operation, told by its number:

- opening, making, renaming, removing: Python's audit events, which come from the calls themselves, whoever makes them;
- writing and syncing, which have no events: through `io.open` and `os.fsync`.
"""

import errno
import fcntl
import functools
import gc
import importlib.metadata
import io
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir"}
# linux/ext4.h; fs/ioctl.c: _IOR('X', 125, __u32)
_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, struct.pack("I", 2)


class Nursery:
    """The client: start it, and `run` commands in children."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *arguments, **options):
        """Outcome of a command line: ``code``, ``out``, ``err``, and what the options add."""
        command = {"arguments": [str(a) for a in arguments]} | options
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self):
        self._server.stdin.close()
        assert self._server.wait(60) == 0


def cut_power(folder):
    """Stop the file system that a folder lies in, as a power failure would: what waits in memory is lost."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_LOG)
    finally:
        os.close(fd)


class Fault:
    """Fails at the ``at``-th file operation below a folder; without ``at`` it only counts them."""

    def __init__(self, within, at=None, kind="error", number=errno.EIO, log=None):
        self.within, self.at, self.kind, self.number = str(within), at, kind, number
        self.log = log and os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.count, self.busy = 0, False

    def install(self):
        sys.addaudithook(self.hear)
        fsync, opened = os.fsync, io.open

        def sync(fd):
            path = str(Path(f"/proc/self/fd/{fd}").readlink())
            if path.startswith(self.within):
                self.meet("fsync", path)
            fsync(fd)

        def open_(file, mode="r", *arguments, **options):
            if mode == "wb" and str(file).startswith(self.within):
                return io.BufferedWriter(_Failing(self, file))
            return opened(file, mode, *arguments, **options)

        os.fsync, io.open = sync, open_

    def hear(self, event, arguments):
        if event not in _EVENTS or self.busy:
            return
        path, *rest = arguments
        if self.kind != "error" and (event == "os.scandir" or (event == "open" and not rest[-1] & os.O_CREAT)):
            return  # before a read all is as before what came last
        if isinstance(path, int):  # a folder that is being removed, by its handle
            path = f"{self.within}/{path}"
        # What is relative is in a folder that is being removed; a module that is imported late is not ours.
        if str(path).startswith(self.within) or (event != "open" and rest and rest[-1] not in (-1, None)):
            self.meet(event, path)

    def meet(self, what, path):
        self.busy = True
        self.count += 1
        if self.log:
            os.write(self.log, f"{what} {Path(path).name}\n".encode())
        if self.count == self.at:
            self.strike(path)
        self.busy = False

    def strike(self, path):
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "power":
            cut_power(self.within)
            os.kill(os.getpid(), signal.SIGKILL)
        self.busy = False
        raise OSError(self.number, os.strerror(self.number), str(path))


class _Failing(io.FileIO):
    def __init__(self, fault, file):
        super().__init__(file, "wb")
        self.fault = fault

    def write(self, data):
        self.fault.meet("write", self.name)
        return super().write(data)


def _work(command, ticks):
    if "convert" in command:
        done = nt.convert(**command["convert"], progress=lambda pixels, _: os.write(ticks, struct.pack("Q", pixels)))
        print(json.dumps({"written": done.written, "found": done.found, "said": str(done)}))
    elif "label" in command:
        slide = nt.open(command["label"])
        slide.labels["bright"] = slide.image(level=0).max("c") > command["above"]
    else:
        sys.argv = ["ngfftile", *command["arguments"]]
        cli.main()


def _child(command, ticks, out, err):
    """What the fork does, up to its end."""
    for fd, file in ((1, out), (2, err)):
        os.dup2(file, fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if command.get("fault"):
        Fault(**command["fault"]).install()
    if command.get("without_sync"):
        os.fsync = lambda _: None
    try:
        _work(command, ticks)
    except SystemExit as stop:
        code = stop.code or 0
    except nt.errors.NgfftileError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(f"OSError {error}", file=sys.stderr)
        code = 1
    except BaseException as error:  # what no user should meet
        print(f"Traceback {error!r}", file=sys.stderr)
        code = 99
    else:
        code = 0
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _strike(child, do):
    """Kill the child, or do something to a file while it is stopped: ``["truncate", path, bytes]``."""
    if do is None:
        os.kill(child, signal.SIGKILL)
        return
    os.kill(child, signal.SIGSTOP)
    getattr(os, do[0])(*do[1:])
    os.kill(child, signal.SIGCONT)


def _serve(command):
    """Run one command in a child; ``strike`` kills it some seconds after so many calls of its progress."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        hear, ticks = os.pipe()
        begun = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.close(hear)
            _child(command, ticks, out.fileno(), err.fileno())
        os.close(ticks)
        strike, told, pixels, times = command.get("strike"), 0, 0, []
        while True:
            if strike and told >= strike["ticks"]:
                time.sleep(strike.get("delay", 0))
                _strike(child, strike.get("do"))
                strike = None
            select.select([hear], [], [])
            data = os.read(hear, 8)
            if not data:
                break
            told, pixels = told + 1, struct.unpack("Q", data)[0]
            times.append(time.perf_counter() - begun)
        _, status = os.waitpid(child, 0)
        seconds = time.perf_counter() - begun
        os.close(hear)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "out": texts[0], "err": texts[1], "pixels": pixels, "times": times, "seconds": seconds}


if __name__ == "__main__":
    for name in (
        "_strptime",
        "dask.threaded",
        "imagecodecs",
        "tifffile",
        "zarr",
        "ngfftile.sources.openslide",
        "ngfftile.slide",
    ):
        importlib.import_module(name)
    import ngfftile as nt
    from ngfftile import cli, sources

    # The packages that are installed stay so, and to look for them takes a third of a small conversion.
    sources.entry_points = functools.cache(importlib.metadata.entry_points)
    sources.readers()
    gc.freeze()  # so that children share what is there
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_serve(json.loads(line))) + "\n")
        sys.stdout.flush()
