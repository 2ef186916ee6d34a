"""Stand-ins, for proving that a pipeline runs where its data and networks are not: no figure from them means anything.

    python -m loffta_pipelines.standin vtab1k/single.yaml DATA [--tasks cifar,dtd]
    loffta run vtab1k/single.yaml --data DATA --out OUT --small [--tasks cifar,dtd]

The first writes image sets in the layout of the real ones, made of scikit-learn's handwritten digits: three classes, a
few images each; VOC, COCO and NYU are flat objects before a wall (`standin_dense`). The second's --small puts tiny
networks with random weights in the place of the real ones.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from loffta.errors import LofftaError
from loffta.pipeline.file import DATA, choose, read_pipeline
from loffta.pipeline.small import SMALL_CLASS
from loffta.words import printable

from . import standin_dense

HERE = Path(__file__).parent
CLASSES = 3
IMAGES = {"train": SMALL_CLASS, "val": 2, "test": 4}  # of each class
Images = dict[str, list[tuple[bytes, int]]]  # JPEG and class, by split


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the stand-ins of a pipeline's tasks."""
    parser = argparse.ArgumentParser(prog="standin", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", default="", help="only these, with commas")
    options = parser.parse_args(arguments)
    try:
        config = read_pipeline(options.file if options.file.exists() else HERE / options.file)
        for task in choose(config, tasks=[name for name in options.tasks.split(",") if name]).tasks or ():
            write(task.source, options.data)
            print(printable(f"{task.name}: {task.source.replace(DATA, str(options.data))}"))
    except LofftaError as error:
        print(printable(f"error: {error}", keep="\n"), file=sys.stderr)
        return error.exit_code
    return 0


def write(source: str, data: Path) -> None:
    """Writes the image set that `source` names, {data} being `data`, in the layout that its kind has."""
    kind, _, named = source.partition(":")
    place = Path(named.partition("#")[0].replace(DATA, str(data)))
    if kind in standin_dense.LAYOUTS:
        standin_dense.LAYOUTS[kind](place)
    else:
        LAYOUTS[kind](place, digits())


def digits() -> Images:
    """Real handwritten digits 0, 1 and 2 as JPEGs of 32 px: the first ones of each, split after split.

    Raises:
        LofftaError: scikit-learn, which has them, is missing.
    """
    import numpy as np
    from PIL import Image

    from loffta.images.sources import open_source

    source = open_source("demo:digits")
    table = source.listing()
    images: Images = {split: [] for split in IMAGES}
    for label in range(CLASSES):
        rows = iter(np.flatnonzero(table.labels == label))
        for split, count in IMAGES.items():
            for _ in range(count):
                picture = Image.open(io.BytesIO(source.read(table.keys[next(rows)])))
                buffer = io.BytesIO()
                picture.resize((32, 32)).save(buffer, format="JPEG")
                images[split].append((buffer.getvalue(), label))
    return images


def write_vtab(root: Path, images: Images) -> None:
    """NOAH's dump: lists of `path label` beside images/<list>/."""
    for name, split in (("train800", "train"), ("val200", "val"), ("test", "test")):
        lines = []
        for i, (data, label) in enumerate(images[split]):
            path = f"images/{name}/{i:06d}.jpg"
            _put(root / path, data)
            lines.append(f"{path} {label}\n")
        _put(root / f"{name}.txt", "".join(lines).encode())


def write_table(file: Path, images: Images) -> None:
    """A CSV file with the columns image, label, split and mask: 0 for paper, 1 + label for ink."""
    rows = []
    for split, found in images.items():
        for i, (data, label) in enumerate(found):
            name = f"images/{split}-{i:04d}"
            _put(file.parent / f"{name}.jpg", data)
            _put(file.parent / f"{name}.png", _mask(data, label))
            rows.append((f"{name}.jpg", label, split, f"{name}.png"))
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([("image", "label", "split", "mask"), *rows])


def write_folders(root: Path, images: Images) -> None:
    """<split>/<class>/<number>.jpg."""
    for split, found in images.items():
        for i, (data, label) in enumerate(found):
            _put(root / split / str(label) / f"{i:04d}.jpg", data)


def _mask(picture: bytes, label: int) -> bytes:
    from PIL import Image

    ink = Image.open(io.BytesIO(picture)).convert("L").point(lambda grey: (label + 1) * (grey > 127))
    buffer = io.BytesIO()
    ink.save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(pattern: Path, images: Images) -> None:
    """<set>/train/0.tar and <set>/test/0.tar, for a pattern <set>/{train,test}/*.tar."""
    root = pattern.parent.parent
    for split in ("train", "test"):
        (root / split).mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for i, (data, label) in enumerate(images[split]):
                for ending, content in (("jpg", data), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{i:06d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


LAYOUTS: dict[str, Callable[[Path, Images], None]] = {
    "vtab": write_vtab,
    "table": write_table,
    "wds": write_shards,
    "folder": write_folders,
}

if __name__ == "__main__":
    sys.exit(main())
