"""zarr v3 metadata of loffta's arrays, both ways.

Out: the zarr.json of an array in format 1.   In: any zarr.json, told apart into what the direct reader can take
(uncompressed inner chunks that hold whole taps of one image), the same with packed chunks, and what must go through
zarr-python.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from loffta.errors import DamageFound, LofftaError
from loffta.files.documents import from_json
from loffta.store.reads import read_file, reason
from loffta.targets import TARGET_KINDS
from loffta.words import brief

CRC_BYTES = 4
_MAX_SIDE = 1 << 40  # of an axis: more is no array, and would overflow what is computed from it
# the zarr data types that are a numpy type of the same name; bfloat16 and the like are not
_NUMPY_TYPES = (
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *(f"float{b}" for b in (16, 32, 64)),
)
_CRC = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_ON_BYTES = ("zstd", "blosc")  # codecs of packed chunks, behind `bytes`
_ON_NUMBERS = ("numcodecs.pcodec",)  # in its place


@dataclass(frozen=True)
class ArrayLayout:
    """Shape and chunking of one array: axis 0 is images, sharded by unit; an inner chunk is part of one image."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit_images: int
    chunk: tuple[int, ...]  # inner chunk; chunk[0] is 1
    crc: bool = True  # every inner chunk is followed by its crc32c
    index_at_end: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] | None = None  # of packed chunks, as in zarr.json; done files hold crcs of the plain ones

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one image's part of the array."""
        return self.shape[1:]

    @property
    def chunks_per_image(self) -> int:
        """Inner chunks that one image has: its taps for grids, else 1."""
        return math.prod(s // c for s, c in zip(self.shape[1:], self.chunk[1:], strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk without its crc32c."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @property
    def stored_chunk_bytes(self) -> int:
        """Bytes that one inner chunk takes in the shard."""
        return self.chunk_bytes + (CRC_BYTES if self.crc else 0)

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps along axis 1, empty for arrays that have none."""
        return tuple(self.attributes.get("taps", ()))

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the meaning of a unit's bytes; done files keep it, so that an edited zarr.json is noticed."""
        return {
            **self.attributes,
            "dtype": self.dtype.name,
            "shape": list(self.item_shape),
            "chunk": list(self.chunk),
            "unit_images": self.unit_images,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], n_rows: int) -> ArrayLayout:
        """The layout of `n_rows` images with these facts; ValueError, KeyError or TypeError where they are none."""
        rest = {name: value for name, value in facts.items() if name not in ("dtype", "shape", "chunk", "unit_images")}
        shape = (n_rows, *facts["shape"])
        layout = cls(shape, np.dtype(facts["dtype"]), facts["unit_images"], tuple(facts["chunk"]), attributes=rest)
        again = _plain_layout(from_json(layout.to_json()))
        if again is None:
            raise ValueError("these are no facts of an array of format 1")
        return again

    def refuse_packed(self, where: Path) -> None:
        """Raises a LofftaError where the array is packed: a packed copy is read, and nothing is added to it."""
        if self.codec is not None:
            raise LofftaError(
                "this array is packed: nothing can be added to it",
                where=where,
                remedy="`loffta unpack CACHE --out DIR` gives the fast form; extract into that",
            )

    def resized(self, n_rows: int) -> ArrayLayout:
        """The same array with `n_rows` images."""
        return replace(self, shape=(n_rows, *self.shape[1:]))

    def to_json(self) -> bytes:
        """The array's zarr.json, byte for byte the same for the same layout."""
        number = _LITTLE if self.dtype.itemsize > 1 else {"name": "bytes"}
        inner = [number] if self.codec is None else [number, self.codec]
        if self.codec is not None and self.codec["name"] in _ON_NUMBERS:
            inner = [self.codec]
        sharding = {
            "chunk_shape": list(self.chunk),
            "codecs": [*inner, _CRC] if self.crc else inner,
            "index_codecs": [_LITTLE, _CRC],
            "index_location": "end" if self.index_at_end else "start",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        outer = (self.unit_images, *self.shape[1:])
        more = {"attributes": self.attributes, "storage_transformers": []}
        return _array_json(self.shape, self.dtype, outer, codecs, more, self._fill)

    @property
    def _fill(self) -> int | str:
        """What libraries give for a chunk that is not there."""
        if self.dtype.kind == "f":
            return "NaN"
        if self.attributes.get("kind") in TARGET_KINDS:
            return int(np.iinfo(self.dtype).max)  # a pixel to ignore: IGNORE or IGNORE_16
        return -128 if self.dtype == np.int8 else 0


def grid_layout(n_rows: int, shape: tuple[int, ...], dtype: Any, unit_images: int, **attributes: Any) -> ArrayLayout:
    """Layout of [n, L, H, W, D]: one inner chunk per image and tap, so one tap of one image is one exact read."""
    return ArrayLayout((n_rows, *shape), np.dtype(dtype), unit_images, (1, 1, *shape[1:]), attributes=attributes)


def image_layout(n_rows: int, shape: tuple[int, ...], dtype: Any, unit_images: int, **attributes: Any) -> ArrayLayout:
    """Layout of small per-image arrays (mean [n, L, D], prefix [n, L, P, D], thumbnails): one inner chunk an image."""
    return ArrayLayout((n_rows, *shape), np.dtype(dtype), unit_images, (1, *shape), attributes=attributes)


def table_json(shape: tuple[int, ...]) -> bytes:
    """The zarr.json of a small float32 array in one chunk, followed by its crc32c: an int8 array's scales."""
    return _array_json(shape, np.dtype(np.float32), shape, [_LITTLE, _CRC], {})


def _array_json(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunk: tuple[int, ...],
    codecs: list[dict[str, Any]],
    more: dict[str, Any],
    fill: int | str = "NaN",
) -> bytes:
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        # a missing shard must never pass for data: NaN poisons a loss visibly, zeros would not, a mask's are a class
        "fill_value": fill,
        "codecs": codecs,
        **more,
    }
    return json.dumps(document, indent=2).encode()


def array_dtype(kind: str, dtype: str) -> str:
    """What a kind is stored as in a store of `dtype`: int8 is for grids alone.

    A prefix or mean has one value per image and channel, too few to calibrate a range with, and is a hundredth of the
    bytes or less: it stays float16 there.
    """
    return "float16" if dtype == "int8" and kind != "grid" else dtype


def read_layout(path: Path) -> ArrayLayout | None:
    """Reads a zarr.json.

    Returns:
        The layout, or None where zarr-python must read the array. With a `codec`, `packed_reader` reads it.
    Raises:
        LofftaError: the file is missing or may not be read.
        DamageFound: it is no zarr v3 array.
    """
    try:
        document = from_json(read_file(path))
        if document["zarr_format"] != 3 or document["node_type"] != "array":
            raise KeyError("zarr_format 3, node_type array")
        return _plain_layout(document)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LofftaError(
            "cannot read the array's metadata: it is gone",
            where=path,
            remedy="is this a loffta cache? `loffta info CACHE` lists its arrays; `loffta extract` writes missing ones",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise DamageFound(
            f"cannot read the array's metadata ({type(error).__name__}: {reason(error)})",
            where=path,
            remedy="is this a loffta cache? `loffta verify CACHE` lists what is damaged, and mends it with --repair",
        ) from error


def _plain_layout(document: dict[str, Any]) -> ArrayLayout | None:
    codecs = document["codecs"]
    key = document["chunk_key_encoding"]
    if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed" or document.get("storage_transformers"):
        return None
    if key["name"] != "default" or key.get("configuration", {}).get("separator", "/") != ".":
        return None
    sharding = codecs[0]["configuration"]
    inner = [c["name"] for c in sharding["codecs"]]
    little = all(c.get("configuration", {}).get("endian", "little") == "little" for c in sharding["codecs"][:1])
    index = [c["name"] for c in sharding["index_codecs"]]
    codec = next((c for c in sharding["codecs"] if c["name"] in (*_ON_BYTES, *_ON_NUMBERS)), None)
    name = codec["name"] if codec else None
    packed = ([name] if name in _ON_NUMBERS else ["bytes", name]) + ["crc32c"]
    if inner not in (["bytes"], ["bytes", "crc32c"], packed) or not little or index != ["bytes", "crc32c"]:
        return None
    if document["data_type"] not in _NUMPY_TYPES or document["chunk_grid"]["name"] != "regular":
        return None
    shape, outer = tuple(document["shape"]), tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    chunk = tuple(sharding["chunk_shape"])
    if not all(type(side) is int and 0 < side <= _MAX_SIDE for side in (*shape[1:], *outer, *chunk)):
        raise ValueError("a side of its chunks is no number over 0")
    if type(shape[0]) is not int or not 0 <= shape[0] <= _MAX_SIDE or math.prod((*outer, 8)) > _MAX_SIDE:
        raise ValueError(f"its shape {brief(shape)} is no array's, or its shards are larger than any storage")
    whole_items = outer[1:] == shape[1:] and chunk[0] == 1 and chunk[2:] == shape[2:]
    if not whole_items or (len(shape) > 1 and chunk[1] not in (1, shape[1])):
        return None
    attributes = document.get("attributes", {})
    taps = attributes.get("taps", [])
    if not isinstance(taps, list) or not all(isinstance(tap, str) for tap in taps):
        raise ValueError("its taps are no list of names")
    return ArrayLayout(
        shape=shape,
        dtype=np.dtype(document["data_type"]),
        unit_images=outer[0],
        chunk=chunk,
        crc="crc32c" in inner,
        index_at_end=sharding.get("index_location", "end") == "end",
        attributes=attributes,
        codec=codec,
    )
