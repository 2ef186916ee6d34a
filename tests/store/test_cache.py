import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore
import torch
import zarr

from loffta.errors import LofftaError, UsageError
from loffta.store.cache import Cache, Store
from loffta.store.paths import CachePaths
from loffta.store.quantise import dequantise
from loffta.store.reader import ArrayReader
from loffta.store.recipe import StoreInfo
from loffta.store.table import ImageTable
from loffta.store.verify import verify
from loffta.tokens import TokenSpec
from tests.forked import CONTEXT

from .conftest import assert_same, make_values, names, write_unit

GOLDEN = Path(__file__).parents[1] / "data" / "format1"
SPECS = (TokenSpec("stages.0", 4, 4, 0, 6), TokenSpec("stages.1", 2, 2, 0, 8), TokenSpec("stages.2", 2, 2, 0, 8))


def make_listing(n: int = 11) -> ImageTable:
    keys = [f"{i:03d}.png" for i in range(n)]
    return ImageTable("folder:x", keys, np.arange(n) + 100, ["train"] * n, np.arange(n) % 2, ("cat", "dog"))


def make_info(**recipe: Any) -> StoreInfo:
    return StoreInfo({"backbone": "tiny", **recipe}, {"name": "tiny"}, {"spec": "hub"}, SPECS, {"torch": "2"})


def make_cache(root: Path, n: int = 11) -> Cache:
    return Cache.create(root, make_listing(n), unit_images=8, thumb_px=6)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "cache")


# -- making, opening, growing


def test_create_and_open(cache: Cache) -> None:
    assert json.loads((cache.paths.root / "cache.json").read_text()) == {"format": 1, "unit_images": 8, "thumb_px": 6}
    assert pq.read_table(cache.paths.root / "images.parquet")["key"].to_pylist() == make_listing().keys
    assert names(cache.paths.root) == ["cache.json", "images.parquet"]
    again = Cache.open(cache.paths.root)
    assert (again.unit_images, again.thumb_px, again.table.digest) == (8, 6, make_listing().digest)
    assert again.stores() == []
    assert again.n_units == 2
    assert [again.rows_of_unit(0), again.rows_of_unit(1)] == [range(8), range(8, 11)]


def test_the_default_unit(tmp_path: Path) -> None:
    assert Cache.create(tmp_path, make_listing(), unit_images=None, thumb_px=6).unit_images == 256


def test_create_opens_what_is_there(cache: Cache) -> None:
    before = (cache.paths.images).stat().st_ino
    again = Cache.create(cache.paths.root, make_listing(), unit_images=None, thumb_px=99)
    assert (again.unit_images, again.thumb_px) == (8, 6)
    assert cache.paths.images.stat().st_ino == before


def test_another_unit_size_is_refused(cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"--unit-images 16, but this cache was made with 8\n.*cache.json\n.*give 8"):
        Cache.create(cache.paths.root, make_listing(), unit_images=16, thumb_px=6)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(LofftaError, match=r"this folder holds something else\n.*\n.*choose an empty or new folder"):
        make_cache(tmp_path)
    assert names(tmp_path) == ["thesis.tex"]
    with pytest.raises(LofftaError, match="this folder holds something else"):
        make_cache(tmp_path / "thesis.tex")


def test_what_a_killed_maker_left_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / ".cache.json.host.1.0123abcd.part").touch()
    (tmp_path / "images.parquet").write_bytes(make_listing().to_parquet())
    assert make_cache(tmp_path).unit_images == 8


def test_a_cache_that_appears_while_we_look_is_no_foreign_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CachePaths.is_foreign

    def slow(paths: CachePaths) -> bool:
        make_other()
        return real(paths)

    def make_other() -> None:
        monkeypatch.undo()
        make_cache(tmp_path)

    monkeypatch.setattr(CachePaths, "is_foreign", slow)
    assert make_cache(tmp_path).unit_images == 8


def create_many(root: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    cache = make_cache(root)
    store = cache.create_store(make_info())
    cache.add_arrays(store, "grid", SPECS, "float16")
    arrays = cache.store(store.name).arrays
    results.put((cache.table.digest, store.name, [array.taps for array in arrays]))


def test_processes_that_make_the_same_cache_at_once(tmp_path: Path) -> None:
    barrier, results = CONTEXT.Barrier(3), CONTEXT.Queue()
    workers = [CONTEXT.Process(target=create_many, args=(tmp_path / "c", barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    name = make_info().name
    assert outcomes == [(make_listing().digest, name, [("stages.0",), ("stages.1", "stages.2")])] * 3
    assert Cache.open(tmp_path / "c").paths.array_names(name) == ["grid-0", "grid-1"]


def test_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "none", tmp_path, tmp_path / "file"):
        with pytest.raises(
            LofftaError, match=r"there is no cache here\n  where:  .*\n  remedy: make one with `loffta extract"
        ):
            Cache.open(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2, "unit_images": 8, "thumb_px": 6}', r"format 2 is newer than this loffta knows \(1\)"),
        ('{"format": 1}', "unit_images"),
        ("{", "Expecting"),
        ("[]", "list indices"),
    ],
)
def test_a_newer_or_damaged_configuration(cache: Cache, text: str, message: str) -> None:
    cache.paths.config.write_text(text)
    with pytest.raises(
        LofftaError, match=rf"cannot read the cache's configuration \(.*{message}.*\n.*\n.*version that made it"
    ):
        Cache.open(cache.paths.root)


def test_growth(cache: Cache) -> None:
    store = cache.create_store(make_info())
    (array,) = cache.add_arrays(store, "mean", SPECS[:1], "float16")
    values = make_values((20, 1, 6), "float16")
    for unit in range(2):
        write_unit(array.paths, array.layout, unit, values)
    shard_0, old_1 = array.paths.shard(0, 3).read_bytes(), array.paths.shard(1, 3).read_bytes()

    grown = make_cache(cache.paths.root, 20)
    assert (len(grown.table), grown.n_units) == (20, 3)
    (old,) = grown.store(store.name).arrays
    assert old.layout.shape == (11, 1, 6)  # old rows only, until it is extended
    assert [old.has_unit(unit, grown.rows_of_unit(unit)) for unit in range(3)] == [True, False, False]
    extended = grown.extend(old)
    assert extended.layout.shape == (20, 1, 6)
    assert grown.extend(extended) is extended
    assert_same(ArrayReader(old.paths).read(np.arange(11)), values[:11])
    for unit in (1, 2):
        write_unit(extended.paths, extended.layout, unit, values)
    assert array.paths.shard(0, 3).read_bytes() == shard_0
    assert array.paths.shard(1, 3).read_bytes()[: 3 * 16] == old_1[: 3 * 16]
    (new,) = Cache.open(cache.paths.root).store(store.name).arrays
    assert new.ledger.ready.all()
    assert_same(zarr.open_array(store=new.paths.folder, mode="r")[...], values)


def test_a_changed_image_set_is_refused(cache: Cache) -> None:
    with pytest.raises(LofftaError, match=r"the image set changed: 010.png: gone"):
        make_cache(cache.paths.root, 10)
    assert len(Cache.open(cache.paths.root).table) == 11


# -- stores and arrays


def test_arrays_group_taps_of_one_shape(cache: Cache) -> None:
    store = cache.create_store(make_info())
    made = cache.add_arrays(store, "grid", SPECS, "float16")
    assert [(a.paths.name, a.taps, a.layout.shape) for a in made] == [
        (f"{store.name}/grid-0", ("stages.0",), (11, 1, 4, 4, 6)),
        (f"{store.name}/grid-1", ("stages.1", "stages.2"), (11, 2, 2, 2, 8)),
    ]
    assert [a.layout.chunk for a in made] == [(1, 1, 4, 4, 6), (1, 1, 2, 2, 8)]
    assert cache.add_arrays(store, "prefix", SPECS, "float16") == []  # these nets have no prefix tokens
    means = cache.add_arrays(store, "mean", SPECS, "float32")
    assert [a.layout.shape for a in means] == [(11, 1, 6), (11, 2, 8)]
    store = cache.store(store.name)
    assert cache.add_arrays(store, "grid", SPECS, "float16") == []
    assert [a.kind for a in store.arrays] == ["grid", "grid", "mean", "mean"]
    assert store.stored_taps("grid") == ("stages.0", "stages.1", "stages.2")
    found = store.find("mean", "stages.2")
    assert found is not None
    assert found.paths.name == f"{store.name}/mean-1"
    assert store.find("prefix", "stages.2") is None
    assert store.hash == make_info().name[-8:]
    group = zarr.open_group(store=cache.paths.store(store.name), mode="r")
    assert sorted(group.array_keys()) == ["grid-0", "grid-1", "mean-0", "mean-1"]


def test_taps_added_later_leave_the_old_arrays_alone(cache: Cache) -> None:
    store = cache.create_store(make_info())
    cache.add_arrays(store, "grid", SPECS[2:], "float16")
    before = cache.paths.array(store.name, "grid-0").metadata.read_bytes()
    made = cache.add_arrays(cache.store(store.name), "grid", SPECS, "float16")
    assert [(a.paths.name[-6:], a.taps) for a in made] == [("grid-1", ("stages.0",)), ("grid-2", ("stages.1",))]
    assert cache.paths.array(store.name, "grid-0").metadata.read_bytes() == before
    assert cache.store(store.name).stored_taps() == ("stages.0", "stages.1", "stages.2")


def test_a_number_that_another_process_took(cache: Cache) -> None:
    """Both hold a Store from before: with other taps the next number is taken, with the same it is shared."""
    stale: Store = cache.create_store(make_info())
    cache.add_arrays(stale, "grid", SPECS[:1], "float16")
    (mine,) = cache.add_arrays(stale, "grid", SPECS[1:], "float16")
    (shared,) = cache.add_arrays(stale, "grid", SPECS[:1], "float16")
    assert (mine.paths.name[-6:], shared.paths.name[-6:]) == ("grid-1", "grid-0")


def test_lost_metadata_never_gives_old_done_files_to_other_taps(cache: Cache) -> None:
    store = cache.create_store(make_info())
    (array,) = cache.add_arrays(store, "mean", SPECS[1:2], "float16")
    write_unit(array.paths, array.layout, 0, make_values((11, *array.layout.item_shape), "float16"))
    array.paths.metadata.unlink()
    (other,) = cache.add_arrays(cache.store(store.name), "mean", SPECS[2:3], "float16")
    assert other.paths.name.endswith("mean-1")
    assert not other.has_unit(0, cache.rows_of_unit(0))


def test_arrays_are_listed_by_number_not_by_text(cache: Cache) -> None:
    store = cache.create_store(make_info())
    for number in (10, 2, 0):
        folder = cache.paths.store(store.name) / f"grid-{number}"
        folder.mkdir()
        (folder / "zarr.json").touch()
    (cache.paths.store(store.name) / "grid-0-scale").mkdir()
    (cache.paths.store(store.name) / "grid-0-scale" / "zarr.json").touch()
    assert cache.paths.array_names(store.name) == ["grid-0", "grid-2", "grid-10"]


def test_stores_by_name(cache: Cache) -> None:
    infos = [make_info(px=px) for px in (64, 224)]
    for info in infos:
        assert cache.create_store(info).info == info
    assert [store.name for store in cache.stores()] == sorted(info.name for info in infos)
    assert cache.create_store(infos[0]).info == infos[0]


@pytest.mark.parametrize("text", [None, "{", '{"zarr_format": 3, "node_type": "group", "attributes": {}}'])
def test_a_store_that_is_not_ours(cache: Cache, text: str | None) -> None:
    path = cache.paths.store_metadata("tiny-00000000")
    if text is not None:
        path.parent.mkdir(parents=True)
        path.write_text(text)
    with pytest.raises(
        LofftaError, match=r"cannot read the store's metadata .*\n.*zarr.json\n.*Restore it from a backup"
    ):
        cache.store("tiny-00000000")


def test_an_array_that_was_rewritten(cache: Cache) -> None:
    store = cache.create_store(make_info())
    (array,) = cache.add_arrays(store, "mean", SPECS[:1], "float16")
    text = array.paths.metadata.read_text().replace('"separator": "."', '"separator": "/"')
    array.paths.metadata.write_text(text)
    with pytest.raises(LofftaError, match="rewritten in another encoding"):
        cache.store(store.name)


def test_thumbnails(cache: Cache) -> None:
    unwritten = cache.thumbs()
    assert not unwritten.paths.metadata.exists()
    thumbs = cache.thumbs(create=True)
    assert thumbs.layout == unwritten.layout
    assert (thumbs.layout.shape, thumbs.layout.dtype, thumbs.kind) == ((11, 6, 6, 3), np.uint8, "thumb")
    assert thumbs.paths.folder == cache.paths.root / "targets" / "thumb"
    assert not thumbs.has_unit(0, range(8))
    assert thumbs.ledger.listed == 0


# -- a store of format 1 opens for ever (tests/data/format1/README.md)


def golden_grid() -> np.ndarray:
    """[11, 2, 2, 2, 3] float16: eighths, counted up."""
    return (np.arange(11 * 2 * 2 * 2 * 3).reshape(11, 2, 2, 2, 3) / 8).astype(np.float16)


def test_the_golden_store_opens() -> None:
    cache = Cache.open(GOLDEN)
    assert (cache.unit_images, cache.thumb_px, len(cache.table)) == (8, 4, 11)
    assert cache.table.keys == [f"{i:03d}.png" for i in range(11)]
    assert cache.table.labels.tolist() == [0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1]
    assert cache.table.classes == ("cat", "dög")
    assert cache.table.splits == ["train"] * 8 + ["test"] * 3
    assert cache.table.digest == json.loads((GOLDEN / "expected.json").read_text())["digest"]
    (store,) = cache.stores()
    assert store.info.recipe == {"backbone": "golden/net", "dtype": "float16", "input": {"px": 32}, "pool": None}
    assert store.name == store.info.name == "golden-net-59ac6eac"
    assert store.stored_taps() == ("blocks.0", "blocks.1")
    good = np.array([row for row in range(11) if row != 3])
    for array in (*store.arrays, cache.thumbs()):
        assert np.flatnonzero(array.ledger.ready).tolist() == good.tolist()
        assert array.ledger.bad == {3: "truncated file"}


@pytest.mark.parametrize("name", ["grid-0", "mean-0", "thumb"])
def test_the_golden_store_holds_its_values(name: str) -> None:
    cache = Cache.open(GOLDEN)
    grid = golden_grid()
    expected = {
        "grid-0": grid,
        "mean-0": grid.astype(np.float32).mean((2, 3)),
        "thumb": (np.arange(11 * 4 * 4 * 3).reshape(11, 4, 4, 3) % 251).astype(np.uint8),
    }[name]
    array = (
        cache.thumbs() if name == "thumb" else next(a for a in cache.stores()[0].arrays if a.paths.name.endswith(name))
    )
    good = np.array([10, 0, 9, 1, 2, 4, 5, 6, 7, 8])
    assert_same(ArrayReader(array.paths).read(good), expected[good])
    filled = expected.copy()
    filled[3] = np.nan if filled.dtype.kind == "f" else 0
    assert_same(zarr.open_array(store=array.paths.folder, mode="r")[...], filled)
    spec = {"driver": "zarr3", "kvstore": f"file://{array.paths.folder}/"}
    assert_same(tensorstore.open(spec, read=True).result().read().result(), filled)


GOLDEN_INT8 = Path(__file__).parents[1] / "data" / "format1-int8"


def golden_int8() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [11, 2, 2, 3, 5], scale and zero [2, 5] as they were written."""
    codes = (np.arange(11 * 60).reshape(11, 2, 2, 3, 5) * 37 % 255 - 127).astype(np.int8)
    codes[7, 1, 0, 0, 4] = 127
    scale = (2.0 ** -np.arange(1, 11)).reshape(2, 5).astype(np.float32)
    zero = np.linspace(-127, 127, 10).round().reshape(2, 5).astype(np.float32)
    return codes, scale, zero


def test_the_golden_int8_store_holds_its_values() -> None:
    (store,) = Cache.open(GOLDEN_INT8).stores()
    assert store.name == store.info.name == "golden-430fd15b"
    (array,) = store.arrays
    codes, scale, zero = golden_int8()
    good = np.array([10, 0, 9, 1, 2, 4, 5, 6, 7, 8])
    assert np.flatnonzero(array.ledger.ready).tolist() == sorted(good)
    assert array.ledger.saturated == 1
    assert array.scales is not None
    assert_same(array.scales.scale, scale)
    assert_same(array.scales.zero, zero)
    read = ArrayReader(array.paths).read(good)
    assert_same(read, codes[good])
    values = (codes.astype(np.float32) - zero[None, :, None, None]) * scale[None, :, None, None]
    assert_same(dequantise(torch.from_numpy(read), array.scales).numpy(), values[good])
    codes[3] = -128
    for folder, expected in ((array.paths.folder, codes), (array.paths.scales / "scale", scale)):
        assert_same(zarr.open_array(store=folder, mode="r")[...], expected)
        spec = {"driver": "zarr3", "kvstore": f"file://{folder}/"}
        assert_same(tensorstore.open(spec, read=True).result().read().result(), expected)
    assert list(verify(Cache.open(GOLDEN_INT8), deep=True)) == []
