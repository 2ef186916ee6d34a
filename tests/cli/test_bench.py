"""`loffta bench`: its table, its JSON, and a cache that nobody may write to."""

import json
import stat

import pytest
from loffta_cli.bench import _percents
from loffta_cli.main import main

from tests.caches import toy_cache

QUICK = ["--seconds", "0.05", "--device", "cpu"]


def test_table_and_json(tmp_path, capsys):
    root = toy_cache(tmp_path / "cache").paths.root
    small = ["--set", "width=8", "--set", "depth=1", "--batch-size", "8", "--features", "good:a.0", "--feed", "stream"]
    small += ["--stage-dir", str(tmp_path)]
    assert main(["bench", str(root), "--head", "combo", *small, *QUICK, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert lines[0] == "head combo on cpu, batches of 8 of 60 images, 48 B each"
    assert [line.split("  ")[0] for line in lines[4:10]] == [
        "disk, 16 threads",
        "crc32c, first touch alone",
        "page cache, 2 threads",
        "pool, dequantise",
        "head: prepare",
        "head: forward, backward",
    ]
    disk, _, cached = (line.split() for line in lines[4:7])
    assert disk[-1] == "-"
    assert cached[-2] == "-"
    for column in (-2, -1):  # as they are shown
        assert sum(int(line.split()[column][:-1]) for line in lines[4:10] if line.split()[column] != "-") == 100
    assert lines[11].startswith("whole steps with the feed: ")
    assert lines[12].startswith("  stream: good-")
    assert lines[12].endswith("as asked); uniform order")
    assert lines[14] == found["advice"]
    assert lines[16].startswith(f"--stage-dir {tmp_path}: the cache ")
    assert lines[17] == found["staging"]["advice"]
    assert found["staging"]["bytes"] == 60 * 48
    assert (found["head"], found["batch_size"]) == ("combo", 8)


@pytest.mark.parametrize(
    ("shares", "shown"),
    [
        ([1 / 3, 1 / 3, None, 1 / 3], ["34%", "33%", "-", "33%"]),
        ([0.004, 0.004, 0.992], ["1%", "0%", "99%"]),
        ([0.125] * 8, ["13%"] * 4 + ["12%"] * 4),
        ([1.0], ["100%"]),
    ],
)
def test_percents_add_up(shares, shown):
    assert _percents(shares) == shown


def test_a_read_only_cache_is_measured(tmp_path):
    root = toy_cache(tmp_path / "cache").paths.root
    paths = [root, *root.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        assert main(["bench", str(root), *QUICK]) == 0
    finally:
        for path in paths:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head", "combox"], "did you mean combo"),
        (["--feed", "device"], "remedy: use --feed host"),
        (["--set", "colour=1"], "unknown key 'colour'"),
        (["--batch-size", "0"], "0 is not in the range x>=1"),
        (["--feed", "disk"], "'disk' is not one of"),
    ],
)
def test_what_cannot_be_done_is_a_usage_error(tmp_path, capsys, words, message):
    root = toy_cache(tmp_path / "cache").paths.root
    assert main(["bench", str(root), *words, *QUICK]) == 2
    assert message in capsys.readouterr().err
