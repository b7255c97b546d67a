"""Stores behind urls: the pixels of the folder, byte for byte, or one error that names the url; never fill value."""

import hashlib
import json
import multiprocessing
import pickle
import re
import shutil
import socket
import struct
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import ngfftile as nt
from ngfftile import remote
from ngfftile.cli import app
from ngfftile.errors import MissingError, NgfftileError, OptionError, StoreError
from ngfftile.geometry import Region
from ngfftile.locations import is_url
from ngfftile.remote import RemoteStore
from ngfftile.verify import verify

EVER = 10**9
SHARD = r"/0/c/0/0/0$"
HTML = b"<!doctype html><title>Not here</title><p>Ask the administrator.</p>"


class Handler(BaseHTTPRequestHandler):
    """Files with ranges and ETags, and what the site was told to do wrong."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        site = self.server.site
        site.log.append((self.command, unquote(self.path), self.headers.get("Range")))
        fault = site.next_fault(self.path)
        try:
            if fault is None or fault(self):
                self.file()
        except OSError:
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815

    def file(self, data=None, *, ranged=True, etag=None, sent=None, length=None):
        """Answer with bytes; ``sent`` and ``length`` are what truly goes out, and what is told."""
        path = self.server.site.root / unquote(self.path).lstrip("/")
        if data is None and not path.is_file():
            self.answer(404, b"")
            return
        data = path.read_bytes() if data is None else data
        headers = {"ETag": etag or f'"{hashlib.sha256(data).hexdigest()[:16]}"'}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")) if ranged else None
        if span is None:
            self.answer(200, data, headers, sent, length)
            return
        first = int(span[1]) if span[1] else max(0, len(data) - int(span[2]))
        last = min(int(span[2]), len(data) - 1) if span[1] and span[2] else len(data) - 1
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.answer(206, data[first : last + 1], headers, sent, length)

    def answer(self, status, body, headers=(), sent=None, length=None):
        self.send_response(status)
        told = len(body) if length is None else length(len(body))
        for name, value in {**dict(headers), "Content-Length": told}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if sent is None else sent(body))
        self.wfile.flush()


class Site:
    """A folder behind a url."""

    def __init__(self, root):
        self.root, self.log, self.faults = Path(root), [], []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.server.site = self
        self.over = threading.Event()
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.origin = f"http://127.0.0.1:{self.server.server_port}"

    def url(self, path):
        return f"{self.origin}/{path}"

    def fault(self, pattern, action, times=EVER):
        self.faults.append([re.compile(pattern), action, times])

    def next_fault(self, path):
        for fault in self.faults:
            if fault[0].search(unquote(path)) and fault[2] > 0:
                fault[2] -= 1
                return fault[1]
        return None

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


def status(code, body=b"went wrong"):
    return lambda h: h.answer(code, body)


def reset(h):
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    h.connection.close()
    h.close_connection = True


def stall(h):
    h.server.site.over.wait(20)
    h.close_connection = True


def truncated(h):
    h.file(sent=lambda body: body[: len(body) // 2])
    h.close_connection = True


def stalled_body(h):
    h.file(sent=lambda body: body[: len(body) // 2])
    stall(h)


def short(h):
    """Half of what was asked, and a Content-Length to match; Content-Range tells otherwise."""
    h.file(sent=lambda body: body[: len(body) // 2], length=lambda n: n // 2)


def longer(h):
    h.file(sent=lambda body: body + b"x" * 5000, length=lambda n: n + 5000)


def endless(h):
    """Bytes for as long as somebody reads."""
    h.file(sent=lambda body: body, length=lambda n: n + (1 << 40))
    h.server.site.sent = 0
    while not h.server.site.over.is_set():
        h.server.site.sent += h.wfile.write(b"x" * 65536)


def elsewhere(h):
    """Another part than was asked."""
    h.answer(206, b"x" * 100, {"ETag": '"1"', "Content-Range": "bytes 7-106/5000"})


def no_range(h):
    h.file(ranged=False)


def html(h):
    h.answer(200, HTML, {"Content-Type": "text/html"})


def html_in_parts(h):
    h.file(HTML * 4000)


def redirect(to):
    return lambda h: h.answer(302, b"", {"Location": to})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    for name, seconds in {"CONNECT": 0.5, "SILENCE": 0.3, "REQUEST": 3.0, "TRIES": 2.0}.items():
        monkeypatch.setattr(remote, name, seconds)
    monkeypatch.setattr(remote, "RETRIES", 2)
    monkeypatch.setattr(remote, "PAUSES", {"init_backoff": timedelta(milliseconds=10)})
    remote._connections.cache_clear()
    yield
    remote._connections.cache_clear()


@contextmanager
def serving(folder):
    site = Site(folder)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def site(store):
    """The folder of the converted slide, which no test changes."""
    with serving(store.parent) as made:
        yield made


@pytest.fixture
def copy(store, tmp_path):
    """A site of its own, whose store a test may damage, and that store."""
    place = tmp_path / "site" / "my slide.ome.zarr"
    shutil.copytree(store, place)
    with serving(place.parent) as made:
        yield made, place


def url_of(site, store):
    return site.url(store.name.replace(" ", "%20"))


def read_all(slide):
    return slide.view(level=0).read(Region(0, 0, slide.size.x, slide.size.y))


def right_or_error(url, folder):
    """The pixels of level 0, if they are the folder's; else the error, which must be ours and name the url."""
    begun = time.monotonic()
    try:
        pixels = read_all(nt.open(url))
    except NgfftileError as error:
        told = error
    else:
        assert np.array_equal(pixels, read_all(nt.open(folder)))
        return None
    assert time.monotonic() - begun < 12
    assert url in str(told)
    assert "\n" not in str(told)
    return told


# --- What a folder gives, a url gives


def test_a_url_gives_the_slide_of_the_folder(site, store):
    far, near = nt.open(url_of(site, store)), nt.open(store)
    assert (far.levels, far.name, far.id, far.icc) == (near.levels, near.name, near.id, near.icc)
    assert (far.properties, far.ome_xml, far.channels, far.mpp) == (
        near.properties,
        near.ome_xml,
        near.channels,
        near.mpp,
    )
    assert list(far.associated) == list(near.associated) != []
    for role in near.associated:
        assert np.array_equal(far.associated[role], near.associated[role])
    assert np.array_equal(far.thumbnail(200), near.thumbnail(200))
    for view in ({"level": 0}, {"level": 2}, {"mpp": 1.7}):
        assert np.array_equal(far.image(**view).values, near.image(**view).values)
    assert far.url == url_of(site, store)
    assert url_of(site, store) in repr(far)


def test_labels_and_names_with_spaces(copy):
    site, place = copy
    near = nt.open(place)
    near.labels["bright"] = near.image(mpp=4.0).max("c") > 200
    far = nt.open(url_of(site, place))
    assert list(far.labels) == ["bright"]
    assert np.array_equal(read_all(far.labels["bright"]), read_all(near.labels["bright"]))
    with pytest.raises(KeyError):
        far.labels["dark"]
    with pytest.raises(OptionError, match="read only"):
        far.labels["dark"] = near.image(mpp=4.0).max("c") < 200
    assert verify(far.url).ok


@pytest.fixture(scope="module")
def lasting(store):
    with serving(store.parent) as made:
        yield nt.open(url_of(made, store)), nt.open(store)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_region_is_the_folders(lasting, data):
    far, near = lasting
    level = data.draw(st.integers(0, len(near.levels) - 1))
    size = near.levels[level].size
    x, y = data.draw(st.integers(-50, size.x - 1)), data.draw(st.integers(-50, size.y - 1))
    region = Region(x, y, data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700)))
    assert np.array_equal(far.view(level=level).tile(region), near.view(level=level).tile(region))


@pytest.mark.parametrize("ngff", ["0.4", "0.6"])
def test_other_versions(made, tmp_path, ngff):
    nt.convert(made / "small.svs", tmp_path / "x.ome.zarr", ngff=ngff, chunk=64)
    with serving(tmp_path) as site:
        far, near = nt.open(site.url("x.ome.zarr")), nt.open(tmp_path / "x.ome.zarr")
        assert np.array_equal(read_all(far), read_all(near))
        assert far.levels == near.levels
        assert verify(far.url).ok
        gone = next(p for p in sorted((tmp_path / "x.ome.zarr" / "0").rglob("*")) if p.name.isdigit() and p.is_file())
        gone.unlink()
        with pytest.raises(StoreError, match="127"):
            read_all(nt.open(far.url))


def foreign(place, **layout):
    """A store as others write them: some chunks are not stored, and mean fill value."""
    format_ = layout.get("zarr_format", 3)
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space"} for a in "yx")]
    transform = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transform}], "version": "0.4"}
    new = {"ome": {"version": "0.5", "multiscales": [image]}}
    group = zarr.open_group(place, mode="w", zarr_format=format_)
    group.attrs.update(new if format_ == 3 else {"multiscales": [image]})
    layout.pop("zarr_format", None)
    array = group.create_array("0", shape=(3, 200, 300), chunks=(3, 64, 64), dtype="uint8", fill_value=7, **layout)
    array[:, :64] = np.random.default_rng(0).integers(0, 255, (3, 64, 300), np.uint8)


@pytest.mark.parametrize("layout", [{}, {"shards": (3, 128, 128)}, {"compressors": None}])
def test_stores_of_others_keep_their_fill_value(tmp_path, layout):
    foreign(tmp_path / "x.zarr", **layout)
    with serving(tmp_path) as site:
        far, near = nt.open(site.url("x.zarr")), nt.open(tmp_path / "x.zarr")
        assert np.array_equal(read_all(far), read_all(near))
        assert (read_all(far)[:, 128:] == 7).all()
        for fault in (status(503), status(403), reset, truncated, html_in_parts):
            site.faults.clear()
            site.fault(r"/0/.*\d$", fault)
            with pytest.raises(StoreError, match=re.escape(site.origin)):
                read_all(nt.open(site.url("x.zarr")))


def test_a_store_of_zarr_2(tmp_path):
    foreign(tmp_path / "x.zarr", zarr_format=2)
    with serving(tmp_path) as site:
        assert np.array_equal(read_all(nt.open(site.url("x.zarr"))), read_all(nt.open(tmp_path / "x.zarr")))
        assert any("no manifest" in note for note in verify(site.url("x.zarr")).notes)


def test_tiles_of_a_url(site, store, tmp_path):
    grid = nt.TileGrid(extent=64, mpp=1.0)
    far, near = nt.tile(url_of(site, store), grid), nt.tile(store, grid)
    assert len(far) == len(near) > 0
    assert far.tiles.equals(near.tiles)
    far.to_parquet(tmp_path)
    again = nt.Index.from_parquet(tmp_path)
    assert again.slides["path"].to_pylist() == [url_of(site, store)]
    for index in (far, again, nt.Index.concat([again]), pickle.loads(pickle.dumps(again))):
        assert np.array_equal(index.read(3), near.read(3))
    assert again.picture().size == near.picture().size
    assert again.slide(again.slides["id"][0].as_py()).url == url_of(site, store)


def test_requests(site, store):
    url = url_of(site, store)
    slide = nt.open(url)
    assert len(site.log) == 2 + len(slide.levels)
    tile = slide.view(level=0)
    for expected in (3, 1, 1):
        site.log.clear()
        tile.tile(Region(300, 300, 100, 100))
        assert len(site.log) == expected, site.log
    site.log.clear()
    tile.tile(Region(0, 0, 1024, 1024))
    assert len(site.log) == 1  # chunks side by side
    site.log.clear()
    tile.tile(Region(300, 300, 300, 300))
    assert len(site.log) == 2  # two rows of chunks


def _sum(view):
    return int(view.read(Region(0, 0, 500, 500)).sum())


def test_pickles_and_processes(site, store):
    far, near = nt.open(url_of(site, store)), nt.open(store)
    assert np.array_equal(read_all(pickle.loads(pickle.dumps(far))), read_all(near))
    image = far.image(level=1, blocks=512)
    assert np.array_equal(image.data.compute(scheduler="processes", num_workers=1), near.image(level=1).values)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_says_so_and_does_not_hang(site, store):
    view = nt.open(url_of(site, store)).view(level=0)
    receive, send = multiprocessing.Pipe(duplex=False)

    def work():
        try:
            send.send(_sum(view))
        except StoreError as error:
            send.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    assert receive.poll(10)
    assert "spawn" in receive.recv()
    process.join(10)


# --- Faults


@pytest.mark.parametrize("where", [r"x?/zarr\.json$", r"/0/zarr\.json$", SHARD])
@pytest.mark.parametrize("fault", [status(500), status(503), status(429), reset, stall, truncated, stalled_body])
def test_what_goes_wrong_once_is_healed(site, store, fault, where):
    site.fault(where, fault, times=1)
    assert right_or_error(url_of(site, store), store) is None


@pytest.mark.parametrize("where", [r"/0/zarr\.json$", SHARD])
@pytest.mark.parametrize(
    "fault",
    [
        *(status(code) for code in (400, 401, 403, 404, 410, 416, 429, 500, 503)),
        *(reset, stall, truncated, stalled_body, short, longer, elsewhere, html, html_in_parts, endless),
        redirect("file:///etc/passwd"),
        redirect("/nowhere"),
        redirect(""),
    ],
)
def test_what_goes_wrong_always_is_one_error_in_bounded_time(site, store, fault, where):
    site.fault(where, fault)
    assert right_or_error(url_of(site, store), store) is not None


@pytest.mark.parametrize("fault", [status(404), status(500), truncated, html, html_in_parts, endless])
def test_a_root_that_is_not_there_or_damaged(site, store, fault):
    site.fault(r"ome\.zarr/(zarr\.json|\.zattrs)$", fault)
    assert right_or_error(url_of(site, store), store) is not None


def test_nothing_answers(store):
    with serving(store.parent) as site:
        url = url_of(site, store)
        slide = nt.open(url)
    remote._connections.cache_clear()  # a connection that is open outlives the server's end
    for read in (lambda: nt.open(url), lambda: slide.view(level=0).tile(Region(0, 0, 9, 9))):
        with pytest.raises(StoreError, match=re.escape(url)):
            read()


def test_a_server_without_ranges(site, store):
    site.fault(".", no_range)
    error = right_or_error(url_of(site, store), store)
    assert "ranges" in str(error)


def test_an_endless_answer_is_not_read(site, store):
    site.fault(SHARD, endless)
    assert right_or_error(url_of(site, store), store) is not None
    assert site.sent < 64 << 20


def test_chunks_fail_after_the_index_was_read(site, store):
    slide = nt.open(url_of(site, store))
    view, region = slide.view(level=0), Region(300, 300, 100, 100)
    expected = view.tile(region)
    for fault in (status(404), status(500), reset, stall, truncated, short, longer, elsewhere, html, no_range):
        site.faults.clear()
        site.fault(SHARD, fault)
        with pytest.raises(StoreError, match=re.escape(site.origin)):
            view.tile(region)
    site.faults.clear()
    assert np.array_equal(view.tile(region), expected)


def test_a_wrong_answer_is_not_remembered(site, store):
    view, region = nt.open(url_of(site, store)).view(level=0), Region(300, 300, 100, 100)
    site.fault(SHARD, html, times=3)
    with pytest.raises(StoreError, match="truncated"):
        view.tile(region)
    assert np.array_equal(view.tile(region), nt.open(store).view(level=0).tile(region))


@settings(max_examples=25, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), what=st.sampled_from(["shard", "index", "json"]))
def test_flipped_bits(store, place, bit, what):
    def flipped(h):
        data = bytearray((h.server.site.root / unquote(h.path).lstrip("/")).read_bytes())
        first, count = (len(data) - 260, 260) if what == "index" else (0, len(data))
        data[first + int(place * count)] ^= 1 << bit
        h.file(bytes(data))

    with serving(store.parent) as site:
        site.fault(r"/0/zarr\.json$" if what == "json" else SHARD, flipped)
        # Of JSON a flip may be in a name that means nothing; what stands for pixels has checksums.
        right_or_error(url_of(site, store), store)


# --- One version


def other_slide(folder, seed=8):
    nt.synthetic.write_svs(folder / "other.svs", 2600, 1900, mpp=0.5, seed=seed)
    nt.convert(folder / "other.svs", folder / "other.ome.zarr", shard=1024)
    return folder / "other.ome.zarr"


def test_a_store_that_is_replaced_while_it_is_read(copy, tmp_path):
    site, place = copy
    other = other_slide(tmp_path)
    url = url_of(site, place)
    slide = nt.open(url)
    view = slide.view(level=0)
    view.tile(Region(300, 300, 100, 100))
    shutil.rmtree(place)
    shutil.copytree(other, place)
    # The shard whose index is held, and one that is not.
    for region in (Region(300, 300, 100, 100), Region(300, 300, 100, 100), Region(1300, 300, 100, 100)):
        with pytest.raises(StoreError, match="replaced") as error:
            view.tile(region)
        assert url in str(error.value)
    with pytest.raises(StoreError, match="replaced"):
        _ = slide.associated["label"]
    assert np.array_equal(read_all(nt.open(url)), read_all(nt.open(other)))


def test_a_shard_of_another_version_half_way(copy, tmp_path):
    site, place = copy
    other = other_slide(tmp_path)
    url = url_of(site, place)
    view = nt.open(url).view(level=0)
    expected = nt.open(place).view(level=0).tile(Region(0, 0, 1024, 1024))
    key = "0/c/0/0/0"
    asked = []

    def swap(h):
        asked.append(h.path)
        h.file((other if len(asked) > 1 else place).joinpath(key).read_bytes())

    site.fault(SHARD, swap)
    with pytest.raises(StoreError, match="replaced"):
        view.tile(Region(0, 0, 1024, 1024))
    site.faults.clear()
    assert np.array_equal(view.tile(Region(0, 0, 1024, 1024)), expected)


@pytest.mark.parametrize("layout", [{}, {"shards": (3, 128, 128)}])
def test_a_store_of_others_that_is_gone_is_not_fill_value(tmp_path, layout):
    foreign(tmp_path / "x.zarr", **layout)
    with serving(tmp_path) as site:
        view = nt.open(site.url("x.zarr")).view(level=0)
        region = Region(0, 128, 100, 50)  # nothing is stored there
        assert (view.tile(region) == 7).all()
        shutil.rmtree(tmp_path / "x.zarr")
        with pytest.raises(StoreError, match="replaced"):
            view.tile(region)


# --- Verification


def _cut(place):
    data = place.read_bytes()
    place.write_bytes(data[: len(data) // 2])


def _flip(place):
    data = bytearray(place.read_bytes())
    data[len(data) // 3] ^= 4
    place.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, _flip, _cut])
@pytest.mark.parametrize(
    "key",
    ["0/c/0/1/1", "1/c/0/0/0", "2/zarr.json", "zarr.json", "ngfftile/zarr.json", "associated/label/0/zarr.json"],
)
def test_verify_finds_what_it_finds_in_the_folder(copy, damage, key):
    site, place = copy
    assert verify(url_of(site, place), subset="1/40").ok
    found = place / key if (place / key).exists() else next(p for p in (place / "associated").rglob("*") if p.is_file())
    damage(found)
    far, near = verify(url_of(site, place)), verify(place)
    assert not far.ok
    assert {(f.kind, f.place) for f in far.findings} == {(f.kind, f.place) for f in near.findings}


def test_verify_tells_what_it_cannot_see(site, store):
    report = verify(url_of(site, store))
    assert report.ok
    assert report.objects == verify(store).objects
    assert any("does not list" in note for note in report.notes)


def test_verify_tells_a_server_that_fails_from_an_object_that_is_gone(site, store):
    site.fault(SHARD, status(503))
    assert any("503" in f.what for f in verify(url_of(site, store)).findings)


# --- Hostile


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/x.zarr",
        "s3://bucket/x.zarr",
        "http:///x.zarr",
        "http://127.0.0.1/x.zarr::file:///etc",
        "http://127.0.0.1/a/../x.zarr",
        "http://127.0.0.1/a/%2e%2e/x.zarr",
        "http://127.0.0.1/a//x.zarr",
        "http://127.0.0.1/x.zarr?token=1",
        "http://127.0.0.1/x.zarr#a",
        "http://me:secret@127.0.0.1/x.zarr",
        "http://127.0.0.1:port/x.zarr",
    ],
)
def test_urls_that_are_not_read(url):
    for function in (nt.open, verify):
        with pytest.raises(OptionError):
            function(url)


def test_file_urls_are_paths(store):
    assert not is_url(f"file://{store}")
    assert nt.open(f"file://{store}").levels == nt.open(store).levels


@pytest.mark.parametrize("path", ["../x", "/etc", "file:///etc", "http://127.0.0.1:1/x", "a/../../x", ""])
def test_metadata_cannot_lead_out_of_the_store(copy, path):
    site, place = copy
    document = json.loads((place / "zarr.json").read_bytes())
    document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path
    (place / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError):
        nt.open(url_of(site, place))
    assert all(asked.startswith(f"/{place.name}/") for _, asked, _ in site.log)


def test_large_metadata_are_not_read(site, store):
    site.fault(r"/0/zarr\.json$", lambda h: h.file(b" " * (17 << 20)))
    assert "at most" in str(right_or_error(url_of(site, store), store))


def test_no_codec_that_runs_code(tmp_path):
    foreign(tmp_path / "x.zarr", zarr_format=2)
    about = json.loads((tmp_path / "x.zarr/0/.zarray").read_bytes()) | {"filters": [{"id": "pickle", "protocol": 5}]}
    (tmp_path / "x.zarr/0/.zarray").write_text(json.dumps(about))
    with serving(tmp_path) as site, pytest.raises(StoreError, match="pickle"):
        nt.open(site.url("x.zarr"))


# --- The command line


def test_the_command_line_takes_urls(site, store, tmp_path):
    run = CliRunner().invoke
    url = url_of(site, store)
    told = json.loads(run(app, ["info", url, "--json"]).output)
    assert told == json.loads(run(app, ["info", str(store), "--json"]).output)
    assert run(app, ["verify", url, "--subset", "1/5"]).exit_code == 0
    assert run(app, ["tile", url, "-o", str(tmp_path), "--mpp", "2", "--filter", "none"]).exit_code == 0
    assert len(nt.Index.from_parquet(tmp_path)) > 0
    missing = run(app, ["verify", site.url("none.zarr"), url, "--subset", "1/50"])
    assert missing.exit_code == 1
    assert "1 of 2 stores done" in missing.output


def test_writing_to_a_url_is_an_error(site, store, made):
    with pytest.raises(OptionError, match="not a local path"):
        nt.convert(made / "small.svs", site.url("new.ome.zarr"))


def test_nothing_there(site):
    with pytest.raises(MissingError, match=re.escape(site.url("none.zarr"))):
        nt.open(site.url("none.zarr"))
    assert str(RemoteStore.at(site.url("a%20b.zarr/"))) == site.url("a%20b.zarr")
