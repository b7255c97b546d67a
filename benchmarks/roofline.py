"""The conversion with libraries only: what the decoder, the compressor and the disk allow, and no more.

No resume, no checks, no errors that name a tile, no seams: source tiles across a shard border are decoded for each
shard. The shards come out byte for byte as ngfftile writes them, which ``convert.py`` verifies: the work is the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tifffile
from backports import zstd
from numpy.typing import NDArray

SHARD, CHUNK, FILL = 4096, 256, 255
Array = NDArray[Any]
Place = tuple[int, int, int]  # level, row and column of a shard


def halve(chunk: Array, work: Sequence[Array], out: Array) -> None:
    """2x mean of (3, 256, 256) uint8, half up: sums of byte pairs seen as uint16; ``work`` is memory to do it in."""
    low, high, total = work
    pairs = chunk.view(np.uint16)
    np.bitwise_and(pairs, 255, out=low)
    np.right_shift(pairs, 8, out=high)
    np.add(low, high, out=low)
    np.add(low[:, 0::2], low[:, 1::2], out=total)
    np.add(total, 2, out=total)
    np.right_shift(total, 2, out=total)
    out[...] = total[:, : out.shape[1], : out.shape[2]]


class _Scratch(threading.local):
    """Memory of one thread."""

    def __init__(self) -> None:
        self.pixels = np.empty((SHARD, SHARD, 3), np.uint8)
        self.chunk = np.empty((3, CHUNK, CHUNK), np.uint8)
        of = zstd.CompressionParameter
        about: dict[int, int] = {of.compression_level: 3, of.checksum_flag: 1}
        self.zstd = zstd.ZstdCompressor(options=about)
        half = CHUNK // 2
        self.work = [np.empty((3, rows, half), np.uint16) for rows in (CHUNK, CHUNK, half)]


@dataclass(frozen=True)
class Roofline:
    """One conversion of an 8-bit RGB TIFF in tiles.

    Parameters
    ----------
    page
        Level 0, as tifffile gives it.
    file
        Descriptor of the slide.
    target
        Folder for the shards, named as in a Zarr store.
    sync
        Whether each shard is synced to the disk, as ngfftile does.
    """

    page: tifffile.TiffPage
    file: int
    target: Path
    sync: bool

    @cached_property
    def means(self) -> list[Array]:
        """Levels 1 and up, whole, in memory."""
        levels, y, x = [], self.page.imagelength, self.page.imagewidth
        while max(y, x) > CHUNK:
            y, x = max(1, y // 2), max(1, x // 2)
            levels.append(np.empty((3, y, x), np.uint8))
        return levels

    @cached_property
    def _scratch(self) -> _Scratch:
        return _Scratch()

    def shape(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level."""
        if level:
            return self.means[level - 1].shape[1:]
        return self.page.imagelength, self.page.imagewidth

    def decode(self, y: int, x: int) -> Array:
        """Pixels of a level-0 shard, (3, y, x), from the tiles that meet it."""
        page, side = self.page, (self.page.tilelength, self.page.tilewidth)
        height, width = min(SHARD, page.imagelength - y), min(SHARD, page.imagewidth - x)
        across = -(-page.imagewidth // side[1])
        pixels = self._scratch.pixels[:height, :width]
        for row in range(y // side[0], -(-(y + height) // side[0])):
            for col in range(x // side[1], -(-(x + width) // side[1])):
                index = row * across + col
                data = os.pread(self.file, page.databytecounts[index], page.dataoffsets[index])
                tile = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
                top, left = row * side[0] - y, col * side[1] - x
                rows = slice(max(0, top), min(height, top + side[0]))
                cols = slice(max(0, left), min(width, left + side[1]))
                pixels[rows, cols] = tile[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
        return pixels.transpose(2, 0, 1)

    def work(self, place: Place, children: list[Future[None]]) -> None:
        """Read, compress, shrink and write one shard."""
        wait(children)
        level, row, col = place
        y, x = row * SHARD, col * SHARD
        pixels = self.means[level - 1][:, y : y + SHARD, x : x + SHARD] if level else self.decode(y, x)
        above = self.means[level][:, y // 2 :, x // 2 :] if level < len(self.means) else None
        self.write(place, self.compress(pixels, above))

    def compress(self, pixels: Array, above: Array | None) -> list[bytes | None]:
        """Encode each chunk of a shard, and put its mean in place."""
        scratch, across = self._scratch, SHARD // CHUNK
        chunks: list[bytes | None] = [None] * across**2
        half = CHUNK // 2
        for y in range(0, pixels.shape[1], CHUNK):
            for x in range(0, pixels.shape[2], CHUNK):
                part = pixels[:, y : y + CHUNK, x : x + CHUNK]
                chunk = scratch.chunk
                if part.shape != chunk.shape:
                    chunk[...] = FILL
                chunk[:, : part.shape[1], : part.shape[2]] = part
                if chunk.flat[0] != FILL or (chunk != FILL).any():
                    frame = scratch.zstd.compress(chunk.data, scratch.zstd.FLUSH_FRAME)
                    chunks[y // CHUNK * across + x // CHUNK] = frame
                if above is not None:
                    halve(chunk, scratch.work, above[:, y // 2 : y // 2 + half, x // 2 : x // 2 + half])
        return chunks

    def write(self, place: Place, chunks: list[bytes | None]) -> None:
        """Join the chunks and their index, and write one file."""
        sizes = np.array([len(c) if c else 0 for c in chunks], "<u8")
        index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
        index[sizes == 0] = 2**64 - 1
        table = index.tobytes()
        check = google_crc32c.value(table).to_bytes(4, "little")
        level, row, col = place
        path = self.target / str(level) / "c/0" / str(row) / str(col)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:  # its buffer lets parts as large as chunks through, uncopied
            file.writelines([*filter(None, chunks), table, check])
            file.flush()
            if self.sync:
                os.fsync(file.fileno())


def run(source: Path, target: Path, workers: int, *, sync: bool = False) -> float:
    """Convert; returns megapixels of level 0.

    A shard waits for its children, which come before it in the queue: so none waits for one that has not begun.
    """
    with tifffile.TiffFile(source) as tiff, ThreadPoolExecutor(workers) as pool:
        page = tiff.pages[0]
        job = Roofline(page, tiff.filehandle.fileno(), target, sync)
        jobs: dict[Place, Future[None]] = {}
        for level in range(len(job.means) + 1):
            rows, cols = (-(-n // SHARD) for n in job.shape(level))
            for row in range(rows):
                for col in range(cols):
                    near = [(level - 1, 2 * row + i, 2 * col + j) for i in (0, 1) for j in (0, 1)]
                    waits = [jobs[place] for place in near if place in jobs]
                    jobs[level, row, col] = pool.submit(job.work, (level, row, col), waits)
        for done in jobs.values():
            done.result()
        return float(page.imagewidth * page.imagelength / 1e6)
