"""An image set that says other things of the same images: no feature is made anew, and what was said is kept."""

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from loffta.errors import LofftaError
from loffta.extraction.plan import make_plan
from loffta.extraction.recheck import verify_images
from loffta.extraction.repair import repair
from loffta.files.durable import replace_file
from loffta.machine.process import StopFlag
from loffta.online.recompute import recompute
from loffta.store.cache import Cache
from loffta.store.verify import verify
from tests.extraction.filled import N, fill, read_array
from tests.fakes import FakeBackbone, PngSource, fake_config


class Told(PngSource):
    """The same pictures under other names, splits and classes."""

    def __init__(self, n_images, *, without=(), **changes):
        super().__init__(n_images)
        self.renamed = changes.pop("renamed", {})  # new name by old
        self._without, self._changes = without, changes

    def listing(self):
        table = dataclasses.replace(super().listing(), **self._changes)
        kept = [i for i, key in enumerate(table.keys) if key not in self._without]
        return dataclasses.replace(
            table,
            keys=[self.renamed.get(table.keys[i], table.keys[i]) for i in kept],
            sizes=table.sizes[kept],
            splits=[table.splits[i] for i in kept],
            labels=table.labels[kept],
        )

    def read(self, key):
        old = {new: old for old, new in self.renamed.items()}
        if key in self._without or key in self.renamed:
            raise FileNotFoundError(key)
        return super().read(old.get(key, key))


def frozen(root):
    """Every shard and done file with its inode, time and content."""
    files = [p for p in root.rglob("*") if p.is_file() and ("done" in p.parts or p.name.startswith("c."))]
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).digest()) for p in files}


def sets(root):
    """Names of the sets of labels, the day as DAY."""
    return [re.sub(r"\d{4}-\d\d-\d\d", "DAY", name) for name in Cache.open(root).paths.label_names()]


def refuse_to_run(*_):
    pytest.fail("features were computed")


IDLE = FakeBackbone(before=refuse_to_run)


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "cache")
    return tmp_path / "cache"


def test_other_labels_and_splits_cost_no_feature(root, capsys):
    before, images = frozen(root), (root / "images.parquet").read_bytes()
    old = Cache.open(root).table
    labels, splits = np.arange(N) % 3, list(old.splits)
    labels[:3], splits[5] = [2, 2, -1], "val"
    fill(root, Told(N, labels=labels, splits=splits, classes=("a", "b", "x")), IDLE)
    said = capsys.readouterr().err
    assert "of the 20 old images split of 1 and class of 8 differ: the features are untouched; the older labels" in said
    assert frozen(root) == before
    assert (root / "images.parquet").read_bytes() == images
    cache = Cache.open(root)
    assert (cache.table.labels.tolist(), cache.table.splits) == (labels.tolist(), splits)
    assert (cache.table.classes, cache.labels) == (("a", "b", "x"), "source")
    assert cache.images.digest == old.digest
    assert sets(root) == ["source", "source@DAY"]
    kept = cache.with_labels(next(name for name in cache.paths.label_names() if "@" in name)).table
    assert (kept.labels.tolist(), kept.splits, kept.classes) == (old.labels.tolist(), old.splits, old.classes)
    files = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    fill(root, Told(N, labels=labels, splits=splits, classes=("a", "b", "x")), IDLE)  # the same again is nothing new
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == files
    fill(root, PngSource(N), IDLE)  # and back
    cache = Cache.open(root)
    assert cache.table.digest == old.digest
    assert sets(root) == ["source", "source@DAY", "source@DAY.2"]
    assert frozen(root) == before


def test_new_images_and_other_labels_at_once(root):
    before = {p: facts for p, facts in frozen(root).items() if not re.match(r"c\.2|u000002", p.name)}  # full units
    labels = np.zeros(N + 3, np.int64)
    fill(root, Told(N + 3, labels=labels))
    table = Cache.open(root).table
    assert (len(table), table.labels.tolist()) == (N + 3, labels.tolist())
    assert before
    assert {p: facts for p, facts in frozen(root).items() if p in before} == before
    fill(root, Told(N + 5, labels=np.zeros(N + 5, np.int64)))  # growth alone: no further copy is kept
    assert sets(root) == ["source", "source@DAY"]
    cache = Cache.open(root)
    assert cache.table.labels.tolist() == [0] * (N + 5)
    assert cache.images.labels.tolist()[:N] == [i % 3 for i in range(N)]
    assert not list(verify(cache, deep=True))


def test_a_set_of_another_kind(root):
    numbers = np.linspace(0, 1, N + 1)
    source = Told(N + 1, labels=np.full(N + 1, -1), classes=(), values=numbers)
    fill(root, source)
    cache = Cache.open(root)
    assert (cache.table.label_kind, cache.images.label_kind) == ("regression", "single-label")
    np.testing.assert_array_equal(cache.table.values, numbers)
    assert cache.images.labels.tolist()[N] == -1


@pytest.mark.parametrize("n_written", [0, 1])
@pytest.mark.parametrize("is_first", [True, False])
def test_killed_between_its_writes(root, monkeypatch, is_first, n_written):
    """The old images keep what was said of them, whole; the same command then ends where it would have."""
    if not is_first:
        fill(root, Told(N, labels=np.full(N, 1)), IDLE)
    old = Cache.open(root).table
    source, written = Told(N + 3, labels=np.full(N + 3, 2)), []

    def dying(path, data):
        if len(written) == n_written:
            raise KeyboardInterrupt
        written.append(path)
        replace_file(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("loffta.store.follow.replace_file", dying)
        with pytest.raises(KeyboardInterrupt):
            fill(root, source)
    found = Cache.open(root)
    assert len(found.table) == N + 3 * n_written
    assert (found.table.labels[:N].tolist(), found.table.splits[:N]) == (old.labels.tolist(), old.splits)
    assert set(found.table.labels[N:].tolist()) <= {-1, 2}
    assert not list(verify(found, deep=True))
    fill(root, source)
    cache = Cache.open(root)
    assert (cache.table.labels.tolist(), cache.table.splits) == ([2] * (N + 3), source.listing().splits)
    kept = [cache.with_labels(name).table.labels[:N].tolist() for name in cache.paths.label_names() if "@" in name]
    assert old.labels.tolist() in kept
    assert not list(verify(cache, deep=True))


def test_a_plan_writes_no_labels(root, tmp_path, capsys):
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    config = fake_config(root, unit_images=8, batch_size=4)
    make_plan(config, Told(N, labels=np.zeros(N, np.int64)), lambda _: IDLE, sample=0)
    assert "class of 13 differ" in (said := capsys.readouterr().err)
    assert f"`loffta plan` leaves {root} as it is" in said
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    make_plan(config, PngSource(N), lambda _: IDLE, sample=0)
    assert "leaves" not in capsys.readouterr().err


MOVED = {"0003.png": "b/0003.png", "0017.png": "c/x/0017.png"}


def test_a_moved_file_is_the_same_image(root, capsys):
    before = frozen(root)
    source = Told(N, renamed=MOVED)
    fill(root, source, IDLE)
    assert "2 files were moved: the features are untouched" in capsys.readouterr().err
    assert frozen(root) == before
    cache = Cache.open(root)
    assert cache.table.keys == PngSource(N).listing().keys  # what a holdout, a view and a done file go by
    assert [cache.table.key_now(row) for row in (2, 3, 17)] == ["0002.png", "b/0003.png", "c/x/0017.png"]
    assert not list(verify(cache, deep=True))
    assert not list(verify_images(cache, source))
    assert all(found.agrees for found in recompute(cache, source, lambda _: FakeBackbone(), N))
    fill(
        root, source, {"fake": FakeBackbone(), "more": FakeBackbone("more")}, names=["fake", "more"]
    )  # read where they are
    assert not Cache.open(root).thumbs().ledger.bad
    assert np.array_equal(read_array(root, "grid", "stages.2", "more"), read_array(root, "grid", "stages.2"))
    fill(root, Told(N, renamed={"0003.png": "again/0003.png"}), IDLE)
    assert Cache.open(root).table.moved == {3: "again/0003.png"}
    fill(root, PngSource(N), IDLE)
    assert Cache.open(root).table.moved == {}
    assert not list(verify(Cache.open(root), deep=True))


def test_only_the_same_content_under_the_same_name_is_moved(root):
    before = frozen(root)
    with pytest.raises(LofftaError, match=r"0003\.png: gone; 0017\.png: gone"):
        fill(root, Told(N, renamed={"0003.png": "b/other.png", "0017.png": "c/0018.png"}), IDLE)
    altered = Told(N, renamed={"0003.png": "b/0003.png"})
    altered.encoded = lambda i, of=altered.encoded: of(i)[:-1] + b"\0" if i == 3 else of(i)
    with pytest.raises(LofftaError, match=r"the image set changed: 0003\.png: gone\n"):
        fill(root, altered, IDLE)
    swapped = Told(N, renamed={"0003.png": "b/0003.png"})
    fill(root, swapped, IDLE)
    listing = with_one_more(swapped.listing(), "0003.png")
    with pytest.raises(LofftaError, match=r"0003\.png: a new image under the name of one that was moved"):
        Cache.create(root, listing, unit_images=None, thumb_px=16, read=swapped.read)
    assert frozen(root) == before


def with_one_more(listing, key):
    return dataclasses.replace(
        listing,
        keys=[*listing.keys, key],
        sizes=np.append(listing.sizes, 12345),
        splits=[*listing.splits, "train"],
        labels=np.append(listing.labels, 0),
    )


def test_two_images_that_change_places(tmp_path):
    """Both names are there as before, with the other's bytes: the hashes tell which is which."""

    class Folders(Told):
        def listing(self):
            listing = super().listing()
            return dataclasses.replace(listing, keys=[self.named(key) for key in listing.keys])

        @staticmethod
        def named(key):
            return {"0003.png": "a/x.png", "0004.png": "b/x.png"}.get(key, key)

        def read(self, key):
            return PngSource.read(self, {"a/x.png": "0003.png", "b/x.png": "0004.png"}.get(key, key))

    class Swapped(Folders):
        @staticmethod
        def named(key):
            return {"0003.png": "b/x.png", "0004.png": "a/x.png"}.get(key, key)

        def read(self, key):
            return PngSource.read(self, {"b/x.png": "0003.png", "a/x.png": "0004.png"}.get(key, key))

    fill(tmp_path, Folders(N))
    before = frozen(tmp_path)
    fill(tmp_path, Swapped(N), IDLE)
    assert Cache.open(tmp_path).table.moved == {3: "b/x.png", 4: "a/x.png"}
    assert not list(verify_images(Cache.open(tmp_path), Swapped(N)))
    assert frozen(tmp_path) == before


GONE = ("0002.png", "0018.png")  # of a full unit, and of the last one, which has 4 of 8 rows


@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_what_is_gone_is_kept_or_dropped(root, choice, capsys):
    whole = {tap: read_array(root, "grid", tap) for tap in ("blocks.0", "stages.2")}
    with pytest.raises(LofftaError, match=r"0002\.png: gone; 0018\.png: gone\n.*\n.*--gone keep or --gone drop"):
        fill(root, Told(N, without=GONE), IDLE)
    before = frozen(root)
    fill(root, Told(N, without=GONE), IDLE, gone=choice)
    assert "the files of 2 are gone" in capsys.readouterr().err
    assert frozen(root) == before
    table = Cache.open(root).table
    old = PngSource(N).listing()
    assert table.gone == {2, 18}
    assert [table.splits[row] for row in (2, 18)] == (["", ""] if choice == "drop" else [old.splits[2], old.splits[18]])
    assert table.labels.tolist() == old.labels.tolist()
    assert not list(verify_images(Cache.open(root), Told(N, without=GONE)))

    source = Told(N + 3, without=GONE)  # decided once; the last unit is written anew, and nobody can read 0018.png
    fill(root, source, {"fake": FakeBackbone(), "new": FakeBackbone("new")}, names=["fake", "new"])
    cache = Cache.open(root)
    assert not list(verify(cache, deep=True))
    for tap, values in whole.items():
        assert np.array_equal(read_array(root, "grid", tap)[:N], values)
    old_store, new_store = cache.stores()
    assert all(array.ledger.ready.all() for array in old_store.arrays)
    assert {**new_store.arrays[0].ledger.bad} == dict.fromkeys((2, 18), "its file is gone")
    assert cache.thumbs().ledger.ready.all()

    fill(root, PngSource(N + 3), IDLE)
    assert Cache.open(root).table.gone == frozenset()
    assert Cache.open(root).table.splits == PngSource(N + 3).listing().splits


def test_a_repair_leaves_the_labels(root, monkeypatch):
    (root / "labels").mkdir()
    mine = root / "labels" / "mine.parquet"
    mine.write_bytes(b"damaged")
    Path(root / "labels" / "notes.txt").write_text("mine")
    (damage,) = verify(Cache.open(root))
    assert (damage.array, damage.unit, damage.path) == ("labels/mine", None, mine)
    monkeypatch.setattr("loffta.extraction.repair.run", refuse_to_run)
    assert repair(Cache.open(root), [damage], [], StopFlag()) == 0
    assert mine.read_bytes() == b"damaged"
    assert fake_config(root).gone is None
