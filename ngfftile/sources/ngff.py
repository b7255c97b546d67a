"""OME-Zarr stores as sources: to upgrade, rechunk or re-encode them, whoever wrote them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ngfftile import ngff
from ngfftile.errors import MissingError, OptionError, SourceError, StoreError
from ngfftile.geometry import Mpp, Region, Size
from ngfftile.ngff import PALETTE, RGB, Channel, Multiscale
from ngfftile.shards import MOST_LEVELS, LevelArray, check_array
from ngfftile.sources.protocol import Array, Damaged, RefusedError, Source, SourceInfo
from ngfftile.store import LABELS, ROOTS, Store

_SAMPLES, _EDGE = 1024, 1 << 16
# Names of an array's objects, in a folder for each axis or none: what else lies there is nobody's.
_OBJECT = re.compile(r"zarr\.json|\.zarray|(c[./])?\d+([./]\d+)*")
_SECONDS = {"second": 1.0, "millisecond": 1e-3, "minute": 60.0, "hour": 3600.0}


def open_ngff(path: Path, scene: int = 0) -> Source:
    """Open an OME-Zarr image as a source.

    Raises
    ------
    RefusedError
        Not an OME-Zarr image.
    SourceError
        One that breaks the specification, or is damaged.
    """
    if scene:
        raise OptionError(f"scene is {scene}", str(path), "An OME-Zarr image has one scene, 0.")
    if not path.is_dir():
        raise RefusedError("not an OME-Zarr store", str(path))
    try:
        return NgffSource(path)
    except MissingError as error:
        raise RefusedError("not an OME-Zarr store", str(path)) from error
    except StoreError as error:
        raise SourceError(error.what, str(path), error.mend) from error
    # What ``ngfftile`` holds may be anything, in stores that others changed.
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise SourceError(f"its metadata are not of the form that ngfftile writes ({error!r})", str(path)) from error


@lru_cache(maxsize=8)
def _again(path: Path, tables: bytes) -> Source:
    source = open_ngff(path)
    if source.info.tables != tables:
        raise SourceError("the store changed while it was read", str(path), "Convert it again when it is at rest.")
    return source


class NgffSource:
    """Level 0 of an OME-Zarr image; see `ngfftile.sources.protocol.Source`."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        attributes = self._store.attributes("")
        facts = attributes.get("ngfftile")
        self._facts: Mapping[str, Any] = facts if isinstance(facts, dict) else {}
        self._image = ngff.parse(attributes, str(path))
        if len(self._image.datasets) > MOST_LEVELS:
            raise StoreError(f"it has {len(self._image.datasets)} levels, {MOST_LEVELS} are the most", str(path))
        for dataset in self._image.datasets:
            place = self._store.inside(dataset.path)
            check_array(_document(self._store, place), place, str(self._store))
        self._array = LevelArray(
            self._store,
            self._store.inside(self._image.datasets[0].path),
            self._image.axes,
            whole=self._facts.get("status") == "complete",
        )
        self.info = self._describe(attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._store.root, self.info.tables)

    def read(self, region: Region, plane: int, out: Array, damaged: Damaged | None = None) -> None:
        """Pixels of level 0; see `Source.read`."""
        depth, z = self.info.depth, self.info.z
        rest, at_z = divmod(plane, z)
        at_t, group = divmod(rest, len(self.info.channels) // depth)
        wanted = slice(group * depth, (group + 1) * depth)
        try:
            pixels = self._array.read(region, at_t, at_z, wanted)
        except StoreError as error:
            if damaged is None:
                raise SourceError(error.what, str(self._store), "Verify it: ngfftile verify.") from error
            self._read_around(region, at_t, at_z, wanted, out, damaged)
            return
        out[...] = pixels.transpose(1, 2, 0)

    def _read_around(self, region: Region, t: int, z: int, wanted: slice, out: Array, damaged: Damaged) -> None:
        """Chunk by chunk, so that what can be read is."""
        side = self._array.chunk
        for y in range(region.y // side.y * side.y, region.bottom, side.y):
            for x in range(region.x // side.x * side.x, region.right, side.x):
                place = Region(x, y, side.x, side.y).clip(region)
                target = out[place.inside(region)]
                try:
                    target[...] = self._array.read(place, t, z, wanted).transpose(1, 2, 0)
                except StoreError as error:
                    damaged(place, error.what)
                    target[...] = self.info.background

    @cached_property
    def _associated(self) -> Mapping[str, str]:
        found = self._facts.get("associated")
        return {role: str(about["path"]) for role, about in found.items()} if isinstance(found, dict) else {}

    def associated(self, role: str) -> Array:
        """One associated image."""
        place = Store(self._store.root / self._store.inside(self._associated[role]))
        image = ngff.parse(place.attributes(""), str(place))
        array = LevelArray(place, image.datasets[0].path, image.axes, whole=True)
        return np.ascontiguousarray(array.read(Region(0, 0, array.size.x, array.size.y)).transpose(1, 2, 0))

    @property
    def objects(self) -> Iterator[Path]:
        """All files that its pixels, and those of its labels, are read from."""
        yield from _objects(self._store, self._image)
        for name in self.labels:
            try:
                label = Store(self._store.root / LABELS / self._store.inside(name))
                yield from _objects(label, ngff.parse(label.attributes(""), str(label)))
            except (StoreError, MissingError):
                continue  # opening the label says what is wrong

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the label images."""
        return self._store.labels()

    def label(self, name: str) -> Source:
        """A label image as a source of its own."""
        return open_ngff(self._store.root / LABELS / self._store.inside(name))

    def _describe(self, attributes: Mapping[str, Any]) -> SourceInfo:
        array, image, facts = self._array, self._image, self._facts
        origin = dict(facts.get("source") or {})
        unit = ngff.MICROMETRES.get(image.unit or "", 1.0)
        first = image.datasets[0]
        x, y = image.axes.index("x"), image.axes.index("y")
        rgb = image.rgb(array.channels, array.dtype)
        mpp = image.mpp()
        icc = facts.get("icc")
        return SourceInfo(
            reader="ngff",
            format=f"OME-Zarr {image.version}",
            vendor=str(origin.get("vendor") or "ome"),
            size=array.size,
            channels=RGB if rgb else _channels(image, array.channels, facts),
            rgb=rgb,
            dtype=array.dtype.name,
            tile=Size(min(array.chunk.x, array.size.x), min(array.chunk.y, array.size.y)),
            mpp=mpp,
            mpp_source=str(facts.get("mpp_source") or "the store's scale") if mpp else "the store does not say",
            levels=self._sizes(),
            files=(self._store.root,),
            objective_power=facts.get("objective_power"),
            acquired=facts.get("acquired"),
            associated={
                role: Size(about["width"], about["height"]) for role, about in (facts.get("associated") or {}).items()
            },
            properties=facts.get("properties") or {},
            icc=self._store.whole(self._store.inside(icc["path"])) if icc else None,
            tables=self._tables(attributes),
            notes=tuple(facts.get("notes") or ()),
            z=array.z,
            t=array.t,
            z_step=_step(image, "z", ngff.MICROMETRES),
            t_step=_step(image, "t", _SECONDS),
            label=image.label,
            ome_xml=self._ome_xml(),
            recompress="of OME-Zarr only the pixels are taken",
            origin=dict(facts) | {"image-label": _label_block(attributes)},
            plain=Mpp(first.scale[x], first.scale[y]),
            offset_x=first.translation[x] * unit,
            offset_y=first.translation[y] * unit,
        )

    def _sizes(self) -> tuple[Size, ...]:
        image = self._image
        return tuple(
            LevelArray(self._store, self._store.inside(d.path), image.axes, whole=False).size for d in image.datasets
        )

    def _ome_xml(self) -> str | None:
        try:
            return self._store.whole("OME/METADATA.ome.xml").decode()
        except (StoreError, UnicodeDecodeError):
            return None

    def _tables(self, attributes: Mapping[str, Any]) -> bytes:
        """What changes with the content: of a store of ours the manifests, of another's its objects."""
        digest = hashlib.sha256(json.dumps(attributes, sort_keys=True, default=str).encode())
        if not self._facts.get("manifest"):
            _sample(self._store, self._image.datasets[0].path, digest)
        for name in self.labels:
            label = Store(self._store.root / LABELS / name)
            digest.update(name.encode())
            try:
                about = label.attributes("")
                digest.update(json.dumps(about, sort_keys=True, default=str).encode())
                if "ngfftile" not in about:
                    _sample(label, ".", digest)
            except (StoreError, MissingError):
                continue  # opening the label says what is wrong
        return digest.digest()


def _document(store: Store, path: str) -> dict[str, Any]:
    """An array's metadata, of Zarr v3 or v2."""
    three = (store.root / path / "zarr.json").exists()
    return store.json(f"{path}/{'zarr.json' if three else '.zarray'}")


def _objects(store: Store, image: Multiscale) -> Iterator[Path]:
    """What the pixels of level 0 are made of."""
    path = store.inside(image.datasets[0].path)
    yield from (store.root / name for name in ROOTS)
    yield from (store.root / path / name for name, _ in store.sizes(path) if _OBJECT.fullmatch(name))


def _sample(store: Store, path: str, digest: Any) -> None:
    """Names and sizes of all objects, and the bytes of both ends of up to 1,024 of them."""
    every = store.sizes(path)
    digest.update(repr(every).encode())
    step = -(-len(every) // _SAMPLES) or 1
    for name, size in every[::step]:
        with store.open(f"{path}/{name}") as file:
            head = min(size, _EDGE)
            digest.update(file.read(0, head) + file.read(size - head, head))


def _channels(image: Multiscale, count: int, facts: Mapping[str, Any]) -> tuple[Channel, ...]:
    if len(image.channels) != count:
        return tuple(Channel(f"channel {i}", PALETTE[i % len(PALETTE)]) for i in range(count))
    waves = facts.get("channels") or []
    more = waves if len(waves) == count else [{}] * count
    return tuple(
        Channel(c.name, c.color, c.window, about.get("emission_nm"), about.get("excitation_nm"))
        for c, about in zip(image.channels, more, strict=True)
    )


def _step(image: Multiscale, axis: str, units: Mapping[str, float]) -> float | None:
    factor = units.get(image.units.get(axis, ""))
    return image.datasets[0].scale[image.axes.index(axis)] * factor if factor else None


def _label_block(attributes: Mapping[str, Any]) -> dict[str, Any]:
    block = attributes.get("ome", attributes).get("image-label")
    return {k: v for k, v in block.items() if k != "version"} if isinstance(block, dict) else {}
