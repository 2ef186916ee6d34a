"""Every name in the folder that `predict` makes of a dense run, and the columns of its tables.

about.json             what the maps mean: task, classes with their colours, unit, run, source; written first
predictions.parquet    a row per image in the source's order, bad ones included; written last
maps/KEY.png           one of each good image, at its own size, or KEY.npy; of detection none
boxes.parquet          of detection: a row per box
overlays/KEY.jpg       where they are asked for: the prediction over the image
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from loffta import __version__
from loffta.errors import LofftaError, UsageError
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import delete_part, make_folder, remove_folder, replace_file
from loffta.online.maps_files import MapForm
from loffta.online.predict import META
from loffta.words import file_name

_MARK = META.decode()  # of about.json
PREDICTIONS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "status": pa.string(),
    "reason": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "map": pa.string(),  # relative to the folder
    "overlay": pa.string(),
}
BOXES: dict[str, pa.DataType] = {
    "key": pa.string(),
    "left": pa.float32(),
    "top": pa.float32(),
    "right": pa.float32(),
    "bottom": pa.float32(),
    "score": pa.float32(),
    "class": pa.string(),
}


class PredictionFolder:
    """Every name in the folder that `predict` makes of a dense run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.about = root / "about.json"
        self.predictions = root / "predictions.parquet"
        self.boxes = root / "boxes.parquet"
        self.maps = root / "maps"
        self.overlays = root / "overlays"

    def map(self, key: str, form: MapForm) -> Path:
        """Of one image; whatever its key, the name stays in the folder."""
        return self.maps / f"{file_name(key)}.{form}"

    def overlay(self, key: str) -> Path:
        """Of one image."""
        return self.overlays / f"{file_name(key)}.jpg"

    def put(self, path: Path, data: bytes) -> str:
        """Writes one file, and gives its name relative to the folder."""
        replace_file(path, data)
        return path.relative_to(self.root).as_posix()

    def begin(self, about: dict[str, Any]) -> None:
        """Makes the folder, or takes out of it what an earlier `predict` wrote.

        Raises:
            UsageError: the name is that of a file.
            LofftaError: the folder has other things in it.
        """
        root = self.root
        if root.suffix == ".parquet" or (root.exists() and not root.is_dir()):
            raise UsageError(
                "this run gives a map or boxes per image, and they are written into a folder",
                where=f"--out {root}",
                remedy=f"name a folder: --out {root.with_suffix('') if root.suffix == '.parquet' else 'FOLDER'}",
            )
        if root.is_dir() and any(root.iterdir()) and not self._is_ours():
            raise LofftaError(
                "this folder holds other things than predictions, and none are written among them",
                where=root,
                remedy="choose another --out",
            )
        make_folder(root)
        for path in (self.predictions, self.boxes):
            delete_part(path)
        for folder in (self.maps, self.overlays):
            remove_folder(folder)
        replace_file(self.about, json.dumps({_MARK: __version__} | about, indent=1).encode())

    def _is_ours(self) -> bool:
        try:
            found = from_json(read_bytes(self.about))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and _MARK in found
