"""Dropping: what goes, what stays, and that a drop cut off anywhere leaves nothing that passes for data."""

import io
import shutil

import numpy as np
import pytest
from loffta_cli.main import main

from loffta.errors import LofftaError, UsageError
from loffta.store import drop as module
from loffta.store.cache import Cache
from loffta.store.drop import count_bytes, drop, find_target
from loffta.store.files import part_name

from ..caches import FakeStore, make_cache, make_table


@pytest.fixture
def cache(tmp_path):
    """Two stores of 20 images; the first has arrays grid-0 and grid-1."""
    rng = np.random.default_rng(0)
    grids = {"stages.0": rng.normal(size=(20, 4, 4, 6)), "stages.1": rng.normal(size=(20, 2, 2, 8))}
    table = make_table(np.arange(20) % 2, ["train"] * 20)
    return make_cache(tmp_path / "cache", table, [FakeStore("one", grids), FakeStore("two", grids)])


def files(root):
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def test_a_store_goes_whole_and_the_rest_stays(cache):
    before = files(cache.paths.root)
    one, two = cache.stores()
    store, arrays = find_target(cache, one.name)
    n_bytes = count_bytes(cache, store, arrays)
    drop(cache, store, arrays)
    after = files(cache.paths.root)
    gone = {name: size for name, size in before.items() if name not in after}
    assert after == {name: size for name, size in before.items() if one.name not in name}
    assert sum(gone.values()) == n_bytes > 0
    assert [s.name for s in cache.stores()] == [two.name]
    assert not cache.paths.store(one.name).exists()
    assert not cache.paths.done_store(one.name).exists()


def test_an_array_goes_alone(cache):
    store, arrays = find_target(cache, f"{cache.stores()[0].name}:grid-1")
    before = files(cache.paths.root)
    drop(cache, store, arrays)
    after = files(cache.paths.root)
    assert after == {name: size for name, size in before.items() if f"{store.name}/grid-1/" not in name}
    assert [array.paths.folder.name for array in cache.store(store.name).arrays] == ["grid-0"]


def test_unknown_names(cache):
    name = cache.stores()[0].name
    with pytest.raises(UsageError, match=f"unknown store 'onne'(.|\n)*{name}"):
        find_target(cache, "onne")
    with pytest.raises(UsageError, match=r"unknown array 'grid-2'(.|\n)*grid-1"):
        find_target(cache, f"{name}:grid-2")


def test_a_living_writer_is_not_disturbed(cache):
    store, arrays = find_target(cache, cache.stores()[0].name)
    before = files(cache.paths.root)
    part = part_name(arrays[0].paths.shard(0, 5)).with_name(f".c.0.{'x' * 3}.1.0123abcd.part")
    part.touch()  # of another host, fresh: it cannot be asked
    with pytest.raises(LofftaError, match=r"another process is writing here(.|\n)*wait until"):
        drop(cache, store, arrays)
    part.unlink()
    assert files(cache.paths.root) == before


@pytest.mark.parametrize("calls", range(6))
def test_a_drop_cut_off_anywhere_can_be_finished(cache, monkeypatch, calls):
    name, left = cache.stores()[0].name, [calls]
    real = shutil.rmtree

    def dying(folder):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(folder)

    monkeypatch.setattr(module.shutil, "rmtree", dying)
    try:
        drop(cache, *find_target(cache, name))
    except KeyboardInterrupt:
        monkeypatch.undo()
        opened = Cache.open(cache.paths.root)
        for store in opened.stores():  # what is trusted is there
            for array in store.arrays:
                units = {int(path.stem[1:]) for path in array.paths.done_folder.glob("u*.parquet")}
                assert all(array.paths.shard(unit, array.layout.ndim).exists() for unit in units)
        if name in [store.name for store in opened.stores()]:
            drop(opened, *find_target(opened, name))
    assert not cache.paths.store(name).exists()
    assert not cache.paths.done_store(name).exists()


def test_command_asks_first(cache, capsys, monkeypatch):
    root, name = str(cache.paths.root), cache.stores()[0].name
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["drop", root, name]) == 2
    assert "there is no terminal to ask on" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text))
    asked = []
    assert main(["drop", root, f"{name}:grid-1"]) == 0
    assert len(asked) == 1
    assert asked[0].startswith(f"Remove {name}:grid-1, ")
    assert len(cache.stores()) == 2
    assert main(["drop", root, name, "--yes", "--json"]) == 0
    assert f'"dropped": "{name}"' in capsys.readouterr().out.splitlines()[-1]
    assert len(cache.stores()) == 1


def test_the_scales_of_int8_go_with_their_array_and_before_its_name_is_free(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    grids = {"stages.0": rng.normal(size=(20, 4, 4, 6)), "stages.1": rng.normal(size=(20, 2, 2, 8))}
    table = make_table(np.arange(20) % 2, ["train"] * 20)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("one", grids, dtype="int8")])
    (store,) = cache.stores()
    scales = {array.paths.folder.name: array.paths.scales for array in store.arrays}
    before = files(cache.paths.root)
    target = find_target(cache, f"{store.name}:grid-1")
    n_bytes = count_bytes(cache, *target)
    monkeypatch.setattr(type(scales["grid-1"]), "unlink", lambda *_, **__: 1 / 0)  # dies before zarr.json goes
    with pytest.raises(ZeroDivisionError):
        drop(cache, *target)
    monkeypatch.undo()
    assert not scales["grid-1"].exists()
    drop(cache, *find_target(Cache.open(cache.paths.root), f"{store.name}:grid-1"))
    after = files(cache.paths.root)
    assert sum(before.values()) - sum(after.values()) == n_bytes
    assert after == {name: size for name, size in before.items() if "grid-1" not in name}
    assert scales["grid-0"].exists()
    drop(cache, *find_target(cache, store.name))
    assert not cache.paths.store(store.name).exists()
