"""Many slides in one command: each in a process of its own, none harmed by another, all cores at work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import ngfftile as nt
from ngfftile.cli.apart import Crash, apart

COMMAND = Path(sys.executable).with_name("ngfftile")
POISON = """
import os, signal, time
from pathlib import Path
from ngfftile.errors import SourceError
from ngfftile.sources import RefusedError

def reader(path):
    word = Path(path).read_text()
    if word == "abort":
        os.abort()
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        os._exit(3)
    if word == "memory":
        raise MemoryError
    raise RefusedError("not poison", str(path))
"""


@pytest.fixture
def poison(tmp_path):
    """The environment of a command that has a reader which does what a slide says."""
    home = tmp_path / "plugins"
    about = home / "poison-1.dist-info"
    about.mkdir(parents=True)
    (home / "poison.py").write_text(POISON)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: poison\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[ngfftile.sources]\npoison = poison:reader\n")
    return os.environ | {"PYTHONPATH": str(home)}


def slides(folder, count, side=600):
    """Small slides of their own."""
    folder.mkdir(exist_ok=True)
    return [nt.synthetic.write_svs(folder / f"s{i}.svs", side, side, seed=i, associated=False) for i in range(count)]


@pytest.mark.parametrize("workers", [1, 3])
def test_poison_is_a_failed_row_and_no_other_slide_is_lost(workers, poison, tmp_path):
    slides(tmp_path / "in", 4)
    ends = {"abort": "SIGABRT", "killed": "SIGKILL", "exit": "exit code 3", "memory": "MemoryError"}
    for i, word in enumerate(ends):
        (tmp_path / "in" / f"s{i}-{word}.tif").write_text(word)
    command = [COMMAND, "convert", tmp_path / "in", "-o", tmp_path / "out", "--log-file", tmp_path / "log"]
    done = subprocess.run(
        [*command, "--workers", str(workers)], env=poison, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "4 of 8 slides done, 4 failed" in done.stdout
    for word, how in ends.items():
        (line,) = [line for line in done.stderr.splitlines() if f"-{word}.tif" in line]
        assert how in line
        assert line in (tmp_path / "log").read_text()
    assert "Traceback" not in done.stderr
    stores = sorted((tmp_path / "out").iterdir())
    assert [store.name for store in stores] == [f"s{i}.ome.zarr" for i in range(4)]
    assert all(nt.verify(store).ok for store in stores)


def test_stores_do_not_depend_on_how_many_are_made_at_once(tmp_path):
    slides(tmp_path / "in", 3)
    for workers in "1", "2", "5":
        command = [COMMAND, "convert", tmp_path / "in", "-o", tmp_path / workers, "--workers", workers]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    trees = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "1", tmp_path / "2", tmp_path / "5")
    ]
    assert trees[0] == trees[1] == trees[2]
    assert trees[0]


def children(process):
    """All processes below one."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_stopped_batch_leaves_no_process_and_goes_on(stop, tmp_path):
    sources = slides(tmp_path / "in", 3, 4000)
    command = [COMMAND, "convert", tmp_path / "in", "-o", tmp_path / "out", "--shard", "512", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").rglob("c/0/0/1")):
        assert process.poll() is None
        time.sleep(0.01)
    below = children(process)
    assert below
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    if stop == signal.SIGKILL:
        assert process.returncode == -stop
    else:
        assert process.returncode == 128 + stop
        assert "the same command goes on from here" in said
        assert "Traceback" not in said
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "3 of 3 slides done, 0 failed" in again.stdout
    for source in sources:
        one = nt.convert(source, tmp_path / "once.ome.zarr", shard=512, overwrite=True).path
        store = tmp_path / "out" / f"{source.stem}.ome.zarr"
        assert same(one, store)
        assert not store.with_name(store.name + ".partial").exists()


def same(one, other):
    """Whether two folders hold the same bytes."""
    trees = [{p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} for root in (one, other)]
    return trees[0] == trees[1]


def nap(name, threads, report):
    """Work that says what it was given, after a while."""
    report(1, 2)
    begun = time.monotonic()
    time.sleep(float(name.partition(" ")[2] or 0.3))
    report(2, 2)
    return threads, begun, time.monotonic(), os.getpid()


@pytest.mark.parametrize(("count", "workers"), [(1, 4), (3, 8), (5, 2), (6, 1)])
def test_cores_are_shared_out(count, workers):
    names = [f"n{i}" for i in range(count)]
    told = []
    results = dict(apart(names, nap, workers, lambda *progress: told.append(progress)))
    assert sorted(results) == names
    assert {(name, 2, 2) for name in names} <= set(told)
    # At any time no more threads than cores, and at the start all of them.
    moments = sorted({begun for _, begun, _, _ in results.values()})
    used = [sum(t for t, a, b, _ in results.values() if a <= moment < b) for moment in moments]
    assert max(used) == workers
    assert len({pid for *_, pid in results.values()}) == min(count, workers)


def die(name, threads, report):
    """Work that ends its process now and then."""
    if "x" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return name


def test_a_process_that_dies_is_replaced():
    names = ["a", "x1", "b", "x2", "x3", "c"]
    results = dict(apart(names, die, 2, lambda *_: None))
    assert results == {n: Crash("SIGSEGV") if "x" in n else n for n in names}
