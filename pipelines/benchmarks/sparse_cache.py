"""Finished caches of any number of images that take the disk of one shard and of their done files; for `scale`.

Run by `scale_growth`: python sparse_cache.py CACHE IMAGES UNIT whole|table.
Every shard is a hard link to one real file, and every done file is real: own rows, images, hashes and checksums.
In: a folder and a number of images.   Out: an open cache, and the options of an extraction that finds it finished.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loffta.config import BackboneConfig, ExtractConfig
from loffta.extraction.jobs import look_asked, make_request
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import OK, Audit, ImageStatus, encode_done
from loffta.store.recipe import StoreInfo
from loffta.store.shard import ShardWriter
from loffta.store.table import ImageTable
from loffta.store.texts import Names, Texts
from loffta.tokens import TokenSpec

NET, TAP, DIM, CLASSES, THUMB_PX = "vit_base_patch16_224", "blocks.11", 768, 1000, 16
MAX_LINKS = 60_000  # to one file: ext4 has room for 65,000
_PIECE = 1 << 20


def options(root: Path, share: tuple[int, int] = (0, 1)) -> ExtractConfig:
    """Of the extraction whose result the cache is: mean tokens of the last layer."""
    net = BackboneConfig(name=NET, weights="random:0", taps=TAP)
    look = {"background": "#000000", "range": "clip"}
    return ExtractConfig(
        source="folder:images", cache=root, backbones=(net,), kinds=("mean",), share=share, device="cpu", **look
    )


def make(root: Path, n_images: int, unit_images: int, *, whole: bool) -> None:
    """A finished cache, or the table of one alone."""
    table = list_images(n_images)
    if whole:
        make_cache(root, table, unit_images)
    else:
        root.mkdir()
        write_table(root / "images.parquet", table)


def list_images(n_images: int) -> ImageTable:
    """The image set: a class per thousandth of it, every 26th image for validation."""
    rows = np.arange(n_images)
    labels = rows * CLASSES // n_images
    splits = Names(("train", "val"), (rows % 26 == 25).astype(np.int32))
    classes = tuple(f"class {i}" for i in range(CLASSES))
    return ImageTable("folder:images", Texts(_keys(labels)), 1000 + rows, splits, labels, classes)


def write_table(path: Path, table: ImageTable) -> None:
    """A cache's table, whose old digest nobody looks at beside the new one: it would take minutes at 100 million."""
    table.__dict__["digest"] = "0" * 32
    path.write_bytes(table.to_parquet())


def _keys(labels: NDArray[np.int64]) -> pa.ChunkedArray[Any]:
    """train/n<class>/<row>.JPEG: 30 letters each, as bytes of digits."""
    like = np.frombuffer(b"train/n00000000/000000000.JPEG", np.uint8)
    pieces = []
    for first in range(0, len(labels), _PIECE):
        here = labels[first : first + _PIECE]
        letters = np.tile(like, (len(here), 1))
        for numbers, last in ((here, 14), (np.arange(first, first + len(here)), 24)):
            for place in range(8):
                letters[:, last - place] += (numbers // 10**place % 10).astype(np.uint8)
        ends = pa.py_buffer(np.arange(len(here) + 1, dtype=np.int32) * len(like))
        pieces.append(pa.Array.from_buffers(pa.string(), len(here), [None, ends, pa.py_buffer(letters.tobytes())]))
    return pa.chunked_array(pieces, pa.string())


def make_cache(root: Path, table: ImageTable, unit_images: int) -> Cache:
    """A cache in which nothing is missing: thumbnails, and mean tokens of one layer."""
    config = options(root)
    cache = Cache.create(root, table, unit_images=unit_images, thumb_px=THUMB_PX, look=look_asked(config))
    spec = TokenSpec(TAP, 14, 14, 1, DIM)
    request = make_request(config.backbones[0], None, config)
    recipe = {name: request[name] for name in ("backbone", "pool", "view", "precision", "dtype")}
    recipe |= {"weights": "0" * 32, "input": {"image_px": 224, "resize": "squash", "interpolation": "bicubic"}}
    weights = {"spec": "random:0", "path": None, "size": None, "mtime_ns": None, "adapter": None}
    store = cache.create_store(StoreInfo(recipe, request, weights, (spec,)))
    for array in (cache.thumbs(create=True), *cache.add_arrays(store, "mean", (spec,), "float16")):
        _fill(cache, array)
    return cache


def _fill(cache: Cache, array: CachedArray) -> None:
    """One real shard, links to it for the other units, and a done file of each."""
    layout, paths = array.layout, array.paths
    shard, crcs = paths.shard(0, layout.ndim), _write_shard(array)
    like = _done_like(array, crcs)
    paths.done_folder.mkdir(parents=True)
    for unit in range(cache.n_units):
        rows = cache.rows_of_unit(unit)
        if unit and unit % MAX_LINKS == 0:
            shutil.copyfile(shard, shard := paths.shard(unit, layout.ndim))
        elif unit:
            os.link(shard, paths.shard(unit, layout.ndim))
        numbered = like.slice(0, len(rows)).set_column(0, "row", pa.array(np.arange(rows.start, rows.stop)))
        made = {"batch_size": 32, "device": "cpu", "images": cache.table.identity(rows), "array": layout.facts}
        numbered = numbered.replace_schema_metadata({b"loffta": json.dumps(made).encode()})
        pq.write_table(numbered, paths.done(unit), write_page_checksum=True)


def _write_shard(array: CachedArray) -> list[int]:
    """The first unit's shard, of random bytes; the crc32c of its chunks."""
    layout, rng = array.layout, np.random.default_rng(0)
    fsync, os.fsync = os.fsync, lambda _: None  # of what is deleted in a minute
    try:
        writer = ShardWriter(array.paths.shard(0, layout.ndim), layout.unit_images)
        writer.reserve(list(range(layout.unit_images)), layout.chunk_bytes)
        chunks = rng.standard_normal((layout.unit_images, layout.chunk_bytes // layout.dtype.itemsize))
        crcs = writer.write(0, chunks.astype(layout.dtype))
        writer.commit()
    finally:
        os.fsync = fsync
    return crcs


def _done_like(array: CachedArray, crcs: list[int]) -> pa.Table:
    """What the done file of a whole unit holds."""
    rng, n_taps = np.random.default_rng(1), len(array.taps)
    images = [ImageStatus(row, OK, "", 500, 375, rng.bytes(16).hex(), pages=1) for row in range(len(crcs))]
    peaks = rng.random((len(crcs), n_taps)).tolist()
    audits = [Audit([True] * n_taps, peak, [crc]) for peak, crc in zip(peaks, crcs, strict=True)]
    with pq.ParquetFile(pa.BufferReader(encode_done(images, audits, {}))) as file:
        return file.read(use_threads=False)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), whole=sys.argv[4] == "whole")
