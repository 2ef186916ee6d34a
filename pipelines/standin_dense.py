"""Stand-ins of image sets with dense targets: three flat objects before a wall, in the layouts of VOC, COCO and NYU.

In:  the folder or file that a source names.   Out: files as the real archives have them. Called by `standin`.
Objects are as large as COCO's large ones, three an image, so that every task has something to measure.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGES = {"train": 4, "val": 2}
SIZE = (110, 330)  # an object has 100 x 100 pixels: COCO's large begin above 96 x 96
NYU_SIZE = (480, 640)  # the Eigen crop is of that size alone
VOID = 255
STUFF = 120  # of the wall, in COCO-Stuff's masks
COLOURS = np.array([[90, 90, 90], [220, 40, 40], [40, 200, 60], [50, 70, 230]])  # wall and three classes


class Scene(NamedTuple):
    """One image and all that is known of it."""

    image: NDArray[np.uint8]  # [H, W, 3]
    classes: NDArray[np.uint8]  # [H, W] 0 wall, 1 to 3
    objects: NDArray[np.uint8]  # [H, W] 0 wall, 1 to 3 from the left
    depth: NDArray[np.float32]  # [H, W] metres
    boxes: list[tuple[int, int, int, int, int]]  # left, top, right, bottom, class


def scene(number: int, size: tuple[int, int] = SIZE) -> Scene:
    """The same for the same number."""
    rng = np.random.default_rng(number)
    height, width = size
    side = min(height, width // 3) * 10 // 11
    classes, objects = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    depth = np.broadcast_to(np.linspace(8, 4, height, dtype=np.float32)[:, None], size).copy()
    boxes = []
    for i in range(3):
        top = int(rng.integers(0, height - side + 1))
        left = i * width // 3 + int(rng.integers(0, width // 3 - side + 1))
        kind = int(rng.integers(1, len(COLOURS)))
        place = np.s_[top : top + side, left : left + side]
        classes[place], objects[place], depth[place] = kind, i + 1, rng.uniform(1, 3)
        boxes.append((left, top, left + side, top + side, kind))
    noisy = COLOURS[classes] + rng.integers(-20, 21, (*size, 3))
    return Scene(noisy.clip(0, 255).astype(np.uint8), classes, objects, depth, boxes)


def write_voc(root: Path) -> None:
    """ImageSets/Segmentation, JPEGImages, SegmentationClass and SegmentationObject; void around every object."""
    lists: dict[str, list[str]] = {split: [] for split in IMAGES}
    for name, split, found in _numbered("2007_{:06d}", SIZE):
        lists[split].append(name)
        border = _border(found.objects)
        _put(root / "JPEGImages" / f"{name}.jpg", _encoded(found.image, "JPEG"))
        for folder, numbers in (("SegmentationClass", found.classes), ("SegmentationObject", found.objects)):
            _put(root / folder / f"{name}.png", _encoded(np.where(border, np.uint8(VOID), numbers), "PNG"))
    for split, names in lists.items():
        _put(root / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{n}\n" for n in names).encode())


def write_coco(root: Path) -> None:
    """2017: images, instances_*.json with a crowd in every image, and COCO-Stuff's masks."""
    content: dict[str, dict[str, list[Any]]] = {
        split: {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": n} for i, n in enumerate(("person", "bicycle", "car"), start=1)],
        }
        for split in IMAGES
    }
    height, width = SIZE
    crowd = {"size": [height, width], "counts": [0, 4, height * width - 4]}  # four pixels of the first column
    for i, (name, split, found) in enumerate(_numbered("{:012d}", SIZE), start=1):
        _put(root / f"{split}2017" / f"{name}.jpg", _encoded(found.image, "JPEG"))
        stuff = np.where(found.classes == 0, STUFF, found.classes - 1).astype(np.uint8)
        _put(root / "stuffthingmaps" / f"{split}2017" / f"{name}.png", _encoded(stuff, "PNG"))
        content[split]["images"].append({"id": i, "file_name": f"{name}.jpg", "height": height, "width": width})
        things: list[dict[str, Any]] = [
            {
                "category_id": kind,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
            }
            for left, top, right, bottom, kind in found.boxes
        ]
        things.append({"category_id": 1, "segmentation": crowd, "bbox": [0, 0, 1, 4], "iscrowd": 1})
        for j, thing in enumerate(things):
            content[split]["annotations"].append({"id": 10 * i + j, "image_id": i, **thing})
    for split, told in content.items():
        _put(root / "annotations" / f"instances_{split}2017.json", json.dumps(told).encode())


def write_nyu(file: Path) -> None:
    """nyu_depth_v2_labeled.mat with its axes reversed, and splits.mat beside it; the test images are those of `val`."""
    import h5py
    from scipy.io import savemat

    found = list(_numbered("{}", NYU_SIZE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as hdf:
        hdf["images"] = np.stack([one.image.transpose(2, 1, 0) for _, _, one in found])
        hdf["depths"] = np.stack([one.depth.T for _, _, one in found])
    numbers = np.arange(1, len(found) + 1, dtype=np.uint16)[:, None]
    n_train = IMAGES["train"]
    savemat(file.parent / "splits.mat", {"trainNdxs": numbers[:n_train], "testNdxs": numbers[n_train:]})


LAYOUTS: dict[str, Callable[[Path], None]] = {"voc": write_voc, "coco": write_coco, "nyu": write_nyu}


def _numbered(name: str, size: tuple[int, int]) -> Iterator[tuple[str, str, Scene]]:
    """(name, split, scene), split after split; no scene twice."""
    splits = [split for split, n in IMAGES.items() for _ in range(n)]
    for number, split in enumerate(splits, start=1):
        yield name.format(number), split, scene(number, size)


def _border(objects: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour is another object's."""
    found = np.zeros(objects.shape, np.bool_)
    found[:, :-1] |= objects[:, :-1] != objects[:, 1:]
    found[:-1] |= objects[:-1] != objects[1:]
    return found


def _encoded(pixels: NDArray[np.uint8], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
