"""kill -9 at seeded moments of a real extraction, and a scheduler's signals: the same command then ends it the same.

`pytest -s` prints the moments and where they landed.
"""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from loffta.extract import extract
from loffta.machine import StopFlag
from tests import fakes
from tests.fakes import FakeBackbone, PngSource, cache_files, fake_config

CHILD = Path(fakes.__file__)
SETTLED = ("stores/**/*", "targets/**/*", "done/**/*", "images.parquet", "cache.json")


def start(cache, n_images, delay_s=0.002):
    """A child that has imported everything and is about to extract."""
    command = [sys.executable, str(CHILD), str(cache), "--images", str(n_images), "--delay-s", str(delay_s)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begin\n"
    return child


def finish(child):
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    return out


def state(cache):
    """Where a kill landed, from what it left."""
    if not (cache / "cache.json").exists():
        return "before cache.json"
    parts = sorted(p.name for p in cache.rglob("*.part"))
    done = {(p.parent.name, int(p.stem[1:])) for p in cache.rglob("u*.parquet")}
    shards = {(p.parent.name, int(p.name.split(".")[1])) for p in cache.rglob("c.*")}
    writing = {"shard" if ".c." in p else "done file" if ".u0" in p else "metadata" for p in parts}
    text = f"{len(done)} done files"
    if writing:
        text += f", {len(parts)} parts of {'/'.join(sorted(writing))}"
    return text + (", a shard without its done file" if shards - done else "")


def assert_same_cache(found, expected):
    assert list(found.rglob("*.part")) == []
    assert cache_files(found, *SETTLED) == cache_files(expected, *SETTLED)
    arrays = sorted(p.parent for p in expected.glob("stores/*/*/zarr.json"))
    assert len(arrays) == 5
    for folder in [expected / "targets" / "thumb", *arrays]:
        ours = zarr.open_array(store=found / folder.relative_to(expected), mode="r")[:]
        assert np.array_equal(ours, zarr.open_array(store=folder, mode="r")[:])
        assert ours.dtype == np.uint8 or np.isfinite(ours).all()


@pytest.mark.parametrize("n_kills", [5, pytest.param(50, marks=pytest.mark.long)])
def test_kill_9_at_random_moments(tmp_path, n_kills):
    seed = 20261121 + n_kills
    n_images = 8 * max(16, 2 * n_kills)
    child = start(tmp_path / "whole", n_images)
    assert child.stdout.readline() == "batch\n"
    began = time.monotonic()
    finish(child)
    unit_s = 8 * (time.monotonic() - began) / n_images
    rng, cache, landed = random.Random(seed), tmp_path / "killed", []
    while len(landed) < n_kills:
        child = start(cache, n_images)
        making = len(landed) < 0.1 * n_kills  # the first moments fall into the making of the cache
        if not making:
            assert child.stdout.readline() in ("batch\n", "end 0\n")
        moment_s = rng.uniform(0, 0.03 if making else 2 * unit_s)
        time.sleep(moment_s)
        child.kill()
        child.communicate()
        if child.returncode == 0:  # a machine that has become faster: begin again, with what has been killed so far
            assert_same_cache(cache, tmp_path / "whole")
            cache = tmp_path / f"killed-{len(landed)}"
            continue
        assert child.returncode == -signal.SIGKILL
        landed.append(f"{moment_s * 1000:8.2f} ms after the {'start' if making else 'first batch'}: {state(cache)}")
    finish(start(cache, n_images))
    print(f"\nseed {seed}; {unit_s * 1000:.0f} ms a unit; killed", *landed, sep="\n")
    assert_same_cache(cache, tmp_path / "whole")


def test_signals_end_with_75_and_the_same_command_continues(tmp_path):
    n_images = 120
    extract(fake_config(tmp_path / "whole", batch_size=4), PngSource(n_images), lambda _: FakeBackbone(), StopFlag())
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        child = start(tmp_path / "stopped", n_images, delay_s=0.1)
        for _ in range(3):  # inside the second unit of this life
            assert child.stdout.readline() == "batch\n"
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 75
        stopped = rf"^stopped by {number.name} while extracting unit \d+; finished units are kept$"
        assert re.search(stopped, err, re.MULTILINE)
        assert err.endswith("remedy: run the same command again\n")
        assert out.count("batch") <= 2
        assert list((tmp_path / "stopped").rglob("*.part")) == []
    assert len(list((tmp_path / "stopped").rglob("thumb/u*.parquet"))) >= 4
    extract(fake_config(tmp_path / "stopped", batch_size=4), PngSource(n_images), lambda _: FakeBackbone(), StopFlag())
    assert_same_cache(tmp_path / "stopped", tmp_path / "whole")
