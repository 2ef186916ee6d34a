"""Instances against cross-entropy pixel by pixel, the whole softmax, and the Rand index counted over all pairs."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loffta.shapes import TargetBatch
from loffta.targets import IGNORE_16, DenseSettings, NativeTarget
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.instances import group, instance_losses

TASK = DENSE_TASKS["instances"]


def draw_batch():
    """Three images with objects of 2, 3 and no numbers, among 9 of the training."""
    rng = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 3, (3, 8, 8), generator=rng, dtype=torch.int32)
    maps[1][maps[1] > 0] += 1
    maps[1, :2], maps[2] = IGNORE_16, 0
    outputs = torch.randn(3, 4, 8, 8, generator=rng, requires_grad=True)
    proxies = torch.randn(9, 4, generator=rng, requires_grad=True)
    return outputs, TargetBatch(maps.to(torch.uint16), first_instance=torch.tensor([0, 4, 9])), proxies


def slow_losses(outputs, targets, proxies):
    """By image, of every pixel of an object."""
    found = []
    for output, numbers, first in zip(
        outputs, targets.maps.int().tolist(), targets.first_instance.tolist(), strict=True
    ):
        found.append([])
        for y, row in enumerate(numbers):
            for x, number in enumerate(row):
                if number not in (0, IGNORE_16):
                    logits = proxies @ output[:, y, x]
                    found[-1].append((logits.logsumexp(0) - logits[first + number - 1]).item())
    return found


def test_the_loss_is_cross_entropy_over_all_instances():
    outputs, targets, proxies = draw_batch()
    expected = slow_losses(outputs, targets, proxies)
    found = TASK.loss(outputs, targets, DenseSettings(), proxies, None)
    assert found.counts.tolist() == [len(losses) for losses in expected]
    assert found.sums.tolist() == pytest.approx([sum(losses) for losses in expected], rel=1e-5)
    drawn = TASK.loss(outputs, targets, DenseSettings(instance_pixels=64), proxies, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(found.mean().item(), rel=1e-5)


@pytest.mark.parametrize("n_sampled", [9, 4])
def test_objects_that_a_crop_has_taken_away_keep_their_places(n_sampled):
    """Of three objects of an image the first and the last are gone, of another image all: no other's proxy is met."""
    outputs, _, proxies = draw_batch()
    maps = torch.zeros(3, 8, 8, dtype=torch.int32)
    maps[0, 2:4] = 2
    cropped = TargetBatch(maps.to(torch.uint16), first_instance=torch.tensor([3, 6, 9]))
    settings = DenseSettings(sampled_instances=n_sampled, instance_pixels=None)
    found = TASK.loss(outputs, cropped, settings, proxies, torch.Generator().manual_seed(0))
    assert found.counts.tolist() == [16, 0, 0]
    assert found.sums[1:].tolist() == [0, 0]
    if n_sampled == 9:
        assert found.sums[0].item() == pytest.approx(sum(slow_losses(outputs, cropped, proxies)[0]), rel=1e-5)
    (gradient,) = torch.autograd.grad(found.mean(), proxies)
    pixels = outputs[0, :, 2:4].flatten(1)
    likely = (proxies @ pixels).softmax(0)
    expected = likely @ pixels.T / 16
    expected[4] -= pixels.mean(1)  # 3 + 2 - 1
    if n_sampled == 9:
        assert torch.allclose(gradient, expected, atol=1e-6)
    nothing = TargetBatch(torch.zeros_like(maps).to(torch.uint16), first_instance=torch.tensor([0, 4, 9]))
    assert TASK.loss(outputs, nothing, settings, proxies, torch.Generator().manual_seed(0)).mean().item() == 0


def test_pixels_are_drawn_evenly_among_those_of_objects():
    outputs, targets, proxies = draw_batch()
    expected = slow_losses(outputs, targets, proxies)
    rng, settings = torch.Generator().manual_seed(0), DenseSettings(instance_pixels=1)
    drawn = torch.stack([TASK.loss(outputs, targets, settings, proxies, rng).sums.detach() for _ in range(100)])
    for i in (0, 1):
        distances = (drawn[:, i, None] - torch.tensor(expected[i])).abs()
        assert distances.amin(dim=1).max() < 1e-5
        assert len(distances.argmin(dim=1).unique()) > 0.7 * len(expected[i])
    assert TASK.loss(outputs, targets, settings, proxies, rng).counts.tolist() == [1, 1, 0]


def test_a_sampled_softmax_has_the_right_sum_on_the_average():
    """The sum of the exponentials; and with every instance drawn, the loss itself."""
    rng = torch.Generator().manual_seed(0)
    proxies, embedded, own = torch.randn(9, 4, generator=rng), torch.randn(2, 4, generator=rng), torch.tensor([3, 5])
    logits = embedded @ proxies.T
    sums = torch.stack([instance_losses(embedded, own, proxies, 5, rng).exp() for _ in range(200)]).mean(0)
    expected = logits.exp().sum(1) / logits.gather(1, own[:, None])[:, 0].exp()
    assert sums.tolist() == pytest.approx(expected.tolist(), rel=0.08)
    whole = instance_losses(embedded, own, proxies, 9, rng)
    assert whole.tolist() == pytest.approx(F.cross_entropy(logits, own, reduction="none").tolist())


def test_60_000_instances_fit():
    """A step touches the proxies of the batch's own instances and of those that are drawn, and no other."""
    rng = torch.Generator().manual_seed(0)
    proxies = torch.randn(60_000, 8, generator=rng, requires_grad=True)
    maps = torch.randint(1, 9, (2, 16, 16), generator=rng, dtype=torch.int32)
    targets = TargetBatch(maps, first_instance=torch.tensor([100, 59_992]))
    settings = DenseSettings(instance_pixels=32, sampled_instances=200)
    TASK.loss(torch.randn(2, 8, 16, 16, generator=rng), targets, settings, proxies, rng).mean().backward()
    touched = proxies.grad.abs().sum(1).nonzero()[:, 0]
    assert len(touched) == 200
    assert set(range(100, 108)) | set(range(59_992, 60_000)) <= set(touched.tolist())


def pair_index(ones, others):
    """The adjusted Rand index from all pairs of pixels."""
    pairs = list(combinations(range(len(ones)), 2))
    a = np.array([ones[i] == ones[j] for i, j in pairs])
    b = np.array([others[i] == others[j] for i, j in pairs])
    chance = a.sum() * b.sum() / len(pairs)
    return ((a & b).sum() - chance) / ((a.sum() + b.sum()) / 2 - chance)


def test_the_adjusted_rand_index_is_that_of_all_pairs():
    numbers = np.repeat([1, 2, 3], [10, 12, 8])
    embedded = np.eye(3, dtype=np.float32)[numbers - 1] + np.random.default_rng(0).normal(0, 0.01, (30, 3))
    assert group(embedded, numbers, 3) == 1
    wrong = numbers.copy()
    wrong[8:14] = [3, 3, 1, 1, 2, 1]
    assert group(embedded, wrong, 3) == pytest.approx(pair_index(wrong, numbers))
    assert group(np.zeros((30, 3)), numbers, 3) == 0  # one group, and no warning


def draw_natives():
    """Squares of 40 pixels, of two, one and three objects, and of two and a crowd."""
    maps = [np.zeros((40, 40), np.uint16) for _ in range(4)]
    for number, columns in enumerate((slice(0, 10), slice(12, 20), slice(30, 33)), start=1):
        for numbers, n in zip(maps, (2, 1, 3, 3), strict=True):
            if number <= n:
                numbers[:20, columns] = number
    maps[3][maps[3] == 3] = IGNORE_16
    return [NativeTarget("instances", 40, 40, numbers) for numbers in maps]


def test_images_with_enough_objects_are_measured():
    natives = draw_natives()
    told = torch.tensor(np.stack([native.map for native in natives]).astype(np.float32))[:, None]
    told[told == IGNORE_16] = 1  # a crowd that looks like the first object
    settings = DenseSettings(eval_px=20, embedding_dim=1)
    records = TASK.records(told, natives, settings, 0)
    assert [(record.n_instances, record.ari) for record in records] == [
        (2, pytest.approx(1)), (1, pytest.approx(np.nan, nan_ok=True)), (3, pytest.approx(1)), (2, pytest.approx(1)),
    ]  # fmt: skip
    assert TASK.notes(records, (), settings) == {"ari": "1 of 4 images have fewer than 2 objects and are left out"}
    assert TASK.details([records], (), settings) == {"measured": {"images": 3, "instances": 7}}
    large = DenseSettings(eval_px=20, embedding_dim=1, min_instances=3, min_instance_area=61)
    assert [record.n_instances for record in TASK.records(told, natives, large, 0)] == [2, 1, 2, 2]
    assert TASK.metrics(TASK.records(told, natives, large, 0), (), large) == {}


def test_resamples_are_means_over_the_images_measured():
    natives = draw_natives()
    outputs = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    settings = DenseSettings(eval_px=12, embedding_dim=2)
    records = TASK.records(outputs, natives, settings, 0)
    values = np.array([record.ari for record in records])
    (weights,) = image_weights(4, 9)
    found = TASK.resampled([records], (), settings, [weights])["ari"]
    for r, of_image in enumerate(weights.astype(int)):
        drawn = np.repeat(values, of_image)
        expected = drawn[~np.isnan(drawn)].mean() if not np.isnan(drawn).all() else np.nan
        assert found[r] == pytest.approx(expected, nan_ok=True)
    assert TASK.metrics(records, (), settings)["ari"] == pytest.approx(np.nanmean(values))
