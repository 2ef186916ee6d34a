"""A run: one directory that holds one training, and the only place that spells its file names.

config.yaml comes first, results.json last: a directory with results is finished, one without is not.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from loffta.config import TrainConfig, parse, read_yaml
from loffta.errors import LofftaError, NotSaved
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import replace_file
from loffta.files.os_words import explain
from loffta.files.tensor_file import read_tensors
from loffta.machine.progress import say
from loffta.runs.records import Record, problem_of
from loffta.runs.results_text import Results
from loffta.store.arrow import from_numbers, to_column
from loffta.words import file_name, printable

Shape = TypeVar("Shape", bound=Record)
_NUMBERS = re.compile(r"\[\s+(-?\d[^\[\]{}\"]*)\]")  # a list of numbers alone, as json.dumps indents it

_MAX_PREDICTIONS = 1 << 36  # ImageNet's 50,000 images with 1,000 probabilities of 100 seeds are a third of it
_LOST = "train again with another --out, or bring the file back"
_AGAIN = "delete the file: `loffta evaluate RUN` writes it anew"
_CLAIM = re.compile(r"claim-(\d{1,9})\.json")


class RunPaths:
    """The files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"  # the resolved configuration
        self.stores = root / "stores.json"  # where the features come from: enough to make them anew without the cache
        self.scoring = root / "scoring"  # the run that scored the backbones for --select
        self.log = root / "log.txt"  # what happened, with times; only ever appended to
        self.checkpoint = root / "checkpoint.safetensors"  # where a training that goes on stands
        self.search = root / "search.json"  # settings and scores of --search
        self.holdout = root / "holdout.json"  # the rows that --holdout keeps out of the training
        self.turns = root / "turns.json"  # the rows of its folds or draws; see `loffta.runs.turns`
        self.images = root / "images.json"  # which images the training knew; see `loffta.runs.known_images`
        self.labels = root / "labels.parquet"  # what was said of them, where that was not as in images.parquet
        self.deal = root / "deal.json"  # into how many packages its members were dealt; see `loffta.training.dealt`
        self.order = root / "order.json"  # of the images, where packages have to have one
        self.training = root / "training.json"  # what the finished training took; there once all heads are

    def turn(self, name: str) -> RunPaths:
        """The training of one fold or draw: a folder with what a run of its own would have there."""
        return RunPaths(self.root / name)

    def package(self, name: str) -> RunPaths:
        """What a rank trains of the members of this run: checkpoint, claim, log; the heads go to the run."""
        return RunPaths(self.root / "dealt" / name)

    @property
    def temperature(self) -> Path:
        """What calibrates the heads, where images were held out to fit it; see `loffta.runs.temperature`."""
        return self.root / "temperature.safetensors"

    def claim(self, number: int) -> Path:
        """Says which process is at work here; see `loffta.runs.claims`."""
        return self.root / f"claim-{number}.json"

    def claims(self) -> dict[int, Path]:
        """The claims that are there, by their rising numbers."""
        found = [(match, path) for path in self.root.glob("claim-*.json") if (match := _CLAIM.fullmatch(path.name))]
        return dict(sorted((int(match[1]), path) for match, path in found))

    def results(self, split: str) -> Path:
        """What `evaluate` measured on one split."""
        return self._of_split("results", split, ".json")

    def predictions(self, split: str) -> Path:
        """One row per image and seed of one split."""
        return self._of_split("predictions", split, ".parquet")

    def predictions_dense(self, split: str) -> Path:
        """The figures of each image and seed of one split, where a dense head was measured: maps are not kept."""
        return self._of_split("predictions-dense", split, ".parquet")

    def _of_split(self, stem: str, split: str, ending: str) -> Path:
        """The file of one split, whose name never leaves the run; older runs keep the names that they gave."""
        if split == "test":
            return self.root / f"{stem}{ending}"
        older = self.root / f"{stem}-{split}{ending}"
        if "/" not in split and os.path.lexists(older):  # False, too, for what no file system takes
            return older
        return self.root / f"{stem}-{file_name(split)}{ending}"

    def weights(self, seed: int, part: str) -> Path:
        """The trained weights of a part of one seed: `head`, or `backbone` where one was trained along."""
        return self.root / f"seed-{seed}" / f"{part}.safetensors"

    def head(self, seed: int) -> Path:
        """The trained weights of one seed."""
        return self.weights(seed, "head")

    @property
    def old_online_checkpoints(self) -> list[Path]:
        """Of trainings online by an older version, which had one a seed."""
        return sorted(self.root.glob("seed-*/online.safetensors"))

    def metrics(self, seed: int) -> Path:
        """One line per epoch of one seed's training."""
        return self.root / f"seed-{seed}" / "metrics.jsonl"


class RunLog:
    """Appends lines to a run's log.txt; those that a user should see go to stderr too.

    A log that cannot be written is told of once and ends nothing: what the run is for are its heads and results.

    Args:
        path: None where another process writes the log.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fails = False

    def write(self, line: str, *, show: bool = False) -> None:
        """One line with the local time before it, harmless whatever names are in it."""
        line = printable(line.replace("\n", " "))
        try:
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")
        except OSError as error:
            if not self._fails:
                say(f"the log is not complete: {explain(error, self._path)}", keep="\n")
            self._fails = True
        if show:
            say(line)


def open_run(root: Path) -> tuple[RunPaths, TrainConfig]:
    """Opens a run that is there."""
    paths = RunPaths(root)
    if not paths.config.exists():
        raise LofftaError(
            "there is no run here", where=root, remedy="make one with `loffta train CACHE --head NAME --out RUN`"
        )
    return paths, parse(TrainConfig, read_yaml(paths.config), where=paths.config)


def load_head(path: Path) -> dict[str, Tensor]:
    """Reads the weights of a head, or of a backbone that was trained along: what `write_tensors` wrote.

    Raises:
        LofftaError: the training has not finished, or the file is damaged.
    """
    try:
        return read_tensors(path)[0]
    except FileNotFoundError as error:
        raise LofftaError(
            "this run has no trained head yet", where=path, remedy="run its `loffta train` again until it is done"
        ) from error
    except ValueError as error:
        raise LofftaError(
            f"this file of trained weights is damaged ({error})",
            where=path,
            remedy="delete it and run the run's `loffta train` again: it trains them anew",
        ) from error


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object per line."""
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes one of the run's own small files."""
    replace_file(path, json.dumps(values).encode())


def read_json(path: Path, shape: type[Shape], *, remedy: str = _LOST) -> Shape:
    """Reads what `write_json` wrote.

    Raises:
        LofftaError: the file is missing, damaged, or says something else than `shape`.
    """
    try:
        values = from_json(read_bytes(path))
        if not isinstance(values, dict):
            raise ValueError("it is no mapping")
        return shape.model_validate(values)
    except (FileNotFoundError, ValueError) as error:
        fault = f"cannot be read ({error})"
        if isinstance(error, ValidationError):
            fault = f"says what it cannot mean: {problem_of(error)}"
        raise LofftaError(f"this file of the run {fault}", where=path, remedy=remedy) from error


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results.json; a list of numbers takes one line, so that confusions can be read."""
    text = json.dumps(results, indent=2)
    replace_file(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text).encode())


def save_results(
    paths: RunPaths,
    split: str,
    results: Mapping[str, Any],
    columns: Mapping[str, NDArray[Any] | list[Any]],
    *,
    dense: bool = False,
) -> None:
    """Writes what was measured on a split, the predictions first.

    Args:
        dense: the columns are figures of images, not predictions.
    Raises:
        NotSaved: it cannot be written; the error has the results.
    """
    try:
        write_predictions((paths.predictions_dense if dense else paths.predictions)(split), columns)
        write_results(paths.results(split), results)
    except LofftaError as error:
        raise NotSaved(error, results) from error


def read_results(path: Path) -> dict[str, Any]:
    """Reads results.json.

    Raises:
        LofftaError: the file is missing, damaged, or says something else than `Results`; the first such key is named.
    """
    if not path.exists():
        trained = RunPaths(path.parent).training.exists()
        raise LofftaError(
            "there are no results here yet",
            where=path,
            remedy="run `loffta evaluate RUN`" if trained else "run its `loffta train` again until it is done",
        )
    return read_json(path, Results, remedy=_AGAIN).as_json()


def write_predictions(path: Path, columns: Mapping[str, NDArray[Any] | list[Any]]) -> None:
    """Writes predictions.parquet: the columns of `measure.prediction_columns`; arrays [n, C] become lists of C."""
    buffer = io.BytesIO()
    table = pa.table({name: _column(values) for name, values in columns.items()})
    pq.write_table(table, buffer, write_page_checksum=True)
    replace_file(path, buffer.getvalue())


def _column(values: NDArray[Any] | list[Any]) -> pa.Array[Any]:
    if isinstance(values, np.ndarray) and values.dtype != object:  # objects are what `read_predictions` makes of lists
        return from_numbers(values)
    kinds: dict[type, pa.DataType] = {str: pa.string(), bytes: pa.binary()}
    return to_column(list(values), kinds.get(type(values[0]), pa.list_(pa.int64())))


def read_predictions(path: Path, columns: list[str] | None = None) -> dict[str, NDArray[Any]]:
    """Columns of predictions.parquet, None for all; a column of lists becomes an array of objects.

    Raises:
        LofftaError: the file is damaged, or lacks one of the columns.
    """
    try:
        data = pa.BufferReader(read_bytes(path, _MAX_PREDICTIONS))  # pyarrow takes no path but UTF-8
        with pq.ParquetFile(data, page_checksum_verification=True) as file:
            table = file.read(columns, use_threads=False)  # see `store.table`
        return {name: np.asarray(table[name].to_numpy(zero_copy_only=False)) for name in columns or table.column_names}
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:  # else it is Arrow's word for a wrong checksum
            raise
        raise LofftaError(
            f"these predictions are damaged ({str(error)[:200]})",
            where=path,
            remedy="delete the file and run `loffta evaluate RUN` again",
        ) from error
