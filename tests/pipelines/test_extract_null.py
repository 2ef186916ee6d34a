"""The extraction benchmark with a network that costs nothing: it runs through, and its bound is what it says."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "pipelines" / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    known, n_threads = set(sys.modules), torch.get_num_threads()
    import extract

    yield extract
    torch.set_num_threads(n_threads)
    for name in set(sys.modules) - known:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_both_tables_are_printed_and_nothing_stays(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["extract_null"], "STREAM_BYTES", 1e9)
    write, count = os.pwritev, sys.modules["extract_null"].sink.count_writers
    bench.main(["--null", "--images", "6", "--pairs", "1", "--dir", str(tmp_path), "--memory", str(tmp_path)])
    out = capsys.readouterr().out
    rows = {line.rsplit(None, 2)[0].strip() for line in out.splitlines() if line.startswith("  ")}
    assert {
        "decode",
        "cast",
        "check",
        "write, memory",
        "loffta, memory",
        "loop, disk",
        "loffta, disk",
        "bound, disk",
    } <= rows
    assert all(f"of the bound, {place}" in out and f"of one loop a CPU, {place}" in out for place in ("memory", "disk"))
    assert [line.split()[0] for line in out.partition("\nwriters")[2].splitlines()[1:]] == ["1", "2", "4", "8"]
    assert list(tmp_path.iterdir()) == []
    assert (os.pwritev, sys.modules["extract_null"].sink.count_writers) == (write, count)


def test_the_bound_is_the_cores_in_turn_or_the_disk(bench):
    seconds = {"decode": 4.0, "cast": 1.0, "check": 0.5, "write, disk": 6.0, "busy, memory": 1.5, "busy, disk": 2.5}
    seconds["write, memory"] = 1.5
    bound_s = sys.modules["extract_null"].bound_s
    assert (bound_s(seconds, "memory"), bound_s(seconds, "disk")) == (7.0, 8.0)
    assert bound_s(seconds | {"write, disk": 9.0}, "disk") == 9.0


def test_a_cpu_at_work_is_busy_and_one_that_sleeps_is_not(bench):
    busy_s, n_cpus = sys.modules["extract_null"].busy_s, os.cpu_count()
    before, start = busy_s(), time.process_time()
    while time.process_time() - start < 0.3:
        pass
    assert busy_s() - before >= 0.25 / n_cpus  # others may be at work, too
