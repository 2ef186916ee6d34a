"""A run: one directory that holds one training, and the only place that spells its file names.

config.yaml comes first, results.json last: a directory with results is finished, one without is not.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from loffta.config import TrainConfig, parse, read_yaml, to_yaml
from loffta.errors import LofftaError, NotSaved
from loffta.os_words import guard
from loffta.store.files import find_parts, replace_file, sweep_tree
from loffta.store.recipe import differing_fields

_NUMBERS = re.compile(r"\[\s+(-?\d[^\[\]{}\"]*)\]")  # a list of numbers alone, as json.dumps indents it


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def stores(self) -> Path:
        """Where the features come from: enough to make them anew from images without the cache."""
        return self.root / "stores.json"

    @property
    def scoring(self) -> Path:
        """The run that scored the backbones for --select."""
        return self.root / "scoring"

    @property
    def log(self) -> Path:
        """What happened, with times; only ever appended to."""
        return self.root / "log.txt"

    @property
    def checkpoint(self) -> Path:
        """Where a training that goes on stands."""
        return self.root / "checkpoint.safetensors"

    @property
    def search(self) -> Path:
        """Settings and scores of --search."""
        return self.root / "search.json"

    @property
    def holdout(self) -> Path:
        """The rows that --holdout keeps out of the training."""
        return self.root / "holdout.json"

    @property
    def training(self) -> Path:
        """What the finished training took; there once all heads are."""
        return self.root / "training.json"

    def results(self, split: str) -> Path:
        """What `evaluate` measured on one split."""
        return self.root / ("results.json" if split == "test" else f"results-{split}.json")

    def predictions(self, split: str) -> Path:
        """One row per image and seed of one split."""
        return self.root / ("predictions.parquet" if split == "test" else f"predictions-{split}.parquet")

    def head(self, seed: int) -> Path:
        """The trained weights of one seed."""
        return self.root / f"seed-{seed}" / "head.safetensors"

    def backbone(self, seed: int) -> Path:
        """The weights of a backbone that was trained along with one seed's head (`train --online --unfrozen`)."""
        return self.root / f"seed-{seed}" / "backbone.safetensors"

    def online_checkpoint(self, seed: int) -> Path:
        """Where one seed's training online stands, between its epochs."""
        return self.root / f"seed-{seed}" / "online.safetensors"

    def metrics(self, seed: int) -> Path:
        """One line per epoch of one seed's training."""
        return self.root / f"seed-{seed}" / "metrics.jsonl"


class RunLog:
    """Appends lines to a run's log.txt; those that a user should see go to stderr too."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, line: str, *, show: bool = False) -> None:
        """One line with the local time before it."""
        with guard(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")
        if show:
            print(line, file=sys.stderr, flush=True)


def start_run(root: Path, config: TrainConfig) -> RunPaths:
    """Makes the run's directory, or opens one that the same configuration began.

    Raises:
        LofftaError: as `check_out`.
    """
    check_out(root, config)
    sweep_tree(root)  # a killed process may have left half a checkpoint
    paths = RunPaths(root)
    if _saved_config(paths) != config:
        replace_file(paths.config, to_yaml(config))
    return paths


def check_out(root: Path, config: TrainConfig, *, ignore: Collection[str] = ()) -> None:
    """Refuses a directory that cannot take the run. A run that failed before it had a head may be begun anew.

    Args:
        ignore: fields of the configuration that are not known yet.
    Raises:
        LofftaError: the directory holds a run of another configuration (the fields are named), or something else.
    """
    paths = RunPaths(root)
    old = _saved_config(paths)
    if old is None:
        if root.exists() and (not root.is_dir() or _others(root, paths.scoring)):
            raise LofftaError("this folder holds something else", where=root, remedy="choose an empty or new --out")
        return
    lines = differing_fields(
        old.model_dump(mode="json", exclude=set(ignore)), config.model_dump(mode="json", exclude=set(ignore))
    )
    if lines and _others(root, paths.config, paths.log, paths.scoring, paths.holdout):
        raise LofftaError(
            "this run was made with another configuration:\n    " + "\n    ".join(lines),
            where=paths.config,
            remedy="choose another --out, or give the old options to continue it",
        )


def _others(root: Path, *known: Path) -> bool:
    """Whether there is more in `root` than these and what killed processes left."""
    parts = {part.path for part in find_parts(root)}
    return any(path not in known and path not in parts for path in root.iterdir())


def _saved_config(paths: RunPaths) -> TrainConfig | None:
    return parse(TrainConfig, read_yaml(paths.config), where=paths.config) if paths.config.exists() else None


def open_run(root: Path) -> tuple[RunPaths, TrainConfig]:
    """Opens a run that is there."""
    paths = RunPaths(root)
    if not paths.config.exists():
        raise LofftaError(
            "there is no run here", where=root, remedy="make one with `loffta train CACHE --head NAME --out RUN`"
        )
    return paths, parse(TrainConfig, read_yaml(paths.config), where=paths.config)


def save_head(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a head's weights as safetensors."""
    replace_file(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))


def load_head(path: Path) -> dict[str, Tensor]:
    """Reads a head's weights.

    Raises:
        LofftaError: the training has not finished, or the file is damaged.
    """
    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise LofftaError(
            "this run has no trained head yet", where=path, remedy="run its `loffta train` again until it is done"
        ) from error
    except SafetensorError as error:
        raise LofftaError(
            f"the head's file is damaged ({error})", where=path, remedy="delete it and run `loffta train` again"
        ) from error


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object per line."""
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes one of the run's own small files."""
    replace_file(path, json.dumps(values).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        LofftaError: the file is missing or damaged.
    """
    return _read_mapping(path, remedy="train again with another --out, or bring the file back")


def _read_mapping(path: Path, *, remedy: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError) as error:
        raise LofftaError(f"this file of the run cannot be read ({error})", where=path, remedy=remedy) from error
    return values


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `write_lines` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results.json; a list of numbers takes one line, so that confusions can be read."""
    text = json.dumps(results, indent=2)
    replace_file(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text).encode())


def save_results(
    paths: RunPaths, split: str, results: Mapping[str, Any], columns: Mapping[str, NDArray[Any] | list[Any]]
) -> None:
    """Writes what was measured on a split, the predictions first.

    Raises:
        NotSaved: it cannot be written; the error has the results.
    """
    try:
        write_predictions(paths.predictions(split), columns)
        write_results(paths.results(split), results)
    except LofftaError as error:
        raise NotSaved(error, results) from error


def read_results(path: Path) -> dict[str, Any]:
    """Reads results.json.

    Raises:
        LofftaError: the file is missing or damaged.
    """
    if not path.exists():
        trained = RunPaths(path.parent).training.exists()
        raise LofftaError(
            "there are no results here yet",
            where=path,
            remedy="run `loffta evaluate RUN`" if trained else "run its `loffta train` again until it is done",
        )
    return _read_mapping(path, remedy="delete the file and run the command that made it again")


def write_predictions(path: Path, columns: Mapping[str, NDArray[Any] | list[Any]]) -> None:
    """Writes predictions.parquet: the columns of `measure.prediction_columns`; arrays [n, C] become lists of C."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: _column(values) for name, values in columns.items()}), buffer)
    replace_file(path, buffer.getvalue())


def _column(values: NDArray[Any] | list[Any]) -> pa.Array[Any]:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    column: pa.Array[Any] = pa.array(values)
    return column


def read_predictions(path: Path, columns: list[str] | None = None) -> dict[str, NDArray[Any]]:
    """Columns of predictions.parquet, None for all; a column of lists becomes an array of objects."""
    data = pa.BufferReader(path.read_bytes())  # pyarrow takes no path but UTF-8
    table = pq.read_table(data, columns=columns, use_threads=False)  # see `store.table`
    return {name: np.asarray(table[name].to_numpy(zero_copy_only=False)) for name in table.column_names}
