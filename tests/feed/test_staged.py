"""What is copied to the node's own disk, to the byte; what comes back from there; and that trouble changes nothing."""

import errno
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import loffta
from loffta.dataset.features import choose_features
from loffta.dataset.views import with_views
from loffta.errors import DamageFound, Stopped
from loffta.feed import staged as module
from loffta.feed.batches import Feed
from loffta.feed.staged import Stage
from loffta.machine.process import StopFlag
from loffta.machine.quota import Room, lies_in_memory
from loffta.store import shard as shards
from loffta.store.cache import Cache
from loffta.store.reader import ArrayReader
from loffta.store.zarr_reader import open_array
from tests.caches import FakeStore, make_cache, make_table, write_units

N, SHAPE = 43, (4, 4, 6)  # units of 8, the last one of 3
BAD = (1, 20)
CHUNK = 4 * 4 * 6 * 2 + 4  # bytes of one tap of one image, with its crc32c
INDEX = 8 * 3 * 16 + 4  # of a unit of three taps
TAPS = ("s.0", "s.1", "s.2")
TRAIN = np.setdiff1d(np.arange(24), BAD)  # units 0, 1, 2
TEST = np.arange(24, N)  # units 3, 4, 5


def given(seed=0):
    rng = np.random.default_rng(seed)
    return {tap: rng.normal(size=(N, *SHAPE)).astype("float16") for tap in TAPS}


@pytest.fixture
def cache(tmp_path):
    table = make_table(np.arange(N) % 3, ["train"] * 24 + ["test"] * (N - 24))
    return make_cache(tmp_path / "cache", table, [FakeStore("net", given())], bad=BAD)


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "node"
    found.mkdir()
    return found


def features_of(cache, taps="s.1"):
    return choose_features(cache, [f"net:{taps}"], ("grid",), default_taps="all")


def brought(folder, features, rows=TRAIN, **how):
    stage = Stage(str(folder), **how)
    stage.bring([(features, rows)])
    return stage


def read(features, rows=TRAIN, batch_size=5):
    with Feed(features, rows, batch_size=batch_size, mode="stream", order="uniform", n_threads=1) as feed:
        return np.concatenate([batch.features[0].numpy().copy() for batch in feed.in_order()])


def copies(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def hide_originals(cache):
    for path in cache.paths.stores.rglob("c.*"):
        path.rename(path.with_name(f"hidden-{path.name}"))


def staging(stage):
    return stage.told["staging"]


@pytest.mark.parametrize(("taps", "n_taps"), [("s.1", 1), ("s.0,s.2", 2), ("all", 3)])
def test_units_and_taps_of_the_job_are_copied_and_no_more(cache, folder, taps, n_taps, capsys):
    features = features_of(cache, taps)
    stage = brought(folder, features)
    sizes = [path.stat().st_size for path in copies(folder)]
    good = [sum(row // 8 == unit for row in TRAIN) for unit in range(3)]
    assert sorted(sizes) == sorted(n * n_taps * CHUNK + INDEX for n in good)
    assert {key: staging(stage)[key] for key in ("shards", "bytes", "copied_bytes", "given_up")} == {
        "shards": 3,
        "bytes": sum(sizes),
        "copied_bytes": sum(sizes),
        "given_up": None,
    }
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--stage-dir: ")
    assert "copied (3 shards)" in line
    hide_originals(cache)  # else they might have been read
    names = TAPS if taps == "all" else taps.split(",")
    expected = np.stack([given()[tap][TRAIN] for tap in names], axis=1)
    np.testing.assert_array_equal(read(stage.use(features)), expected)
    with pytest.raises(DamageFound, match="a shard of a finished unit is gone"):
        read(stage.use(features), TEST)


def test_bytes_that_are_read_are_those_of_the_taps(cache, folder, monkeypatch):
    asked, real = [], os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: asked.append(sum(map(len, buffers))) or real(fd, buffers, at)
    )
    brought(folder, features_of(cache))
    assert sum(asked) == len(TRAIN) * CHUNK + 3 * INDEX


def test_a_second_job_shares_the_copies(cache, folder):
    brought(folder, features_of(cache))
    before = {path: path.stat().st_mtime_ns for path in copies(folder)}
    stage = brought(folder, features_of(cache), np.concatenate([TRAIN, TEST]))
    after = {path: path.stat().st_mtime_ns for path in copies(folder)}
    assert before.items() <= after.items()
    assert len(after) == 6
    assert staging(stage)["copied_bytes"] == sum(p.stat().st_size for p in after.keys() - before.keys())
    third = brought(folder, features_of(cache))
    assert (staging(third)["copied_bytes"], staging(third)["shards"]) == (0, 3)


def test_several_needs_are_one_copy(cache, folder):
    """Two taps of one array, of different rows: every unit has both."""
    one, two = features_of(cache, "s.0"), features_of(cache, "s.2")
    stage = Stage(str(folder))
    stage.bring([(one, TRAIN), (two, TEST)])
    assert len(copies(folder)) == 6
    assert staging(stage)["bytes"] == (len(TRAIN) + len(TEST)) * 2 * CHUNK + 6 * INDEX
    hide_originals(cache)
    np.testing.assert_array_equal(read(stage.use(two), TEST)[:, 0], given()["s.2"][TEST])


def test_views_are_arrays_of_their_own(tmp_path, folder):
    view = {"kind": "crop-flip", "seed": 0, "index": 0, "area": [0.5, 1.0], "aspect": [0.75, 1.3]}
    stores = [FakeStore("net", {"a.0": given(i)["s.0"]}, view=view if i else None) for i in range(2)]
    cache = make_cache(tmp_path / "views", make_table(np.zeros(N), ["train"] * N), stores)
    features = choose_features(cache, ["net"], ("grid",), default_taps="all")
    features = with_views(cache, features, ("grid",))
    stage = brought(folder, features, np.arange(16))
    assert len(copies(folder)) == 4
    hide_originals(cache)
    with Feed(stage.use(features), np.arange(16), batch_size=4, mode="stream", views=True) as feed:
        found = {}
        for batch in feed.epoch(0):
            shown = zip(batch.rows.tolist(), batch.views.tolist(), strict=True)
            found |= zip(shown, batch.features[0].numpy().copy(), strict=True)
    assert {v for _, v in found} == {0, 1}
    for (row, v), value in found.items():
        np.testing.assert_array_equal(value[0], given(v)["s.0"][row])


@pytest.mark.parametrize("codec", ["zstd", "pcodec"])
def test_packed_arrays_are_copied_as_they_are(cache, folder, codec, tmp_path):
    for path in cache.paths.stores.rglob("c.*"):
        path.unlink()
    (array,) = cache.stores()[0].arrays
    for path in array.paths.done_folder.iterdir():
        path.unlink()
    values = np.stack([np.round(given()[tap]) for tap in TAPS], axis=1)  # which can be packed
    write_units(cache, array, values, bad=BAD)
    loffta.pack(cache.paths.root, out=tmp_path / "packed", codec=codec, progress=False)
    packed = Cache.open(tmp_path / "packed")
    stage = brought(folder, features_of(packed))
    (whole,) = packed.stores()[0].arrays
    assert whole.layout.codec is not None
    assert staging(stage)["bytes"] < 0.5 * sum(whole.paths.shard_sizes()[f"c.{u}.0.0.0.0"] for u in range(3))
    hide_originals(packed)
    np.testing.assert_array_equal(read(stage.use(features_of(packed)))[:, 0], values[TRAIN, 1])


def test_a_damaged_original_is_not_copied(cache, folder, capsys):
    (array,) = cache.stores()[0].arrays
    path = array.paths.shard(1, 5)
    data = bytearray(path.read_bytes())
    data[CHUNK + 7] ^= 1  # s.1 of row 8
    path.write_bytes(data)
    features = features_of(cache)
    stage = brought(folder, features)
    assert len(copies(folder)) == 2
    assert "1 left where they are (the bytes of a chunk do not match their crc32c" in capsys.readouterr().err
    sound = np.setdiff1d(TRAIN, [8])
    np.testing.assert_array_equal(read(stage.use(features), sound)[:, 0], given()["s.1"][sound])
    with pytest.raises(DamageFound, match=r"row 8, s\.1: the bytes do not match"):
        read(stage.use(features))


def test_a_unit_of_another_extraction_is_not_what_its_done_file_says(cache, folder, capsys):
    """A shard that was exchanged whole: it agrees with itself."""
    (array,) = cache.stores()[0].arrays
    old = array.paths.shard(0, 5).read_bytes()
    other = np.stack([given(1)[tap] for tap in TAPS], axis=1)
    array.paths.done(0).unlink()
    write_units(cache, array, other, bad=BAD, missing=range(1, 6))
    array.paths.shard(0, 5).write_bytes(old)
    assert len(copies(folder)) == 0
    brought(folder, features_of(cache))
    assert len(copies(folder)) == 2
    assert "another chunk than the one that was written" in capsys.readouterr().err


def test_an_altered_unit_is_copied_anew_and_the_old_copy_goes(cache, folder):
    brought(folder, features_of(cache))
    before = copies(folder)
    (array,) = cache.stores()[0].arrays
    array.paths.done(1).unlink()
    write_units(cache, array, np.stack([given(1)[tap] for tap in TAPS], axis=1), bad=BAD, missing=(0, 2, 3, 4, 5))
    features = features_of(Cache.open(cache.paths.root))
    stage = brought(folder, features)
    after = copies(folder)
    assert len({*before} & {*after}) == 2
    assert len(after) == 3
    expected = np.where((TRAIN // 8 == 1)[:, None, None, None], given(1)["s.1"][TRAIN], given()["s.1"][TRAIN])
    np.testing.assert_array_equal(read(stage.use(features))[:, 0], expected)


def test_another_cache_and_other_taps_do_not_share(cache, folder, tmp_path):
    brought(folder, features_of(cache))
    other = make_cache(tmp_path / "other", cache.table, [FakeStore("net", given())], bad=BAD)
    brought(folder, features_of(other))
    brought(folder, features_of(cache, "s.2"))
    assert len(copies(folder)) == 9


def no_room(monkeypatch, folder):
    monkeypatch.setattr(module, "free_room", lambda _: Room(len(TRAIN) * CHUNK))
    return str(folder), "do not fit"


def no_files(monkeypatch, folder):
    monkeypatch.setattr(module, "free_room", lambda _: Room(1 << 40, 2))
    return str(folder), "3 files do not fit: 2 more can be made there"


def no_memory(monkeypatch, folder):
    monkeypatch.setattr(module, "lies_in_memory", lambda _: True)
    monkeypatch.setattr(module.process, "free_memory_bytes", lambda: 1000)
    return str(folder), "left of the memory, in which that folder lies"


def full_disk(monkeypatch, folder):
    real = shards._pwritev_all

    def fill(fd, buffers, place):
        if len(copies(folder)) > 1:  # a copy is finished, another one begun
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, buffers, place)

    monkeypatch.setattr(shards, "_pwritev_all", fill)
    monkeypatch.setattr(module, "_THREADS", 1)
    return str(folder), "no space left to write a file"


def no_folder(_, folder):
    return str(folder / "missing"), "there is no such folder"


def no_variable(monkeypatch, _):
    monkeypatch.delenv("LOFFTA_NO_SUCH", raising=False)
    return "$LOFFTA_NO_SUCH/x", "no such variable is set here"


def no_word(*_):
    return "", "its name is empty: is the variable set here?"


def read_only(monkeypatch, folder):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    return str(folder), "nothing can be written here"


def of_another_user(monkeypatch, folder):
    (folder / "loffta-stage-12345").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    return str(folder), "is another user's, or a link"


def a_link(_, folder):
    (folder / "elsewhere").mkdir()
    (folder / f"loffta-stage-{os.getuid()}").symlink_to(folder / "elsewhere")
    return str(folder), "is another user's, or a link"


TROUBLES = [
    no_room,
    no_files,
    no_memory,
    full_disk,
    no_folder,
    no_variable,
    no_word,
    read_only,
    of_another_user,
    a_link,
]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_cache_itself_is_read_where_nothing_can_be_copied(cache, folder, trouble, monkeypatch, capsys):
    word, why = trouble(monkeypatch, folder)
    features = features_of(cache)
    stage = brought(word, features)
    stage.bring([(features, TEST)])  # it is not tried again
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--stage-dir {word or repr('')}: ")
    assert why in line
    assert line.endswith("; the cache is read where it is")
    assert why in staging(stage)["given_up"]
    assert copies(folder) == []
    np.testing.assert_array_equal(read(stage.use(features))[:, 0], given()["s.1"][TRAIN])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
def test_a_file_system_that_fills_up(cache, folder, monkeypatch, capsys):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        assert lies_in_memory(folder)
        monkeypatch.setattr(module, "free_room", lambda _: Room(1 << 40))  # others were faster
        stage = brought(folder, features_of(cache, "all"))
        assert "no space left to write a file" in staging(stage)["given_up"]
        assert copies(folder) == []
        assert len(capsys.readouterr().err.splitlines()) == 1
    finally:
        subprocess.run(["umount", folder], check=True)
    assert not lies_in_memory(folder)


def test_variables_are_expanded_here(cache, folder, monkeypatch):
    monkeypatch.setenv("LOFFTA_NODE", str(folder))
    stage = brought("$LOFFTA_NODE", features_of(cache))
    assert len(copies(folder)) == 3
    assert staging(stage)["folder"] == "$LOFFTA_NODE"


def test_only_the_user_sees_the_copies(cache, folder):
    brought(folder, features_of(cache))
    assert (folder / f"loffta-stage-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_vanishes_in_mid_run(cache, folder, monkeypatch, capsys):
    monkeypatch.setattr(ArrayReader, "_max_open", lambda _: 1)
    features = features_of(cache)
    stage = brought(folder, features)
    capsys.readouterr()
    found = []
    with Feed(stage.use(features), TRAIN, batch_size=5, mode="stream", order="uniform", n_threads=1) as feed:
        for i, batch in enumerate(feed.in_order()):
            found.append(batch.features[0].numpy().copy())
            if i == 0:
                for path in copies(folder):
                    path.unlink()
    np.testing.assert_array_equal(np.concatenate(found)[:, 0], given()["s.1"][TRAIN])
    (line,) = capsys.readouterr().err.splitlines()
    assert "No such file or directory; the cache is read where it is" in line
    assert staging(stage)["given_up"] == "No such file or directory"


def test_a_copy_that_decays_is_given_up(cache, folder, capsys):
    features = features_of(cache)
    stage = brought(folder, features)
    capsys.readouterr()
    for path in copies(folder):
        data = bytearray(path.read_bytes())
        data[3] ^= 4
        path.write_bytes(data)
    np.testing.assert_array_equal(read(stage.use(features))[:, 0], given()["s.1"][TRAIN])
    (line,) = capsys.readouterr().err.splitlines()
    assert "the bytes do not match their crc32c; the cache is read where it is" in line


def test_a_copy_without_what_is_asked_is_given_up(cache, folder):
    """The taps that it lacks are known only from its index."""
    stage = brought(folder, features_of(cache))
    near = stage.use(features_of(cache, "s.1,s.2"))
    np.testing.assert_array_equal(read(near)[:, 1], given()["s.2"][TRAIN])
    assert "is missing from its shard" in staging(stage)["given_up"]


def test_damage_of_the_original_is_still_an_error_behind_a_lost_copy(cache, folder):
    features = features_of(cache)
    stage = brought(folder, features)
    (array,) = cache.stores()[0].arrays
    for path in [*copies(folder), *map(array.paths.shard, range(3), [5] * 3)]:
        data = bytearray(path.read_bytes())
        for at in range(0, len(data) - INDEX, CHUNK):
            data[at] ^= 1
        path.write_bytes(data)
    with pytest.raises(DamageFound, match="do not match their crc32c"):
        read(stage.use(features))


def test_what_the_reader_learnt_of_a_copy_does_not_outlive_it(cache, folder):
    """Offsets in a copy are not those of the original."""
    (feature,) = features_of(cache)
    (near,) = brought(folder, [feature]).use([feature])
    reader = open_array(near.array.paths, near=near.near)
    np.testing.assert_array_equal(reader.read(TRAIN, [1])[:, 0], given()["s.1"][TRAIN])
    near.near.give_up("a test")
    np.testing.assert_array_equal(reader.read(TRAIN, [1, 2])[:, 1], given()["s.2"][TRAIN])


def test_a_signal_ends_it_and_finished_copies_stay(cache, folder, monkeypatch):
    stop, real = StopFlag(), module.Copy.make
    monkeypatch.setattr(module, "_THREADS", 1)

    def make(copy, halt):
        size = real(copy, halt)
        stop.signal = signal.SIGUSR1
        return size

    monkeypatch.setattr(module.Copy, "make", make)
    with pytest.raises(Stopped, match="stopped by SIGUSR1 while copying to --stage-dir"):
        brought(folder, features_of(cache), stop=stop)
    left = copies(folder)
    assert 1 <= len(left) < 3
    assert not any(path.name.endswith(".part") for path in left)


def test_two_jobs_at_once(cache, folder):
    """Both copy all of it at the same time, unit by unit, into the same names."""
    together = threading.Barrier(2)
    features = features_of(cache)
    found = {}

    def job(name):
        stage = Stage(str(folder))
        real = stage._copy
        stage._copy = lambda *args: (together.wait(30), real(*args))
        stage.bring([(features, TRAIN)])
        found[name] = staging(stage), read(stage.use(features))

    jobs = [threading.Thread(target=job, args=(i,)) for i in range(2)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert len(copies(folder)) == 3
    for told, values in found.values():
        assert (told["shards"], told["given_up"]) == (3, None)
        np.testing.assert_array_equal(values[:, 0], given()["s.1"][TRAIN])


KILLED = """
import os, signal, sys
from threading import Event
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from loffta.store import shard
from loffta.store.cache import Cache
from loffta.store.staging import open_folder, plan_copies

shard.ShardWriter.commit = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # all is written but the index
(array,) = Cache.open(Path(sys.argv[1])).stores()[0].arrays
with ThreadPoolExecutor(1) as pool:
    copies = plan_copies(open_folder(sys.argv[2]), array, np.array([1]), [0, 1, 2], pool)
copies[0].make(Event())
"""


def test_what_a_killed_job_leaves_is_swept(cache, folder):
    ended = subprocess.run([sys.executable, "-c", KILLED, cache.paths.root, folder], capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (left,) = copies(folder)
    assert left.name.endswith(".part")
    features = features_of(cache)
    stage = brought(folder, features)
    assert left not in copies(folder)
    assert len(copies(folder)) == 3
    hide_originals(cache)
    np.testing.assert_array_equal(read(stage.use(features))[:, 0], given()["s.1"][TRAIN])


def test_without_a_folder_nothing_changes(cache):
    features = features_of(cache)
    stage = Stage(None)
    stage.bring([(features, TRAIN)])
    assert stage.use(features) == list(features)
    assert (stage.told, stage.waits) == ({}, False)


def test_copies_that_were_finished_behind_the_trouble_go_too(cache, folder, monkeypatch):
    """One thread meets a full disk while the other is about to put its copy in place."""
    failed, real = threading.Event(), module.Copy.make

    def make(copy, halt):
        if copy.unit == 0:
            failed.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert failed.wait(30)
        return real(copy, threading.Event())  # it does not look at `halt` any more

    monkeypatch.setattr(module.Copy, "make", make)
    stage = brought(folder, features_of(cache))
    assert staging(stage)["given_up"] == "No space left on device"
    assert copies(folder) == []
