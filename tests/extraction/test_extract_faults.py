"""What may go wrong in an extraction: bad images, values, options and weights; stops, crashes and others' work."""

import os
import re
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from loffta.errors import LofftaError, Stopped, TooManyBadImages, UsageError
from loffta.extraction.extract import extract
from loffta.files.durable import part_name
from loffta.files.processes import began
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.ledger import BAD, OK
from tests import fakes
from tests.extraction.filled import N, direct, fill, read_array, refuse_to_load
from tests.fakes import UNIT, FakeBackbone, PngSource, cache_files, done_columns, fake_config, picture, png
from tests.forked import Forked


def assert_settled(root, n_rows=N):
    """Every array of the cache has all its rows, and no temporary file is left."""
    assert list(root.rglob("*.part")) == []
    cache = Cache.open(root)
    for array in [cache.thumbs(), *(a for s in cache.stores() for a in s.arrays)]:
        assert array.ledger.listed == n_rows, array.paths.name


def bomb():
    """A PNG header that promises 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BROKEN = {
    2: (b"", "empty file"),
    5: (png(picture(5))[:200], "truncated"),
    9: (b"<html>not an image</html>", "not an image of a known format"),
    10: (bomb(), "exceeds limit"),
    17: (FileNotFoundError(2, "No such file or directory", "0017.png"), "cannot be read: .*No such file"),
}


def test_bad_images_are_quarantined_and_the_rest_is_saved(tmp_path):
    source = PngSource(N, {row: data for row, (data, _) in BROKEN.items()})
    with pytest.raises(
        TooManyBadImages, match=r"5 of 20 images cannot be used; the first: 0002.png: empty file"
    ) as caught:
        fill(tmp_path, source)
    assert caught.value.exit_code == 3
    assert "--max-bad-frac" in caught.value.remedy
    good = [row for row in range(N) if row not in BROKEN]
    expected = direct(FakeBackbone(), [picture(i) for i in good])
    stored = read_array(tmp_path, "grid", "blocks.0")
    assert np.array_equal(stored[good], expected["blocks.0"][0].half().numpy())
    assert np.isnan(stored[list(BROKEN)]).all()
    for done in (tmp_path / "done").rglob("*.parquet"):
        table = done_columns(done)
        for row, status, reason, crcs in zip(*(table[n] for n in ("row", "status", "reason", "crc32c")), strict=True):
            assert status == (BAD if row in BROKEN else OK)
            assert bool(crcs) == (row not in BROKEN)
            if row in BROKEN:
                assert re.search(BROKEN[row][1], reason), (row, reason)
    source.reads.clear()
    report = fill(tmp_path, source, max_bad_frac=0.25)
    assert (report.bad, report.units, dict(source.reads)) == (5, 0, {})


def test_only_bad_images_among_the_asked_ones_are_judged(tmp_path):
    source = PngSource(N, {18: b"", 19: b""})
    with pytest.raises(TooManyBadImages):
        fill(tmp_path, source)
    fill(tmp_path, source, limit=4)


def test_a_unit_of_bad_images_alone(tmp_path):
    report = fill(tmp_path, PngSource(N, dict.fromkeys(range(8, 16), b"no")), max_bad_frac=0.5)
    assert (report.units, report.bad) == (3, 8)
    assert_settled(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            1e6,
            r"tap blocks\.1 reaches 1e\+06, over float16's 65504 for image 0004\.png\n.*\n  remedy: .*--dtype float32",
        ),
        (float("nan"), r"tap blocks\.1 is NaN or infinite for image 0004\.png"),
        (float("inf"), r"tap blocks\.1 is NaN or infinite for image 0004\.png"),
    ],
)
def test_values_that_cannot_be_stored_name_tap_and_image(tmp_path, value, text):
    class Overflowing(FakeBackbone):
        def __call__(self, pixels, taps):
            tokens = super().__call__(pixels, taps)
            if len(self.batches) == 2:  # rows 3, 4, 5
                tokens["blocks.1"].grid[1, 0, 3, 2] = value
            return tokens

    with pytest.raises(LofftaError, match=text):
        fill(tmp_path, backbone=Overflowing())
    assert list(tmp_path.rglob("c.*")) + list(tmp_path.rglob("*.part")) + list(tmp_path.rglob("u*.parquet")) == []
    fill(tmp_path)
    assert_settled(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_crash_in_the_backbone_leaves_no_torn_unit(tmp_path, error):
    def crash(backbone):
        if len(backbone.batches) == 5:  # inside the second unit
            raise error

    with pytest.raises(type(error)):
        fill(tmp_path / "a", backbone=FakeBackbone(before=crash))
    assert {p.name for p in (tmp_path / "a").rglob("u*.parquet")} == {"u000000.parquet"}
    assert {p.name[:4] for p in (tmp_path / "a").rglob("c.*")} == {"c.0."}
    assert list((tmp_path / "a").rglob("*.part")) == []
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    assert cache_files(tmp_path / "a") == cache_files(tmp_path / "b")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_stop_ends_within_the_unit_and_resumes(tmp_path, batch):
    stop = StopFlag()

    def signal_at(backbone):
        if len(backbone.batches) == batch:
            stop.signal = signal.SIGUSR1

    backbone = FakeBackbone(before=signal_at)
    with pytest.raises(
        Stopped, match=r"stopped by SIGUSR1 while extracting unit \d; finished units are kept"
    ) as caught:
        fill(tmp_path / "a", backbone=backbone, stop=stop)
    assert caught.value.exit_code == 75
    assert len(backbone.batches) == batch
    assert list((tmp_path / "a").rglob("*.part")) == []
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    assert cache_files(tmp_path / "a") == cache_files(tmp_path / "b")


def test_a_stop_is_seen_where_no_batch_is(tmp_path):
    stop = StopFlag()
    stop.signal = signal.SIGTERM
    with pytest.raises(Stopped, match="SIGTERM"):
        fill(tmp_path, PngSource(N, dict.fromkeys(range(N), b"")), stop=stop)
    assert list(tmp_path.rglob("u*.parquet")) == []


def test_a_misspelt_tap_leaves_no_store(tmp_path):
    wrong = pytest.raises(UsageError, match=r"unknown tap 'block\.0'[^?]*did you mean blocks\.0")
    with wrong:
        fill(tmp_path / "new", taps="block.0")
    assert not (tmp_path / "new").exists()
    fill(tmp_path / "old", names=["one"])
    stores = list((tmp_path / "old").glob("stores/*"))
    with wrong:
        fill(tmp_path / "old", names=["two"], taps="block.0")
    assert list((tmp_path / "old").glob("stores/*")) == stores


def test_weights_that_cannot_be_had_leave_no_cache(tmp_path):
    def fail(wanted):
        raise LofftaError("no network", where=wanted.name, remedy="fetch them first")

    with pytest.raises(LofftaError, match="no network"):
        extract(fake_config(tmp_path / "new"), PngSource(N), fail, StopFlag())
    assert not (tmp_path / "new").exists()


def test_a_kind_that_the_backbone_does_not_have(tmp_path):
    with pytest.raises(UsageError, match=r"fake has no prefix tokens[^?]*use --kinds grid"):
        fill(tmp_path / "new", taps="stages.2", kinds=("prefix",))
    assert not (tmp_path / "new").exists()


def test_parts_of_dead_processes_are_swept_everywhere(tmp_path):
    fill(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    host = part_name(tmp_path / "x").name.split(".")[2]
    folders = [p for p in (tmp_path, *tmp_path.rglob("*")) if p.is_dir()]
    assert len(folders) > 15
    dead = [folder / f".x.{host}.{gone.pid}.0123abcd.part" for folder in folders]
    living = tmp_path / f".x.{host}.{os.getppid()}.{began(os.getppid())}abcd.part"
    for path in (*dead, living):
        path.write_bytes(b"half")
    extract(fake_config(tmp_path), PngSource(N), refuse_to_load, StopFlag())
    assert list(tmp_path.rglob("*.part")) == [living]


@pytest.mark.parametrize("n_processes", [2, 4])
def test_overlapping_owners(tmp_path, n_processes):
    owners = Forked(fakes.main, [tmp_path / "a", "--images", "60", "--processes", n_processes])
    out, err = owners.communicate()
    assert owners.returncode == 0, err
    assert 1 <= err.count("device cpu, 1 threads") <= n_processes
    written = [int(units) for units in re.findall(r"^end (\d+)$", out, re.MULTILINE)]
    assert len(written) == n_processes
    assert sum(written) >= 8  # units; more where two wrote the same one
    assert_settled(tmp_path / "a", 60)
    fill(tmp_path / "b", PngSource(60), batch_size=4)
    assert cache_files(tmp_path / "a") == cache_files(tmp_path / "b")


def test_a_unit_that_another_process_wrote_meanwhile_is_not_decoded(tmp_path):
    source = PngSource(N)

    def overtake(backbone):
        if len(backbone.batches) == 1:
            fill(tmp_path, PngSource(N))

    report = fill(tmp_path, source, FakeBackbone(before=overtake))
    assert (report.units, sum(source.reads.values())) == (1, UNIT)
    assert_settled(tmp_path)
