"""What belongs together is known to: table and features, recipe and folder, zarr.json, done files and shards.

Each test exchanges or edits one file, as a person, a backup or another tool would; nothing may be trained on then.
"""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loffta_cli.main import main

from loffta.dataset.features import choose_features, usable_rows
from loffta.errors import DamageFound, LofftaError
from loffta.store import cache as cache_module
from loffta.store.cache import Cache
from loffta.store.reader import ArrayReader
from loffta.store.table import ImageTable
from loffta.store.verify import verify
from tests.caches import UNIT, FakeStore, make_cache, make_table

N = 20


def grids(seed):
    """Two taps of one shape: they lie side by side in grid-0."""
    rng = np.random.default_rng(seed)
    return {"a.0": rng.normal(size=(N, 2, 2, 6)), "a.1": rng.normal(size=(N, 2, 2, 6))}


def build(root, seed=0, keys="x", weights="hub"):
    table = make_table(np.arange(N) % 2, ["train"] * N)
    table = ImageTable(
        table.source, [f"{keys}{i}.png" for i in range(N)], table.sizes, table.splits, table.labels, table.classes
    )
    return make_cache(root, table, [FakeStore("one", grids(seed), weights=weights, kinds=("grid", "mean"))])


@pytest.fixture
def cache(tmp_path):
    return build(tmp_path / "cache")


def read_all(cache):
    """What a training does before its first step."""
    opened = Cache.open(cache.paths.root)
    features = choose_features(opened, [], ("grid",), default_taps="all")
    rows = usable_rows(opened, features, "train")
    return ArrayReader(features[0].array.paths).read(rows)


def refused(cache, *words):
    """Training refuses with these words, verify ends with 4 and names it; what verify lists."""
    with pytest.raises(DamageFound) as caught:
        read_all(cache)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert main(["verify", str(cache.paths.root)]) == 4


def test_a_sound_cache_is_read(cache):
    assert read_all(cache).shape == (N, 2, 2, 2, 6)
    assert list(verify(cache)) == []


def test_the_digest_knows_a_cache_wherever_it_lies(cache, tmp_path):
    """By hand, over the columns of the file: docs/store-format.md."""
    shutil.move(cache.paths.root, tmp_path / "elsewhere")
    moved = Cache.open(tmp_path / "elsewhere")
    columns = pq.read_table(moved.paths.images)
    rows = [columns[name].to_pylist() for name in ("key", "size", "split", "label")]
    text = json.dumps([*rows, ["class 0", "class 1"]])
    assert moved.table.digest == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    assert json.loads(columns.schema.metadata[b"loffta"])["digest"] == moved.table.digest


# -- the table of images


def sort(table):
    return table.take(pa.array(np.random.default_rng(0).permutation(len(table))))


def relabel(table):
    return table.set_column(4, "label", pa.array(1 - table["label"].to_numpy()))


def renumber(table):
    return sort(table).set_column(0, "row", pa.array(range(N)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (sort, "rows of the table of images are in another order"),
        (relabel, "digest"),
        (renumber, "digest"),
        (lambda t: t.slice(0, 16), "digest"),
    ],
)
def test_a_table_that_another_tool_has_written(cache, change, said, capsys):
    table = pq.read_table(cache.paths.images)
    pq.write_table(change(table), cache.paths.images)
    refused(cache, said, "images.parquet")
    for words in (["info"], ["train", "--head", "linear", "--out", "run"], ["drop", "x"]):
        assert main([words[0], str(cache.paths.root), *words[1:]]) == 4
    assert "Traceback" not in capsys.readouterr().err


def test_the_sound_table_of_another_image_set(cache, tmp_path, monkeypatch):
    """As many images, the same labels: nothing else than the done files tells."""
    other = build(tmp_path / "other", keys="y")
    for array in cache.arrays():  # the small writer of this test file does not know of which images it writes
        stamp(array, cache.table)
    assert read_all(cache).shape[0] == N
    shutil.copyfile(other.paths.images, cache.paths.images)
    refused(cache, "rows 0 to 7 were other images than the table of images lists now", "u000000.parquet")


def stamp(array, table):
    """What `extract` adds to a done file."""
    for path in array.paths.done_folder.glob("u*.parquet"):
        done = pq.read_table(path)
        made = json.loads(done.schema.metadata[b"loffta"])
        rows = done["row"].to_pylist()
        made["images"] = table.identity(range(rows[0], rows[-1] + 1))
        pq.write_table(done.replace_schema_metadata({b"loffta": json.dumps(made).encode()}), path)


def test_a_unit_s_images_by_hand(cache):
    text = json.dumps([[f"x{i}.png" for i in range(8, 16)], list(range(108, 116))])
    assert cache.table.identity(range(8, 16)) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# -- a store and its arrays


def test_a_recipe_that_does_not_name_its_folder(cache, capsys):
    (name,) = [store.name for store in cache.stores()]
    path = cache.paths.store_metadata(name)
    path.write_text(path.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    refused(cache, "its recipe is not the one that named the folder", "loffta drop")
    assert f"{name}: cannot read the store's metadata" in capsys.readouterr().out
    assert main(["drop", str(cache.paths.root), name, "--yes"]) == 0
    assert main(["verify", str(cache.paths.root)]) == 0


def swap_taps(document):
    document["attributes"]["taps"].reverse()


def change_type(document):
    document["data_type"] = "int16"


def change_shape(document):
    document["shape"][2:] = document["chunk_grid"]["configuration"]["chunk_shape"][2:] = [4, 1, 6]
    document["codecs"][0]["configuration"]["chunk_shape"][2:] = [4, 1, 6]


def change_unit(document):
    document["chunk_grid"]["configuration"]["chunk_shape"][0] = 16


def grow(document):
    document["shape"][0] = 10**9


@pytest.mark.parametrize("change", [swap_taps, change_type, change_shape, change_unit, grow])
def test_an_edited_zarr_json_is_noticed_and_comes_back(cache, change, capsys):
    (path,) = cache.paths.stores.glob("*/grid-0/zarr.json")
    before = path.read_bytes()
    document = json.loads(before)
    change(document)
    path.write_text(json.dumps(document))
    refused(cache, "zarr.json")
    assert "/grid-0: " in capsys.readouterr().out
    assert main(["verify", str(cache.paths.root), "--repair"]) == 0
    assert path.read_bytes() == before
    read_all(cache)


def test_older_done_files_say_nothing_and_are_valid(cache):
    """What they say is all that tells swapped taps: other changes show by the store's own taps."""
    for path in cache.paths.done.rglob("u*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata({b"loffta": b'{"device": "cpu"}'}), path)
    read_all(cache)
    assert list(verify(cache, deep=True)) == []
    (path,) = cache.paths.stores.glob("*/grid-0/zarr.json")
    document = json.loads(path.read_bytes())
    change_shape(document)
    path.write_text(json.dumps(document))
    refused(cache, "tap a.0 is [2, 2, 6] in its store, and [4, 1, 6] here")


def test_units_of_another_store(cache, tmp_path):
    """Shard and done file of an array with the taps the other way round: sound in themselves."""
    other = make_cache(tmp_path / "other", cache.table, [FakeStore("one", dict(reversed(grids(0).items())))])
    (mine,), (theirs,) = ([a for a in c.arrays() if a.kind == "grid"] for c in (cache, other))
    for unit in (1, 2):
        shutil.copyfile(theirs.paths.shard(unit, 5), mine.paths.shard(unit, 5))
        shutil.copyfile(theirs.paths.done(unit), mine.paths.done(unit))
    refused(cache, "it was written as another array than its zarr.json says: taps: ", "u000001.parquet")
    assert [(damage.unit, damage.layout) for damage in verify(cache)] == [(1, None), (2, None)]


@pytest.mark.parametrize("unit", [0, 2])
def test_a_shard_of_another_store_is_not_read(cache, tmp_path, unit):
    """Sound in itself, the same layout: its chunks are not those of the done file."""
    other = build(tmp_path / "other", seed=1)
    (mine,), (theirs,) = ([a for a in c.arrays() if a.kind == "grid"] for c in (cache, other))
    shutil.copyfile(theirs.paths.shard(unit, 5), mine.paths.shard(unit, 5))
    refused(cache, f"row {unit * UNIT}, a.0: another chunk than the one that was written", f"c.{unit}.")


def test_a_unit_that_is_being_written_anew_need_not_agree_with_its_done_file(cache, tmp_path):
    """Its shard is in place, its done file is still the old one, which lists fewer rows: or there is none at all."""
    other = build(tmp_path / "other", seed=1)
    (mine,), (theirs,) = ([a for a in c.arrays() if a.kind == "grid"] for c in (cache, other))
    shutil.copyfile(theirs.paths.shard(2, 5), mine.paths.shard(2, 5))
    done = pq.read_table(mine.paths.done(2))
    pq.write_table(done.slice(0, 2), mine.paths.done(2))
    rows = np.array([16, 17])
    expected = ArrayReader(theirs.paths).read(rows)
    np.testing.assert_array_equal(ArrayReader(mine.paths).read(rows), expected)
    mine.paths.done(2).unlink()
    np.testing.assert_array_equal(ArrayReader(mine.paths).read(rows), expected)


# -- a set that grows


def grown(cache):
    old = cache.table
    more = make_table([*old.labels, 0, 1], ["train"] * (N + 2))
    return ImageTable(
        old.source, [*old.keys, "y0.png", "y1.png"], np.append(old.sizes, [7, 8]), more.splits, more.labels, old.classes
    )


def test_a_set_that_grows_while_it_is_opened_is_seen_as_it_was(cache, monkeypatch):
    opened = Cache.open(cache.paths.root)
    bigger = Cache.create(cache.paths.root, grown(cache), unit_images=None, thumb_px=8)
    for array in bigger.arrays():
        bigger.extend(array)
    features = choose_features(opened, [], ("grid",), default_taps="all")
    assert usable_rows(opened, features, "train").tolist() == list(range(N))
    assert [a.layout.shape[0] for a in opened.arrays()] == [N, N]
    assert [a.layout.shape[0] for a in Cache.open(cache.paths.root).arrays()] == [N + 2, N + 2]


def test_a_table_from_an_older_backup_is_told_from_growth(cache):
    backup = cache.paths.images.read_bytes()
    bigger = Cache.create(cache.paths.root, grown(cache), unit_images=None, thumb_px=8)
    for array in bigger.arrays():
        bigger.extend(array)
    cache.paths.images.write_bytes(backup)
    refused(cache, f"the array has {N + 2} rows, the table of images {N}", "older backup")
    Cache.create(cache.paths.root, grown(cache), unit_images=None, thumb_px=8)  # as the same `extract` does
    usable_rows(
        *(c := Cache.open(cache.paths.root), choose_features(c, [], ("grid",), default_taps="all"))[:2],
        "train",
        partial=True,
    )


@pytest.mark.parametrize("name", ["unit_images", "thumb_px"])
@pytest.mark.parametrize("value", [0, -8, 1.5, True, None, "8", 2**80])
def test_an_edited_configuration(cache, name, value):
    config = json.loads(cache.paths.config.read_bytes())
    cache.paths.config.write_text(json.dumps(config | {name: value}))
    with pytest.raises(LofftaError, match=rf"cannot read the cache's configuration \({name} is "):
        Cache.open(cache.paths.root)
    assert cache_module.DEFAULT_UNIT_IMAGES == 256
