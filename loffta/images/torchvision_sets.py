"""`torchvision:NAME[@ROOT]`: the data sets of torchvision.datasets that list their images without opening them.

ROOT is where torchvision has them, by default $LOFFTA_HOME/torchvision. Images that are files are read as they are;
those that torchvision keeps as arrays (CIFAR10, SVHN, MNIST, ...) become PNG. Nothing is ever downloaded.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.errors import LofftaError, UsageError, refuse, unknown_name
from loffta.images.encode import png
from loffta.images.files import FileList, FileRoot, existing
from loffta.store.label_cells import Labels, one_class
from loffta.store.names import text_fault
from loffta.store.table import ImageTable

# What the argument `split` takes, by split; where a data set has no `split`, `train` says it, or all images are train.
_USUAL = {"train": "train", "val": "val", "test": "test"}
_TRAIN_TEST = {"train": "train", "test": "test"}
_TRAIN_VAL = {"train": "train", "val": "val"}
SPLITS: dict[str, dict[str, str]] = {
    "CLEVRClassification": _USUAL,
    "Country211": {"train": "train", "val": "valid", "test": "test"},
    "DTD": _USUAL,
    "FGVCAircraft": _USUAL,
    "Flowers102": _USUAL,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "ImageNet": _TRAIN_VAL,
    "Imagenette": _TRAIN_VAL,
    "OxfordIIITPet": {"train": "trainval", "test": "test"},
    "Places365": {"train": "train-standard", "val": "val"},
    "RenderedSST2": _USUAL,
    "STL10": _TRAIN_TEST,
    "SVHN": _TRAIN_TEST,
    "StanfordCars": _TRAIN_TEST,
}
BY_TRAIN = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")
WHOLE = ("EuroSAT", "SEMEION", "SUN397")
KNOWN = tuple(sorted((*SPLITS, *BY_TRAIN, *WHOLE)))


class TorchvisionSet:
    """Keys are paths relative to ROOT, or <split>/00000.png for arrays."""

    def __init__(self, name: str, root: Path) -> None:
        self._name = name
        self._root = FileRoot(root)
        self._source = f"torchvision:{name}@{self._root.path}"

    def listing(self) -> ImageTable:
        """All splits in turn; files in the order of their names, arrays in their own.

        Raises:
            LofftaError: the data set is not there, or broken.
            UsageError: it lists what cannot be used: all of it at once.
        """
        files = FileList(self._root)
        keys: list[str] = []
        sizes: list[int] = []
        splits: list[str] = []
        numbers: list[int | None] = []
        for split, dataset in self._datasets.items():
            pixels = _pixels(dataset)
            labels = _numbers(dataset)
            if pixels is not None:
                rows = [(f"{split}/{i:05d}.png", label) for i, label in enumerate(labels)]
                new = [key for key, _ in rows]
                sizes += [int(np.prod(pixels.shape[1:]))] * len(rows)
            else:
                rows = sorted(zip(self._keys(dataset), labels, strict=True), key=lambda row: row[0])
                new = [key for path, _ in rows if (key := files.add(path, f"split {split}"))]
                sizes += [files.sizes[key] for key in new]
            keys += new
            splits += [split] * len(new)
            numbers += [label for _, label in rows]
        refuse(
            files.faults,
            where=f"SOURCE {self._source}",
            remedy=f"remove the data set and {_fetch(self._name, self._root.path)}",
        )
        return self._labels(numbers).table(self._source, keys, sizes, splits)

    def read(self, key: str) -> bytes:
        """The bytes of one image; OSError where it is gone or no longer lies in the folder."""
        split, _, name = key.partition("/")
        pixels = _pixels(self._datasets[split]) if split in self._datasets else None
        if pixels is None:
            return self._root.read(key)
        digits = name.removesuffix(".png")
        if not digits.isdecimal() or int(digits) >= len(pixels):
            raise FileNotFoundError(f"there is no {key!r}")
        image = pixels[int(digits)]
        return png(image.transpose(1, 2, 0) if image.ndim == 3 and image.shape[0] == 3 else image)

    def _keys(self, dataset: Any) -> list[str]:
        return [os.path.relpath(os.path.abspath(path), self._root.path) for path in _paths(dataset)]  # noqa: PTH100

    def _labels(self, numbers: Sequence[int | None]) -> Labels:
        """Classes named as torchvision does where it has a name for each and no name twice; else by their numbers."""
        dataset = next(iter(self._datasets.values()))
        found = [", ".join(c) if isinstance(c, tuple) else str(c) for c in getattr(dataset, "classes", None) or ()]
        highest = max((number for number in numbers if number is not None), default=-1)
        if len(set(found)) != len(found) or len(found) <= highest or any(map(text_fault, found)):
            found = [str(number) for number in range(highest + 1)]
        return one_class([None if number is None else found[number] for number in numbers], found)

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        """torchvision's data set of each split; made without opening an image."""
        import torchvision.datasets

        make = getattr(torchvision.datasets, self._name)
        root = self._root.path
        if any(root.glob(f"{self._name}/processed/*.pt")):  # of torchvision before 0.10: it would unpickle them
            raise LofftaError(
                "this copy was made by an old torchvision and holds pickles",
                where=root / self._name / "processed",
                remedy=f"remove that folder and {_fetch(self._name, root)}",
            )
        taken = inspect.signature(make.__init__).parameters
        fixed: dict[str, Any] = {"download": False} if "download" in taken else {}  # SEMEION's default is to download
        try:
            return {split: make(root, **arguments, **fixed) for split, arguments in arguments_of(self._name).items()}
        except ImportError as error:
            raise LofftaError(
                f"torchvision cannot read {self._name} ({error})",
                where=f"SOURCE {self._source}",
                remedy=f"pip install {(error.name or 'what it names').partition('.')[0]}",
            ) from error
        except Exception as error:  # RuntimeError where it is not there, nearly anything where a file is damaged
            raise LofftaError(
                f"torchvision does not find {self._name}, or not whole ({type(error).__name__}: {error})",
                where=root,
                remedy=_fetch(self._name, root),
            ) from error


def arguments_of(name: str) -> dict[str, dict[str, Any]]:
    """What torchvision's class is called with, by split."""
    if name in SPLITS:
        return {split: {"split": value} for split, value in SPLITS[name].items()}
    return {"train": {"train": True}, "test": {"train": False}} if name in BY_TRAIN else {"train": {}}


def _paths(dataset: Any) -> list[str]:
    """The files of the images: torchvision has four names for the list."""
    for attribute in ("_image_files", "_images", "_samples", "samples", "imgs"):
        if hasattr(dataset, attribute):
            return [str(row[0] if isinstance(row, tuple) else row) for row in getattr(dataset, attribute)]
    raise AttributeError("this version of torchvision keeps its images under another name")


def _numbers(dataset: Any) -> list[int | None]:
    """The class of every image, None where a split has no labels (CLEVR's test)."""
    for attribute in ("_labels", "targets", "labels"):
        if hasattr(dataset, attribute):
            return [None if label is None else int(label) for label in getattr(dataset, attribute)]
    rows = dataset._samples if hasattr(dataset, "_samples") else dataset.samples
    return [int(label) for _, label in rows]


def _pixels(dataset: Any) -> NDArray[np.uint8] | None:
    """[n, H, W], [n, H, W, 3] or [n, 3, H, W] of a data set that torchvision keeps as one array, else None."""
    data = getattr(dataset, "data", None)
    return None if data is None else np.asarray(data)


def _fetch(name: str, root: Path) -> str:
    calls = [{"root": str(root), **arguments} for arguments in arguments_of(name).values()]
    texts = (", ".join(f"{key}={_quoted(value)}" for key, value in call.items()) for call in calls)
    lines = "; ".join(f"d.{name}({text}, download=True)" for text in texts)
    code = f"import torchvision.datasets as d; {lines}"
    return f"fetch it where there is a network:\n      python -c {shlex.quote(code)}"


def _quoted(value: str | bool) -> str:
    """Python's spelling with double quotes: the whole stands between single ones."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def open_torchvision(text: str) -> TorchvisionSet:
    """The data set of that name in a folder that is there.

    Raises:
        UsageError: no such data set, one that cannot be listed, or no folder.
    """
    name, at, root = text.partition("@")
    where = f"SOURCE torchvision:{text}"
    if name not in KNOWN:
        raise unknown_name("data set of torchvision", name, KNOWN, where=where)
    home = os.environ.get("LOFFTA_HOME")
    if not at and not home:
        raise UsageError(
            "where torchvision keeps its data sets is not said",
            where=where,
            remedy=f"write torchvision:{name}@FOLDER, or set LOFFTA_HOME and keep them in $LOFFTA_HOME/torchvision",
        )
    return TorchvisionSet(
        name, existing(root if at else f"{home}/torchvision", source=f"torchvision:{text}", folder=True)
    )
