"""A job's forward pass: parts, halving, pooling and precision, against the backbone called directly."""

import numpy as np
import pytest
import torch

from loffta.backbones import TapTokens
from loffta.config import BackboneConfig
from loffta.errors import LofftaError, UsageError
from loffta.extraction.batch_size import DEFAULT, PROBE_FROM_IMAGES, choose_batch_size, fastest_batch_size
from loffta.extraction.extract import extract
from loffta.extraction.jobs import prepare
from loffta.images.geometry import PixelGeometry, View
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from tests.fakes import UNIT, FakeBackbone, PngSource, fake_config

N = 11


def make_job(root, backbone=None, *, view=None, **options):
    """A job of one fake backbone with all its taps, over an image set of N."""
    config = fake_config(root, **options)
    cache = Cache.create(root, PngSource(N).listing(), unit_images=UNIT, thumb_px=8)
    rows = {unit: cache.rows_of_unit(unit) for unit in range(cache.n_units)}
    return prepare(cache, config.backbones[0], view, config, lambda _: backbone or FakeBackbone(), rows)


def pixels(n, px=16):
    return np.random.default_rng(n).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def run(job, images, batch_size):
    """Every array's values for all images, and the sizes of the parts."""
    job.batch_size = batch_size
    parts = list(job.run(images, job.arrays, [f"image-{i}" for i in range(len(images))]))
    assert [part.start for part, _ in parts] == [0, *(part.stop for part, _ in parts[:-1])]
    values = [np.concatenate([found[i].fetch().values for _, found in parts]) for i in range(len(job.arrays))]
    return dict(zip((a.paths.name.split("/")[1] for a in job.arrays), values, strict=True)), [
        p.stop - p.start for p, _ in parts
    ]


class Small(FakeBackbone):
    """A device whose memory holds so many images."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __call__(self, images, taps):
        if len(images) > self.limit:
            self.batches.append(len(images))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nGPU 0 ...")
        return super().__call__(images, taps)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_parts_do_not_change_values(tmp_path, batch_size):
    images, fake = pixels(10), FakeBackbone()
    values, sizes = run(make_job(tmp_path), images, batch_size)
    tokens = fake(torch.from_numpy(images).permute(0, 3, 1, 2), [s.tap for s in fake.specs])
    both = [tokens["blocks.0"], tokens["blocks.1"]]
    assert np.array_equal(values["grid-0"], torch.stack([t.grid for t in both], 1).half().numpy())
    assert np.array_equal(values["prefix-0"], torch.stack([t.prefix for t in both], 1).half().numpy())
    assert np.array_equal(values["grid-1"], tokens["stages.2"].grid[:, None].half().numpy())
    means = torch.stack([t.grid.double().mean((1, 2)) for t in both], 1)
    np.testing.assert_allclose(values["mean-0"], means, rtol=2e-3, atol=1e-3)
    assert sizes == [batch_size] * (10 // batch_size) + [10 % batch_size] * (10 % batch_size > 0)


def test_out_of_memory_halves_the_batch_and_stays_there(tmp_path, capsys):
    small = Small(limit=3)
    job = make_job(tmp_path, small)
    expected, _ = run(make_job(tmp_path), pixels(10), 10)
    values, sizes = run(job, pixels(10), 10)
    assert small.batches == [10, 5, 2, 2, 2, 2, 2]
    assert (sizes, job.batch_size) == ([2] * 5, 2)
    assert {name: v.tobytes() for name, v in values.items()} == {name: v.tobytes() for name, v in expected.items()}
    assert f"{job.store.name}: memory ran out; 2 images at once from here on" in capsys.readouterr().err


def test_one_image_that_does_not_fit_is_an_error(tmp_path):
    job = make_job(tmp_path, Small(limit=0))
    with pytest.raises(LofftaError) as caught:
        run(job, pixels(5), 4)
    message = str(caught.value)
    for part in ("one image is too much for the memory of", "CUDA out of memory. Tried", "image-0", "fewer --taps"):
        assert part in message
    assert "GPU 0" not in message


def test_an_extraction_survives_running_out_of_memory(tmp_path):
    config = fake_config(tmp_path, batch_size=8)
    report = extract(config, PngSource(N), lambda _: Small(limit=3), StopFlag())
    assert (report.images, report.bad) == (N, 0)
    assert Cache.open(tmp_path).stores()[0].arrays[0].ledger.ready.all()


def test_pooled_grid_and_unpooled_mean(tmp_path):
    job = make_job(tmp_path, pool=(2, 2))
    images = pixels(3)
    values, _ = run(job, images, 3)
    tokens = FakeBackbone()(torch.from_numpy(images).permute(0, 3, 1, 2), ["blocks.0", "blocks.1", "stages.2"])
    cells = torch.stack([tokens["blocks.0"].grid, tokens["blocks.1"].grid], 1).double().numpy()
    pooled = np.stack([[cells[:, :, r : r + 2, c : c + 2].mean((2, 3)) for c in (0, 2)] for r in (0, 2)])
    np.testing.assert_allclose(values["grid-0"], pooled.transpose(2, 3, 0, 1, 4), rtol=2e-3, atol=1e-3)
    assert values["grid-1"].shape == (3, 1, 1, 1, 10)
    np.testing.assert_allclose(values["mean-0"], cells.mean((2, 3)), rtol=2e-3, atol=1e-3)
    assert [(s.height, s.width) for s in job.store.info.taps] == [(2, 2), (2, 2), (1, 1)]
    assert job.store.info.recipe["pool"] == [2, 2]


class Matmul:
    """A backbone whose one product is taken in whatever precision is switched on."""

    def __init__(self):
        fake = FakeBackbone()
        self.name, self.weights, self.geometry, self.mean, self.std = (
            "fake",
            fake.weights,
            fake.geometry,
            fake.mean,
            fake.std,
        )
        self.specs = fake.specs[:1]
        self.matrix = torch.randn(16 * 3, 6, generator=torch.Generator().manual_seed(0))
        self.seen = None

    def __call__(self, images, taps):
        grid = images.float().reshape(len(images), 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(3) @ self.matrix
        self.seen = grid.dtype
        return {"blocks.0": TapTokens(grid, grid.flatten(1, 2)[:, :2])}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_that_of_the_forward_pass(tmp_path, precision, dtype):
    net = Matmul()
    job = make_job(tmp_path, net, precision=precision, dtype="float32", device="cpu")
    images = pixels(2)
    values, _ = run(job, images, 2)
    assert net.seen == dtype
    a = (
        torch.from_numpy(images)
        .permute(0, 3, 1, 2)
        .float()
        .reshape(2, 3, 4, 4, 4, 4)
        .permute(0, 2, 4, 1, 3, 5)
        .flatten(3)
    )
    expected = (a.to(dtype) @ net.matrix.to(dtype)).float()
    assert values["grid-0"].dtype == np.float32
    np.testing.assert_array_equal(values["grid-0"][:, 0], expected)
    assert job.store.info.recipe["precision"] == precision


@pytest.mark.parametrize("view", [None, View(3, 1)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_geometry_comes_back_from_the_recipe(tmp_path, view, resize):
    job = make_job(tmp_path, view=view, resize=resize, interpolation="bilinear")
    geometry = job.geometry
    assert (geometry.image_px, geometry.interpolation, geometry.view) == (16, "bilinear", view)
    assert geometry.resize == ("crop" if resize == "crop" and view is None else "squash")


def test_a_border_is_not_what_crop_paints(tmp_path):
    padded = FakeBackbone()
    padded.geometry = PixelGeometry(16, crop_mode="border")
    assert make_job(tmp_path, padded).geometry.resize == "squash"
    with pytest.raises(UsageError, match=r"(?s)pads images with a border.*backbone fake.*use --resize squash"):
        make_job(tmp_path, padded, resize="crop")


class Clocked(FakeBackbone):
    """Runs at given images per second, by a clock that only it moves."""

    def __init__(self, rates, monkeypatch):
        super().__init__()
        self.rates, self.now = rates, 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def __call__(self, images, taps):
        self.batches.append(len(images))
        if len(images) not in self.rates:
            raise torch.OutOfMemoryError("out of memory")
        self.now += len(images) / self.rates[len(images)]
        return self._tokens_of_all(images, taps)

    def _tokens_of_all(self, images, taps):
        return {s.tap: self._tokens(images.float(), s) for s in self.specs if s.tap in taps}


@pytest.mark.parametrize(
    ("rates", "best", "tried"),
    [
        ({8: 10, 16: 10.1}, 8, [8, 8, 16, 16]),  # not 5 % faster
        ({8: 10, 16: 15, 32: 20, 64: 20}, 32, [8, 8, 16, 16, 32, 32, 64, 64]),
        ({8: 10, 16: 15}, 16, [8, 8, 16, 16, 32]),  # 32 does not fit
        ({}, 1, [8]),  # nothing fits: the run itself halves further or says so
    ],
)
def test_fastest_batch_that_fits(tmp_path, monkeypatch, rates, best, tried):
    job = make_job(tmp_path, clocked := Clocked(rates, monkeypatch))
    assert fastest_batch_size(job, ["blocks.0"]) == best
    assert clocked.batches == tried


def test_few_images_take_the_default_and_many_are_worth_a_look(tmp_path, monkeypatch):
    job = make_job(tmp_path, clocked := Clocked({8: 1, 16: 1}, monkeypatch))
    assert choose_batch_size(job, PROBE_FROM_IMAGES - 1) == DEFAULT
    assert clocked.batches == []
    assert choose_batch_size(job, PROBE_FROM_IMAGES) == 8


def test_a_resumed_store_keeps_its_batch_size(tmp_path):
    config = fake_config(tmp_path, batch_size=5, device="cpu")
    extract(config, PngSource(UNIT), lambda _: FakeBackbone(), StopFlag())
    again = FakeBackbone()
    report = extract(config.model_copy(update={"batch_size": None}), PngSource(N + UNIT), lambda _: again, StopFlag())
    assert report.units == 2
    assert again.batches == [5, 3, 3]


def test_backbone_config_words():
    assert BackboneConfig(name="a", image_px="native").image_px is None
    assert BackboneConfig(name="a", image_px="64").image_px == 64
