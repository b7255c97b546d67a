"""What was told to be written survives a power failure: an ext4 of its own that is stopped in the middle.

Its journal is not flushed by itself while a test runs, so that only what was synced is there afterwards.
"""

import hashlib
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from runpy import run_path

import pytest

import ngfftile as nt

HELPER = run_path(str(Path(__file__).with_name("faults") / "nursery.py"))
GIVEN = {"chunk": 64, "shard": 256, "workers": 1}


def tree(folder):
    """All files below a folder, with a digest of their bytes."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def nursery():
    server = HELPER["Nursery"]()
    yield server
    server.close()


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return nt.synthetic.write_svs(tmp_path_factory.mktemp("slide") / "s.svs", 900, 700, seed=1)


@pytest.fixture(scope="module")
def whole(slide, tmp_path_factory, nursery):
    place = tmp_path_factory.mktemp("whole") / "x.ome.zarr"
    assert nursery.run(convert=GIVEN | {"source": str(slide), "target": str(place)})["code"] == 0
    return tree(place)


class Disk:
    """A file system on a loop device, new for each use; `reboot` mounts it again."""

    def __init__(self, image, place):
        self.image, self.place = image, place

    def _mount(self):
        done = subprocess.run(
            ["mount", "-t", "ext4", "-o", "loop,commit=900", self.image, self.place], check=False, capture_output=True
        )
        return done.returncode == 0

    @contextmanager
    def new(self):
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        if not self._mount():
            pytest.skip("no leave to mount a disk here")
        try:
            yield self.place
        finally:
            subprocess.run(["umount", self.place], check=True)

    def reboot(self):
        subprocess.run(["umount", self.place], check=True)
        assert self._mount()


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a disk of one's own needs root and mkfs.ext4")
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(48 << 20)
    place.mkdir()
    return Disk(image, place)


def test_a_store_that_was_told_to_be_done_is_there_after_a_power_failure(slide, whole, nursery, disk):
    with disk.new() as place:
        run = nursery.run(convert=GIVEN | {"source": str(slide), "target": str(place / "x.ome.zarr")})
        HELPER["cut_power"](place)
        assert run["code"] == 0, run
        disk.reboot()
        assert tree(place / "x.ome.zarr") == whole
        assert nt.verify(place / "x.ome.zarr").ok


def test_without_syncing_it_would_not_be(slide, whole, nursery, disk):
    """That the failure is one."""
    with disk.new() as place:
        given = GIVEN | {"source": str(slide), "target": str(place / "x.ome.zarr")}
        assert nursery.run(convert=given, without_sync=True)["code"] == 0
        HELPER["cut_power"](place)
        disk.reboot()
        assert not (place / "x.ome.zarr").exists() or tree(place / "x.ome.zarr") != whole


@pytest.mark.parametrize("overwrite", [False, True])
def test_power_may_fail_at_any_time(overwrite, slide, whole, nursery, disk, tmp_path):
    old = {"source": str(slide), "target": str(tmp_path / "x.ome.zarr"), "chunk": 64}
    assert nursery.run(convert=old)["code"] == 0
    before = tree(tmp_path / "x.ome.zarr")
    given = GIVEN | {"source": str(slide), "overwrite": overwrite}

    def start(place):
        if overwrite:
            shutil.copytree(tmp_path / "x.ome.zarr", place / "x.ome.zarr")
            os.sync()
        return given | {"target": str(place / "x.ome.zarr")}

    with disk.new() as place:
        log = tmp_path / "log"
        run = nursery.run(convert=start(place), fault={"within": str(place), "kind": "power", "log": str(log)})
        assert run["code"] == 0, run
        steps = log.read_text().splitlines()
    shown_by = steps.index("os.rename store")  # a fault comes before its operation, and operations count from 1
    chosen = [shown_by, shown_by + 1, shown_by + 2, shown_by + 3]
    chosen += [] if overwrite else [shown_by // 4, shown_by // 2, shown_by - 20]
    kept = []
    for at in chosen:
        step = steps[at - 1]
        with disk.new() as place:
            command = start(place)
            fault = {"within": str(place), "at": at, "kind": "power"}
            run = nursery.run(convert=command, fault=fault)
            assert run["code"] < 0, (step, run)
            store = place / "x.ome.zarr.partial" / "store"
            shown = place / "x.ome.zarr"
            disk.reboot()
            # What has its name is whole; all that was told to be done has it, but for the last, whose name may be lost.
            found = tree(store) if store.exists() else {}
            found = {key: digest for key, digest in found.items() if not key.endswith(".tmp")}
            assert found.items() <= whole.items(), step
            if shown.exists():
                assert tree(shown) in (before, whole), step
            else:
                done = sum(
                    min(256, 900 - int(x) * 256) * min(256, 700 - int(y) * 256)
                    for _, _, _, y, x in (key.split("/") for key in found if key.startswith("0/c/"))
                )
                kept.append(len(found))
                assert done >= run["pixels"] - 256 * 256, (step, run)
            again = nursery.run(convert=command)
            assert again["code"] == 0, (step, again)
            assert json.loads(again["out"])["found"] <= len(whole), step
            assert tree(shown) == whole, step
            assert [p.name for p in place.iterdir() if p.name != "lost+found"] == ["x.ome.zarr"], step
    assert overwrite or max(kept) > 10
