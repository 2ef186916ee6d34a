"""Dropping: what goes, what stays, and that a drop cut off anywhere leaves nothing that passes for data."""

import io
import shutil

import numpy as np
import pytest
from loffta_cli.main import main

from loffta.errors import LofftaError, UsageError
from loffta.files.durable import part_name
from loffta.store.cache import Cache
from loffta.store.drop import drop, find_target
from loffta.store.ledger import done_units
from tests.caches import FakeStore, make_cache, make_table
from tests.survival.dying import dying_after


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
    target = find_target(cache, one.name)
    n_bytes = target.count_bytes()
    drop(target)
    after = files(cache.paths.root)
    gone = {name: size for name, size in before.items() if name not in after}
    assert after == {name: size for name, size in before.items() if one.name not in name}
    assert sum(gone.values()) == n_bytes > 0
    assert [s.name for s in cache.stores()] == [two.name]
    assert not cache.paths.store(one.name).exists()
    assert not cache.paths.done_store(one.name).exists()


def test_an_array_goes_alone(cache):
    store = cache.stores()[0]
    before = files(cache.paths.root)
    drop(find_target(cache, f"{store.name}:grid-1"))
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
    store = cache.stores()[0]
    before = files(cache.paths.root)
    part = part_name(store.arrays[0].paths.shard(0, 5)).with_name(f".c.0.{'x' * 3}.1.0123abcd.part")
    part.touch()  # of another host, fresh: it cannot be asked
    with pytest.raises(LofftaError, match=r"another process is writing here(.|\n)*wait until"):
        drop(find_target(cache, store.name))
    part.unlink()
    assert files(cache.paths.root) == before


def test_a_drop_cut_off_anywhere_can_be_finished(cache, tmp_path):
    """At every single deletion and rename; what is trusted in between is there."""
    name = cache.stores()[0].name
    expected = {path: size for path, size in files(cache.paths.root).items() if name not in path}
    for target in (name, f"{name}:grid-1"):
        n_calls = 0
        while True:
            root = tmp_path / f"{target}-{n_calls}"
            shutil.copytree(cache.paths.root, root)
            opened = Cache.open(root)
            with dying_after(n_calls) as died:
                drop(find_target(opened, target))
            if not died:
                break
            for store in Cache.open(root).stores():
                for array in store.arrays:
                    units = done_units(array.paths)
                    assert all(array.paths.shard(unit, array.layout.ndim).exists() for unit in units)
            if target in find_all(root):
                assert main(["drop", str(root), target, "--yes"]) == 0
            left = {path: size for path, size in files(root).items() if ".part/" not in path}
            assert target not in find_all(root)
            if target == name:
                assert left == expected
            n_calls += 1
        assert n_calls > 8


def find_all(root):
    """Every store, and every array, of which anything is left."""
    remains = Cache.open(root).paths.remains()
    return {*remains, *(f"{store}:{array}" for store, arrays in remains.items() for array in arrays)}


def test_what_lies_on_another_disk_goes_too(cache, tmp_path, capsys):
    """An array's folder, one of its shards, and a store's folder that are links."""
    one, two = (store.name for store in cache.stores())
    n_bytes = sum(size for path, size in files(cache.paths.root).items() if one in path or two in path)
    big = tmp_path / "big"
    big.mkdir()
    moved = [
        cache.paths.store(one) / "grid-0",
        cache.paths.store(one) / "grid-1" / "c.0.0.0.0.0",
        cache.paths.store(two),
    ]
    for path in moved:
        path.rename(big / f"{path.parent.name}-{path.name}")
        path.symlink_to(big / f"{path.parent.name}-{path.name}")
    assert sum(find_target(cache, name).count_bytes() for name in (one, two)) == n_bytes
    for name in (f"{one}:grid-0", one, two):
        assert main(["drop", str(cache.paths.root), name, "--yes"]) == 0
    assert "grid-0 is a link: what it leads to, " in capsys.readouterr().out
    assert list(big.iterdir()) == []
    assert Cache.open(cache.paths.root).paths.remains() == {}


@pytest.mark.parametrize("leads_to", ["home", "the other store", "a folder above the cache"])
def test_a_link_to_what_is_not_its_alone_is_refused_before_anything_goes(cache, tmp_path, leads_to):
    one, two = (store.name for store in cache.stores())
    home = tmp_path / "home" / "letters"
    home.mkdir(parents=True)
    (home / "to-ada.txt").write_text("dear Ada")
    places = {"home": home.parent, "the other store": cache.paths.store(two), "a folder above the cache": tmp_path}
    link = cache.paths.store(one) / "grid-0" / "x"
    link.symlink_to(places[leads_to])
    before = files(tmp_path)
    for target in (one, f"{one}:grid-0"):
        with pytest.raises(LofftaError, match=r"leads to what is not its alone(.|\n)*delete the link"):
            drop(find_target(cache, target))
    assert files(tmp_path) == before
    link.unlink()
    drop(find_target(cache, one))
    assert {*files(tmp_path)} == {path for path in before if one not in path}


@pytest.mark.parametrize("text", ["{", "gone"])
def test_a_store_whose_metadata_are_damaged_can_be_dropped(cache, text):
    name = cache.stores()[0].name
    path = cache.paths.store_metadata(name)
    path.write_text(text) if text == "{" else path.unlink()
    assert main(["drop", str(cache.paths.root), name, "--yes"]) == 0
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


def test_the_scales_of_int8_go_with_their_array_and_before_its_name_is_free(tmp_path):
    rng = np.random.default_rng(0)
    grids = {"stages.0": rng.normal(size=(20, 4, 4, 6)), "stages.1": rng.normal(size=(20, 2, 2, 8))}
    table = make_table(np.arange(20) % 2, ["train"] * 20)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("one", grids, dtype="int8")])
    (store,) = cache.stores()
    scales = {array.paths.folder.name: array.paths.scales for array in store.arrays}
    before = files(cache.paths.root)
    target = find_target(cache, f"{store.name}:grid-1")
    n_bytes = target.count_bytes()
    with dying_after(4 + 1 + 4) as died:  # done files, the rename of the scales, their files
        drop(target)
    assert died
    assert not scales["grid-1"].exists()
    for part in scales["grid-1"].parent.glob(".*.part"):  # its process is dead, this one is not
        shutil.rmtree(part)
    drop(find_target(Cache.open(cache.paths.root), f"{store.name}:grid-1"))
    after = files(cache.paths.root)
    assert sum(before.values()) - sum(after.values()) == n_bytes
    assert after == {name: size for name, size in before.items() if "grid-1" not in name}
    assert scales["grid-0"].exists()
    drop(find_target(cache, store.name))
    assert not cache.paths.store(store.name).exists()
