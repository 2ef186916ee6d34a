"""What `plan` foretells against the files that `extract` then writes; and that it writes none itself."""

import json
import re

import pytest
from loffta_cli.main import main

from loffta.errors import LofftaError, UsageError
from loffta.extraction.advice import advise
from loffta.extraction.extract import begin, extract
from loffta.extraction.plan import ASSUMED_READ, BreakEven, Timing, _break_even, make_plan
from loffta.machine.process import StopFlag
from loffta.machine.quota import Quota, Room
from loffta.store.cache import Cache
from tests.fakes import FakeBackbone, PngSource, fake_config

N = 20  # two and a half units of 8


def plan(root, source=None, backbone=None, sample=None, **options):
    load = lambda _: backbone or FakeBackbone()  # noqa: E731
    return make_plan(fake_config(root, **options), source or PngSource(N), load, sample=sample)


def fill(root, n_images=N, only=None, **options):
    extract(fake_config(root, **options), PngSource(n_images), lambda _: FakeBackbone(), StopFlag(), only=only)


def files_of(root):
    return {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}


def assert_foretold(plan, root, before):
    """Every shard to the byte, every file counted; done files nearly."""
    added = {path: size for path, size in files_of(root).items() if path not in before}
    shards = sum(size for path, size in added.items() if path.name.startswith("c."))
    done = sum(size for path, size in added.items() if "done" in path.parts)
    assert sum(array.shard_bytes for array in plan.arrays) == shards
    assert plan.files == len(added)
    assert plan.metadata_bytes == sum(added.values()) - shards - done
    assert sum(array.done_bytes for array in plan.arrays) == pytest.approx(done, rel=0.1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("limit", [None, 4, 12])
def test_a_new_cache_to_the_byte(tmp_path, dtype, limit):
    root = tmp_path / "cache"
    foretold = plan(root, dtype=dtype, limit=limit)
    assert not root.exists()
    fill(root, dtype=dtype, limit=limit)
    assert_foretold(foretold, root, {})
    assert (foretold.images, foretold.exists, foretold.unit_images) == (limit or N, False, 8)
    for array in foretold.arrays:
        (real,) = [
            a for a in Cache.open(root).arrays()
            if (a.paths.name.split("/")[0], a.kind, a.taps) == (array.store, array.kind, array.taps)
        ]  # fmt: skip
        assert real.layout.item_shape == array.shape
        assert array.shard_bytes == array.whole_bytes == sum(p.stat().st_size for p in real.paths.folder.glob("c.*"))


@pytest.mark.parametrize("taps", ["last", "all"])
def test_what_is_there_is_not_counted(tmp_path, taps):
    root = tmp_path / "cache"
    fill(root, taps="last", only=[0])
    before = files_of(root)
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    foretold = plan(root, taps=taps)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps
    fill(root, taps=taps)
    assert_foretold(foretold, root, before)
    assert foretold.exists


def test_a_share_plans_its_own_part(tmp_path):
    shares = [plan(tmp_path / "cache", share=(i, 2), sample=0) for i in range(2)]
    whole = plan(tmp_path / "cache", sample=0)
    assert [share.units for share in shares] == [2, 1]
    assert [share.images for share in shares] == [12, 8]
    for i, array in enumerate(whole.arrays):
        assert sum(share.arrays[i].shard_bytes for share in shares) == array.shard_bytes


def test_a_finished_cache_needs_nothing(tmp_path):
    fill(tmp_path)

    def refuse(_):
        pytest.fail("a model was loaded")

    done = make_plan(fake_config(tmp_path), PngSource(N), refuse)
    assert (done.bytes, done.files, done.images_missing) == (0, 0, 0)
    assert (done.timing, done.extract_s, done.break_even, done.advice) == (None, None, None, ())


def test_purged_shards_are_missing_and_their_done_files_stay(tmp_path, capsys):
    fill(tmp_path)
    (shard,) = tmp_path.glob("stores/*/grid-0/c.1.*")
    size = shard.stat().st_size
    shard.unlink()
    before = files_of(tmp_path)
    foretold = plan(tmp_path)
    assert sum(array.shard_bytes for array in foretold.arrays) == size
    assert files_of(tmp_path) == before
    assert "1 shard of a finished unit is gone" in capsys.readouterr().err


def test_a_grown_set(tmp_path):
    fill(tmp_path)
    before = {path: path.stat().st_size for path in tmp_path.rglob("c.*")}
    foretold = plan(tmp_path, PngSource(30))
    assert foretold.images_missing == 30 - 16  # the part-filled unit is written anew
    fill(tmp_path, 30)
    changed = [path for path in tmp_path.rglob("c.*") if before.get(path) != path.stat().st_size]
    assert sum(array.shard_bytes for array in foretold.arrays) == sum(path.stat().st_size for path in changed)


@pytest.mark.parametrize(
    ("sample", "batches"),
    [(None, [4, 4, 4, 4]), (8, [4, 4, 4]), (5, [4, 4, 4]), (0, [])],
)  # fmt: skip
def test_the_sample_is_rounded_up_to_batches_and_warmed_up(tmp_path, sample, batches):
    backbone, source = FakeBackbone(), PngSource(100)
    planned = plan(tmp_path / "cache", source, backbone, sample, batch_size=4)
    assert backbone.batches == batches
    if not batches:
        assert (planned.timing, planned.extract_s, planned.break_even) == (None, None, None)
        assert not source.reads
        return
    timing = planned.timing
    assert (timing.images, timing.batches, timing.warmed_up) == (4 * len(batches) - 4, len(batches) - 1, True)
    assert 0 < timing.forward_s <= timing.image_s
    assert planned.extract_s == timing.image_s * 100
    keys = sorted(int(key[:4]) for key in source.reads)
    used = 4 * len(batches)
    stride = 100 // (used + 8)  # from all over the set; two batches more, which are decoded ahead, reach its end
    assert keys[:used] == list(range(0, used * stride, stride))
    assert max(source.reads.values()) == 1


def test_a_set_of_one_batch_is_timed_cold(tmp_path):
    timing = plan(tmp_path / "cache", PngSource(3)).timing
    assert (timing.images, timing.warmed_up) == (3, False)


def test_a_sample_without_a_readable_image(tmp_path):
    source = PngSource(3, dict.fromkeys(range(3), b"no image"))
    assert plan(tmp_path / "cache", source).timing is None


TIMING = Timing(96, 3, True, image_s=0.02, forward_s=0.01, device="cpu", batch_size=32)


def test_break_even_by_hand(tmp_path):
    """1,000 images: 10 s an epoch online, 2 s cached, 20 s to extract: 20 / (10 - 2)."""
    even = _break_even(TIMING, 1000, 10**9, tmp_path)
    assert even == BreakEven(10.0, 2.0, ASSUMED_READ, False, 2.5)


def test_a_cache_that_does_not_pay(tmp_path):
    assert _break_even(TIMING, 1000, 10**10, tmp_path).epochs is None


def test_the_read_rate_is_measured_where_there_are_shards(tmp_path):
    shard = tmp_path / "stores" / "net-0" / "grid-0" / "c.0.0"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(bytes(17 << 20))
    even = _break_even(TIMING, 1000, 10**9, tmp_path)
    assert even.read_measured
    assert even.cached_epoch_s == 10**9 / even.read_rate


def test_advice_by_hand(tmp_path):
    """Two taps [4, 4, 6] with 2 prefix tokens, one [2, 2, 10] without; 1,000,000 images of float16."""
    begun = begin(fake_config(tmp_path), PngSource(N).listing(), lambda _: FakeBackbone())
    lines = list(advise(begun.jobs, 10**6, 8))
    grid, prefix, mean = 2 * (192 + 4) + 84, 48 + 4, 24 + 4 + 20 + 4
    half = (2 * (192 + 4)) // 2 + 42 + 26 + 14 + 12
    one = (2 * 196) // 2 + 84 + 26 + 14 + 24
    assert lines == [
        f"--kinds mean,prefix: about {(2 * 3 * 6 * 2 + 20) / 1000:.3g} GB; no head that needs the grid can be trained "
        "then",
        f"--dtype int8: about {half / 1000:.3g} GB",
        f"--pool 2x2: about {(grid / 4 + prefix + mean) / 1000:.3g} GB",
        f"fewer --taps: about {one / 1000:.3g} GB with one of each array",
        "--unit-images 1024 for a new cache: a file where there are 128 now",
    ]
    assert "unit-images" not in "".join(advise(begun.jobs, 500_000, 8))
    assert list(advise([], 10, 8)) == []


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"taps": "blocks.9"}, UsageError, "unknown tap 'blocks.9'"),
        ({"unit_images": 16}, UsageError, "this cache was made with 8"),
    ],
)
def test_it_refuses_what_extract_refuses_and_names_the_real_cache(tmp_path, options, kind, text):
    fill(tmp_path)
    with pytest.raises(kind, match=re.escape(text)) as caught:
        plan(tmp_path, **options)
    assert "loffta-plan-" not in str(caught.value)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(LofftaError, match="this folder holds something else"):
        plan(tmp_path)


WORDS = ["demo:digits", "--backbone", "test_vit", "--weights", "random:0", "--image-px", "32", "--limit", "6"]


def test_the_command(tmp_path, monkeypatch, capsys):
    root = tmp_path / "cache"
    monkeypatch.setattr("loffta.extraction.plan.free_room", lambda path: Room(10**6, 50))
    monkeypatch.setattr("loffta.extraction.plan.user_quota", lambda path: Quota("lfs quota", 10**9, None))
    words = [*WORDS, "--cache", str(root), "--unit-images", "4", "--device", "cpu", "--batch-size", "2", "--json"]
    assert main(["plan", *words, "--sample", "2"]) == 0
    out = capsys.readouterr().out
    assert not root.exists()
    told = json.loads(out.splitlines()[-1])
    assert told["files"] == 2 * 6 * 3 + 6  # (shard, done) x units x arrays; two of the cache, one store, three arrays
    assert told["timing"]["images"] == 2
    assert "WARNING  it does not fit" not in out
    assert "quota    1.0 GB, no limit on files left (lfs quota)" in out
    assert "(median of 1 batch of 2, 2 images, after a warm-up)" in out
    assert "writing was not measured" in out
    assert "assumed: no shards to measure with" in out
    assert main(["extract", *words]) == 0
    real = files_of(root)
    assert told["files"] == len(real)
    assert sum(a["shard_bytes"] for a in told["arrays"]) == sum(s for p, s in real.items() if p.name.startswith("c."))
    assert main(["plan", *words]) == 0
    assert "0 not yet in the cache" in capsys.readouterr().out
    monkeypatch.setattr("loffta.extraction.plan.free_room", lambda path: Room(10, None))
    assert main(["plan", *words[:-1], "--taps", "all"]) == 0
    out = capsys.readouterr().out
    assert "WARNING  it does not fit" in out
    assert "files not counted" in out


@pytest.fixture(autouse=True)
def own_signals(monkeypatch):
    monkeypatch.setattr("loffta.machine.process.StopFlag.listen", lambda self: self)


def test_a_negative_sample(tmp_path, capsys):
    assert main(["plan", *WORDS, "--cache", str(tmp_path / "c"), "--sample", "-1"]) == 2
    assert "--sample" in capsys.readouterr().err
