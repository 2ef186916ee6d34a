from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from loffta.errors import DamageFound
from loffta.store.ledger import (
    BAD,
    OK,
    Audit,
    ImageStatus,
    count_done,
    made_of,
    read_done,
    read_ledger,
    scales_of,
    write_done,
)
from loffta.store.metadata import image_layout
from loffta.store.paths import ArrayPaths, CachePaths
from loffta.store.seen import Seen, read_seen


@pytest.fixture(params=["cache", "split=a b"])  # the second must not be taken for a partitioned data set
def paths(tmp_path: Path, request: pytest.FixtureRequest) -> ArrayPaths:
    return CachePaths(tmp_path / request.param).array("store-0", "grid-0")


def layout_of(n_rows):
    return image_layout(n_rows, (2, 5), "float16", 8, kind="mean", taps=["a", "b"])


def write_unit(paths: ArrayPaths, unit: int, n: int = 3) -> None:
    first = unit * 8
    images = [ImageStatus(first + i, OK, "", 64 + i, 48, "ab" * 16, i == 2, 1 + 2 * i) for i in range(n)]
    images[1] = ImageStatus(first + 1, BAD, "truncated file")
    audits = [Audit([True, True], [1.5, 2.0 + i], [7, 2**32 - 1]) for i in range(n)]
    audits[1] = Audit()
    write_done(paths, unit, images, audits, {"batch_size": 4, "device": "cpu"})


def test_a_done_file_column_by_column(paths: ArrayPaths) -> None:
    write_unit(paths, 2)
    with pq.ParquetFile(paths.done_folder / "u000002.parquet") as file:
        table = file.read()
    assert table.to_pydict() == {
        "row": [16, 17, 18],
        "status": ["ok", "bad", "ok"],
        "reason": ["", "truncated file", ""],
        "width": [64, 0, 66],
        "height": [48, 0, 48],
        "blake2b": ["ab" * 16, "", "ab" * 16],
        "finite": [[True, True], [], [True, True]],
        "abs_max": [[1.5, 2.0], [], [1.5, 4.0]],
        "crc32c": [[7, 2**32 - 1], [], [7, 2**32 - 1]],
        "flat": [False, False, True],
        "pages": [1, 0, 5],
    }
    assert table.schema.metadata == {b"loffta": b'{"batch_size": 4, "device": "cpu"}'}
    read = read_done(paths.done(2))
    assert read.equals(table)
    assert read.schema.metadata == table.schema.metadata


def test_the_merged_ledger(paths: ArrayPaths) -> None:
    write_unit(paths, 0)
    write_unit(paths, 2)
    ledger = read_ledger(paths, layout_of(20))
    assert np.flatnonzero(ledger.ready).tolist() == [0, 2, 16, 18]
    assert ledger.bad == {1: "truncated file", 17: "truncated file"}
    assert (ledger.units, ledger.listed, len(ledger.ready)) == (2, 6, 20)


def test_what_was_seen_of_the_images_is_added_up(paths: ArrayPaths) -> None:
    assert read_seen(paths) == Seen()
    for unit in (0, 1, 2):
        write_unit(paths, unit)
    assert read_seen(paths) == Seen(flat=3, pages_ignored=12, several_pages=3)
    old = pq.read_table(paths.done(1)).drop_columns(["flat", "pages"])
    pq.write_table(old, paths.done(1))  # as older versions wrote it
    assert read_done(paths.done(1)).equals(old)
    assert read_seen(paths) == Seen(flat=2, pages_ignored=8, several_pages=2, untold=3)


def test_rows_that_the_array_does_not_have_yet(paths: ArrayPaths) -> None:
    """Another process may grow the array between our look at its metadata and at its done files."""
    write_unit(paths, 0)
    write_unit(paths, 2)
    ledger = read_ledger(paths, layout_of(17))
    assert np.flatnonzero(ledger.ready).tolist() == [0, 2, 16]
    assert ledger.bad == {1: "truncated file"}


def test_no_done_files(paths: ArrayPaths) -> None:
    assert not read_ledger(paths, layout_of(5)).ready.any()
    assert count_done(paths, 0) == 0
    with pytest.raises(FileNotFoundError):
        read_done(paths.done(0))


def test_count_done(paths: ArrayPaths) -> None:
    write_unit(paths, 1, n=5)
    assert [count_done(paths, unit) for unit in range(3)] == [0, 5, 0]


def damaged(data: bytes) -> dict[str, bytes]:
    footer = bytearray(data)
    footer[-200] ^= 0x55
    page = bytearray(data)
    page[data.index(b"truncated file")] ^= 1
    return {"empty": b"", "cut": data[: len(data) // 2], "text": b"done", "footer": bytes(footer), "page": bytes(page)}


@pytest.mark.parametrize("kind", ["empty", "cut", "text", "footer", "page"])
def test_damage_is_named_and_extraction_goes_on(paths: ArrayPaths, kind: str) -> None:
    write_unit(paths, 0)
    paths.done(0).write_bytes(damaged(paths.done(0).read_bytes())[kind])
    message = r"done file cannot be read .*\n  where:  .*u000000.parquet\n  remedy: delete this file and run the same"
    with pytest.raises(DamageFound, match=message):
        read_done(paths.done(0))
    with pytest.raises(DamageFound, match=message):
        read_ledger(paths, layout_of(8))
    assert count_done(paths, 0) == (3 if kind == "page" else 0)  # it reads the footer alone


def test_random_damage_never_escapes_as_another_error(paths: ArrayPaths) -> None:
    write_unit(paths, 0)
    data, rng = paths.done(0).read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 3).tolist():
            broken[place] ^= 1 << int(rng.integers(8))
        paths.done(0).write_bytes(broken)
        count_done(paths, 0)
        try:
            read_done(paths.done(0))
        except DamageFound:
            continue


def test_a_parquet_of_another_kind(paths: ArrayPaths) -> None:
    write_unit(paths, 0)
    with pq.ParquetFile(paths.done(0)) as file:
        table: Any = file.read()
    pq.write_table(table.drop_columns(["crc32c"]), paths.done(0))
    with pytest.raises(DamageFound, match="crc32c"):
        read_done(paths.done(0))


# -- what int8 arrays add


def write_int8(paths: ArrayPaths, unit: int, *, digest: str = "d1") -> None:
    images = [ImageStatus(unit * 8, OK), ImageStatus(unit * 8 + 1, BAD, "truncated"), ImageStatus(unit * 8 + 2, OK)]
    audits = [Audit([True], [2.0], [7], [3]), Audit(), Audit([True], [2.0], [7], [2**32 - 1])]
    write_done(paths, unit, images, audits, {"device": "cpu", "scales": digest})


def test_saturated_values_and_scales_are_merged(paths: ArrayPaths) -> None:
    write_int8(paths, 0)
    write_int8(paths, 1, digest="d2")
    write_unit(paths, 2)
    assert read_done(paths.done(0))["saturated"].to_pylist() == [[3], [], [2**32 - 1]]
    assert "saturated" not in read_done(paths.done(2)).column_names
    ledger = read_ledger(paths, layout_of(24))
    assert ledger.saturated == 2 * (3 + 2**32 - 1)
    assert ledger.scales == {"d1", "d2", None}
    assert [scales_of(made_of(read_done(paths.done(unit)).schema.metadata)) for unit in range(3)] == ["d1", "d2", None]


def test_a_reader_that_does_not_know_the_column(paths: ArrayPaths) -> None:
    """What loffta 0.1 did before int8: take the columns of the format, and leave the others."""
    write_int8(paths, 0)
    write_unit(paths, 1)
    old = read_done(paths.done(1)).schema
    with pq.ParquetFile(paths.done(0)) as file:
        assert file.read().select(old.names).schema.equals(old)


def test_columns_of_later_writers_are_left_alone(paths: ArrayPaths) -> None:
    write_int8(paths, 0)
    before = read_done(paths.done(0))
    pq.write_table(before.append_column("moon_phase", [["new"] * 3]), paths.done(0))
    assert read_done(paths.done(0)).equals(before)
    pq.write_table(before.set_column(before.column_names.index("saturated"), "saturated", [[1.5] * 3]), paths.done(0))
    with pytest.raises(DamageFound, match="its columns have other types"):
        read_done(paths.done(0))


@pytest.mark.parametrize("metadata", [None, {}, {b"loffta": b"{"}, {b"loffta": b"[]"}, {b"loffta": b"{}"}])
def test_scales_that_a_done_file_does_not_say(metadata: dict[bytes, bytes] | None) -> None:
    assert scales_of(made_of(metadata)) is None
