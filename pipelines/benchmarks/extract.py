"""Extraction end to end against the bare network: ViT-B/16 at 224 px, all 12 taps, photographs from JPEG files.

Run:     python pipelines/benchmarks/extract.py [--images 256] [--pairs 5] [--dir DIR]
         python pipelines/benchmarks/extract.py --null [--images 1024] [--pairs 5] [--dir DIR] [--memory /dev/shm]
Needs:   the extra `test` (scikit-image's and scikit-learn's sample photographs); 4 MB of disk an image.
Expect:  the goal is 0.95 of the bare forward pass; see docs/benchmarks.md for what was reached. About 45 s a pair.
         --null: 0.8 of the bound, in memory and on the disk, in under 6 minutes on two cores.
Method:  the limit is the same model's forward_features on ready, normalised tensors: no files, no decoding, no taps
         kept. What the cores allow is less: the other parts, each alone as in extract_null.py, take their time of the
         same cores, and the faster the network, the larger is their share. Ours is all of `loffta extract` but loading
         the model: listing, reading, decoding and resizing JPEGs of 500 x 375, the network, 12 taps of grid and prefix
         cast to float16, crc32c, writing, fsync, done files. Another job tells what the disk alone takes: the same
         forward passes beside a thread that writes as many bytes to one file and fsyncs it. They take turns in
         alternating order; the ratios are medians over the pairs. Then: two backbones decode each image once (counted,
         not timed), and the largest resident memory of a process that extracts few and many images (VmHWM, read by
         that process at its end; its parent's memory is no part).
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
import torch
from clock import alternate, print_machine, ratio_text
from extract_null import NullBackbone, Parts, measure_null, measure_writers
from PIL import Image
from sklearn.datasets import load_sample_images

from loffta.backbones.timm_backbone import TimmBackbone, load_timm
from loffta.config import BackboneConfig, ExtractConfig
from loffta.extraction.extract import extract
from loffta.images import batches
from loffta.images.sources import open_source
from loffta.machine import process
from loffta.machine.process import StopFlag

MODEL, BATCH, GOAL = "vit_base_patch16_224", 8, 0.95
SIZE = (500, 375)
CHILD = "import sys; from loffta_cli.main import main; code = main(sys.argv[1:])\n"
CHILD += "from loffta.machine.usage import peak_rss_mib; print(peak_rss_mib()); sys.exit(code)"
MEMORY_MODEL = ["--backbone", "vit_tiny_patch16_224", "--weights", "random:0", "--image-px", "112", "--taps", "all"]


def main(words: list[str] | None = None) -> None:
    """Makes the photographs, measures, prints and deletes."""
    parser = argparse.ArgumentParser(description="extraction benchmark: loffta against the bare forward pass")
    parser.add_argument("--null", action="store_true", help="a network that costs nothing, see extract_null.py")
    parser.add_argument("--images", type=int, default=None, help="256; 1024 with --null")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved repeats")
    parser.add_argument("--dir", type=Path, default=None, help="where the temporary folder goes")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a folder in memory, for --null")
    options = parser.parse_args(words)
    options.images = options.images or (1024 if options.null else 256)
    process.cap_threads()
    folder = Path(tempfile.mkdtemp(prefix="loffta-bench-", dir=options.dir))
    try:
        print_machine(("torch", "timm", "numpy", "Pillow"))
        make_photographs(folder / "photographs", options.images)
        if options.null:
            return run_null(folder, options.memory, options.images, options.pairs)
        measure_speed(folder, options.memory, options.images, options.pairs)
        count_decodes(folder)
        measure_memory(folder)
    finally:
        shutil.rmtree(folder)


def run_null(folder: Path, memory: Path, n_images: int, n_pairs: int) -> None:
    """Both tables."""
    with tempfile.TemporaryDirectory(prefix="loffta-bench-", dir=memory) as name:
        places = {"memory": Path(name), "disk": folder}
        parts = Parts(folder / "photographs", n_images, NullBackbone())
        pairs = measure_null(parts, places, n_pairs)
        bound = n_images / statistics.median(seconds for seconds, _ in pairs["memory"])
        measure_writers(parts, places["memory"], bound, (1, 2, 4, 8))


def make_photographs(folder: Path, n_images: int) -> None:
    """JPEG files of 500 x 375, each a random crop of a sample photograph."""
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    pictures += load_sample_images().images
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n_images):
        image = Image.fromarray(pictures[i % len(pictures)])
        left, top = (int(rng.integers(side // 4)) for side in image.size)
        image.crop((left, top, *image.size)).resize(SIZE, Image.Resampling.LANCZOS).save(
            folder / f"{i:05d}.jpg", quality=90
        )


def measure_speed(folder: Path, memory: Path, n_images: int, n_pairs: int) -> None:
    """The forward pass alone, what else wants the same cores, and the whole extraction, in turns."""
    backbone = load_timm(MODEL, weights="random:0")
    ready = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    null = NullBackbone(BATCH)
    n_batches = n_images // BATCH
    caches = iter(folder / f"cache-{i}" for i in range(1000))
    made: list[Path] = []

    def forward() -> None:
        with torch.no_grad():
            for _ in range(n_batches):
                backbone.model.forward_features(ready)

    def forward_and_write() -> None:
        """What any extraction that keeps these bytes takes at least."""
        n_bytes = BATCH * backbone_bytes(backbone)
        due = threading.Semaphore(0)
        thread = threading.Thread(target=write_blocks, args=(folder / "raw", n_bytes, n_batches, due))
        thread.start()
        with torch.no_grad():
            for _ in range(n_batches):
                backbone.model.forward_features(ready)
                due.release()
        thread.join()

    def others() -> None:
        parts = Parts(folder / "photographs", n_images, null)
        with tempfile.TemporaryDirectory(prefix="loffta-bench-", dir=memory) as name:
            for part in (parts.decode, parts.cast, parts.check, lambda: parts.write(Path(name) / "raw")):
                part()

    def whole() -> None:
        made.append(next(caches))
        run_extraction(folder, made[-1], {MODEL: backbone})

    def delete(name: str) -> None:
        if name == "loffta":
            shutil.rmtree(made[-1])
        (folder / "raw").unlink(missing_ok=True)

    jobs: dict[str, Callable[[], None]] = {
        "forward": forward, "others": others, "forward, raw write": forward_and_write, "loffta": whole,
    }  # fmt: skip
    alternate(jobs, 0, after=delete)  # warms up
    found: list[dict[str, float]] = []
    print(f"\n{MODEL}, {n_batches * BATCH} images, batches of {BATCH}", flush=True)
    for repeat in range(n_pairs):
        seconds = alternate(jobs, repeat, after=delete)
        found.append(seconds)
        rates = ", ".join(f"{name} {n_batches * BATCH / s:.2f} images/s" for name, s in seconds.items())
        print(f"  pair {repeat + 1}: {rates}", flush=True)
    for first, second, what, goal in (
        ("forward", "loffta", "of the bare forward pass", GOAL),
        ("forward", "forward, raw write", "of it for the forward pass beside a raw write of as many bytes", None),
        ("forward, raw write", "loffta", "of that, for the extraction", None),
    ):
        print(f"  {ratio_text([(s[first], s[second]) for s in found], what, goal)}", flush=True)
    pairs = [(s["forward"] + s["others"], s["loffta"]) for s in found]
    print(f"  {ratio_text(pairs, 'of what the cores allow: forward, decoding, cast, checksums, writing to memory')}")


def backbone_bytes(backbone: TimmBackbone) -> int:
    """Bytes of one image's tokens, all blocks, as float16."""
    blocks = [spec for spec in backbone.specs if spec.tap.startswith("blocks.") and spec.tap.count(".") == 1]
    return sum((math.prod(spec.shape("grid")) + math.prod(spec.shape("prefix"))) * 2 for spec in blocks)


def write_blocks(path: Path, n_bytes: int, n_blocks: int, due: threading.Semaphore) -> None:
    """Writes a block whenever one is due, and makes the file durable."""
    block = np.random.default_rng(0).integers(0, 256, n_bytes, dtype=np.uint8).data
    with path.open("wb", buffering=0) as file:
        for _ in range(n_blocks):
            due.acquire()
            file.write(block)
        os.fsync(file.fileno())


def count_decodes(folder: Path) -> None:
    """How often the images are decoded for two backbones."""
    decoded: Counter[int] = Counter()
    open_image = batches.open_image

    def counted(data: bytes):  # type: ignore[no-untyped-def]
        decoded[hash(data)] += 1
        return open_image(data)

    batches.open_image = counted
    names = ("test_vit", "test_convnext")
    models = {name: load_timm(name, weights="random:0") for name in names}
    run_extraction(folder, folder / "two", models)
    batches.open_image = open_image
    print(f"\ntwo backbones: {len(decoded)} images, each decoded {max(decoded.values())} time", flush=True)
    shutil.rmtree(folder / "two")


def run_extraction(folder: Path, cache: Path, models: dict[str, TimmBackbone]) -> None:
    """`loffta extract` without loading the models."""
    config = ExtractConfig(
        source=f"folder:{folder / 'photographs'}",
        cache=cache,
        backbones=tuple(BackboneConfig(name=name, weights="random:0", taps="all") for name in models),
        batch_size=BATCH,
        device="cpu",
    )
    extract(config, open_source(config.source), lambda wanted: models[wanted.name], StopFlag())


def measure_memory(folder: Path) -> None:
    """Largest resident memory of extractions of few and many images, as processes of their own."""
    print("\nlargest resident memory of `loffta extract` (12 taps of a ViT-Ti/16 at 112 px)")
    peaks = []
    for n_images in (256, 2048):
        make_photographs(pictures := folder / f"photographs-{n_images}", n_images)
        words = ["extract", str(pictures), "--cache", str(folder / "memory"), *MEMORY_MODEL, "--batch-size", "32"]
        done = subprocess.run([sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(float(done.stdout.splitlines()[-1]))
        print(f"  {n_images:6} images: {peaks[-1]:.0f} MiB", flush=True)
        shutil.rmtree(folder / "memory")
        shutil.rmtree(pictures)
    print(f"  eight times the images: {peaks[1] / peaks[0]:.2f} times the memory", flush=True)


if __name__ == "__main__":
    sys.exit(main())
