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
        assert f"\tfailed\t{tmp_path}/in/" in (tmp_path / "log").read_text()
        assert line.removeprefix("failed ") in (tmp_path / "log").read_text()
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


def once(name, threads, report):
    """Work that ends its process the first time that it sees a name."""
    mark = Path(name)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_a_slide_whose_process_was_killed_gets_another(tmp_path):
    results = dict(apart([str(tmp_path / "a"), str(tmp_path / "b")], once, 1, lambda *_: None))
    assert all(isinstance(pid, int) for pid in results.values())


def test_a_process_that_ends_between_two_slides_harms_nobody():
    results = []
    for name, (*_, pid) in apart(["a 0", "b 0", "c 0"], nap, 1, lambda *_: None):
        results.append(name)
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([p for p in psutil.Process().children() if p.pid == pid], timeout=5)
    assert results == ["a 0", "b 0", "c 0"]


def test_what_would_fail_every_slide_stops_the_batch(tmp_path):
    slides(tmp_path / "in", 4)
    done = convert(tmp_path / "in", "-o", tmp_path / "out", "--codec", "foo")
    assert done.returncode == 2
    assert done.stderr.count("codec is 'foo'") == 1
    assert "0 of 4 slides done, 1 failed, 3 not tried" in done.stdout
    done = convert(tmp_path / "in", "-o", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.count("no dask scheduler answers") == 1


def convert(*arguments, code=None):
    done = subprocess.run(
        [COMMAND, "convert", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def test_a_full_disk_stops_the_batch(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    slides(tmp_path / "in", 5, 1500)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=False).returncode:
        pytest.skip("no leave to mount a small disk here")
    try:
        done = convert(tmp_path / "in", "-o", disk, "--workers", "1")
        assert done.returncode == 2
        assert done.stderr.count("No space left on device") == 1
        assert "not tried" in done.stdout
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        done = convert(tmp_path / "in", "-o", disk, "--workers", "2")
        assert done.returncode == 0
        assert "5 of 5 slides done, 0 failed" in done.stdout
        assert "were up to date" in done.stdout
        assert all(nt.verify(store).ok for store in disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_one_bad_input_harms_no_other(tmp_path):
    first, *_ = slides(tmp_path / "in", 3)
    (tmp_path / "in/s0.tif").write_bytes(first.read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "in/below").mkdir()
    log = tmp_path / "log"
    given = [tmp_path / "in", tmp_path / "empty", tmp_path / "no*.svs", tmp_path / "gone.svs"]
    done = convert(*given, "-o", tmp_path / "out", "--log-file", log)
    assert done.returncode == 1
    assert "2 of 7 slides done, 5 failed" in done.stdout
    for text in ("s0.svs", "s0.tif", "no slides in this folder", "no file matches", "nothing there"):
        assert text in done.stderr
    assert "below" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["s1.ome.zarr", "s2.ome.zarr"]
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    assert all(len(row) == 4 for row in rows)
    assert [row[1] for row in rows].count("failed") == 5
    assert [row[1] for row in rows].count("done") == 2
    assert rows[0][1] == "begin"
    assert rows[-1][1] == "end"


def test_unfinished_conversions_are_said(tmp_path):
    (source,) = slides(tmp_path / "in", 1)
    convert(source, "-o", tmp_path / "out")
    (tmp_path / "out/t.ome.zarr.partial/store").mkdir(parents=True)
    for verb, at in (("verify", "out"), ("info", "out/t.ome.zarr.partial"), ("verify", "out/t.ome.zarr.partial")):
        done = subprocess.run([COMMAND, verb, tmp_path / at], capture_output=True, text=True, check=False)
        assert "unfinished conversion" in done.stderr
        assert done.returncode == (0 if at == "out" else 2)


def test_a_terminal_shows_every_line(tmp_path):
    """The bars are on standard error; what went to standard output beside them was overwritten."""
    slides(tmp_path / "in", 3)
    screen, theirs = os.openpty()
    process = subprocess.Popen(
        [COMMAND, "convert", tmp_path / "in", "-o", tmp_path / "out"], stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(screen, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait(60) == 0
    for i in range(3):
        # At the start of a line, after what clears it.
        assert f"\x1b[2Ks{i}.ome.zarr: ".encode() in shown or f"\ns{i}.ome.zarr: ".encode() in shown


def test_a_long_name_of_the_temporary_folder_does_not_matter(tmp_path):
    (source,) = slides(tmp_path / "in", 1)
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    environment = os.environ | {"TMPDIR": str(deep)}
    subprocess.run([COMMAND, "convert", source, "-o", tmp_path / "x.ome.zarr"], env=environment, check=True)
    assert not list(deep.iterdir())


def die(name, threads, report):
    """Work that ends its process now and then."""
    if "x" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return name


def test_a_process_that_dies_is_replaced():
    names = ["a", "x1", "b", "x2", "x3", "c"]
    results = dict(apart(names, die, 2, lambda *_: None))
    assert results == {n: Crash("SIGSEGV") if "x" in n else n for n in names}
