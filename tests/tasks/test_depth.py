"""Depth against plain numpy over the valid pixels, and the loss as DINOv2's few lines write it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loffta.errors import UsageError
from loffta.shapes import TargetBatch
from loffta.targets import DenseSettings, NativeTarget
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.depth import metres_of

TASK, SETTINGS = DENSE_TASKS["depth"], DenseSettings()
SIZES = [(9, 7), (5, 12), (8, 8), (2, 3)]


def draw(seed=0):
    """Outputs of 4 x 4 cells, depths with zeros, infinities, NaNs and what is out of range; one image has none."""
    rng = np.random.default_rng(seed)
    depths = [rng.uniform(0.5, 9, size).astype(np.float32) for size in SIZES]
    depths[0][:2, :3] = [[0, np.inf, np.nan], [-1, 10.5, 5e-4]]
    depths[2][:] = 0
    outputs = torch.tensor(rng.normal(3, 2, size=(len(SIZES), 1, 4, 4)), dtype=torch.float32)
    return outputs, [NativeTarget("depth", *depth.shape, depth) for depth in depths]


def pairs(output, native):
    """Prediction and truth of the valid pixels."""
    predicted = F.interpolate(output[None].relu() + 1e-3, native.map.shape, mode="bilinear", align_corners=False)
    predicted = predicted[0, 0].clamp(1e-3, 10).numpy().astype(float)
    valid = np.array([[1e-3 < d < 10 for d in row] for row in native.map])
    return predicted[valid], native.map[valid].astype(float)


def theirs(outputs, natives, rows):
    of_images = [pairs(outputs[i], natives[i]) for i in rows]
    kept = [(p, t) for p, t in of_images if len(t)]
    if not kept:
        return dict.fromkeys(("rmse_pooled", "rmse_image", "abs_rel", "log10", "delta1", "delta2", "delta3"), np.nan)
    pooled = np.concatenate([p - t for p, t in kept])
    found = {
        "rmse_pooled": np.sqrt(np.mean(pooled**2)),
        "rmse_image": np.mean([np.sqrt(np.mean((p - t) ** 2)) for p, t in kept]),
        "abs_rel": np.mean([np.mean(abs(p - t) / t) for p, t in kept]),
        "log10": np.mean([np.mean(abs(np.log10(p / t))) for p, t in kept]),
    }
    for n, bound in ((1, 1.25), (2, 1.5625), (3, 1.953125)):
        found[f"delta{n}"] = np.mean([np.mean(np.maximum(p / t, t / p) < bound) for p, t in kept])
    return found


def test_metrics_are_those_of_the_valid_pixels():
    outputs, natives = draw()
    records = TASK.records(outputs, natives, SETTINGS, 0)
    assert records[0].n_pixels == 63 - 6
    assert TASK.metrics(records, (), SETTINGS) == pytest.approx(theirs(outputs, natives, range(4)))
    of_images = TASK.per_image(records, (), SETTINGS)
    for i in range(4):
        assert {n: v[i] for n, v in of_images.items()} == pytest.approx(theirs(outputs, natives, [i]), nan_ok=True)
    assert TASK.notes(records, (), SETTINGS) == {"rmse_image": "1 of 4 images have no valid depth and are left out"}
    truths = np.concatenate([pairs(outputs[i], natives[i])[1] for i in range(4)])
    expected = {"pixels": len(truths), "mean": truths.mean(), "std": truths.std()}
    assert TASK.details([records], (), SETTINGS)["depths"] == pytest.approx(expected)


def test_resamples_are_those_of_images_drawn():
    outputs, natives = draw()
    seeds = [outputs, outputs.flip(2)]
    records = [TASK.records(of_seed, natives, SETTINGS, 0) for of_seed in seeds]
    (weights,) = image_weights(4, 12)
    found = TASK.resampled(records, (), SETTINGS, iter([weights[:5], weights[5:]]))
    for r, of_image in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(4), of_image)
        expected = [theirs(of_seed, natives, rows) for of_seed in seeds]
        for name, values in found.items():
            assert values[r] == pytest.approx(np.mean([e[name] for e in expected]), nan_ok=True), name


def test_the_loss_is_dinov2s_over_the_pixels_of_the_batch():
    outputs, _ = draw()
    maps = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)) * 9 + 0.5
    maps[0, :4], maps[3] = 0, torch.inf
    found = TASK.loss(outputs, TargetBatch(maps), SETTINGS)
    metres = F.interpolate(outputs.relu() + 0.001, (8, 8), mode="bilinear", align_corners=False)[:, 0]
    valid = maps.isfinite() & (maps > 0)
    g = torch.log(metres[valid] + 0.001) - torch.log(maps[valid] + 0.001)
    expected = torch.sqrt(torch.var(g) + 0.15 * torch.mean(g) ** 2)
    assert found.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.counts.tolist() == [32, 64, 64, 0]
    assert found.sums[3] == 0


@pytest.mark.parametrize("n_pixels", [1, 2])
def test_a_perfect_prediction_of_few_pixels_has_a_gradient(n_pixels):
    maps = torch.zeros(1, 2, 2)
    maps[0, 0, :n_pixels] = 2.0
    outputs = torch.full((1, 1, 2, 2), 2.0 - 1e-3, requires_grad=True)
    TASK.loss(outputs, TargetBatch(maps), SETTINGS).mean().backward()
    assert outputs.grad.isfinite().all()


def test_bins_are_a_mean_of_evenly_spaced_depths():
    settings = DenseSettings(depth_as="bins", depth_bins=5, min_depth=1.0, max_depth=9.0)
    assert TASK.readout(0, settings).n_outputs == 5
    outputs = torch.tensor([-2.0, 0.0, 0.4, 3.0, 0.9])
    weights = np.array([0.1, 0.1, 0.5, 3.1, 1.0])
    expected = (weights * [1, 3, 5, 7, 9]).sum() / weights.sum()
    assert metres_of(outputs[None, :, None, None], settings).item() == pytest.approx(expected)


def test_the_eigen_crop_leaves_the_rim_of_nyu_out():
    settings = DenseSettings(eigen_crop=True)
    depth = np.full((480, 640), 2.0, np.float32)
    depth[:45], depth[471:], depth[:, :41], depth[:, 601:] = 9, 9, 9, 9
    (record,) = TASK.records(torch.full((1, 1, 2, 2), 2.0), [NativeTarget("depth", 480, 640, depth)], settings, 0)
    assert record.n_pixels == 426 * 560
    assert record.square == pytest.approx(426 * 560 * 1e-6, rel=1e-3)
    with pytest.raises(UsageError, match=r"of 480 x 640 pixels, not of 4 x 4(.|\n)*leave the crop out"):
        TASK.records(torch.zeros(1, 1, 2, 2), [NativeTarget("depth", 4, 4, depth[:4, :4])], settings, 0)


def test_predictions_are_clamped_and_never_nan():
    outputs = torch.tensor([[[[-5.0, 50.0, torch.nan, torch.inf]]]])
    assert TASK.decode(outputs, SETTINGS, (1, 4)).tolist() == [[[pytest.approx(1e-3), 10, pytest.approx(1e-3), 10]]]
