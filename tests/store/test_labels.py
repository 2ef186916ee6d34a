"""Sets of annotations on disk: written and read back, bounded to their images, refused where anything differs."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loffta.errors import DamageFound, LofftaError, UsageError
from loffta.store.cache import Cache
from loffta.store.label_sets import find_set, write_set
from loffta.store.labels import Annotations, check_name
from tests.caches import make_table
from tests.store.test_table import MULTI, REGRESSION, TARGETS
from tests.store.test_table import make_table as pets

KINDS = [{}, MULTI, REGRESSION, TARGETS, {"groups": ["ann", "bob", None, "ann"], "group_column": "patient"}]


@pytest.mark.parametrize("changes", KINDS)
def test_what_is_written_is_read_and_says_the_same(tmp_path, changes):
    table = pets(**changes)
    (tmp_path / "a.parquet").write_bytes(Annotations.of(table).to_parquet())
    read = Annotations.read(tmp_path / "a.parquet", remedy="")
    assert read == Annotations.of(table)
    other = pets(labels=np.array([1, 1, 1, 1]), splits=["x"] * 4)
    found = read.on(other, where="here")
    assert (found.digest, found.groups, found.group_column) == (table.digest, table.groups, table.group_column)
    plain = pq.read_table(tmp_path / "a.parquet")
    assert plain["key"].to_pylist() == table.keys
    assert plain["split"].to_pylist() == table.splits


def test_unknown_is_null_and_what_is_not_said_is_as_before(tmp_path):
    table = pets()
    said = Annotations(table.keys, table.identity(range(4)), splits=["test", None, "test", "train"])
    (tmp_path / "a.parquet").write_bytes(said.to_parquet())
    assert pq.read_table(tmp_path / "a.parquet").to_pydict() == {
        "row": [0, 1, 2, 3],
        "key": table.keys,
        "split": ["test", None, "test", "train"],
    }
    found = Annotations.read(tmp_path / "a.parquet", remedy="").on(table, where="here")
    assert found.labels.tolist() == table.labels.tolist()
    assert found.split_sizes() == {"test": 2, "train": 1}
    assert found.rows_of("test").tolist() == [0, 2]
    labels = Annotations(
        table.keys, table.identity(range(4)), kind="single-label", classes=("x",), labels=[0, None] * 2
    )
    found = labels.on(table, where="here")
    assert (found.labels.tolist(), found.classes, found.splits) == ([0, -1, 0, -1], ("x",), table.splits)


def test_of_images_that_came_later_nothing_is_known():
    old = make_table([0, 1, 1], ["train"] * 3)
    new = make_table([0, 1, 1, 0, 1], ["train"] * 5)
    found = Annotations.of(old).on(new, where="here")
    assert found.labels.tolist() == [0, 1, 1, -1, -1]
    assert found.split_sizes() == {"train": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ["a.png", "x.png", "c.png", "d.png"]}, "the first is b.png there and x.png here"),
        ({"sizes": np.array([10, 20, 30, 41])}, "or their sizes in bytes differ"),
    ],
)
def test_labels_of_another_set_are_refused(changes, message):
    with pytest.raises(LofftaError, match=f"these labels are of another image set: .*{message}(.|\n)*CSV file"):
        Annotations.of(pets()).on(pets(**changes), where="here")


def damages(data):
    """Names and bytes of files that are not what was written."""
    table = pq.read_table(pa.BufferReader(data))
    meta = json.loads(table.schema.metadata[b"loffta"])

    def written(changed=table, **said):
        sink = pa.BufferOutputStream()
        pq.write_table(changed.replace_schema_metadata({b"loffta": json.dumps(meta | said)}), sink)
        return sink.getvalue().to_pybytes()

    swapped = table.set_column(2, "split", pa.array(table["split"].to_pylist()[::-1]))
    return {
        "empty": b"",
        "short": data[:-7],
        "text": b"image,label\n",
        "sorted": written(table.take([3, 2, 1, 0])),
        "edited": written(swapped),
        "behind": written(classes=["cat"]),
        "newer": written(format=2),
        "kind": written(label_kind="poem"),
        "no keys": written(table.drop_columns(["key"])),
        "types": written(table.set_column(3, "label", pa.array(["0", "1", "1", None]))),
        "no classes": written(classes=7),
        "images": written(images="0" * 32),
    }


@pytest.mark.parametrize("name", sorted(damages(Annotations.of(pets()).to_parquet())))
def test_damage_is_found(tmp_path, name):
    (tmp_path / "a.parquet").write_bytes(damages(Annotations.of(pets()).to_parquet())[name])
    with pytest.raises(DamageFound, match=r"not as they were written .*\n.*a.parquet\n  remedy: do this"):
        Annotations.read(tmp_path / "a.parquet", remedy="do this")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../x", "is no plain name"),
        ("a/b", "is no plain name"),
        ("", "is no plain name"),
        (".hidden", "is no plain name"),
        ("a\x1b[2J", "is no plain name"),
        ("x" * 300, "is no plain name"),
        ("source", "is what the image set itself says"),
        ("Source", "is what the image set itself says"),
        ("source@2026-01-01", "is what the image set itself says"),
        ("mine.csv", "would be taken for a file"),
    ],
)
def test_names_that_no_set_can_have(name, fault):
    with pytest.raises(UsageError, match=fault) as caught:
        check_name(name)
    assert "\x1b" not in str(caught.value)
    check_name("round-2_of.2026")


def test_sets_of_a_cache(tmp_path):
    table = make_table([0, 1, 1, 0], ["train"] * 4)
    cache = Cache.create(tmp_path / "cache", table, unit_images=8, thumb_px=8)
    before = cache.paths.images.read_bytes()
    said = dataclasses.replace(Annotations.of(table), labels=[1, 1, None, 0])
    assert not write_set(cache, "second", said)
    assert write_set(cache, "second", said)
    seen = Cache.open(cache.paths.root).with_labels("second")
    assert (seen.labels, seen.table.labels.tolist()) == ("second", [1, 1, -1, 0])
    assert seen.images.labels.tolist() == seen.as_first_said().table.labels.tolist() == [0, 1, 1, 0]
    assert seen.as_first_said().labels is None
    assert cache.with_labels("source") is cache
    assert cache.paths.images.read_bytes() == before
    for name in ("secnd", "../images", "second.parquet/.."):
        with pytest.raises(UsageError, match=r"unknown set of labels '.*\n.*\n  remedy: (did you mean second|known)"):
            cache.with_labels(name)
    assert find_set(cache, "second") == tmp_path / "cache" / "labels" / "second.parquet"
