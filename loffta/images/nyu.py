"""`nyu:FILE`: the labelled set of NYU Depth v2, nyu_depth_v2_labeled.mat, as it is downloaded.

A .mat of version 7.3 is HDF5 with the axes reversed: images [n, 3, 640, 480] uint8, depths [n, 640, 480] in metres.
`depths` is filled in where the camera saw none; `nyu:FILE#raw` takes `rawDepths`, which is 0 there.
The official split is in splits.mat (trainNdxs, testNdxs, counted from 1); without it beside FILE all images are train.
"""

from __future__ import annotations

import io
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.errors import LofftaError, UsageError, unknown_name
from loffta.images.encode import png
from loffta.images.files import existing, split_part
from loffta.machine.progress import say
from loffta.store.label_cells import one_class
from loffta.store.table import ImageTable

SPLITS = ("splits.mat", "nyu_splits.mat")
INDEXES = {"trainNdxs": "train", "testNdxs": "test"}
PARTS = {"": "depths", "raw": "rawDepths"}


class NyuDepth:
    """Keys are 0001.png, 0002.png, ...; the target `depth` is read as .npy, [H, W] float32 in metres."""

    def __init__(self, path: Path, part: str = "") -> None:
        self._path = path.resolve()
        self._depths = PARTS[part]  # the dataset of depths, and the folder in their keys
        self._source = f"nyu:{self._path}" + (f"#{part}" if part else "")
        self._lock = threading.Lock()

    def listing(self) -> ImageTable:
        """One row per image; `size` is that of its pixels, for its bytes are made when it is read."""
        shape = self._datasets["images"].shape
        n = int(shape[0])
        names = [f"{i:04d}" for i in range(1, n + 1)]
        return one_class([None] * n).table(
            self._source,
            [f"{name}.png" for name in names],
            [int(np.prod(shape[1:]))] * n,
            self._splits(n),
            {"depth": [f"{self._depths}/{name}.npy" for name in names]} if self._depths in self._datasets else {},
        )

    def read(self, key: str) -> bytes:
        """One image as PNG, or one depth map as .npy.

        Raises:
            OSError: there is no such key, or the file cannot be read any more.
        """
        is_depth = key.startswith(f"{self._depths}/")
        name, suffix = (self._depths, ".npy") if is_depth else ("images", ".png")
        digits = key.removeprefix(f"{self._depths}/").removesuffix(suffix)
        data = self._datasets.get(name)
        if not (digits.isdecimal() and key.endswith(suffix)) or data is None or not 1 <= int(digits) <= len(data):
            raise FileNotFoundError(f"there is no {key!r}")
        with self._lock:
            values: NDArray[Any] = data[int(digits) - 1]
        if name == "images":
            return png(values.transpose(2, 1, 0))  # [3, W, H] to [H, W, 3]
        buffer = io.BytesIO()
        np.save(buffer, values.T.astype(np.float32), allow_pickle=False)
        return buffer.getvalue()

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        """The HDF5 datasets `images` and, where there are any, of depths; the file stays open."""
        try:
            import h5py
        except ImportError as error:
            raise LofftaError(
                f"{self._source} needs h5py", where=f"SOURCE {self._source}", remedy="pip install 'loffta[nyu]'"
            ) from error
        try:
            file = h5py.File(self._path, "r", locking=False)  # locks hang on some Lustre and NFS mounts
        except OSError as error:
            raise self._unfit(f"cannot be read as HDF5 ({error})") from error
        found = {name: file[name] for name in ("images", self._depths) if name in file}
        if any(not isinstance(file.get(name, getlink=True), h5py.HardLink) for name in found):
            raise self._unfit("holds links")
        if any(not isinstance(data, h5py.Dataset) or data.external or data.is_virtual for data in found.values()):
            raise self._unfit("holds images or depths that lie in other files, or are none")
        images, depths = found.get("images"), found.get(self._depths)
        if images is None:
            raise self._unfit("holds no dataset `images`")
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8 or 0 in images.shape:
            raise self._unfit(f"holds images {list(images.shape)} {images.dtype}, not [n, 3, W, H] uint8")
        if depths is None and self._depths != PARTS[""]:
            raise self._unfit(f"holds no dataset `{self._depths}`")
        if depths is not None and depths.shape != (images.shape[0], *images.shape[2:]):
            raise self._unfit(f"holds depths {list(depths.shape)} for images {list(images.shape)}")
        return found

    def _splits(self, n: int) -> list[str]:
        path = next((p for name in SPLITS if (p := self._path.parent / name).is_file()), None)
        if path is None:
            say(f"{self._source}: no {SPLITS[0]} beside it, so all images are split train")
            return ["train"] * n
        splits = [""] * n
        for name, indexes in _read_indexes(path).items():
            for i in indexes:
                if not 1 <= i <= n or splits[i - 1]:
                    fault = "twice" if 1 <= i <= n else f"but there are {n} images"
                    raise _bad_splits(path, f"it names image {i}, {fault}")
                splits[i - 1] = INDEXES[name]
        if "" in splits:
            raise _bad_splits(path, f"it does not name image {splits.index('') + 1}")
        return splits

    def _unfit(self, what: str) -> UsageError:
        return UsageError(
            f"the file {what}",
            where=f"SOURCE {self._source}",
            remedy="give nyu_depth_v2_labeled.mat (2.8 GB) of the NYU Depth v2 page, whole",
        )


def _read_indexes(path: Path) -> dict[str, list[int]]:
    """The numbers of train and test images, from MATLAB's old format (as published) or from HDF5."""
    import h5py
    from scipy.io import loadmat

    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r", locking=False) as file:
                found = {name: np.asarray(file[name]) for name in INDEXES}
        else:
            content = loadmat(path, variable_names=list(INDEXES))
            found = {name: np.asarray(content[name]) for name in INDEXES}
        return {name: [int(i) for i in values.reshape(-1)] for name, values in found.items()}
    except Exception as error:  # scipy raises nearly anything for damaged files
        raise _bad_splits(path, f"it cannot be read ({type(error).__name__}: {error})") from error


def _bad_splits(path: Path, what: str) -> UsageError:
    return UsageError(
        f"the split of NYU Depth v2 cannot be used: {what}",
        where=path,
        remedy="download splits.mat again; it holds trainNdxs and testNdxs. Without the file all images are train",
    )


def open_nyu(text: str) -> NyuDepth:
    """The image set of a file that is there.

    Raises:
        UsageError: no such file, or no such part of it.
    """
    named, part = split_part(text)
    path = existing(named, source=f"nyu:{text}", folder=False)
    if part not in PARTS:
        raise unknown_name("part of NYU Depth v2", part, ["raw"], where=f"SOURCE nyu:{text}")
    return NyuDepth(path, part)
