"""The growth benchmark runs through at two small sizes, counts what is there, and says what grows faster."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "pipelines" / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    known = set(sys.modules)
    import scale_growth

    yield scale_growth
    for name in set(sys.modules) - known:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_step_has_a_line_and_nothing_stays(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "QUICK", (40, 400))
    bench.main(["--quick", "--dir", str(tmp_path)])
    lines = {line[:18].strip(): line[18:].split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines[""] == ["40", "400", "slope"]
    assert lines["units"][:2] == ["5.000", "50.000"]  # of 8
    # two arrays with a zarr.json, a shard and a done file a unit; the store's zarr.json, cache.json, images.parquet
    assert lines["files"][:2] == ["25.000", "205.000"]
    assert lines["units_of_a_worker"][:2] == ["0.000", "1.000"]  # unit 7 is the first of worker 7
    steps = {"open_s", "split_s", "ledger_s", "rows_s", "first_batch_s", "batch_ms", "worker_start_s", "worker_s"}
    assert steps | {"plan_s", "info_s", "verify_s"} <= {*lines}
    assert [*tmp_path.iterdir()] == []


def test_the_slope_is_that_of_the_last_two_sizes(bench):
    found = {
        100: {"a_s": 1.0, "b_s": 0.001},
        1000: {"a_s": 1.0, "b_s": 1.0, "c": 3.0},
        10_000: {"a_s": 100.0, "c": 3.0},
    }
    table = {line[:18].strip(): line[18:].split() for line in bench.lines(found)}
    assert table["a_s"] == ["1.000", "1.000", "100.000", "2.00", "grows", "faster"]
    assert table["b_s"] == ["0.001", "1.000", "-", "-"]  # too short to tell
    assert table["c"] == ["-", "3.000", "3.000", "0.00"]
