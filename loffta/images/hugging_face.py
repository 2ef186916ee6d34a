"""`hf:NAME[:CONFIG]` or `hf:PATH`: a data set of the Hugging Face hub, or one that lies in a folder or parquet file.

A folder is what `save_to_disk` wrote, or images or parquet files that `load_dataset` understands. Encoded bytes are
read as they were stored. `#COLUMN` behind the name chooses the column of labels where there are several. Columns that
are dense targets are told by their names: `hf_targets`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from loffta.errors import LofftaError, UsageError, refuse, unknown_name
from loffta.images import hf_targets
from loffta.images.files import FileRoot, existing, key_fault, split_part, user_path
from loffta.machine.progress import say
from loffta.store.label_cells import Labels, from_cells, from_numbers, many_classes, one_class
from loffta.store.names import split_name, text_fault
from loffta.store.table import ImageTable
from loffta.words import first_of

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w. -]+)?")
_IMAGES = ("image", "img", "jpg", "png", "webp")  # of several columns of images, the first of these
_LABELS = ("label", "labels", "target", "targets", "value", "score")  # columns of labels that are no ClassLabel


class HuggingFaceSet:
    """Keys are <split>/<row>, with the row's number in eight digits; a target's begin with its kind."""

    def __init__(self, name: str, column: str) -> None:
        self._path = user_path(name) if os.path.lexists(user_path(name)) else None
        self._name = str(self._path.resolve()) if self._path else name
        self._column = column
        self._image = ""  # the column of images, known when the data set is loaded, as the next
        self._maps: dict[str, str] = {}  # column by kind of target
        self._source = f"hf:{self._name}" + (f"#{column}" if column else "")

    def listing(self) -> ImageTable:
        """All splits in the data set's order; the labels are read, and of the images their lengths alone.

        Raises:
            LofftaError: the data set is not there and cannot be had.
            UsageError: it has no images, or several columns that could hold them.
        """
        faults: list[str] = []
        splits: list[str] = []
        keys: list[str] = []
        sizes: list[int] = []
        for name, split in self._splits.items():
            new = [f"{name}/{row:08d}" for row in range(len(split))]
            if "+" in name or key_fault(name):
                faults.append(f"the split cannot be {name!r}")
            keys += new
            splits += [split_name(name) or name] * len(new)
            sizes += self._sizes(split, new, faults)
        refuse(faults, where=f"SOURCE {self._source}", remedy="write the data set again, with the images inside it")
        if not keys:
            raise UsageError(
                "the data set has no rows", where=f"SOURCE {self._source}", remedy="choose another, or another config"
            )
        labels = self._labels(keys, faults)
        refuse(faults, where=f"SOURCE {self._source}", remedy="mend the column of labels, or choose another: #COLUMN")
        targets, classes = hf_targets.list_targets(self._splits, self._maps, faults)
        refuse(faults, where=f"SOURCE {self._source}", remedy="mend the column of objects, or rename it")
        for kind, column in self._maps.items():
            say(f"{self._source}: the column {column} holds the target {kind}")
        return labels.table(self._source, keys, sizes, splits, targets, classes)

    def read(self, key: str) -> bytes:
        """The bytes of one image or map as they were stored, or JSON of boxes; OSError where there are none."""
        name, _, digits = key.rpartition("/")
        split, column = self._splits.get(name), self._image
        if split is None:
            kind, _, name = name.partition("/")
            split = self._splits.get(name)
            column = hf_targets.OBJECTS if kind == "boxes" else self._maps.get(kind, "")
        if split is None or column not in split.features or not digits.isdecimal() or int(digits) >= len(split):
            raise FileNotFoundError(f"there is no {key!r}")
        cell = split[int(digits)][column]
        if column == hf_targets.OBJECTS:
            return hf_targets.read_boxes(cell, split.features)
        cell = cell or {}
        data = cell.get("bytes")
        if data is not None:
            return bytes(data)
        if cell.get("path") is None:
            raise OSError("the row has no image")
        root, path = self._locate(cell["path"])
        return root.read(path)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        """datasets.Dataset by the name of its split, with images that are not decoded."""
        try:
            import datasets
        except ImportError as error:
            raise LofftaError(
                f"{self._source} needs the package datasets",
                where=f"SOURCE {self._source}",
                remedy="pip install 'loffta[hf]'",
            ) from error
        datasets.disable_progress_bars()  # they redraw a line, which fills the log of a job
        try:
            found = self._load(datasets)
        except Exception as error:  # hub, cache, parquet, Arrow: each has errors of its own
            raise self._missing(error, str(datasets.config.HF_DATASETS_CACHE)) from error
        splits = dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}
        features = next(iter(splits.values())).features if splits else {}
        self._image = self._image_column(features, datasets) if splits else ""
        others = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        self._maps = hf_targets.map_columns(name for name in others if name != self._image)
        for name, split in splits.items():
            if not isinstance(split.features.get(self._image), datasets.Image):
                raise UsageError(
                    f"the split {name} has no column of images {self._image}, as others have",
                    where=f"SOURCE {self._source}",
                    remedy="save the splits with the same columns",
                )
        undecoded = datasets.Image(decode=False)
        for name in splits:
            for column in (self._image, *self._maps.values()):
                if isinstance(splits[name].features.get(column), datasets.Image):
                    splits[name] = splits[name].cast_column(column, undecoded)
        return splits

    def _load(self, datasets: Any) -> Any:
        if self._path is None:
            name, _, config = self._name.partition(":")
            return datasets.load_dataset(name, config or None)
        if (self._path / "dataset_dict.json").is_file() or (self._path / "state.json").is_file():
            return datasets.load_from_disk(self._name)
        if self._path.suffix.lower() == ".parquet":
            return datasets.load_dataset("parquet", data_files={"train": self._name})
        return datasets.load_dataset(self._name)

    def _missing(self, error: Exception, cache: str) -> LofftaError:
        what = f"{type(error).__name__}: {error}"
        if self._path is not None:
            return LofftaError(
                f"the package datasets cannot load this folder or file ({what})",
                where=f"SOURCE {self._source}",
                remedy="give a folder of save_to_disk, of parquet files or of images, or one .parquet file",
            )
        name, _, config = self._name.partition(":")
        call = f"load_dataset({', '.join(repr(part) for part in (name, config) if part)})"
        return LofftaError(
            f"the data set is not in the cache of the package datasets and cannot be had ({what})",
            where=f"{cache} (HF_HOME moves it)",
            remedy="on a node with a network, with the same HF_HOME, run\n      python -c "
            + shlex.quote(f"from datasets import {call.partition('(')[0]}; {call}"),
        )

    def _image_column(self, features: dict[str, Any], datasets: Any) -> str:
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        chosen = next((name for name in _IMAGES if name in images), images[0] if len(images) == 1 else None)
        if chosen is None:
            problem = f"several columns of images: {', '.join(images)}" if images else "no column of images"
            raise UsageError(
                f"the data set has {problem}; its columns: {first_of(list(features), ', ')}",
                where=f"SOURCE {self._source}",
                remedy=f"name the column {_IMAGES[0]} and give it the type datasets.Image()",
            )
        if len(images) > 1:
            others = ", ".join(name for name in images if name != chosen)
            say(f"{self._source}: the images are those of {chosen}, not of {others}")
        return chosen

    def _sizes(self, split: Any, keys: list[str], faults: list[str]) -> list[int]:
        """Bytes per image; a row without an image has 0 and is set aside when it is read."""
        import pyarrow.compute as pc  # 0.1 s, for this kind of source alone

        sizes: list[int] = []
        for cells in split.select_columns([self._image]).with_format("arrow").iter(batch_size=1000):
            data, paths = (pc.struct_field(cells[self._image], name) for name in ("bytes", "path"))
            for size, path in zip(pc.binary_length(data).to_pylist(), paths.to_pylist(), strict=True):
                if size is None and path is not None:
                    try:
                        root, inside = self._locate(path)
                        size = root.size(inside)
                    except OSError as error:
                        faults.append(f"{keys[len(sizes)]}: {path!r}: {error.strerror or error}")
                sizes.append(size or 0)
        return sizes

    def _locate(self, path: str) -> tuple[FileRoot, str]:
        """(root, path in it) of a file outside the Arrow tables: in the named folder, or in the hub's cache.

        Raises:
            OSError: it lies elsewhere: a data set could name any file of this machine.
        """
        from datasets import config

        folders = [self._path] if self._path else [config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.HF_HUB_CACHE]
        real = Path(os.path.realpath(path, strict=True))
        for root in (FileRoot(Path(folder)) for folder in folders):
            if real.is_relative_to(root.path):
                return root, str(real.relative_to(root.path))
        raise OSError("it lies outside the data set")

    def _labels(self, keys: list[str], faults: list[str]) -> Labels:
        """The labels of all splits; a split without the column has none."""
        import datasets

        splits = self._splits.values()
        features = {name: feature for split in splits for name, feature in split.features.items()}
        name = self._label_column(features, datasets)
        if name is None:
            return one_class([None] * len(keys))
        cells = [cell for split in splits for cell in hf_targets.column_of(split, name)]
        feature = features[name]
        inner = _inner(feature)
        if isinstance(inner, datasets.ClassLabel):
            return _of_class_label(cells, inner.names, keys, faults, many=inner is not feature)
        if not isinstance(inner, datasets.Value):
            raise UsageError(
                f"the column {name} holds {type(inner).__name__}, not labels",
                where=f"SOURCE {self._source}",
                remedy="choose one of ClassLabel, of Value, or a list of these: #COLUMN",
            )
        if inner is feature and (name == "value" or str(feature.dtype).startswith("float")):
            return from_numbers(cells, keys, faults)
        return from_cells(cells, keys, faults)

    def _label_column(self, features: dict[str, Any], datasets: Any) -> str | None:
        if self._column:
            if self._column not in features:
                raise unknown_name("column", self._column, features, where=f"SOURCE {self._source}")
            return self._column
        found = [n for n, f in features.items() if isinstance(_inner(f), datasets.ClassLabel)]
        plain = [name for name, feature in features.items() if isinstance(_inner(feature), datasets.Value)]
        found += [name for name in _LABELS if name in plain]
        found.sort(key=lambda name: name not in _LABELS)  # `label` before `coarse_label`
        if len(found) > 1:
            say(f"{self._source}: the labels are those of {found[0]}; others: {', '.join(found[1:])} (choose: #COLUMN)")
        return found[0] if found else None


def open_hf(text: str) -> HuggingFaceSet:
    """The data set of that name or in that place; whether the hub knows the name shows when it is listed.

    Raises:
        UsageError: there is no such folder or file, and it is no name of the hub.
    """
    name, column = split_part(text)
    if not name or (
        not os.path.lexists(user_path(name)) and (not _HUB_NAME.fullmatch(name) or name.startswith((".", "~", "/")))
    ):
        existing(name, source=f"hf:{text}", folder=True)
    return HuggingFaceSet(name, column)


def _inner(feature: Any) -> Any:
    """What a list holds; another feature itself."""
    return getattr(feature, "feature", feature)


def _of_class_label(
    cells: Sequence[Any], names: list[str], keys: list[str], faults: list[str], *, many: bool
) -> Labels:
    """Labels from numbers of classes; -1 is what the hub writes for an unknown one."""
    faults += [f"the class {name!r}: {fault}" for name in names if (fault := text_fault(name))]
    rows: list[list[str] | None] = []
    for key, cell in zip(keys, cells, strict=True):
        given = None if cell is None or cell == -1 else list(cell) if many else [cell]
        if given is not None and not all(i is not None and 0 <= i < len(names) for i in given):
            faults.append(f"{key}: the label {cell} of {len(names)} classes")
            given = None
        rows.append(None if given is None else [names[i] for i in given])
    if many:
        return many_classes(rows, names)
    return one_class([None if row is None else row[0] for row in rows], names)
