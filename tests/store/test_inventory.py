"""What `info` tells of running, purged, grown and littered caches: against the files that were put there."""

import json
import os
import subprocess
import sys
import time

import pytest
from loffta_cli.main import main

from loffta.extraction.extract import extract
from loffta.files import processes
from loffta.files.durable import Part, find_parts, part_name
from loffta.machine.process import StopFlag
from loffta.store import inventory
from loffta.store.activity import WINDOW_S, find_orphans, find_writers, images_per_s
from loffta.store.cache import Cache
from loffta.store.inventory import by_reason, take_inventory
from tests.fakes import FakeBackbone, PngSource, fake_config

N = 20  # two and a half units of 8
BROKEN = {3: b"", 9: b"", 11: b"no image"}


def fill(root, n_images=N, **options):
    options = {"max_bad_frac": 1.0, **options}
    extract(fake_config(root, **options), PngSource(n_images, BROKEN), lambda _: FakeBackbone(), StopFlag())


def held(root):
    return take_inventory(Cache.open(root))


def test_a_finished_cache(root):
    found = held(root)
    (store,) = found["stores"]
    assert (store["units_done"], store["units"], store["images_per_s"], store["eta_s"]) == (3, 3, None, None)
    for entry in (found["thumbnails"], *store["arrays"]):
        folder = root / "stores" / entry["array"] if entry["kind"] != "thumb" else root / entry["array"]
        shards = list(folder.glob("c.*"))
        assert (entry["files"], entry["bytes"]) == (len(shards), sum(path.stat().st_size for path in shards))
        assert (entry["units_done"], entry["images_done"]) == (3, N)
    assert (found["missing_shards"], found["writers"], found["orphans"]) == ({}, [], [])


def test_counts_are_those_of_the_done_files(root):
    """Units cut short by --limit, then grown, then partly lost: the shard's size alone must not decide."""
    root = root.parent / "other"
    fill(root, limit=12)
    fill(root, taps="last")
    (root / "done").joinpath(*next((root / "done").glob("fake-*/mean-0")).parts[-2:], "u000001.parquet").unlink()
    cache = Cache.open(root)
    entries = {e["array"]: e for s in take_inventory(cache)["stores"] for e in s["arrays"]}
    assert len(entries) == 5
    for array in cache.stores()[0].arrays:
        entry = entries[array.paths.name]
        assert entry["images_done"] == array.ledger.listed, array.paths.name
        done = [array.has_unit(unit, cache.rows_of_unit(unit)) for unit in range(3)]
        assert entry["units_done"] == sum(done), array.paths.name


def test_whole_units_without_bad_images_are_not_opened(root, monkeypatch):
    opened = []
    real = inventory.count_done

    def count(paths, unit):
        opened.append(unit)
        return real(paths, unit)

    monkeypatch.setattr(inventory, "count_done", count)
    held(root)
    assert sorted(set(opened)) == [0, 1]  # unit 2 has no bad image


def test_a_store_not_yet_grown(root):
    """Another backbone's run has made the table longer."""
    config = fake_config(root, names=["other"], max_bad_frac=1.0)
    extract(config, PngSource(30, BROKEN), lambda _: FakeBackbone("other"), StopFlag())
    old, new = held(root)["stores"]
    assert [entry["old_rows_only"] for entry in old["arrays"]] == [True] * 5
    assert [entry["old_rows_only"] for entry in new["arrays"]] == [False] * 5
    assert (old["units_done"], new["units_done"]) == (2, 4)


def test_bad_images_by_reason(root, capsys):
    assert by_reason(held(root)["bad"]) == {
        "empty file": ["0003.png", "0009.png"],
        "not an image of a known format": ["0011.png"],
    }
    assert main(["info", str(root)]) == 0
    out = capsys.readouterr().out
    assert "  2 bad: empty file: 0003.png, 0009.png\n" in out
    assert "orphans" not in out
    assert "MISSING" not in out


def test_many_bad_images_are_cut_on_the_terminal_alone(tmp_path, capsys):
    broken = dict.fromkeys(range(8), b"")
    config = fake_config(tmp_path, max_bad_frac=1.0)
    extract(config, PngSource(N, broken), lambda _: FakeBackbone(), StopFlag())
    assert main(["info", str(tmp_path), "--json"]) == 0
    out = capsys.readouterr().out
    assert "8 bad: empty file: 0000.png, 0001.png, 0002.png, 0003.png, 0004.png and 3 more" in out
    assert len(json.loads(out.splitlines()[-1])["bad"]) == 8


def stamp(root, ages, now):
    """Sets when units were finished; one array of each is a second behind the others."""
    for unit, age in ages.items():
        for i, path in enumerate(sorted(root.glob(f"done/fake-*/*/u{unit:06d}.parquet"))):
            os.utime(path, (now, now - age - (i > 0)))


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        ({0: 50, 1: 30, 2: 10}, (8 + 4) / 40),
        ({0: WINDOW_S + 1, 1: 30, 2: 10}, 4 / 20),
        ({0: WINDOW_S + 3, 1: WINDOW_S + 2, 2: 10}, None),
        ({0: WINDOW_S + 130, 1: WINDOW_S + 110, 2: WINDOW_S + 100}, (8 + 4) / 30),  # our clock is minutes ahead
        ({0: -70, 1: -90, 2: -100}, (8 + 4) / 30),  # or behind
        ({0: 3 * WINDOW_S, 1: 3 * WINDOW_S + 1, 2: 3 * WINDOW_S + 2}, None),  # that is no clock
        ({0: 10, 1: 10, 2: 10}, None),  # copied files: no time lies between them
    ],
)
def test_the_rate_by_hand(root, monkeypatch, ages, expected):
    now = time.time()
    stamp(root, ages, now)
    monkeypatch.setattr(time, "time", lambda: now)
    cache = Cache.open(root)
    rate = images_per_s(cache, cache.stores()[0].arrays)
    assert rate == (pytest.approx(expected, rel=1e-3) if expected else None)


def test_a_running_extraction(root, capsys):
    now = time.time()
    stamp(root, {0: 50, 1: 30}, now)
    for path in [*root.glob("done/fake-*/*/u000002*"), *root.glob("stores/fake-*/*/c.2.*")]:
        path.unlink()
    shard = next(root.glob("stores/fake-*/grid-0/c.0.*"))
    part_name(shard.with_name("c.2.0.0.0.0")).write_bytes(bytes(100))  # of this process
    store = held(root)["stores"][0]
    assert store["units_done"] == 2
    assert store["images_per_s"] == pytest.approx(8 / 20, rel=1e-3)
    assert store["eta_s"] == pytest.approx(4 / (8 / 20), rel=1e-3)
    assert main(["info", str(root)]) == 0
    out = capsys.readouterr().out
    assert "2/3 units, 0.4 images/s of late, 0 min left at that" in out
    assert f"writing: process {os.getpid()} on " in out
    assert "1 file, 100 B so far" in out


def test_writers_are_grouped_and_the_dead_are_left_out(tmp_path):
    parts = [
        Part(tmp_path / "a", "n1", 7, 10, 3.0, False),
        Part(tmp_path / "b", "n1", 7, 5, 1.0, False),
        Part(tmp_path / "c", "n0", 7, 1, 2.0, False),
        Part(tmp_path / "d", "n1", 8, 1, 2.0, True),
    ]
    found = [(w.host, w.pid, w.files, w.bytes, w.age_s) for w in find_writers(parts)]
    assert found == [("n0", 7, 1, 1, 2.0), ("n1", 7, 2, 15, 1.0)]


def test_parts_tell_the_dead_from_the_living(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = part_name(tmp_path / "deep" / "c.0")
    mine.parent.mkdir()
    mine.write_bytes(b"123")
    host = mine.name.split(".")[-4]
    (tmp_path / f".c.1.{host}.{dead.pid}.0123abcd.part").write_bytes(b"1")
    elsewhere = tmp_path / ".c.2.other-host.1.0123abcd.part"
    elsewhere.write_bytes(b"12")
    (tmp_path / ".mine.part").write_bytes(b"not ours")
    found = {part.path.name: part for part in find_parts(tmp_path)}
    assert {name: part.stale for name, part in found.items()} == {
        mine.name: False,
        f".c.1.{host}.{dead.pid}.0123abcd.part": True,
        elsewhere.name: False,
    }
    assert (found[mine.name].pid, found[mine.name].bytes, found[elsewhere.name].host) == (os.getpid(), 3, "other-host")
    assert found[mine.name].host == processes.host()
    two_days = time.time() - 2 * 24 * 3600
    os.utime(elsewhere, (two_days, two_days))
    assert {part.path.name: part.stale for part in find_parts(tmp_path)}[elsewhere.name]


def test_every_kind_of_orphan(root, capsys):
    store = Cache.open(root).stores()[0].name
    (root / "done" / store / "grid-0" / "u000001.parquet").unlink()
    (root / "stores" / store / "mean-0" / "zarr.json").unlink()
    lost = root / "stores" / "lost-12345678"
    (lost / "grid-0").mkdir(parents=True)
    (lost / "grid-0" / "c.0.0").write_bytes(bytes(1000))
    (root / "done" / "lost-12345678" / "grid-0").mkdir(parents=True)  # empty: no bytes, no orphan
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = part_name(root / "x").name.split(".")[-4]
    part = root / f".cache.json.{host}.{dead.pid}.0123abcd.part"
    part.write_bytes(b"12")
    cache = Cache.open(root)
    found = {
        (orphan.what, str(orphan.path.relative_to(root))): orphan.bytes
        for orphan in find_orphans(cache, cache.arrays(), find_parts(root))
    }
    mean = root / "stores" / store / "mean-0"
    done = root / "done" / store / "mean-0"
    (shard,) = (root / "stores" / store / "grid-0").glob("c.1.*")
    assert found == {
        ("a shard without done file", str(shard.relative_to(root))): shard.stat().st_size,
        ("an array without zarr.json", f"stores/{store}/mean-0"): sum(p.stat().st_size for p in mean.iterdir()),
        ("a store without zarr.json", "stores/lost-12345678"): 1000,
        ("done files without array", f"done/{store}/mean-0"): sum(p.stat().st_size for p in done.iterdir()),
        ("left by a killed process", part.name): 2,
    }
    assert main(["info", str(root)]) == 0
    out = capsys.readouterr().out
    assert "5 orphans, " in out
    assert f"  a store without zarr.json: {lost}, 1.0 kB\n" in out


def test_purged_shards_are_listed(root, capsys):
    for path in root.glob("stores/*/grid-*/c.1.*"):
        path.unlink()
    assert main(["info", str(root), "--json"]) == 0
    out = capsys.readouterr().out
    assert "2 shards of finished units are gone:" in out
    assert "/grid-1: units 1\nwas the file system purged?" in out
    assert sorted(json.loads(out.splitlines()[-1])["missing_shards"].values()) == [[1], [1]]


def two_stores(root):
    """The fake backbone's, and a second one of another precision; their names."""
    fill(root, precision="bf16")
    return [store.name for store in Cache.open(root).stores()]


@pytest.mark.parametrize("damaged", ["store", "array", "taps", "unit"])
def test_damage_is_named_and_all_else_is_told(root, damaged, capsys):
    first, second = two_stores(root)
    sound = held(root)
    folder = root / "stores" / first
    array = sorted(path.parent.name for path in folder.glob("*/zarr.json"))[0]
    if damaged == "store":
        path, name = folder / "zarr.json", first
        path.write_bytes(path.read_bytes()[:-9])
    elif damaged == "unit":  # of the thumbnails: it alone knows the bad images of its unit
        path, name = root / "done" / "targets" / "thumb" / "u000001.parquet", "targets/thumb"
        path.write_bytes(b"PAR1")
    else:
        path, name = folder / array / "zarr.json", f"{first}/{array}"
        text = path.read_text()
        swapped = text.replace("blocks.0", "x").replace("blocks.1", "blocks.0").replace('"x"', '"blocks.1"')
        path.write_text(text[:-9] if damaged == "array" else swapped)
        assert path.read_text() != text
    assert main(["info", str(root), "--json"]) == 4
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert [(entry["array"], entry["path"]) for entry in found["damaged"]] == [(name, str(path))]
    told = {store["store"]: store for store in found["stores"]}
    assert told[second] == {store["store"]: store for store in sound["stores"]}[second]
    assert (first in told) == (damaged != "store")
    assert found["bad"] == (None if damaged == "unit" else sound["bad"])
    assert (found["orphans"], found["images"]) == ([], sound["images"])
    plain = " ".join(said.out.split())
    assert f"damaged: {name}: " in plain
    assert second in plain
    assert "1 part of the cache cannot be read" in said.err
    assert "loffta verify" in said.err
