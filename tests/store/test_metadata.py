import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loffta.errors import LofftaError
from loffta.store.metadata import grid_layout, image_layout, read_layout

from .conftest import make_layout


def test_the_document_of_a_grid() -> None:
    layout = grid_layout(10, (2, 3, 4, 5), "float16", 8, kind="grid", taps=["a", "b"])
    number = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [1, 1, 3, 4, 5],
        "codecs": [number, {"name": "crc32c"}],
        "index_codecs": [number, {"name": "crc32c"}],
        "index_location": "end",
    }
    assert json.loads(layout.to_json()) == {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [10, 2, 3, 4, 5],
        "data_type": "float16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 2, 3, 4, 5]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {"kind": "grid", "taps": ["a", "b"]},
        "storage_transformers": [],
    }


@pytest.mark.parametrize(("dtype", "fill"), [("float32", "NaN"), ("int8", -128), ("uint8", 0)])
def test_fill_values_cannot_pass_for_data(dtype: str, fill: object) -> None:
    assert json.loads(image_layout(1, (2,), dtype, 8).to_json())["fill_value"] == fill


def test_sizes() -> None:
    grid, mean = make_layout("grid"), make_layout("mean")
    assert (grid.chunks_per_image, grid.chunk_bytes, grid.stored_chunk_bytes) == (3, 80, 84)
    assert (mean.chunks_per_image, mean.chunk_bytes, mean.stored_chunk_bytes) == (1, 30, 34)
    assert grid.item_shape == (3, 2, 4, 5)
    assert grid.taps == ("blocks.0", "blocks.1", "blocks.2")
    assert make_layout("thumb").taps == ()
    assert grid.resized(40).shape == (40, 3, 2, 4, 5)


@pytest.mark.parametrize("kind", ["grid", "prefix", "mean", "thumb"])
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    layout = make_layout(kind)
    (tmp_path / "zarr.json").write_bytes(layout.to_json())
    assert read_layout(tmp_path / "zarr.json") == layout


def edited(tmp_path: Path, path: str, value: Any) -> Path:
    """A grid's zarr.json with one field changed; `path` is its keys joined by slashes."""
    document = json.loads(make_layout("grid").to_json())
    node: Any = document
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in parents:
        node = node[key]
    node[last] = value
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    return tmp_path / "zarr.json"


CODECS = "codecs/0/configuration"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{CODECS}/codecs/1", {"name": "zstd", "configuration": {"level": 1}}),
        (f"{CODECS}/codecs/0/configuration/endian", "big"),
        (f"{CODECS}/index_codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
        (f"{CODECS}/chunk_shape", [2, 1, 2, 4, 5]),
        (f"{CODECS}/chunk_shape", [1, 1, 1, 4, 5]),
        ("codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
        ("chunk_key_encoding/configuration/separator", "/"),
        ("chunk_key_encoding", {"name": "v2"}),
        ("chunk_grid/configuration/chunk_shape", [8, 6, 2, 4, 5]),
        ("chunk_grid/name", "rectilinear"),
        ("data_type", "bfloat16"),
        ("data_type", {"name": "numpy.datetime64", "configuration": {}}),
        ("storage_transformers", [{"name": "mystery"}]),
    ],
)
def test_what_the_direct_reader_does_not_take(tmp_path: Path, path: str, value: Any) -> None:
    assert read_layout(edited(tmp_path, path, value)) is None


@pytest.mark.parametrize(
    ("path", "value"), [("zarr_format", 2), ("node_type", "group"), ("codecs", 3), ("chunk_grid", {"name": "regular"})]
)
def test_what_is_no_zarr_array(tmp_path: Path, path: str, value: Any) -> None:
    with pytest.raises(
        LofftaError,
        match=r"cannot read the array's metadata .*\n  where:  .*zarr.json\n  remedy: .*loffta (info|verify)",
    ):
        read_layout(edited(tmp_path, path, value))


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3"])
def test_files_that_are_missing_or_no_json(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(LofftaError, match="cannot read the array's metadata"):
        read_layout(tmp_path / "zarr.json")


def test_other_dtypes_are_understood(tmp_path: Path) -> None:
    layout = read_layout(edited(tmp_path, "data_type", "int16"))
    assert layout is not None
    assert layout.dtype == np.int16
