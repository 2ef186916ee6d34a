"""Stage one with a network whose tokens cost nothing, against what decoding, casting, checksums and writing allow.

In: photographs, a folder on a disk and one in memory.   Out: printed tables. `extract.py --null` runs it, and
`gpu_ratios.py` takes its parts.
Parts:   Each is run alone by as many threads as there are CPUs, on the same images and bytes: decoding as loffta does
         it; one pass that casts a tap and finds its extremes, into a ready buffer; crc32c; and writing whole files,
         one a thread, each begun early and made durable by fsync.
Bound:   All parts want the same cores: the seconds of decoding, casting and checksums, and the processor time of the
         raw write, the kernel's threads included, over the number of CPUs. Where the raw write with its fsync takes
         longer than that, its seconds. It is taken anew in each pair, beside the extraction; nothing else may run.
Loop:    What the cores really allow, with the disk and the memory at work at once: one loop a CPU that decodes, casts,
         checks and writes an image at a time to files of its own. Nothing is between the parts: no queue, no order of
         the images, no unit that is put in place.
Writers: A storage that takes so many bytes a second from each thread, however many there are (a write sleeps that
         long), shows on few cores what more writers bring: the limit is their number times that, or the bound.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from clock import alternate, ratio_text
from crc32c import crc32c

from loffta.backbones import TapTokens, WeightsSource
from loffta.config import BackboneConfig, ExtractConfig
from loffta.extraction.extract import extract
from loffta.files.durable import begin_sync
from loffta.images.batches import ImageStream, PixelBatch, decoding_threads
from loffta.images.geometry import PixelGeometry
from loffta.images.sources import open_source
from loffta.machine import process
from loffta.machine.process import StopFlag
from loffta.store import sink
from loffta.tokens import TokenSpec

N_TAPS, SIDE, DIM, PX, THUMB_PX = 12, 14, 768, 224, 112
IMAGE_BYTES = N_TAPS * SIDE * SIDE * DIM * 2
UNIT, BATCH, GOAL = 256, 32, 0.8
STREAM_BYTES = 100e6  # a second, that the simulated storage takes from each writer


class NullBackbone:
    """12 taps of random numbers that are there before the first image comes."""

    def __init__(self, batch: int = BATCH, device: str | torch.device = "cpu") -> None:
        self.name, self.macs = "null", 0
        self.weights, self.geometry = WeightsSource("random:0", "0" * 32), PixelGeometry(PX)
        self.mean, self.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self.specs = tuple(TokenSpec(f"blocks.{i}", SIDE, SIDE, 0, DIM) for i in range(N_TAPS))
        rng = torch.Generator().manual_seed(0)
        self.tokens = {s.tap: torch.randn(batch, SIDE, SIDE, DIM, generator=rng).to(device) for s in self.specs}
        self.batch, self.device = batch, torch.device(device)

    def __call__(self, pixels: torch.Tensor, taps: Sequence[str]) -> dict[str, TapTokens]:
        """The first of its tokens, as many as there are images."""
        grids = {tap: self.tokens[tap][: len(pixels)] for tap in taps}
        return {tap: TapTokens(grid, grid.new_zeros(len(grid), 0, DIM)) for tap, grid in grids.items()}


class Inline(Executor):
    """Runs what it is given at once."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        future.set_result(work(*args, **kwargs))
        return future


@dataclass
class Parts:
    """What stage one consists of, each alone on all CPUs; every method works through all images."""

    photographs: Path
    n_images: int
    network: NullBackbone
    n_threads: int = field(default_factory=process.available_cpus)

    @cached_property
    def taps(self) -> list[torch.Tensor]:
        """The network's tokens on the host, as float32."""
        return [tap.cpu() for tap in self.network.tokens.values()]

    def decode(self) -> None:
        """Reads, decodes and resizes all, as an extraction does."""
        with decoding_threads(self.n_threads) as pool:
            for _ in self._decoded(pool, range(self.n_images), self.network.batch):
                pass

    def cast(self) -> None:
        """float32 to float16, and the extremes of each tap and image."""
        self._in_threads(self._cast_one, ready_buffer)

    def check(self) -> None:
        """crc32c of every chunk."""

        def one_image(_: int, chunks: np.ndarray) -> None:
            for chunk in chunks:
                crc32c(chunk.data)

        self._in_threads(one_image, lambda: np.ones((N_TAPS, IMAGE_BYTES // N_TAPS), np.uint8))

    def write(self, folder: Path) -> None:
        """Files of a unit each, durable."""
        block = np.random.default_rng(0).integers(0, 256, IMAGE_BYTES, dtype=np.uint8).data
        folder.mkdir()

        def one_unit(first: int) -> None:
            with (folder / str(first)).open("xb", buffering=0) as file:
                for i in range(min(UNIT, self.n_images - first)):
                    file.write(block)
                    begin_sync(file.fileno(), i * len(block), len(block))
                os.fsync(file.fileno())

        with ThreadPoolExecutor(self.n_threads) as pool:
            list(pool.map(one_unit, range(0, self.n_images, UNIT)))

    def loop(self, folder: Path) -> None:
        """All parts, an image at a time on each CPU."""
        folder.mkdir()

        def share(thread: int) -> None:
            torch.set_num_threads(1)
            buffer = ready_buffer()
            chunks = buffer.numpy().reshape(N_TAPS, -1).view(np.uint8)
            rows = range(thread, self.n_images, self.n_threads)
            images = self._decoded(Inline(), rows, 1)
            for first in range(0, len(rows), UNIT):
                with (folder / f"{thread}-{first}").open("xb", buffering=0) as file:
                    for i, row in enumerate(rows[first : first + UNIT]):
                        next(images)
                        self._cast_one(row, buffer)
                        for chunk in chunks:
                            crc32c(chunk.data)
                        file.write(chunks.data)
                        begin_sync(file.fileno(), i * chunks.nbytes, chunks.nbytes)
                    os.fsync(file.fileno())

        with ThreadPoolExecutor(self.n_threads) as pool:
            list(pool.map(share, range(self.n_threads)))
        torch.set_num_threads(self.n_threads)

    def whole(self, cache: Path) -> None:
        """All of `loffta extract`."""
        config = ExtractConfig(
            source=f"folder:{self.photographs}",
            cache=cache,
            backbones=(BackboneConfig(name="null", weights="random:0", taps="all", image_px=PX),),
            kinds=("grid",),
            batch_size=self.network.batch,
            device=str(self.network.device),
        )
        extract(config, open_source(config.source), lambda _: self.network, StopFlag())

    def _decoded(self, pool: Executor, rows: Sequence[int], batch: int) -> Iterator[PixelBatch]:
        """Batches of these images, decoded ahead by two where the pool is of threads."""
        source = open_source(f"folder:{self.photographs}")
        sizes = [self.network.geometry, PixelGeometry(THUMB_PX, interpolation="bilinear")]
        for images in ImageStream(source, source.listing(), sizes, pool, [(0, rows)], n_ahead=2 * batch):
            yield from images.batches(batch)

    def _cast_one(self, i: int, ready: torch.Tensor) -> None:
        for tap, out in zip(self.taps, ready, strict=True):
            torch.aminmax(tap[i % len(tap)])
            out.copy_(tap[i % len(tap)])

    def _in_threads(self, work: Callable[[int, Any], None], ready: Callable[[], Any]) -> None:
        """`work` on every image, on one thread for each CPU, each with a buffer of its own."""

        def share(thread: int) -> None:
            torch.set_num_threads(1)
            buffer = ready()
            for i in range(thread, self.n_images, self.n_threads):
                work(i, buffer)

        with ThreadPoolExecutor(self.n_threads) as pool:
            list(pool.map(share, range(self.n_threads)))
        torch.set_num_threads(self.n_threads)


def ready_buffer() -> torch.Tensor:
    """For one image's tokens as they are stored."""
    return torch.empty(N_TAPS, SIDE, SIDE, DIM, dtype=torch.float16)


def bound_s(seconds: dict[str, float], place: str) -> float:
    """Seconds that the parts together take at least: on the cores in turn, on the disk beside them."""
    cores = sum(seconds[part] for part in ("decode", "cast", "check", f"busy, {place}"))
    return max(cores, seconds[f"write, {place}"])


def busy_s() -> float:
    """Seconds that a CPU of this machine has been busy since it was started, for whomever, on the average of all."""
    times = psutil.cpu_times()._asdict()
    idle = ("idle", "iowait", "steal", "guest", "guest_nice")  # what guests take is in `user`, too
    return sum(seconds for name, seconds in times.items() if name not in idle) / (os.cpu_count() or 1)


def measure_null(parts: Parts, places: dict[str, Path], n_pairs: int) -> dict[str, list[tuple[float, float]]]:
    """Every part and the extraction in turns.

    Args:
        places: "memory" and, if need be, "disk": folders.
    Returns:
        Per place the seconds of bound and extraction, for every pair.
    """
    busy: dict[str, float] = {}

    def write_busily(place: str, folder: Path) -> None:
        before = busy_s()
        parts.write(folder)
        busy[f"busy, {place}"] = busy_s() - before

    jobs: dict[str, Callable[[], None]] = {"decode": parts.decode, "cast": parts.cast, "check": parts.check}
    for place, folder in places.items():
        jobs[f"write, {place}"] = partial(write_busily, place, folder / "raw")
        jobs[f"loop, {place}"] = lambda folder=folder: parts.loop(folder / "raw")
        jobs[f"loffta, {place}"] = lambda folder=folder: parts.whole(folder / "cache")

    def delete(_: str) -> None:
        for folder in places.values():
            for name in ("raw", "cache"):
                shutil.rmtree(folder / name, ignore_errors=True)

    alternate(jobs, 0, after=delete)  # warms up
    found = [alternate(jobs, repeat, after=delete) | busy for repeat in range(n_pairs)]
    print(f"\nnull network, {parts.n_images} images, {parts.n_threads} CPUs   images/s   GB/s")
    for name in jobs:
        rate = parts.n_images / statistics.median(seconds[name] for seconds in found)
        print(f"  {name:36} {rate:10.1f} {rate * IMAGE_BYTES / 1e9:6.2f}")
    pairs = {place: [(bound_s(s, place), s[f"loffta, {place}"]) for s in found] for place in places}
    for place, both in pairs.items():
        rate = parts.n_images / statistics.median(bound for bound, _ in both)
        print(f"  {f'bound, {place}':36} {rate:10.1f} {rate * IMAGE_BYTES / 1e9:6.2f}")
    for place, both in pairs.items():
        print(f"  {ratio_text(both, f'of the bound, {place}', GOAL)}", flush=True)
        loops = [(s[f"loop, {place}"], s[f"loffta, {place}"]) for s in found]
        print(f"  {ratio_text(loops, f'of one loop a CPU, {place}', GOAL)}", flush=True)
    return pairs


@contextmanager
def slow_storage(n_writers: int) -> Iterator[None]:
    """So many writers, and a storage that takes STREAM_BYTES a second from each of them."""
    real_count, real_write = sink.count_writers, os.pwritev

    def slow(fd: int, buffers: Sequence[memoryview], place: int) -> int:
        start = time.perf_counter()
        n_bytes = real_write(fd, buffers, place)
        time.sleep(max(0.0, n_bytes / STREAM_BYTES - (time.perf_counter() - start)))
        return n_bytes

    sink.count_writers, os.pwritev = (lambda: n_writers), slow
    try:
        yield
    finally:
        sink.count_writers, os.pwritev = real_count, real_write


def measure_writers(parts: Parts, folder: Path, bound: float, writers: Sequence[int]) -> None:
    """How the rate grows with the writers, and what it stops at.

    Args:
        bound: images/s, of the cores.
    """
    print(f"\nwriters   images/s   limit   of it   a storage of {STREAM_BYTES / 1e6:.0f} MB/s a writer", flush=True)
    for n_writers in writers:
        with slow_storage(n_writers):
            start = time.perf_counter()
            parts.whole(folder / "cache")
            rate = parts.n_images / (time.perf_counter() - start)
        shutil.rmtree(folder / "cache")
        storage = n_writers * STREAM_BYTES / IMAGE_BYTES
        name = "the storage" if storage < bound else "the cores: decoding, casting, checksums, writing"
        limit = min(storage, bound)
        print(f"{n_writers:7} {rate:10.1f} {limit:7.1f} {rate / limit:7.2f}   {name}", flush=True)
