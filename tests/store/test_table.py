import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loffta.errors import DamageFound, LofftaError, UsageError
from loffta.store import follow
from loffta.store.cache import Cache
from loffta.store.growth import grow, match_images, say_source
from loffta.store.labels import Annotations
from loffta.store.table import ImageTable

WHERE = Path("images.parquet")


def make_table(**changes: Any) -> ImageTable:
    table = ImageTable(
        "folder:pets",
        ["a.png", "b.png", "c.png", "d.png"],
        np.array([10, 20, 30, 40]),
        ["train", "train", "val", "test"],
        np.array([0, 1, 1, -1]),
        ("cat", "dog"),
    )
    return dataclasses.replace(table, **changes)


def grown_by(table: ImageTable, listing: ImageTable) -> ImageTable:
    return grow(table, match_images(table, listing, where=WHERE))


def words_of(table: ImageTable, listing: ImageTable) -> str:
    """How a listing differs from what was said before, without new images."""
    return say_source(table, table, match_images(table, listing, where=WHERE), None)[1]


def test_the_digest_is_over_all_columns() -> None:
    text = (
        '[["a.png", "b.png", "c.png", "d.png"], [10, 20, 30, 40], ["train", "train", "val", "test"], '
        '[0, 1, 1, -1], ["cat", "dog"]]'
    )
    assert make_table().digest == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    others = [
        make_table(keys=["a.png", "b.png", "c.png", "e.png"]),
        make_table(sizes=np.array([10, 20, 30, 41])),
        make_table(splits=["train", "train", "val", "val"]),
        make_table(labels=np.array([0, 1, 1, 0])),
        make_table(classes=("dog", "cat")),
    ]
    assert len({table.digest for table in [make_table(), *others]}) == 6
    assert make_table(source="elsewhere").digest == make_table().digest


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "images.parquet").write_bytes(make_table().to_parquet())
    read = ImageTable.read(tmp_path / "images.parquet")
    assert read.digest == make_table().digest
    assert (read.source, read.classes, len(read)) == ("folder:pets", ("cat", "dog"), 4)
    plain = pq.read_table(tmp_path / "images.parquet").to_pydict()
    assert plain["row"] == [0, 1, 2, 3]
    assert plain["key"] == ["a.png", "b.png", "c.png", "d.png"]
    assert plain["size"] == [10, 20, 30, 40]
    assert plain["split"] == ["train", "train", "val", "test"]
    assert plain["label"] == [0, 1, 1, -1]


def test_splits_and_classes() -> None:
    table = make_table()
    assert table.rows_of("train").tolist() == [0, 1]
    assert table.rows_of("train+test").tolist() == [0, 1, 3]
    assert table.rows_of("none").tolist() == []
    assert table.split_sizes() == {"train": 2, "val": 1, "test": 1}
    assert [table.class_name(row) for row in range(4)] == ["cat", "dog", "dog", None]


def test_no_news_is_the_same_table() -> None:
    table, listing = make_table(), make_table()
    assert grown_by(table, listing) is table


def test_growth_appends_and_maps_the_classes() -> None:
    """The listing sorts "bird" before "cat" and a new file between old ones; old rows stay, classes move."""
    listing = ImageTable(
        "folder:pets",
        ["a.png", "aa.png", "b.png", "c.png", "d.png", "e.png", "f.png"],
        np.array([10, 11, 20, 30, 40, 50, 60]),
        ["train", "val", "train", "val", "test", "train", "test"],
        np.array([1, 0, 2, 2, -1, 1, -1]),
        ("bird", "cat", "dog"),
    )
    grown = grown_by(make_table(), listing)
    assert grown.keys == ["a.png", "b.png", "c.png", "d.png", "aa.png", "e.png", "f.png"]
    assert grown.sizes.tolist() == [10, 20, 30, 40, 11, 50, 60]
    assert grown.splits == ["train", "train", "val", "test", "val", "train", "test"]
    assert grown.classes == ("bird", "cat", "dog")
    assert grown.labels.tolist() == [1, 2, 2, -1, 0, 1, -1]
    assert grown_by(grown, listing) is grown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": np.array([10, 20, 30, 41])}, "d.png: 40 bytes before, 41 now"),
        ({"keys": ["a.png", "b.png", "c.png", "e.png"]}, "d.png: gone"),
    ],
)
def test_images_must_not_go_or_change(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LofftaError) as caught:
        grown_by(make_table(), make_table(**changes))
    assert str(caught.value) == (
        f"the image set changed: {message}\n  where:  images.parquet\n"
        "  remedy: bring the old images back (new ones may be added), say what becomes of rows whose files are gone "
        "with --gone keep or --gone drop, or extract into a new cache"
    )


def test_only_some_faults_are_shown() -> None:
    n = 12
    table = ImageTable("x", [str(i) for i in range(n)], np.ones(n, np.int64), [""] * n, np.full(n, -1), ())
    empty = ImageTable("x", [], np.empty(0, np.int64), [], np.empty(0, np.int64), ())
    with pytest.raises(LofftaError, match="0: gone; 1: gone; 2: gone; 3: gone; 4: gone and 7 more"):
        grown_by(table, empty)


MULTI = {"labels": np.full(4, -1), "label_sets": [(0, 1), (), None, (1,)]}
REGRESSION = {"labels": np.full(4, -1), "classes": (), "values": np.array([0.5, -2.0, np.nan, 1e-9])}
TARGETS = {"targets": {"mask": ["m/a.png", None, "m/c.png", None], "depth": [None, None, None, "d.npy"]}}


@pytest.mark.parametrize(
    ("changes", "kind", "optional"),
    [
        (MULTI, "multi-label", {"labels": [[0, 1], [], None, [1]]}),
        (REGRESSION, "regression", {"value": [0.5, -2.0, None, 1e-9]}),
        (
            TARGETS,
            "single-label",
            {"target:mask": ["m/a.png", None, "m/c.png", None], "target:depth": [None, None, None, "d.npy"]},
        ),
        (MULTI | TARGETS, "multi-label", None),
    ],
)
def test_optional_columns(tmp_path: Path, changes: dict[str, Any], kind: str, optional: dict[str, Any] | None) -> None:
    """Each in its own column, read back as it was, and in the digest; without them the bytes are those of before."""
    table = make_table(**changes)
    (tmp_path / "images.parquet").write_bytes(table.to_parquet())
    read = ImageTable.read(tmp_path / "images.parquet")
    assert (read.label_kind, read.digest, read.targets) == (kind, table.digest, table.targets)
    assert read.label_sets == table.label_sets
    if table.values is not None:
        np.testing.assert_array_equal(read.values, table.values)
    assert grown_by(read, table) is read
    plain = pq.read_table(tmp_path / "images.parquet")
    assert json.loads(plain.schema.metadata[b"loffta"])["label_kind"] == kind
    columns = {name: plain[name].to_pylist() for name in plain.column_names[5:]}
    if optional is not None:
        assert columns == optional
    rows = [table.keys, table.sizes.tolist(), table.splits, table.labels.tolist(), list(table.classes), columns]
    text = json.dumps(rows, sort_keys=True)
    assert table.digest == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_a_table_of_classes_has_the_columns_that_it_always_had(tmp_path: Path) -> None:
    (tmp_path / "images.parquet").write_bytes(make_table().to_parquet())
    assert pq.read_table(tmp_path / "images.parquet").column_names == ["row", "key", "size", "split", "label"]


def test_growth_of_several_classes_maps_them() -> None:
    table = make_table(**MULTI)
    listing = ImageTable(
        "folder:pets",
        ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png", "g.png"],
        np.array([10, 20, 30, 40, 50, 60, 70]),
        ["train", "train", "val", "test", "test", "test", "test"],
        np.full(7, -1),
        ("bird", "cat", "dog"),
        label_sets=[(1, 2), (), None, (2,), (0, 2), (), None],
    )
    grown = grown_by(table, listing)
    assert grown.classes == ("bird", "cat", "dog")
    assert grown.label_sets == [(1, 2), (), None, (2,), (0, 2), (), None]
    assert [grown.class_names(row) for row in range(7)] == [listing.class_names(row) for row in (0, 1, 2, 3)] + [
        ("bird", "dog"),
        (),
        None,
    ]
    assert grown.labels.tolist() == [-1] * 7
    assert grown_by(grown, listing) is grown


def test_growth_of_numbers_and_of_targets() -> None:
    table = make_table(**REGRESSION, targets={"mask": ["m/a.png", None, None, None]})
    listing = ImageTable(
        "folder:pets",
        ["e.png", "a.png", "b.png", "c.png", "d.png"],
        np.array([50, 10, 20, 30, 40]),
        ["val", "train", "train", "val", "test"],
        np.full(5, -1),
        (),
        values=np.array([7.5, 0.5, -2.0, np.nan, 1e-9]),
        targets={"depth": ["d.npy", None, None, None, None], "mask": [None, "m/a.png", None, None, None]},
    )
    grown = grown_by(table, listing)
    assert grown.values is not None
    assert grown.values.tolist()[:2] + grown.values.tolist()[3:] == [0.5, -2.0, 1e-9, 7.5]
    assert np.isnan(grown.values[2])
    assert grown.targets == {
        "mask": ["m/a.png", None, None, None, None],
        "depth": [None, None, None, None, "d.npy"],
    }
    assert grown_by(grown, listing) is grown


SPLITS = ["train", "val", "val", "test"]
MASK = {"targets": {"mask": TARGETS["targets"]["mask"]}}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {"splits": SPLITS}, "split of 1"),
        ({}, {"labels": np.array([0, 0, 1, -1])}, "class of 1"),
        ({}, {"labels": np.array([1, 0, 0, -1]), "classes": ("dog", "cat")}, ""),  # the same, numbered otherwise
        ({}, {"classes": ("cat", "wolf")}, "class of 2"),
        ({}, {"classes": ("cat", "dog", "wolf")}, ""),
        ({}, {"splits": SPLITS, "labels": np.array([1, 0, 1, 0])}, "split of 1 and class of 3"),
        (MULTI, {"label_sets": [(0,), (), None, (1,)]}, "classes of 1"),
        (MULTI, {"label_sets": [(0, 1), None, None, (1,)]}, "classes of 1"),
        (REGRESSION, {"values": np.array([0.5, -2.0, 3.0, 1e-9])}, "value of 1"),
        (REGRESSION, {"values": np.array([0.25, -2.0, np.nan, 1e-9])}, "value of 1"),
        (TARGETS, MASK, "depth of 1"),
        ({}, TARGETS, "mask of 2 and depth of 1"),
        ({}, MULTI, "classes of 4"),
        (REGRESSION, MULTI | {"values": None, "classes": ("cat", "dog")}, "classes of 4"),
    ],
)
def test_labels_and_splits_may_change(before: dict[str, Any], now: dict[str, Any], words: str) -> None:
    table, listing = make_table(**before), make_table(**(before | now))
    assert words_of(table, listing) == (f"of the 4 old images {words} differ" if words else "")
    assert grown_by(table, listing) is table


def test_what_a_listing_says_is_what_the_table_says_then(tmp_path: Path) -> None:
    listing = make_table(**MULTI, **TARGETS, splits=SPLITS)
    table = make_table(labels=np.array([1, 1, 0, 0]))
    said, _ = say_source(table, table, match_images(table, listing, where=WHERE), None)
    (tmp_path / "said").write_bytes(said.to_parquet())
    found = Annotations.read(tmp_path / "said", remedy="").on(table, where="here", places=True)
    for name in ("keys", "splits", "classes", "label_sets", "targets", "label_kind", "digest"):
        assert getattr(found, name) == getattr(listing, name), name


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path, data = tmp_path / "images.parquet", make_table().to_parquet()
    foreign = pq.read_table(_write(path, data)).replace_schema_metadata(None)
    pq.write_table(foreign, tmp_path / "foreign")
    newer = pq.read_table(path)
    meta = {**json.loads(newer.schema.metadata[b"loffta"]), "format": 2}
    pq.write_table(newer.replace_schema_metadata({b"loffta": json.dumps(meta).encode()}), tmp_path / "newer")
    flipped = bytearray(data)
    flipped[data.index(b"a.png")] ^= 4
    cases = {
        "foreign": None,
        "newer": None,
        "empty": b"",
        "text": b"row,key",
        "short": data[:-3],
        "flipped": bytes(flipped),
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(
            LofftaError, match=r"cannot read the table of images .*\n  where:  .*\n  remedy: restore it"
        ):
            ImageTable.read(tmp_path / name)
    with pytest.raises(LofftaError, match=r"format 2 is newer than this loffta knows \(1\)"):
        ImageTable.read(tmp_path / "newer")


@pytest.mark.parametrize("name", ["key", "size", "split", "label", "value", "digest", "classes"])
def test_an_altered_table_is_refused_by_either_digest(tmp_path: Path, name: str) -> None:
    """As another program saves it: sound pages, the metadata of before. Older files have the digest over JSON alone."""
    made = make_table(labels=np.full(4, -1), classes=(), values=np.array([1.0, 2.0, 3.0, np.nan]))
    table = pq.read_table(_write(tmp_path / "images.parquet", made.to_parquet()))
    meta = json.loads(table.schema.metadata[b"loffta"])
    older = {key: value for key, value in meta.items() if key != "columns_digest"}
    pq.write_table(table.replace_schema_metadata({b"loffta": json.dumps(older).encode()}), tmp_path / "older")
    assert ImageTable.read(tmp_path / "older").digest == ImageTable.read(tmp_path / "images.parquet").digest
    others = {"key": ["a.png", "b.png", "d.png", "c.png"], "size": [10, 20, 30, 41], "label": [-1, -1, -1, -2]}
    others |= {"split": ["train", "val", "val", "test"], "value": [1.0, 2.0, 3.5, None]}
    for said in (meta, older):
        altered, words = table, dict(said)
        if name in others:
            place = table.column_names.index(name)
            altered = table.set_column(place, name, pa.array(others[name], table.schema.field(name).type))
        else:
            words[name] = "0" * 32 if name == "digest" else ["cat"]
        pq.write_table(altered.replace_schema_metadata({b"loffta": json.dumps(words).encode()}), tmp_path / "altered")
        with pytest.raises(DamageFound, match="it does not match its digest"):
            ImageTable.read(tmp_path / "altered")


@pytest.mark.parametrize(
    "changes", [{}, {"splits": ["train", "train", "val", "val"]}, {"labels": np.array([0, 1, 1, 0])}]
)
def test_a_listing_without_news_is_not_matched(tmp_path: Path, monkeypatch, changes: dict[str, Any]) -> None:
    """Matching takes 10 us an image, and every worker of an extraction begins with it."""
    Cache.create(tmp_path, make_table(), unit_images=8, thumb_px=8)
    seen, match = [], follow.match_images
    monkeypatch.setattr(follow, "match_images", lambda *a, **k: seen.append(1) or match(*a, **k))
    Cache.create(tmp_path, make_table(**changes), unit_images=None, thumb_px=8)
    assert len(seen) == (1 if changes else 0)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_no_thread_of_arrow_is_begun(tmp_path, monkeypatch):
    """They make a short command abort at its end (exit code 134), beside torch, now and then."""
    seen, read = [], pq.ParquetFile.read
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *a, **k: seen.append(k["use_threads"]) or read(*a, **k))
    table = ImageTable("folder:x", ["a.png"], np.array([3]), ["train"], np.array([0]), ("cat",))
    path = tmp_path / "images.parquet"
    path.write_bytes(table.to_parquet())
    assert ImageTable.read(path).digest == table.digest
    assert seen == [False]


def old_table(classes: tuple[str, ...]) -> ImageTable:
    n = len(classes)
    keys = [f"{name}/a.png" for name in classes]
    return ImageTable("folder:x", keys, np.ones(n, np.int64), ["train"] * n, np.arange(n), classes)


@pytest.mark.parametrize(
    ("old", "new", "grown"),
    [
        (("1", "2", "4"), ("1", "2", "3", "4"), ("1", "2", "3", "4")),  # as a fresh cache numbers them
        (("1", "10", "2"), ("1", "2", "3", "10"), ("1", "10", "2", "3")),  # an older cache keeps its own order
        (("b", "a"), ("a", "b", "c"), ("b", "a", "c")),
    ],
)
def test_the_order_of_a_grown_set(old: tuple[str, ...], new: tuple[str, ...], grown: tuple[str, ...]) -> None:
    table = grown_by(old_table(old), old_table(new))
    assert table.classes == grown
    assert [table.class_name(row) for row in range(len(new))] == [key.split("/")[0] for key in table.keys]
    assert table.keys[: len(old)] == old_table(old).keys


def test_an_older_cache_keeps_its_spelling_and_its_lookalikes() -> None:
    """Made when two forms were two classes, or when one was kept as a Mac writes it: both still grow."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    old = dataclasses.replace(old_table(("Cat", decomposed, "cat")), splits=[decomposed] * 3)
    listing = dataclasses.replace(
        old_table(("Cat", decomposed, "cat", "dog")),
        classes=("Cat", composed, "cat", "dog"),
        splits=[composed] * 4,
        alike=(("Cat", "cat"),),
    )
    grown = grown_by(old, listing)
    assert (grown.classes, grown.splits) == (("Cat", decomposed, "cat", "dog"), [decomposed] * 4)
    assert grown.labels.tolist() == [0, 1, 2, 3]
    fresh = dataclasses.replace(listing, alike=(("Cat", "cat"), ("Dog", "dog")))
    with pytest.raises(UsageError, match=r"look the same: 'Dog' and 'dog'\n(.|\n)*write one of them in both places"):
        grown_by(old, fresh)
    with pytest.raises(UsageError, match="look the same: 'Cat' and 'cat', 'Dog' and 'dog'"):
        fresh.refuse_alike()
