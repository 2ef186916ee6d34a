"""The order of the commit protocol (docs/store-format.md): leave out any of its steps, and one of these tests fails.

Every fsync and rename is recorded as the operating system sees it, with how many bytes the file had by then.
"""

import os
from pathlib import Path

import pytest

from loffta.files.durable import create_file, create_folder, replace_file
from loffta.store.paths import CachePaths

from .conftest import make_layout, make_values, write_unit


@pytest.fixture
def steps(monkeypatch):
    """What was done, in order: ("sync", file, bytes), ("sync", folder), ("rename" or "link", from, to)."""
    done = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "link")}

    def fsync(fd):
        path = Path(f"/proc/self/fd/{fd}").readlink()
        done.append(("sync", path) if path.is_dir() else ("sync", path, os.fstat(fd).st_size))
        real["fsync"](fd)

    def mover(name):
        def move(source, target):
            done.append((name if name == "link" else "rename", Path(source), Path(target)))
            real[name](source, target)

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "rename", "link"):
        monkeypatch.setattr(os, name, mover(name))
    return done


def durable(part, final, verb="rename"):
    """The four steps by which a whole file gets its name for good, after it was written."""
    return [("sync", part, final.stat().st_size), (verb, part, final), ("sync", final.parent)]


def test_a_unit(tmp_path, steps):
    layout = make_layout("grid")
    paths = CachePaths(tmp_path).array("store-0", "grid-0")
    paths.folder.mkdir(parents=True)
    assert write_unit(paths, layout, 1, make_values(layout.shape, layout.dtype))
    shard, done = steps[0][1], steps[3][1]
    assert shard.suffix == done.suffix == ".part"
    assert steps == [*durable(shard, paths.shard(1, 5)), *durable(done, paths.done(1))]


def test_a_unit_whose_part_was_swept_is_no_less_durable(tmp_path, steps):
    """Written again from the descriptor: the same bytes, by the same steps."""
    layout = make_layout("grid")
    values = make_values(layout.shape, layout.dtype)
    roots = [CachePaths(tmp_path / name).array("store-0", "grid-0") for name in ("undisturbed", "swept")]
    for paths in roots:
        paths.folder.mkdir(parents=True)
    write_unit(roots[0], layout, 1, values)
    real = os.fsync
    steps.clear()

    def sweep_then_sync(fd):
        real(fd)
        if len(steps) == 1:
            steps[0][1].unlink()  # between the fsync and the rename

    os.fsync = sweep_then_sync  # `steps` puts it back
    assert write_unit(roots[1], layout, 1, values)
    (_, lost, target), again = steps[1], steps[2][1]
    assert lost == steps[0][1]
    assert target == roots[1].shard(1, 5)
    assert steps[2:5] == durable(again, target)
    assert roots[1].shard(1, 5).read_bytes() == roots[0].shard(1, 5).read_bytes()
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize(("write", "verb"), [(replace_file, "rename"), (create_file, "link")])
def test_a_small_file(tmp_path, steps, write, verb):
    write(tmp_path / "file", b"12345")
    assert steps == durable(steps[0][1], tmp_path / "file", verb)
    assert steps[0][2] == 5


def test_a_folder(tmp_path, steps):
    final = tmp_path / "group"
    create_folder(final, {final / "zarr.json": b"{}", final / "scale" / "c.0.0": b"1234"})
    part = steps[-2][1]
    files = [("sync", part / "zarr.json", 2), ("sync", part / "scale" / "c.0.0", 4)]
    assert steps[:2] == files
    assert {step[1] for step in steps[2:-2]} == {part, part / "scale"}
    assert steps[-2:] == [("rename", part, final), ("sync", tmp_path)]
