import os
import struct
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from loffta.errors import DamageFound, LofftaError
from loffta.store import shard as shard_module
from loffta.store.shard import ShardWriter, read_index, read_into

from .conftest import BAD_ROW, MISSING, U, Written, append, names, parse_shard


def test_every_byte_of_a_shard(tmp_path: Path) -> None:
    chunks = np.arange(12, dtype="<u2").reshape(3, 4)
    writer = ShardWriter(tmp_path / "c.0.0", 5)
    assert append(writer, [3, 0], chunks[:2]) == [google_crc32c.value(c.tobytes()) for c in chunks[:2]]
    append(writer, [1], chunks[2:])
    writer.commit()
    body = b"".join(c.tobytes() + struct.pack("<I", google_crc32c.value(c.tobytes())) for c in chunks)
    index = struct.pack("<10Q", 12, 12, 24, 12, MISSING, MISSING, 0, 12, MISSING, MISSING)
    assert (tmp_path / "c.0.0").read_bytes() == body + index + struct.pack("<I", google_crc32c.value(index))
    assert names(tmp_path) == ["c.0.0"]


def test_shards_of_a_store_parsed_by_hand(grid: Written) -> None:
    for unit in range(3):
        chunks = parse_shard(grid.shard(unit).read_bytes(), U * 3)
        for position, chunk in enumerate(chunks):
            row, tap = unit * U + position // 3, position % 3
            if row >= len(grid.values) or row == BAD_ROW:
                assert chunk is None
            else:
                assert chunk == grid.values[row, tap].tobytes()


def test_a_shard_with_nothing_in_it(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "c.0", 4)
    assert writer.reserve([], 6) == []
    writer.commit()
    assert parse_shard((tmp_path / "c.0").read_bytes(), 4) == [None] * 4


def test_more_chunks_than_one_pwritev_takes(tmp_path: Path) -> None:
    chunks = np.arange(3000, dtype="<u4").reshape(1500, 2)
    writer = ShardWriter(tmp_path / "c.0", 1500)
    append(writer, range(1500), chunks)
    writer.commit()
    assert parse_shard((tmp_path / "c.0").read_bytes(), 1500) == [c.tobytes() for c in chunks]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_module.os, "pwritev", lambda fd, buffers, at: os.pwrite(fd, bytes(buffers[0][:3]), at))
    chunks = np.arange(20, dtype="<u2").reshape(4, 5)
    writer = ShardWriter(tmp_path / "c.0", 4)
    append(writer, range(4), chunks)
    writer.commit()
    assert parse_shard((tmp_path / "c.0").read_bytes(), 4) == [c.tobytes() for c in chunks]


def test_a_chunk_is_written_once(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "c.0", 4)
    append(writer, [1], np.zeros((1, 2), np.float16))
    with pytest.raises(AssertionError, match="twice"):
        append(writer, [1], np.zeros((1, 2), np.float16))
    writer.abort()


def test_nothing_is_visible_before_commit_and_nothing_stays_after_abort(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "c.0", 4)
    append(writer, [1], np.zeros((1, 2), np.float16))
    assert not (tmp_path / "c.0").exists()
    writer.abort()
    writer.abort()
    assert names(tmp_path) == []


def test_a_shard_that_another_process_sweeps_is_written_again(tmp_path: Path) -> None:
    """By an older version, or by somebody's clean-up: its bytes are there as long as it is open."""
    rng = np.random.default_rng(0)
    chunks = rng.integers(0, 1 << 16, (4, 50_000), dtype=np.uint16)
    for name in ("swept", "whole"):
        writer = ShardWriter(tmp_path / name, 4)
        append(writer, [2, 0, 1, 3], chunks)
        if name == "swept":
            (part,) = tmp_path.iterdir()
            part.unlink()
        writer.commit()
    assert (tmp_path / "swept").read_bytes() == (tmp_path / "whole").read_bytes()
    assert names(tmp_path) == ["swept", "whole"]


def test_abort_after_commit_keeps_the_shard(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "c.0", 1)
    writer.commit()
    writer.abort()
    assert (tmp_path / "c.0").stat().st_size == 20


def test_a_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.0" / "in-the-way").mkdir(parents=True)
    writer = ShardWriter(tmp_path / "c.0", 1)
    with pytest.raises(LofftaError, match="a folder is where"):
        writer.commit()
    writer.abort()
    assert names(tmp_path) == ["c.0"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from loffta.errors import LofftaError
from loffta.store.shard import ShardWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
writer = ShardWriter(Path(sys.argv[1]) / "c.0", 100)
try:
    for i in range(100):
        data = np.zeros((1, 250), np.float16)
        writer.write(writer.reserve([i], data.nbytes)[0], data)
    writer.commit()
except LofftaError as error:
    print(i, error)
    writer.abort()
"""


def test_a_full_disk_gives_one_clear_error_and_no_torn_file(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("9 no space left to write a file (File too large; `ulimit -f`")
    assert f"where:  {tmp_path / 'c.0'}" in done.stdout
    assert "remedy: free space or raise the quota, then run the same command again" in done.stdout
    assert names(tmp_path) == []


def test_no_room_for_the_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(shard_module.os, "open", refuse)
    with pytest.raises(LofftaError, match=r"no space left to write a file \(Disk quota exceeded\)"):
        ShardWriter(tmp_path / "c.0", 1)


def open_index(path: Path, n_chunks: int, *, at_end: bool = True) -> np.ndarray:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_index(fd, n_chunks, at_end=at_end, path=path)
    finally:
        os.close(fd)


@pytest.mark.parametrize("at_end", [True, False])
def test_read_index_at_either_end(tmp_path: Path, at_end: bool) -> None:
    entries = struct.pack("<4Q", 36, 7, MISSING, MISSING)
    index = entries + struct.pack("<I", google_crc32c.value(entries))
    (tmp_path / "c.0").write_bytes(b"-" * 43 + index if at_end else index + b"-" * 43)
    assert open_index(tmp_path / "c.0", 2, at_end=at_end).tolist() == [[36, 7], [MISSING, MISSING]]


def test_damaged_indexes(tmp_path: Path) -> None:
    path = tmp_path / "c.0"
    path.write_bytes(b"12345")
    with pytest.raises(
        DamageFound, match=r"shard is truncated: 5 bytes cannot hold its index\n  where:  .*c.0\n.*--deep"
    ):
        open_index(path, 2)
    entries = struct.pack("<4Q", 0, 7, MISSING, MISSING)
    path.write_bytes(entries + struct.pack("<I", google_crc32c.value(entries) ^ 1))
    with pytest.raises(DamageFound, match="shard index does not match its crc32c"):
        open_index(path, 2)
    entries = struct.pack("<4Q", 30, 7, MISSING, MISSING)
    path.write_bytes(entries + struct.pack("<I", google_crc32c.value(entries)))
    with pytest.raises(DamageFound, match="points behind its end"):
        open_index(path, 2)


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(DamageFound, match="ends at byte 10, before its data does"):
        read_into(fd, [memoryview(bytearray(4))], 8, path=path)
    os.close(fd)
