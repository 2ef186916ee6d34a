"""What `bench --stage-dir` says of a copy; rates themselves are the machine's and are not compared."""

import numpy as np
import pytest

from loffta.training import bench_staging as module
from loffta.training.bench import bench
from loffta.training.bench_staging import Rates, judge
from tests.caches import FakeStore, make_cache, make_table

GB = 10**9


@pytest.mark.parametrize(
    ("rates", "options", "epochs", "words"),
    [
        # 100 GB: a copy takes 100 s, an epoch 200 s from the cache and 50 s from the folder: 100 / 150
        (
            Rates(1 * GB, 0.5 * GB, 2 * GB),
            {},
            1,
            "an epoch then takes 50 s instead of 3 min 20 s: it has paid after 1 epoch",
        ),
        (Rates(0.1 * GB, 0.5 * GB, 1 * GB), {}, 10, "it has paid after 10 epochs"),  # 1000 s, 100 s an epoch
        # the head needs 150 s: only 50 s of an epoch are won, of a copy of 100 s
        (Rates(1 * GB, 0.5 * GB, 2 * GB), {"computes_s": 150.0}, 2, "it has paid after 2 epochs"),
        (Rates(1 * GB, 0.5 * GB, 2 * GB), {"computes_s": 300.0}, None, "the head takes longer than the reads from the"),
        (Rates(1 * GB, 2 * GB, 1 * GB), {}, None, "the folder is no faster than the cache"),
        (Rates(1 * GB, 0.5 * GB, 2 * GB), {"cold": False}, None, "from the second epoch on the page cache has it all"),
        (Rates(1 * GB, 0.5 * GB, 2 * GB), {"streams": False, "cold": False}, None, "read once and held in memory"),
    ],
)
def test_what_a_copy_is_worth(rates, options, epochs, words):
    found, advice = judge(100 * GB, rates, **({"computes_s": 1.0, "streams": True, "cold": True} | options))
    assert found == epochs
    assert words in advice
    assert "a copy of 100.0 GB takes" in advice


@pytest.fixture
def cache(tmp_path):
    grids = np.random.default_rng(0).normal(size=(44, 3, 3, 4)).astype("f4")
    stores = [FakeStore("net", {"a.0": grids, "a.1": grids}), FakeStore("codes", {"b.0": grids}, dtype="int8")]
    return make_cache(tmp_path / "cache", make_table(np.arange(44) % 3, ["train"] * 44), stores, bad=(3,))


def measured(cache, folder):
    how = {"settings": {"width": 8, "depth": 1}, "batch_size": 8, "seconds": 0.05, "device": "cpu", "feed": "stream"}
    return bench(cache.paths.root, head="combo", features=["net:a.1", "codes"], stage_dir=str(folder), **how)


def test_a_sample_is_copied_read_and_deleted(cache, tmp_path, monkeypatch, capsys):
    folder, rows = tmp_path / "node", []
    folder.mkdir()
    real = module.Stage.bring

    def bring(stage, needs):
        real(stage, needs)
        rows.extend(needs[0][1].tolist())
        assert len([path for path in folder.rglob("u*") if path.is_file()]) == 2 * len({row // 8 for row in rows})

    monkeypatch.setattr(module.Stage, "bring", bring)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 10 * (72 + 36))  # ten images: two units
    found = measured(cache, folder)["staging"]
    assert found["bytes"] == 43 * (72 + 36)
    assert all(found[f"{name}_gb_per_s"] > 0 for name in ("copy", "cache", "near"))
    units = {row // 8 for row in rows}
    assert len(units) == 2
    assert rows == [row for row in range(44) if row // 8 in units and row != 3]  # whole ones
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert [path.name for path in folder.iterdir()] == [path.name for path in folder.glob("loffta-stage-*")]
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_used_is_said(cache, tmp_path):
    found = measured(cache, tmp_path / "missing")
    assert found["staging"] == {
        "folder": str(tmp_path / "missing"),
        "bytes": 43 * (72 + 36),
        "epochs": None,
        "advice": f"{tmp_path / 'missing'} cannot be used: there is no such folder",
    }
    assert "staging" not in bench(cache.paths.root, head="linear", features=["codes"], seconds=0.05, device="cpu")
