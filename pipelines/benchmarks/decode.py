"""Decoding in threads against decoding in processes: photographs from JPEG and PNG files to squares of pixels.

Run:     python pipelines/benchmarks/decode.py [--images 256] [--pairs 7] [--workers 1 2]
Needs:   the extra `test` (scikit-image's and scikit-learn's sample photographs).
Expect:  threads at least as fast as processes; two minutes on two cores.
Method:  each arm reads, decodes and resizes every image to 224 px and to a thumbnail of 112 px, as an extraction with
         one backbone does, and hands uint8 arrays to the main thread. Threads are those of `decoding_threads`.
         Processes are started with `forkserver` and warmed up before the clock starts; they send batches of 8 images
         back, by pickle. Arms take turns in alternating order. The share of a core that must hold the interpreter
         lock bounds how far threads can scale: it is measured as the slow-down of a thread that only counts, while
         one other thread decodes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import skimage.data
from clock import alternate, print_machine, ratio_text
from PIL import Image
from sklearn.datasets import load_sample_images

from loffta.images.batches import decoding_threads
from loffta.images.decode import open_image
from loffta.images.geometry import PixelGeometry, to_square
from loffta.images.rgb import to_rgb

SIZES = (PixelGeometry(224), PixelGeometry(112, interpolation="bilinear"))
CHUNK = 8


def main() -> None:
    """Makes the photographs, measures, prints and deletes."""
    parser = argparse.ArgumentParser(description="decoding benchmark: threads against processes")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loffta-bench-"))
    try:
        print_machine(("Pillow", "numpy"))
        for suffix, size in ((".jpg", (500, 375)), (".jpg", (4000, 3000)), (".png", (500, 375))):
            n_images = options.images if size[0] < 1000 else max(CHUNK, options.images // 16)
            paths = make_photographs(folder / f"{suffix[1:]}-{size[0]}", n_images, suffix, size)
            print(f"\n{n_images} {suffix[1:]} files of {size[0]} x {size[1]}", flush=True)
            for n_workers in options.workers:
                measure(paths, n_workers, options.pairs)
            print(f"  share of the time with the interpreter lock: {locked_share(paths):.0%}", flush=True)
    finally:
        shutil.rmtree(folder)


def make_photographs(folder: Path, n_images: int, suffix: str, size: tuple[int, int]) -> list[Path]:
    """Files of one size, made of sample photographs."""
    folder.mkdir()
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), *load_sample_images().images]
    encoded = folder / f"one{suffix}"
    paths = []
    for i in range(n_images):
        paths.append(folder / f"{i:05d}{suffix}")
        if i < len(pictures):
            Image.fromarray(pictures[i]).resize(size, Image.Resampling.LANCZOS).save(encoded, quality=90)
            shutil.copyfile(encoded, paths[-1])
        else:
            shutil.copyfile(paths[i - len(pictures)], paths[-1])
    return paths


def work(paths: list[Path]) -> list[list[np.ndarray]]:
    """What one worker does with some of the images."""
    return [
        [to_square(to_rgb(open_image(path.read_bytes()).decode(), size.look), size, path.name) for size in SIZES]
        for path in paths
    ]


def measure(paths: list[Path], n_workers: int, n_pairs: int) -> None:
    """Threads and processes in turns."""
    context = multiprocessing.get_context("forkserver")
    with decoding_threads(n_workers) as threads, ProcessPoolExecutor(n_workers, mp_context=context) as processes:
        jobs: dict[str, Callable[[], None]] = {
            "threads": lambda: run(threads, paths, 1),
            "processes": lambda: run(processes, paths, CHUNK),
        }
        for job in jobs.values():
            job()  # warms up
        turns = [alternate(jobs, repeat) for repeat in range(n_pairs)]
    for name in jobs:
        rates = sorted(len(paths) / seconds[name] for seconds in turns)
        print(f"  {n_workers} {name:10} {rates[len(rates) // 2]:8.1f} images/s", flush=True)
    print(f"  {n_workers} workers: {ratio_text([(t['processes'], t['threads']) for t in turns], 'x processes', 1)}")


def run(pool: Executor, paths: list[Path], chunk: int) -> None:
    """All images through a pool, in order."""
    for _ in pool.map(work, [paths[i : i + chunk] for i in range(0, len(paths), chunk)]):
        pass


def locked_share(paths: list[Path]) -> float:
    """How much slower a thread counts while another decodes; both have a core of their own."""
    stop = threading.Event()
    alone = count(0.5)

    def decode_all() -> None:
        while not stop.is_set():
            work(paths[:CHUNK])

    thread = threading.Thread(target=decode_all)
    thread.start()
    beside = count(1.0)
    stop.set()
    thread.join()
    return max(0.0, 1 - beside / alone)


def count(seconds: float) -> float:
    """Additions per second of this thread."""
    end, n = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        n += 1
    return n / seconds


if __name__ == "__main__":
    sys.exit(main())
