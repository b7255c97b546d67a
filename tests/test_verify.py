"""Verification: no damage passes in silence, and each is found where it is."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

import ngfftile as nt
from conftest import real_slides
from ngfftile.errors import MissingError, NgfftileError, OptionError

COMMAND = Path(sys.executable).with_name("ngfftile")
KINDS = {
    "0.5": {"shard": 256},
    "0.4": {"ngff": "0.4"},
    "0.6": {"ngff": "0.6"},
    "single chunks": {"shard": 0},
    "jpeg": {"codec": "jpeg:80"},
    "source": {"codec": "source", "shard": 256},
    "blosc, planar": {"codec": "blosc", "planar": True},
}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def whole(request, tmp_path_factory):
    """A small slide and its store of one kind, with a label where the version has them."""
    folder = tmp_path_factory.mktemp("whole")
    svs = nt.synthetic.write_svs(folder / "s.svs", 600, 400, tile=256, seed=1)
    nt.convert(svs, folder / "s.ome.zarr", **KINDS[request.param])
    slide = nt.open(folder / "s.ome.zarr")
    slide.labels["dark"] = slide.image(level=0).max("c") < 200
    return svs, folder / "s.ome.zarr"


def files(store):
    return sorted(p for p in store.rglob("*") if p.is_file())


def test_a_whole_store_is_good_against_its_source_too(whole):
    svs, store = whole
    report = nt.verify(store, source=svs, full=True)
    assert report.ok, str(report)
    assert report.compared == 600 * 400
    assert report.objects > 20
    assert report.pixels >= 600 * 400 * 1.3


def test_no_random_damage_passes_in_silence(whole):
    _, store = whole
    draw = random.Random(3)
    for _ in range(40):
        place = draw.choice(files(store))
        data = place.read_bytes()
        damage(place, data, draw)
        try:
            report = nt.verify(store)
            assert not report.ok, place
        finally:
            place.write_bytes(data)
    assert nt.verify(store).ok


def damage(place, data, draw):
    kind = draw.choice(["flip", "cut", "delete"])
    if kind == "delete":
        place.unlink()
    elif kind == "cut":
        place.write_bytes(data[: draw.randrange(len(data))])
    else:
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        place.write_bytes(bytes(changed))


@pytest.mark.parametrize(("document", "step"), [("zarr.json", 7), ("labels/zarr.json", 1), ("labels/a/zarr.json", 9)])
def test_every_byte_of_the_documents_that_no_manifest_lists_is_covered(document, step, tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((20, 30), np.uint8))
    nt.convert(tmp_path / "x.tif", tmp_path / "x.ome.zarr")
    slide = nt.open(tmp_path / "x.ome.zarr")
    slide.labels["a"] = slide.image(level=0).max("c") < 1
    place = tmp_path / "x.ome.zarr" / document
    data = place.read_bytes()
    for i in range(0, len(data), step):
        place.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        assert not nt.verify(tmp_path / "x.ome.zarr").ok, data[i - 10 : i + 10]


def test_damage_is_located(tmp_path, svs):
    store = tmp_path / "x.ome.zarr"
    nt.convert(svs, store, shard=1024)
    shard = store / "0" / "c" / "0" / "1" / "1"
    data = bytearray(shard.read_bytes())
    # The second chunk of the shard: its offset stands in the index at the end.
    index = np.frombuffer(bytes(data[-16 * 16 - 4 : -4]), "<u8").reshape(16, 2)
    data[int(index[1, 0]) + 50] ^= 1
    shard.write_bytes(bytes(data))
    (store / "1" / "c" / "0" / "0" / "0").unlink()
    found = {f.place: f for f in nt.verify(store).findings}
    assert (found["0/c/0/1/1"].kind, found["0/c/0/1/1"].level) == ("checksum", 0)
    assert found["0/c/0/1/1"].chunks == ((4, 5),)
    assert (found["1/c/0/0/0"].kind, found["1/c/0/0/0"].level) == ("missing", 1)
    text = str(nt.verify(store))
    assert "checksum   0/c/0/1/1 (level 0), chunk 4,5" in text


def test_a_level_that_is_not_the_mean_is_found_though_all_checksums_hold(tmp_path, svs):
    store = tmp_path / "x.ome.zarr"
    nt.convert(svs, store, shard=1024)
    array = zarr.open_array(store / "2", mode="r+")
    array[:, 100, 100] = array[:, 100, 100] ^ 1
    (finding,) = [f for f in nt.verify(store).findings if f.kind == "level" and f.level == 2]
    assert "differs from the mean of level 1 by 1 grey levels" in finding.what


def test_another_source_is_told(tmp_path, svs, store):
    other = nt.synthetic.write_svs(tmp_path / "other.svs", 2600, 1900, mpp=0.25, seed=4)
    found = {f.place: f.what for f in nt.verify(store, source=other).findings}
    assert "another file" in found["fingerprint"]
    assert found["mpp"] == "is 0.5, the source says 0.25"
    assert any("pixels differ" in what for what in found.values())


def test_subsets_part_the_work(store):
    whole = nt.verify(store)
    parts = [nt.verify(store, subset=f"{i}/3") for i in (1, 2, 3)]
    assert all(part.ok for part in parts)
    assert sum(part.pixels for part in parts) == whole.pixels
    assert max(part.bytes for part in parts) < whole.bytes
    for wrong in ("0/3", "4/3", "x", "1/0"):
        with pytest.raises(OptionError, match="subset"):
            nt.verify(store, subset=wrong)


def test_stores_of_others_are_decoded_and_said_to_have_no_manifest(tmp_path):
    group = zarr.create_group(tmp_path / "o.zarr")
    random_ = np.random.default_rng(0)
    for k, side in enumerate((600, 300)):
        array = group.create_array(str(k), shape=(3, side, side), chunks=(3, 100, 100), dtype="u1")
        array[:] = random_.integers(0, 255, (3, side, side), np.uint8)
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    sets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1, 2**k, 2**k]}]} for k in (0, 1)
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": sets}]}
    report = nt.verify(tmp_path / "o.zarr")
    assert report.ok
    assert any("no manifest" in note for note in report.notes)
    place = tmp_path / "o.zarr" / "0" / "c" / "0" / "3" / "2"
    place.write_bytes(place.read_bytes()[:-9])
    (finding,) = nt.verify(tmp_path / "o.zarr").findings
    assert (finding.kind, finding.level, finding.chunks) == ("chunk", 0, ((3, 2),))


def test_what_is_no_store_cannot_be_verified(tmp_path):
    with pytest.raises(MissingError, match="no store"):
        nt.verify(tmp_path / "none")
    with pytest.raises(NgfftileError, match="neither root nor manifest"):
        nt.verify(tmp_path)


def test_the_command_exits_0_1_2_and_prints_json(tmp_path, svs):
    store = tmp_path / "x.ome.zarr"
    nt.convert(svs, store)

    def run(*arguments):
        return subprocess.run([COMMAND, "verify", *map(str, arguments)], capture_output=True, text=True, check=False)

    good = run(store, "--source", svs, "--json")
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["ok"] is True
    shutil.rmtree(store / "1")
    bad = run(store)
    assert bad.returncode == 1
    assert "1/c/0/0/0" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert run(tmp_path / "none.zarr").returncode == 2
    assert run(store, "--subset", "9/2").returncode == 2
    found = json.loads(run(store, "--json").stdout)
    assert found["ok"] is False
    assert {"kind", "place", "what", "level", "chunks"} == set(found["findings"][0])


@pytest.mark.parametrize("path", real_slides(), ids=lambda p: p.name)
def test_real_slides_agree_with_their_source(path, tmp_path):
    nt.convert(path, tmp_path / "x.ome.zarr")
    report = nt.verify(tmp_path / "x.ome.zarr", source=path)
    assert report.ok, str(report)
