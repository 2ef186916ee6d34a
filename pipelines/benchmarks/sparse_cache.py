"""Finished caches of any number of images that take the disk of one shard and of their done files; for `scale`.

Every shard is a hard link to one real file, and every done file is real: own rows, images, hashes and checksums.
In: a folder and a number of images.   Out: an open cache, and the options of an extraction that finds it finished.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loffta.config import BackboneConfig, ExtractConfig
from loffta.extraction.jobs import look_asked, make_request
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import OK, Audit, ImageStatus, encode_done
from loffta.store.recipe import StoreInfo
from loffta.store.shard import ShardWriter
from loffta.store.table import ImageTable
from loffta.tokens import TokenSpec

NET, TAP, DIM, CLASSES, THUMB_PX = "vit_base_patch16_224", "blocks.11", 768, 1000, 16
MAX_LINKS = 60_000  # to one file: ext4 has room for 65,000


def options(root: Path, share: tuple[int, int] = (0, 1)) -> ExtractConfig:
    """Of the extraction whose result the cache is: mean tokens of the last layer."""
    net = BackboneConfig(name=NET, weights="random:0", taps=TAP)
    look = {"background": "#000000", "range": "clip"}
    return ExtractConfig(
        source="folder:images", cache=root, backbones=(net,), kinds=("mean",), share=share, device="cpu", **look
    )


def list_images(n_images: int) -> ImageTable:
    """The image set: a class per thousandth of it, every 26th image for validation."""
    rows = np.arange(n_images)
    labels = rows * CLASSES // n_images
    keys = [f"train/n{label:08d}/{row:09d}.JPEG" for row, label in enumerate(labels.tolist())]
    splits = np.where(rows % 26 == 25, "val", "train").tolist()
    return ImageTable("folder:images", keys, 1000 + rows, splits, labels, tuple(f"class {i}" for i in range(CLASSES)))


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
