"""A backbone of a few small matrices and an image set of generated PNGs: extraction without timm or weights.

`Forked(fakes.main, [CACHE, "--images", "40"])` extracts into CACHE, in a process that a test can kill.
All arithmetic is exact in float32 (whole numbers below 2**24, then a shift), so bytes cannot depend on batch sizes.
"""

import argparse
import io
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from loffta.backbones import TapTokens, WeightsSource
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import LofftaError
from loffta.extraction.extract import extract
from loffta.images.geometry import PixelGeometry
from loffta.machine.process import StopFlag
from loffta.store.table import ImageTable
from loffta.store.target_codec import encode_target
from loffta.targets import IGNORE, IGNORE_16, BoxList, NativeTarget
from loffta.tokens import TokenSpec

UNIT = 8
CLASSES = {"mask": ("sky", "dog", "cat"), "instances": (), "depth": (), "boxes": ("dog", "cat")}
DONE_COLUMNS = ("row", "status", "reason", "width", "height", "blake2b", "finite", "abs_max", "crc32c")


class FakeBackbone:
    """Two taps [4, 4, 6] with two prefix tokens, and a coarser one [2, 2, 10] without."""

    def __init__(self, name="fake", *, seed=0, image_px=16, delay_s=0.0, before=None):
        rng = np.random.default_rng(seed)
        self.name = name
        self.weights = WeightsSource("random:0", f"{seed:032x}")
        self.geometry = PixelGeometry(image_px)
        self.mean, self.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self.specs = (
            TokenSpec("blocks.0", 4, 4, 2, 6),
            TokenSpec("blocks.1", 4, 4, 2, 6),
            TokenSpec("stages.2", 2, 2, 0, 10),
        )
        self.matrices = {s.tap: self._matrix(rng, s) for s in self.specs}
        self.batches = []  # how many images each call was given
        self._delay_s, self._before = delay_s, before

    def __call__(self, pixels, taps):
        self.batches.append(len(pixels))
        if self._before is not None:
            self._before(self)
        time.sleep(self._delay_s)
        return {spec.tap: self._tokens(pixels.float(), spec) for spec in self.specs if spec.tap in taps}

    def _matrix(self, rng, spec):
        side = self.geometry.image_px // spec.height
        return torch.from_numpy(rng.integers(-3, 4, size=(3 * side * side, spec.dim))).float()

    def _tokens(self, pixels, spec):
        b, side = len(pixels), self.geometry.image_px // spec.height
        patches = pixels.reshape(b, 3, spec.height, side, spec.width, side).permute(0, 2, 4, 1, 3, 5)
        grid = patches.reshape(b, spec.height, spec.width, -1) @ self.matrices[spec.tap] / 256
        return TapTokens(grid, grid.flatten(1, 2)[:, : spec.n_prefix] * 2)


class PngSource:
    """Generated images of many sizes; `broken` replaces the bytes of some, and more images are a grown set."""

    def __init__(self, n_images, broken=None):
        self._broken = broken or {}
        self._keys = [f"{i:04d}.png" for i in range(n_images)]
        self.reads = Counter()
        self._lock = threading.Lock()

    def listing(self):
        n = len(self._keys)
        return ImageTable(
            source="fake:png",
            keys=list(self._keys),
            sizes=np.array([_size(self.encoded(i)) for i in range(n)], dtype=np.int64),
            splits=["train" if i % 4 else "test" for i in range(n)],
            labels=np.arange(n, dtype=np.int64) % 3,
            classes=("a", "b", "c"),
        )

    def read(self, key):
        with self._lock:
            self.reads[key] += 1
        data = self.encoded(int(key.removesuffix(".png")))
        if isinstance(data, Exception):
            raise data
        return data

    def encoded(self, i):
        return self._broken[i] if i in self._broken else png(picture(i))


class DenseSource(PngSource):
    """The same images with targets of every kind, mask/0003 and so on; `broken` may name these, too, and None is none.

    `seed` changes all targets and no image.
    """

    def __init__(self, n_images, broken=None, *, seed=0, kinds=tuple(CLASSES)):
        super().__init__(n_images, broken)
        self._seed, self._kinds = seed, kinds

    def listing(self):
        paths = {kind: [f"{kind}/{key}" for key in self._keys] for kind in self._kinds}
        there = {kind: [p if self._broken.get(p, p) else None for p in found] for kind, found in paths.items()}
        classes = {kind: CLASSES[kind] for kind in self._kinds if CLASSES[kind]}
        return replace(super().listing(), targets=there, target_classes=classes)

    def read(self, key):
        kind, slash, name = key.partition("/")
        if not slash:
            return super().read(key)
        with self._lock:
            self.reads[key] += 1
        if isinstance(self._broken.get(key), Exception):
            raise self._broken[key]
        if key in self._broken:
            return self._broken[key]
        return encode_target(self.target(kind, int(name.removesuffix(".png"))))

    def target(self, kind, i):
        """Over image `i`."""
        return random_target(kind, i + 1000 * self._seed, picture(i).shape[:2])


def _size(data):
    return len(data) if isinstance(data, bytes) else 1


def picture(i):
    """The pixels of image `i`, [H, W, 3] uint8."""
    rng = np.random.default_rng(i)
    height, width = rng.integers(10, 40, size=2)
    return rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def random_target(kind, seed, size=None):
    """A target that no two seeds share, with what is ignored, invalid or a crowd in it."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(10, 40, size=2).tolist() if size is None else size
    if kind == "boxes":
        n = int(rng.integers(0, 4))
        low, high = np.sort(rng.random((2, n, 2)), axis=0)
        corners = np.concatenate([low, high], 1) * [width, height, width, height]
        return NativeTarget(kind, height, width, boxes=BoxList(corners, rng.integers(0, 2, n), rng.random(n) < 0.3))
    if kind == "depth":
        values = rng.uniform(0.1, 9, (height, width)).astype(np.float32)
        values[rng.random((height, width)) < 0.1] = 0
    else:
        n, ignored, dtype = (3, IGNORE, np.uint8) if kind == "mask" else (400, IGNORE_16, np.uint16)
        values = rng.integers(0, n, (height, width)).astype(dtype)
        values[rng.random((height, width)) < 0.1] = ignored
        if kind == "instances":  # numbered without gaps, as decoding leaves them
            objects = np.setdiff1d(values, [0, IGNORE_16])
            values = np.where(np.isin(values, objects), 1 + np.searchsorted(objects, values), values).astype(dtype)
    return NativeTarget(kind, height, width, map=values)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def fake_config(cache, **options):
    """An ExtractConfig for the backbones `fake`, or as many as `names` says."""
    taps = options.pop("taps", "all")
    backbones = [
        BackboneConfig(name=name, weights="random:0", taps=taps, image_px=16) for name in options.pop("names", ["fake"])
    ]
    defaults = {"source": "fake:png", "kinds": ("grid", "prefix", "mean"), "batch_size": 3, "unit_images": UNIT}
    return ExtractConfig(cache=cache, backbones=tuple(backbones), **(defaults | options))


def cache_files(root, *patterns):
    """Bytes of every file of a cache by relative name; done files by their columns, for their footer says when."""
    names = sorted(p for pattern in (patterns or ("**/*",)) for p in root.glob(pattern) if p.is_file())
    return {str(p.relative_to(root)): done_columns(p) if "done" in p.parts else p.read_bytes() for p in names}


def done_columns(path):
    return pq.read_table(path).select(DONE_COLUMNS).to_pydict()


def main(words):
    """Prints `begin`, `batch` ahead of every forward pass, `end`; the exit code is the worst of all processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--delay-s", type=float, default=0.002)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--processes", type=int, default=1, help="this many at once, by fork")
    options = parser.parse_args([*map(str, words)])
    torch.set_num_threads(1)
    if options.processes == 1:
        return run_child(options)
    children = []
    for _ in range(options.processes):
        pid = os.fork()
        if pid == 0:
            return run_child(options)
        children.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF for pid in children)  # a signal's is negative


def say(line):
    """One write for a line and its end: several processes share the pipe."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def run_child(options):
    stop = StopFlag().listen()
    backbone = FakeBackbone(delay_s=options.delay_s, before=lambda _: say("batch"))
    config = fake_config(options.cache, batch_size=options.batch_size, dtype=options.dtype)
    source = PngSource(options.images)
    source.listing()
    say("begin")
    try:
        report = extract(config, source, lambda _: backbone, stop)
    except LofftaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    say(f"end {report.units}")
    return 0
