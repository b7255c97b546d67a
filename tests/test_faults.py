"""Kills, failing disks, signals, changing sources, lost objects: nothing is lost, and nothing is silent."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from runpy import run_path
from threading import Barrier

import numpy as np
import pytest
import tifffile

import ngfftile as nt
from ngfftile.errors import NgfftileError
from ngfftile.store import Store

COMMAND = Path(sys.executable).with_name("ngfftile")
HELPER = Path(__file__).with_name("faults") / "nursery.py"
Nursery = run_path(str(HELPER))["Nursery"]
SMALL = {"chunk": 64, "shard": 256, "workers": 1}


def tree(folder):
    """All files below a folder, with a digest of their bytes."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def convert(source, target, **given):
    """A call, for `Nursery.run`."""
    return {"convert": SMALL | {"source": str(source), "target": str(target)} | given}


def arguments(source, target, *more, **given):
    """The same as a command line."""
    words = [word for name, value in (SMALL | given).items() for word in (f"--{name}", str(value))]
    return [str(word) for word in (COMMAND, "convert", source, "-o", target, *words, *more)]


@pytest.fixture(scope="module")
def nursery():
    server = Nursery()
    yield server
    server.close()


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide whose conversion has some 150 file operations."""
    return nt.synthetic.write_svs(tmp_path_factory.mktemp("slide") / "s.svs", 400, 250, seed=1, associated=False)


@pytest.fixture(scope="module")
def whole(slide, tmp_path_factory, nursery):
    """Its store, of a run that nothing happened to."""
    place = tmp_path_factory.mktemp("whole") / "x.ome.zarr"
    assert nursery.run(**convert(slide, place))["code"] == 0
    return tree(place)


def test_a_hundred_kills_lose_nothing_and_redo_one_shard_per_worker(tmp_path, folder, nursery):
    svs = nt.synthetic.write_svs(tmp_path / "x.svs", 1100, 900, seed=2, associated=False)
    given = {"source": str(svs), "chunk": 64, "shard": 256, "workers": 2}
    runs = [nursery.run(convert=given | {"target": str(tmp_path / f"{i}.ome.zarr")}) for i in range(3)]
    ref = tree(tmp_path / "0.ome.zarr")
    shards = {key for key in ref if "/c/" in key and key[0].isdigit()}
    ticks = len(runs[0]["times"])
    step = min(r["times"][-1] - r["times"][0] for r in runs) / (ticks - 1)
    tail = min(r["seconds"] - r["times"][-1] for r in runs)
    draws, landed, stages = random.Random(4), 0, set()
    for i in range(100):
        # The first tick is told before the first shard, the last after the last one of level 0.
        at = 1 + i * ticks // 100
        folder.mkdir()
        target = {"target": str(folder / "x.ome.zarr")}
        strike = {"ticks": at, "delay": draws.random() * (step if at < ticks else tail)}
        run = nursery.run(convert=given | target, strike=strike)
        store = folder / "x.ome.zarr.partial" / "store"
        before = {p.relative_to(store).as_posix(): p for p in store.rglob("*") if p.is_file()}
        torn = [key for key in before if key.endswith(".tmp")]
        present = shards & set(before)
        inodes = {key: before[key].stat().st_ino for key in present}
        killed = run["code"] == -signal.SIGKILL
        if killed and not (folder / "x.ome.zarr").exists():
            landed += 1
            stages.add(len(present))
            assert len(torn) <= 2
            assert all(hashlib.sha256(before[key].read_bytes()).hexdigest() == ref[key] for key in present)
            # What was told to be done is there, and each worker was at one more at most.
            done = sum(min(256, 1100 - x * 256) * min(256, 900 - y * 256) for y, x in _places(present))
            assert run["pixels"] <= done <= run["pixels"] + 2 * 256 * 256
        again = nursery.run(convert=given | target)
        assert again["code"] == 0, again
        done, todo = json.loads(again["out"]), len(shards) - len(present) if before else 0
        assert (done["written"], done["found"]) == (todo, len(present))
        assert tree(folder / "x.ome.zarr") == ref
        assert names(folder) == ["x.ome.zarr"]
        assert {key: (folder / "x.ome.zarr" / key).stat().st_ino for key in present} == inodes
        shutil.rmtree(folder)
    assert landed >= 90
    assert len(stages) >= 15


def _places(present):
    """Rows and columns of the shards of level 0."""
    return [tuple(map(int, key.split("/")[3:])) for key in present if key.startswith("0/")]


@pytest.fixture
def folder(tmp_path):
    """A folder in memory, where there is leave for it: hundreds of runs wait for no disk."""
    place = tmp_path / "memory"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", place]
    held = os.geteuid() == 0 and not subprocess.run(mount, check=False, capture_output=True).returncode
    yield place / "out"
    if held:
        subprocess.run(["umount", place], check=True)


def _operations(nursery, log, command, **fault):
    """File operations of a command, one a line."""
    log.unlink(missing_ok=True)
    run = nursery.run(**command, fault=fault | {"log": str(log)})
    assert run["code"] == 0, run
    return log.read_text().splitlines()


def test_an_error_of_any_file_operation_is_said_and_the_same_command_ends_it(slide, whole, nursery, folder, tmp_path):
    folder.mkdir()
    command, within = convert(slide, folder / "x.ome.zarr"), str(folder)
    steps = _operations(nursery, tmp_path / "log", command, within=within)
    assert {step.split()[0] for step in steps} == {
        *("open", "write", "fsync", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir")
    }
    shutil.rmtree(folder)
    placed = steps.index("os.rename store")
    for at, step in enumerate(steps, 1):
        folder.mkdir()
        number = errno.EIO if at % 2 else errno.ENOSPC
        run = nursery.run(**command, fault={"within": within, "at": at, "number": number})
        assert "Traceback" not in run["err"], (step, run)
        assert run["code"] in {0, 1, 2}, (step, run)
        if (folder / "x.ome.zarr").exists():
            assert tree(folder / "x.ome.zarr") == whole, (step, run)
        if run["code"]:
            assert os.strerror(number) in run["err"], (step, run)
            assert within in run["err"], (step, run)
            assert len(run["err"].splitlines()) == 1, (step, run)
        else:
            assert (folder / "x.ome.zarr").exists(), (step, run)
            # Only a failure to clean up, with the store in its place, or to make what is there may go unsaid.
            assert at > placed or step.startswith("os.mkdir"), (step, run)
        again = nursery.run(**command)
        assert again["code"] == 0, (step, run, again)
        assert tree(folder / "x.ome.zarr") == whole, step
        assert names(folder) == ["x.ome.zarr"], (step, run)
        shutil.rmtree(folder)


def test_a_kill_at_any_file_operation_leaves_what_the_same_command_ends(slide, whole, nursery, folder, tmp_path):
    folder.mkdir()
    command, within = convert(slide, folder / "x.ome.zarr"), str(folder)
    steps = _operations(nursery, tmp_path / "log", command, within=within, kind="kill")
    shutil.rmtree(folder)
    for at, step in enumerate(steps, 1):
        folder.mkdir()
        run = nursery.run(**command, fault={"within": within, "at": at, "kind": "kill"})
        assert run["code"] == -signal.SIGKILL, (step, run)
        if (folder / "x.ome.zarr").exists():
            assert tree(folder / "x.ome.zarr") == whole, (step, run)
        again = nursery.run(**command)
        assert again["code"] == 0, (step, run, again)
        assert tree(folder / "x.ome.zarr") == whole, step
        assert names(folder) == ["x.ome.zarr"], (step, run)
        shutil.rmtree(folder)


def test_killed_while_it_overwrites_the_old_store_or_the_new_one_is_whole(slide, whole, nursery, folder, tmp_path):
    old_folder = tmp_path / "old"
    old_folder.mkdir()
    assert nursery.run(**convert(slide, old_folder / "x.ome.zarr", shard=512))["code"] == 0
    old = tree(old_folder / "x.ome.zarr")
    assert old != whole
    target, within = folder / "x.ome.zarr", str(folder)
    command = convert(slide, target, overwrite=True)
    shutil.copytree(old_folder, folder)
    steps = _operations(nursery, tmp_path / "log", command, within=within, kind="kill")
    shutil.rmtree(folder)
    gaps, first = 0, steps.index("os.rename x.ome.zarr")
    # Every operation of the exchange; of the writing before it some, since it is that of any conversion.
    for at in [*range(1, first, 9), *range(first, len(steps) + 1)]:
        step = steps[at - 1]
        shutil.copytree(old_folder, folder)
        run = nursery.run(**command, fault={"within": within, "at": at, "kind": "kill"})
        assert run["code"] == -signal.SIGKILL, (step, run)
        gaps += not target.exists()
        if target.exists():
            assert tree(target) in (old, whole), step
        # Whatever command comes next first ends what was begun: here one that may not replace anything.
        other = nursery.run(**convert(slide, target, shard=128))
        assert other["code"] == 2, (step, other)
        assert "--overwrite" in other["err"], step
        assert tree(target) in (old, whole), step
        again = nursery.run(**command)
        assert again["code"] == 0, (step, again)
        assert tree(target) == whole, step
        assert names(folder) == ["x.ome.zarr"], (step, run)
        shutil.rmtree(folder)
    assert gaps == 1  # between the two renames


def test_with_an_error_while_it_overwrites_too(slide, whole, nursery, folder, tmp_path):
    old_folder = tmp_path / "old"
    old_folder.mkdir()
    assert nursery.run(**convert(slide, old_folder / "x.ome.zarr", shard=512))["code"] == 0
    old = tree(old_folder / "x.ome.zarr")
    target, within = folder / "x.ome.zarr", str(folder)
    command = convert(slide, target, overwrite=True)
    shutil.copytree(old_folder, folder)
    steps = _operations(nursery, tmp_path / "log", command, within=within)
    shutil.rmtree(folder)
    # The part that a first conversion does not have: from the first of the two renames of folders on.
    first = next(i for i, step in enumerate(steps, 1) if step == "os.rename x.ome.zarr")
    for at in range(first - 2, len(steps) + 1):
        step = steps[at - 1]
        shutil.copytree(old_folder, folder)
        run = nursery.run(**command, fault={"within": within, "at": at})
        assert "Traceback" not in run["err"], (step, run)
        if target.exists():
            assert tree(target) in (old, whole), step
        again = nursery.run(**command)
        assert again["code"] == 0, (step, again)
        assert tree(target) == whole, step
        assert names(folder) == ["x.ome.zarr"], (step, run)
        shutil.rmtree(folder)


STRACE = shutil.which("strace")


def _traced(inject, *arguments):
    """A command whose system calls fail, or kill it."""
    calls = inject.split(":")[0]
    return subprocess.run(
        [STRACE, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={inject}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("what", ["error=EIO", "signal=SIGKILL"])
@pytest.mark.parametrize(
    ("call", "at"),
    [("fsync", 3), ("fsync", 15), ("rename", 4), ("mkdir", 6), ("flock", 1)],
    ids=str,
)
def test_a_system_call_that_fails_or_kills(call, at, what, slide, whole, nursery, tmp_path):
    if STRACE is None or _traced("sync:error=EIO:when=1", "true").returncode:
        pytest.skip("strace is missing, or may not trace here")
    command = convert(slide, tmp_path / "x.ome.zarr")
    run = _traced(f"{call}:{what}:when={at}", *arguments(slide, tmp_path / "x.ome.zarr"))
    assert "Traceback" not in run.stderr, run
    assert run.returncode, run
    if what.startswith("error"):
        assert "Input/output error" in run.stderr, run
    if (tmp_path / "x.ome.zarr").exists():
        assert tree(tmp_path / "x.ome.zarr") == whole
    assert nursery.run(**command)["code"] == 0
    assert tree(tmp_path / "x.ome.zarr") == whole
    assert names(tmp_path) == ["x.ome.zarr"]


@contextmanager
def mounted(place, *arguments):
    """A mount, where there is leave for one."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place.mkdir(exist_ok=True)
    if subprocess.run(["mount", *arguments, place], check=False, capture_output=True).returncode:
        pytest.skip("no leave to mount here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_at_any_byte_or_of_names(slide, whole, nursery, tmp_path):
    need = sum((Path(slide).stat().st_size, 0))
    with mounted(tmp_path / "disk", "-t", "tmpfs", "tmpfs") as disk:
        for limit in (*(f"size={kb}k" for kb in range(16, 16 + need // 1024, 64)), "nr_inodes=6", "nr_inodes=20"):
            subprocess.run(["mount", "-o", f"remount,{limit}", disk], check=True)
            command = convert(slide, disk / "x.ome.zarr")
            run = nursery.run(**command)
            if run["code"]:
                assert os.strerror(errno.ENOSPC) in run["err"], (limit, run)
                assert len(run["err"].splitlines()) == 1
                assert str(disk) in run["err"]
                assert not (disk / "x.ome.zarr").exists()
            subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=9999", disk], check=True)
            assert nursery.run(**command)["code"] == 0
            assert tree(disk / "x.ome.zarr") == whole
            assert names(disk) == ["x.ome.zarr"]
            shutil.rmtree(disk / "x.ome.zarr")


def test_a_folder_that_may_only_be_read_is_said(slide, whole, nursery, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "tmpfs") as disk:
        command = convert(slide, disk / "x.ome.zarr")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        run = nursery.run(**command)
        assert run["code"] == 1
        assert os.strerror(errno.EROFS) in run["err"]
        assert str(disk) in run["err"]
        assert len(run["err"].splitlines()) == 1
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert nursery.run(**command)["code"] == 0
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "up to date" in nursery.run(**command)["out"]
        assert tree(disk / "x.ome.zarr") == whole


def test_an_old_store_that_cannot_be_removed_does_no_harm(slide, tmp_path, monkeypatch):
    place, left = tmp_path / "x.ome.zarr", tmp_path / "x.ome.zarr.partial" / "replaced"

    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    nt.convert(slide, place, **SMALL)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    nt.convert(slide, place, **SMALL | {"shard": 128}, overwrite=True)
    whole = tree(place)
    for _ in range(2):
        assert "up to date" in str(nt.convert(slide, place, **SMALL | {"shard": 128}))
        assert left.exists()
    monkeypatch.undo()
    assert "up to date" in str(nt.convert(slide, place, **SMALL | {"shard": 128}))
    assert names(tmp_path) == ["x.ome.zarr"]
    assert tree(place) == whole


def test_a_store_put_where_one_had_made_room_is_replaced_too(slide, whole, tmp_path, monkeypatch):
    place, draft, rename = tmp_path / "x.ome.zarr", tmp_path / "x.ome.zarr.partial", Path.rename

    def die(path, target):
        if path.name == "store":
            raise KeyboardInterrupt
        return rename(path, target)

    nt.convert(slide, place, **SMALL | {"shard": 128})
    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        nt.convert(slide, place, **SMALL, overwrite=True)
    monkeypatch.undo()
    shutil.copytree(draft / "replaced", place)
    nt.convert(slide, place, **SMALL, overwrite=True)
    assert tree(place) == whole
    assert names(tmp_path) == ["x.ome.zarr"]


def test_two_at_one_object_do_not_share_what_is_half_written(tmp_path, monkeypatch):
    """Workers of two machines may have one process number."""
    together, sync = Barrier(2), os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (together.wait(10), sync(fd)))
    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(lambda _: Store(tmp_path).write("0/c/0", b"same"), range(2)))
    assert written[0] == written[1]
    assert names(tmp_path / "0" / "c") == ["0"]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A slide whose conversion takes long enough to meet it."""
    return nt.synthetic.write_svs(tmp_path_factory.mktemp("large") / "l.svs", 3000, 2000, seed=5, associated=False)


@contextmanager
def at_work(target, command, shards=8):
    """A command, in a group of its own, that has written some shards."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    partial = target.with_name(target.name + ".partial")
    try:
        while len(list(partial.glob("store/0/c/0/*/*"))) < shards:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("first", [[], ["--overwrite"]], ids=["plain first", "overwriting first"])
def test_of_two_processes_on_one_target_the_first_wins_and_the_other_says_so(first, large, tmp_path):
    target = tmp_path / "x.ome.zarr"
    second = [] if first else ["--overwrite"]
    with at_work(target, arguments(large, target, *first)) as process:
        os.killpg(process.pid, signal.SIGSTOP)
        for shard in (256, 512):
            other = arguments(large, target, *second, shard=shard)
            run = subprocess.run(other, capture_output=True, text=True, check=False)
            assert run.returncode == 2, run
            assert f"{target}: another process is converting into it" in run.stderr
            assert len(run.stderr.splitlines()) == 1
        os.killpg(process.pid, signal.SIGCONT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert nt.verify(target).ok
    assert names(tmp_path) == ["x.ome.zarr"]


def test_of_two_that_start_at_once_none_harms_the_other(slide, whole, nursery, tmp_path):
    target = tmp_path / "x.ome.zarr"
    other = Nursery()
    won = 0
    with ThreadPoolExecutor(2) as pool:
        for i in range(12):
            command = convert(slide, target, overwrite=bool(i % 2))
            runs = [pool.submit(server.run, **command) for server in (nursery, other)]
            runs = [run.result() for run in runs]
            codes = sorted(run["code"] for run in runs)
            assert codes in ([0, 0], [0, 2]), runs
            won += codes == [0, 2]
            if 2 in codes:
                assert any("another process" in run["err"] for run in runs), runs
            assert tree(target) == whole
            assert names(tmp_path) == ["x.ome.zarr"]
            if i % 3:
                shutil.rmtree(target)
    other.close()
    assert won >= 2


def _family(pid):
    """Processes that a process started, and those that these started."""
    found = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | _family(child)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are counted by Linux's /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_a_stop_ends_every_process_and_the_same_command_goes_on(stop, large, nursery, tmp_path):
    target = tmp_path / "x.ome.zarr"
    with at_work(target, arguments(large, target, "--scheduler", "processes", workers=2)) as process:
        family = _family(process.pid)
        assert len(family) >= 2
        if stop == signal.SIGINT:
            os.killpg(process.pid, stop)  # as a terminal sends it
        else:
            process.send_signal(stop)
        _, said = process.communicate(timeout=60)
        until = time.monotonic() + 20
        while (left := {pid for pid in family if Path(f"/proc/{pid}/fd").exists()}) and time.monotonic() < until:
            time.sleep(0.02)
        assert not left
    if stop != signal.SIGKILL:
        assert process.returncode == 128 + stop
        assert "the same command goes on" in said
    assert not target.exists()
    run = nursery.run(**convert(large, target))
    assert run["code"] == 0, run
    assert "objects of an earlier run kept" in run["out"]
    assert names(tmp_path) == ["x.ome.zarr"]
    assert nt.verify(target).ok


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Two slides of each kind, that differ in their pixels only."""
    folder = tmp_path_factory.mktemp("originals")
    for kind in ("one file", "several files"):
        _make_two(kind, folder / kind)
    return folder


def _sources(originals, kind, folder):
    """A slide, and the file of it that something happens to; the same of another slide."""
    shutil.copytree(originals / kind, folder / "slides")
    names = ("c0.ome.tif", "c1.ome.tif") if kind == "several files" else ("x.svs", "x.svs")
    return [[folder / "slides" / which / name for name in names] for which in "12"]


def _make_two(kind, folder):
    for seed in (1, 2):
        place = folder / str(seed)
        place.mkdir(parents=True)
        if kind == "several files":
            pixels = np.random.default_rng(seed).integers(0, 9999, (2, 1024, 1024), np.uint16)
            uuids = [f"urn:uuid:0000000{i}-0000-4000-8000-00000000000{seed}" for i in range(2)]
            data = "".join(
                f'<TiffData FirstC="{i}" IFD="0" PlaneCount="1"><UUID FileName="c{i}.ome.tif">{u}</UUID></TiffData>'
                for i, u in enumerate(uuids)
            )
            for i, uuid in enumerate(uuids):
                xml = (
                    f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}">'
                    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="1024" '
                    'SizeY="1024" SizeC="2" SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
                    f'<Channel ID="Channel:0:1" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
                )
                tifffile.imwrite(place / f"c{i}.ome.tif", pixels[i], tile=(128, 128), description=xml, metadata=None)
        else:
            nt.synthetic.write_svs(place / "x.svs", 900, 700, seed=seed, associated=False)


@pytest.mark.parametrize("what", ["shrinks", "vanishes", "is replaced", "is written over"])
@pytest.mark.parametrize(
    ("kind", "reader", "damaged"),
    [
        ("one file", "tiff", "fail"),
        ("one file", "tiff", "fill"),
        ("one file", "openslide", "fill"),
        ("several files", "tiff", "fail"),
    ],
)
def test_a_source_that_changes_while_it_is_read_is_one_clear_error(
    kind, reader, damaged, what, originals, nursery, tmp_path
):
    (slide, file), (_, other) = _sources(originals, kind, tmp_path)
    same = shutil.copy2(file, tmp_path / "same")
    do = {
        "shrinks": ["truncate", str(file), 100_000],
        "vanishes": ["unlink", str(file)],
        "is replaced": ["replace", str(other), str(file)],
        "is written over": ["system", f"dd if={other} of={file} conv=notrunc status=none"],
    }[what]
    folder = tmp_path / "out"
    folder.mkdir()
    given = SMALL | {"source": str(slide), "target": str(folder / "x.ome.zarr"), "damaged": damaged}
    given["reader"] = reader
    run = nursery.run(convert=given, strike={"ticks": 3, "do": do})
    assert run["code"] == 1, run
    assert "while it was read" in run["err"]
    assert str(file) in run["err"]
    assert len(run["err"].splitlines()) == 1
    assert not list(folder.iterdir())
    shutil.copy2(same, file)
    assert nursery.run(convert=given)["code"] == 0
    ours = nt.open(folder / "x.ome.zarr").image(level=0).to_numpy()
    assert np.array_equal(
        ours if kind == "several files" else ours.transpose(1, 2, 0), tifffile.imread(slide, series=0)
    )


def test_a_source_that_fails_to_be_read_is_named_and_the_draft_stays(originals, nursery, tmp_path):
    (slide, _), _ = _sources(originals, "one file", tmp_path)
    if STRACE is None or _traced("sync:error=EIO:when=1", "true").returncode:
        pytest.skip("strace is missing, or may not trace here")
    target = tmp_path / "x.ome.zarr"
    run = _traced("pread64:error=EIO:when=9", *arguments(slide, target))
    assert run.returncode == 1
    assert str(slide) in run.stderr
    assert "Input/output error" in run.stderr
    assert "earlier run kept" in nursery.run(**convert(slide, target))["out"]


def test_a_store_that_is_replaced_while_it_is_read_is_an_error(originals, nursery, tmp_path):
    for (svs, _), name in zip(_sources(originals, "one file", tmp_path), "12", strict=True):
        assert nursery.run(**convert(svs, tmp_path / f"{name}.ome.zarr"))["code"] == 0
    given = SMALL | {"source": str(tmp_path / "1.ome.zarr"), "target": str(tmp_path / "x.ome.zarr")}
    (tmp_path / "1.ome.zarr").rename(tmp_path / "old.ome.zarr")
    (tmp_path / "1.ome.zarr").symlink_to("old.ome.zarr")
    (tmp_path / "new").symlink_to("2.ome.zarr")
    do = ["replace", str(tmp_path / "new"), str(tmp_path / "1.ome.zarr")]
    run = nursery.run(convert=given, strike={"ticks": 3, "do": do})
    assert run["code"] == 1, run
    assert "while it was read" in run["err"]
    assert not (tmp_path / "x.ome.zarr").exists()
    assert not (tmp_path / "x.ome.zarr.partial").exists()


def _lose(what, path):
    if what == "removed":
        path.unlink()
    elif what == "cut short":
        os.truncate(path, path.stat().st_size * 2 // 3)
    else:
        os.truncate(path, 0)


@pytest.mark.parametrize("what", ["removed", "cut short", "emptied"])
@pytest.mark.parametrize("layout", [{}, {"shard": 0}, {"ngff": "0.4"}, {"codec": "source"}], ids=str)
def test_what_is_lost_of_a_store_is_an_error_of_every_reader(layout, what, tmp_path):
    svs = nt.synthetic.write_svs(tmp_path / "x.svs", 900, 700, seed=1)
    place = tmp_path / "x.ome.zarr"
    nt.convert(svs, place, **({"shard": 256, "chunk": 64} if layout in ({}, {"codec": "source"}) else {}), **layout)
    slide = nt.open(place)
    index = nt.tile(slide, nt.TileGrid(extent=128, level=0), tissue=None, label=None)
    assert nt.verify(place).ok
    objects = sorted((p for p in (place / "0").rglob("*") if p.is_file() and p.name[0].isdigit()), key=str)
    largest = max(objects, key=lambda p: p.stat().st_size)
    _lose(what, largest)
    row, col = (int(part) for part in largest.relative_to(place).parts[-2:])
    side = slide.view(level=0).array.unit
    region = nt.Region(col * side.x, row * side.y, side.x, side.y).clip(nt.Region(0, 0, 900, 700))
    with pytest.raises(NgfftileError):
        nt.open(place).image(level=0).compute()
    with pytest.raises(NgfftileError):
        nt.open(place).view(level=0).read(region)
    tiles = [nt.Region(at["tile_x"], at["tile_y"], 128, 128).clip(region) for at in index.tiles.to_pylist()]
    hit = [i for i, part in enumerate(tiles) if part.width > 0 and part.height > 0]
    failed = 0
    for i in hit:
        try:
            index.read(i)
        except NgfftileError:
            failed += 1
    assert failed
    if what != "cut short":
        assert failed == len(hit)
    assert not nt.verify(place).ok
    with pytest.raises(NgfftileError):
        nt.convert(place, tmp_path / "y.ome.zarr")
    for path in (place / "associated").rglob("*"):
        if path.is_file() and path.name[0].isdigit():
            _lose(what, path)
    for role in slide.associated:
        with pytest.raises(NgfftileError):
            nt.open(place).associated[role]


def test_a_label_whose_replacement_is_killed_is_whole_after_the_same_command(slide, nursery, folder, tmp_path):
    folder.mkdir()
    place = folder / "x.ome.zarr"
    assert nursery.run(**convert(slide, place))["code"] == 0
    command = {"label": str(place), "above": 200}
    assert nursery.run(label=str(place), above=100)["code"] == 0
    shutil.copytree(place, tmp_path / "before")
    labels = place / "labels"
    fault = {"within": str(labels), "kind": "kill"}
    assert nursery.run(**command, fault=fault | {"log": str(tmp_path / "log")})["code"] == 0
    steps = (tmp_path / "log").read_text().splitlines()
    ref = tree(labels)
    for at in range(steps.index("os.rename bright") + 1, len(steps) + 1, 5):
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "before", place)
        run = nursery.run(**command, fault=fault | {"at": at})
        assert run["code"] == -signal.SIGKILL, (steps[at - 1], run)
        again = nursery.run(**command)
        assert again["code"] == 0, (steps[at - 1], again)
        assert tree(labels) == ref, steps[at - 1]
    assert nt.verify(place).ok
