"""The ranges of int8 against the backbone called directly, and what becomes of images and processes that go wrong."""

import json
import re
import signal
import weakref

import numpy as np
import pytest
import zarr

from loffta.errors import DamageFound, LofftaError, Stopped, TooManyBadImages
from loffta.extraction import calibrate as module
from loffta.extraction.calibrate import sample_rows
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from tests import fakes
from tests.extraction.test_extract import direct
from tests.fakes import FakeBackbone, PngSource, cache_files, fake_config, picture
from tests.forked import Forked

N = 20


def fill(root, source=None, backbone=None, stop=None, only=None, **options):
    backbone = backbone or FakeBackbone()
    options = {"dtype": "int8", "kinds": ("grid",), "max_bad_frac": 0.5, **options}
    config = fake_config(root, **options)
    return extract(config, source or PngSource(N), lambda _: backbone, stop or StopFlag(), only=only)


def array_of(root, tap="blocks.0", kind="grid"):
    (store,) = Cache.open(root).stores()
    array = store.find(kind, tap)
    assert array is not None
    return array


def by_zarr(array):
    """Codes, scale, zero, and what they stand for, through zarr-python and the formula of the documentation."""
    codes, scale, zero = (
        np.asarray(zarr.open_array(store=folder, mode="r")[...])
        for folder in (array.paths.folder, array.paths.scales / "scale", array.paths.scales / "zero")
    )
    shape = (1, len(scale), 1, 1, scale.shape[-1])
    values = (codes.astype(np.float32) - zero.reshape(shape)) * scale.reshape(shape)
    return codes, scale, zero, np.where(codes == -128, np.float32(np.nan), values)


def truth(taps, rows, backbone=None):
    tokens = direct(backbone or FakeBackbone(), [picture(i) for i in rows])
    return np.stack([tokens[tap][0].numpy() for tap in taps], axis=1)


def test_the_sample_is_spread_and_seeded():
    assert sample_rows(7, 256, 0) == list(range(7))
    assert sample_rows(256, 256, 0) == list(range(256))
    rows = sample_rows(10_000, 256, 0)
    assert rows == sample_rows(10_000, 256, 0) == sorted(set(rows))
    assert len(rows) == 256
    assert [row * 256 // 10_000 for row in rows] == pytest.approx(range(256), abs=1)
    assert sample_rows(10_000, 256, 1) != rows
    assert [len(set(sample_rows(n, 3, 0))) for n in (1, 2, 3, 4, 5)] == [1, 2, 3, 3, 3]


def test_a_store_of_int8_holds_the_features(tmp_path):
    fill(tmp_path, PngSource(N, {3: b"no image"}))
    good = [i for i in range(N) if i != 3]
    for tap in ("blocks.0", "stages.2"):
        array = array_of(tmp_path, tap)
        expected = truth(array.taps, good)
        codes, scale, zero, values = by_zarr(array)
        assert codes.dtype == np.int8
        low, high = expected.min(axis=(0, 2, 3)).astype(np.float64), expected.max(axis=(0, 2, 3)).astype(np.float64)
        pad = 0.1 * (high - low)
        bottom, top = np.minimum(low - pad, 0), np.maximum(high + pad, 0)
        np.testing.assert_allclose(scale, (top - bottom) / 254, rtol=1e-6)
        np.testing.assert_array_equal(zero, np.round(-127 - bottom / ((top - bottom) / 254)))
        assert (codes[3] == -128).all()
        error = values[good] - expected
        assert (np.abs(error) <= 0.5001 * scale[None, :, None, None]).all()
        facts = json.loads(array.paths.scales_metadata.read_bytes())["attributes"]["loffta"]
        assert (facts["seed"], facts["rows"]) == (0, list(range(N)))
        assert facts["saturated"] == [0.0] * len(array.taps)
        sizes = [np.sqrt((x.astype(np.float64) ** 2).sum(axis=(0, 2, 3, 4))) for x in (error, expected)]
        np.testing.assert_allclose(facts["relative_rms"], sizes[0] / sizes[1], rtol=1e-5)
        assert max(facts["relative_rms"]) < 0.02


def test_the_sample_is_of_the_whole_set_and_what_it_missed_is_counted(tmp_path, monkeypatch):
    """--limit does not narrow it."""
    monkeypatch.setattr(module, "SAMPLE_IMAGES", 4)
    fill(tmp_path, limit=8)
    array = array_of(tmp_path)
    rows = json.loads(array.paths.scales_metadata.read_bytes())["attributes"]["loffta"]["rows"]
    assert rows == sample_rows(N, 4, 0)
    assert max(rows) >= 15
    fill(tmp_path)
    sampled, every = truth(array.taps, rows), truth(array.taps, range(N))
    codes, scale, zero, _ = by_zarr(array)
    nearest = np.round(every / scale[None, :, None, None] + zero[None, :, None, None])
    np.testing.assert_array_equal(codes, np.clip(nearest, -127, 127))
    beyond = (np.abs(nearest) > 127).sum(axis=(2, 3, 4))
    assert beyond.sum() > 0
    assert beyond[rows].sum() == 0
    assert np.abs(sampled).max() < np.abs(every).max()
    done = [module.Cache.open(tmp_path).store(array.paths.name.split("/")[0])]
    tables = [fakes.pq.read_table(path) for path in sorted(array.paths.done_folder.glob("*.parquet"))]
    assert [counts for table in tables for counts in table["saturated"].to_pylist()] == beyond.tolist()
    assert done[0].arrays[0].ledger.saturated == beyond.sum()
    largest = [values for table in tables for values in table["abs_max"].to_pylist()]
    np.testing.assert_allclose(largest, np.abs(every).max(axis=(2, 3, 4)))  # of the floats, not of what was stored


def test_prefixes_and_means_stay_float16(tmp_path):
    """And the mean is that of the floats, not of the codes."""
    fill(tmp_path, kinds=("grid", "prefix", "mean"))
    assert array_of(tmp_path).layout.dtype == np.int8
    tokens = direct(FakeBackbone(), [picture(i) for i in range(N)])["blocks.1"]
    for kind, expected in (("mean", tokens[0].mean(dim=(1, 2))), ("prefix", tokens[1])):
        array = array_of(tmp_path, "blocks.1", kind)
        assert array.layout.dtype == np.float16
        assert not array.paths.scales.exists()
        stored = zarr.open_array(store=array.paths.folder, mode="r")[:, 1]
        np.testing.assert_array_equal(stored, expected.half().numpy())


def scales_files(root):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*-int8/**/*") if p.is_file()}


def test_scales_never_change_and_later_arrays_get_their_own(tmp_path):
    fill(tmp_path, taps="blocks.0")
    first = scales_files(tmp_path)
    assert len(first) == 5
    backbone = FakeBackbone()
    fill(tmp_path, PngSource(40), backbone)  # the set has grown, and more taps are asked for
    after = scales_files(tmp_path)
    assert {path: after[path] for path in first} == first
    assert len(after) == 15
    facts = json.loads(array_of(tmp_path, "stages.2").paths.scales_metadata.read_bytes())["attributes"]["loffta"]
    assert facts["rows"] == list(range(40))
    calls = len(backbone.batches)
    fill(tmp_path, PngSource(40), backbone)
    assert (len(backbone.batches), scales_files(tmp_path)) == (calls, after)


def test_only_what_is_missing_is_measured(tmp_path):
    """Two passes of the sample through the network when scales are due, none for float arrays or known scales."""
    backbone = FakeBackbone()
    fill(tmp_path / "int8", backbone=backbone, limit=8)
    assert sum(backbone.batches) == 2 * N + 8
    fill(tmp_path / "int8", backbone=backbone)
    assert sum(backbone.batches) == 2 * N + 8 + N
    fill(tmp_path / "float16", backbone=(plain := FakeBackbone()), dtype="float16")
    assert sum(plain.batches) == N


def test_one_image(tmp_path):
    fill(tmp_path, PngSource(1))
    array = array_of(tmp_path)
    np.testing.assert_allclose(by_zarr(array)[3], truth(array.taps, [0]), atol=by_zarr(array)[1].max() / 2)


def test_no_image_can_be_decoded(tmp_path):
    source = PngSource(3, dict.fromkeys(range(3), b"no image"))
    with pytest.raises(TooManyBadImages, match=r"none of the 3 images sampled for int8 can be decoded(.|\n)*mend or"):
        fill(tmp_path, source, max_bad_frac=1.0)


class Sick(FakeBackbone):
    """One value of blocks.1 is not finite in the image that is the `at`-th it sees."""

    def __init__(self, at, value):
        super().__init__()
        self._left, self._value = at, value

    def _tokens(self, pixels, spec):
        tokens = super()._tokens(pixels, spec)
        if spec.tap == "blocks.1":
            if 0 <= self._left < len(pixels):
                tokens.grid[self._left, 1, 2, 3] = self._value
            self._left -= len(pixels)
        return tokens


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [7, 2 * N + 5])
def test_what_is_not_finite_is_named(tmp_path, value, at):
    """In the sample, and in a unit."""
    with pytest.raises(LofftaError, match=r"tap blocks.1 is NaN or infinite for image 000[57].png\n  where:  fake-"):
        fill(tmp_path, backbone=Sick(at, value))
    assert array_of(tmp_path).ledger.listed == 0
    assert list(tmp_path.rglob("*.part")) == []


def test_a_stop_leaves_nothing_half(tmp_path):
    stop = StopFlag()

    def interrupt(backbone):
        if len(backbone.batches) == 3:
            stop.signal = signal.SIGTERM

    with pytest.raises(Stopped, match="measuring the ranges for int8"):
        fill(tmp_path, backbone=FakeBackbone(before=interrupt), stop=stop)
    assert scales_files(tmp_path) == {}
    assert list(tmp_path.rglob("*.part")) == []
    fill(tmp_path)
    fill(tmp_path.with_name("whole"))
    assert cache_files(tmp_path) == cache_files(tmp_path.with_name("whole"))


def test_another_process_is_faster(tmp_path):
    """Its scales stay, though this one measured others meanwhile, and all units are written with them."""

    def overtake(backbone):
        if len(backbone.batches) == 9:
            fill(tmp_path, backbone=FakeBackbone(), only=[0])
            for tap, matrix in backbone.matrices.items():
                backbone.matrices[tap] = matrix * 2

    fill(tmp_path, backbone=FakeBackbone(before=overtake))
    array = array_of(tmp_path)
    assert array.scales is not None
    np.testing.assert_allclose(by_zarr(array)[3][:8], truth(array.taps, range(8)), atol=by_zarr(array)[1].max() / 2)
    assert array.ledger.scales == {array.scales.digest}


def test_scales_that_are_gone_are_not_quietly_replaced(tmp_path):
    fill(tmp_path, limit=8)
    array = array_of(tmp_path)
    fakes_root = array.paths.scales
    for path in sorted(fakes_root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    fakes_root.rmdir()
    with pytest.raises(DamageFound, match=r"with finished units are gone(.|\n)*loffta verify CACHE --repair"):
        fill(tmp_path)
    assert not array.paths.scales.exists()


def test_overlapping_owners(tmp_path):
    owners = Forked(fakes.main, [tmp_path / "a", "--images", "40", "--processes", "4", "--dtype", "int8"])
    out, err = owners.communicate()
    assert owners.returncode == 0, err
    assert len(re.findall(r"^end \d+$", out, re.MULTILINE)) == 4
    fill(tmp_path / "b", PngSource(40), batch_size=4, kinds=("grid", "prefix", "mean"))
    assert cache_files(tmp_path / "a") == cache_files(tmp_path / "b")


def test_kills_change_nothing(tmp_path):
    """kill -9 before the n-th batch, n going through calibration and units; then the same command ends it the same."""
    landed = []
    for n_batches in (2, 8, 13):
        child = Forked(fakes.main, [tmp_path / "a", "--images", "20", "--dtype", "int8"])
        for _ in range(1 + n_batches):
            child.stdout.readline()
        child.kill()
        child.communicate()
        landed.append(bool(scales_files(tmp_path / "a")))
    assert landed[0] is False
    assert landed[-1] is True
    fill(tmp_path / "a", batch_size=4, kinds=("grid", "prefix", "mean"))
    fill(tmp_path / "b", batch_size=4, kinds=("grid", "prefix", "mean"))
    assert cache_files(tmp_path / "a") == cache_files(tmp_path / "b")


def test_no_tokens_of_the_sample_are_kept(tmp_path):
    """While the sample is measured no more than one earlier batch of tokens is alive when the next is computed."""
    made, alive = [], []

    class Counting(FakeBackbone):
        def _tokens(self, pixels, spec):
            alive.append(sum(grid() is not None for grid in made))
            tokens = super()._tokens(pixels, spec)
            made.append(weakref.ref(tokens.grid))
            return tokens

    fill(tmp_path, backbone=Counting(), taps="blocks.0", batch_size=2)
    assert len(alive) == N + N // 2
    assert max(alive[:N]) <= 1  # of the two passes; what comes behind them waits to be written
