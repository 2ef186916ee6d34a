"""Tiny caches with dense targets of all kinds, and short trainings on them."""

import numpy as np

from loffta.config import TrainConfig
from loffta.machine.process import StopFlag
from loffta.targets import IGNORE, BoxList, NativeTarget
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table
from tests.dense import write_boxes, write_maps, write_native

SIDE, PX, N_TRAIN, N_TEST = 8, 16, 20, 12  # cells and pixels of a square
SIZES = ((24, 32), (30, 18), (16, 16))  # height and width of labels, image by image
SHORT = {"epochs": 2, "min_steps": None, "batch_size": 8, "output_px": PX}


def scenes(n_images, seed=0):
    """Cells [n, SIDE, SIDE] of class 0, 1 or 2: a ground, and one rectangle of each other class beside each other."""
    rng = np.random.default_rng(seed)
    cells = np.zeros((n_images, SIDE, SIDE), np.int64)
    for one in cells:
        for number in (1, 2):
            top, height = rng.integers(0, SIDE - 3), rng.integers(2, 4)
            left, width = (number - 1) * SIDE // 2 + rng.integers(0, 2), rng.integers(2, 4)
            one[top : top + height, left : left + width] = number
    return cells


def enlarged(cells, height, width):
    """The nearest cell of every pixel, as if the squares had been stretched to other sizes."""
    rows, columns = (((2 * np.arange(n) + 1) * SIDE) // (2 * n) for n in (height, width))
    return cells[..., rows[:, None], columns]


def boxes_of(cells, height, width):
    """Boxes around both rectangles, in pixels of a map of this size."""
    found = []
    for number in (1, 2):
        rows, columns = np.nonzero(cells == number)
        found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    corners = np.array(found, np.float64) * ([width / SIDE, height / SIDE] * 2)
    return BoxList(corners, np.arange(2), np.zeros(2, bool))


def dense_cache(
    root, *, noise=0.05, missing=(), n_train=N_TRAIN, n_test=N_TEST, kinds=("mask",), px=PX, noisy=False, **options
):
    """Features that say the class of their cell, by one hot in 6 channels, and targets `kinds` of the same scenes.

    A pixel in 50 of the masks is ignored; of `missing` images there is no target. With `noisy` there is a second store,
    `nothing`, whose features say nothing.
    """
    n = n_train + n_test
    cells, rng = scenes(n), np.random.default_rng(5)
    grids = rng.normal(scale=noise, size=(n, SIDE, SIDE, 6)).astype(np.float32)
    grids[..., :3] += np.eye(3, dtype=np.float32)[cells]
    table = make_table(np.arange(n) % 2, ["train"] * n_train + ["test"] * n_test)
    stores = [FakeStore("net", {"a.0": grids, "a.1": grids * 0.5})]
    if noisy:
        stores.append(FakeStore("nothing", {"a.0": rng.normal(size=grids.shape).astype(np.float32)}))
    cache = make_cache(root, table, stores, **options)
    for kind in kinds:
        write_kind(cache, kind, cells, missing, px)
    return cache


def write_kind(cache, kind, cells, missing=(), px=PX):
    sizes = [SIZES[i % len(SIZES)] for i in range(len(cells))]
    there = [i not in missing for i in range(len(cells))]
    if kind == "boxes":
        own = [NativeTarget(kind, *size, boxes=boxes_of(one, *size)) for one, size in zip(cells, sizes, strict=True)]
        write_native(cache, kind, [one if has else None for one, has in zip(own, there, strict=True)])
        write_boxes(cache, [boxes_of(one, 1, 1) if has else None for one, has in zip(cells, there, strict=True)])
        return
    maps = [one_map(kind, enlarged(one, *size), i) for i, (one, size) in enumerate(zip(cells, sizes, strict=True))]
    own = [NativeTarget(kind, *size, map=one) for one, size in zip(maps, sizes, strict=True)]
    write_native(cache, kind, [one if has else None for one, has in zip(own, there, strict=True)])
    squares = [one_map(kind, enlarged(one, px, px), i) for i, one in enumerate(cells)]
    write_maps(cache, kind, [one if has else None for one, has in zip(squares, there, strict=True)])


def one_map(kind, classes, seed):
    if kind == "depth":
        return (1 + classes).astype(np.float32)
    if kind == "instances":
        return classes.astype(np.uint16)
    found = classes.astype(np.uint8)
    found[np.random.default_rng(seed).random(found.shape) < 0.02] = IGNORE
    return found


def config_of(cache, head="deap", task="segmentation", **changes):
    recipe = SHORT | changes.pop("recipe", {})
    return TrainConfig(cache=cache.paths.root, head=head, task=task, device="cpu", recipe=recipe, **changes)


def go(cache, out, head="deap", task="segmentation", **changes):
    return train(config_of(cache, head, task, **changes), out, StopFlag())
