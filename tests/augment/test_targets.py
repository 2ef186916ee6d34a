"""Dense targets that move with the features, against loops over pixels and boxes."""

import numpy as np
import pytest
import torch

from loffta.augment import Parameters, apply, apply_targets, draw, from_preset
from loffta.augment.config import AugmentConfig
from loffta.augment.ops import invert
from loffta.shapes import Boxes
from loffta.tokens import FeatureSpec

CPU = torch.device("cpu")
WILD = AugmentConfig(hflip_p=0.5, rotation_deg=60, shear=0.3, translation=0.2, scale=(0.5, 1.5))


def drawn(n_images=4, config=WILD, seed=0, fill="zero"):
    config = config.model_copy(update={"fill": fill})
    return draw(config, n_images, torch.Generator().manual_seed(seed), CPU)


def sources_of(matrix, height, width):
    """Row and column, in pixels, that each pixel of one moved target comes from."""
    for row in range(height):
        for column in range(width):
            place = np.array([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1, 1])
            x, y = matrix @ place
            yield row, column, ((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2


def is_inside(row, column, height, width):
    return -0.5 <= row <= height - 0.5 and -0.5 <= column <= width - 0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(("kind", "outside", "expected_outside"), [("mask", None, 255), ("instances", None, 0)])
def test_masks_equal_a_loop(kind, outside, expected_outside, dtype):
    mask = torch.randint(1, 9, (4, 13, 10), generator=torch.Generator().manual_seed(1)).to(dtype)
    parameters = drawn()
    moved = apply_targets(mask, parameters, kind, outside=outside)
    assert moved.dtype == dtype
    expected = np.full(mask.shape, expected_outside)
    for i in range(4):
        for row, column, from_row, from_column in sources_of(parameters.matrix[i].numpy(), 13, 10):
            if is_inside(from_row, from_column, 13, 10):
                expected[i, row, column] = mask[i, min(12, int(from_row + 0.5)), min(9, int(from_column + 0.5))]
    assert (moved.numpy() == expected).mean() > 0.995, "but for places halfway between two pixels"
    assert (moved == expected_outside).any()


def test_outside_can_be_chosen_and_fills_leave_none():
    mask = torch.ones(4, 12, 12, dtype=torch.int64)
    assert set(apply_targets(mask, drawn(), "mask", outside=-7).unique().tolist()) == {-7, 1}
    for fill in ("border", "reflect"):
        assert (apply_targets(mask, drawn(fill=fill), "mask") == 1).all()


@pytest.mark.parametrize("fill", ["zero", "border", "reflect"])
def test_a_mask_stays_on_its_features(fill):
    """The mask says where a feature is 1: moved apart, they still do."""
    mask = torch.zeros(6, 24, 24, dtype=torch.uint8)
    mask[:, 4:15, 6:20] = 1
    parameters = drawn(6, fill=fill)
    grid = mask.float().reshape(6, 1, 24, 24, 1)
    moved = apply([grid], [FeatureSpec("net", ("a",), "grid", (24, 24, 1), 24)], parameters)[0][:, 0, :, :, 0]
    marked = apply_targets(mask, parameters, "mask", outside=0)
    clear = (moved - 0.5).abs() > 0.3
    assert torch.equal(moved[clear] > 0.5, marked[clear] == 1)
    assert clear.float().mean() > 0.8


def test_depth_equals_a_loop():
    depth = torch.rand(4, 11, 9, generator=torch.Generator().manual_seed(1)) + 1
    depth[:, 3:6, 2:5] = 0
    depth[0, 8, 8] = float("nan")
    depth[1, 0, 0] = float("inf")
    depth[2, 5, 7] = -1
    parameters = drawn()
    moved = apply_targets(depth, parameters, "depth").numpy()
    agree = []
    for i in range(4):
        for row, column, from_row, from_column in sources_of(parameters.matrix[i].double().numpy(), 11, 9):
            total = share = 0.0
            if is_inside(from_row, from_column, 11, 9):
                from_row, from_column = np.clip(from_row, 0, 10), np.clip(from_column, 0, 8)
                for r in range(11):
                    for c in range(9):
                        weight = max(0, 1 - abs(r - from_row)) * max(0, 1 - abs(c - from_column))
                        value = depth[i, r, c].item()
                        if weight and np.isfinite(value) and value > 0:
                            total, share = total + weight * value, share + weight
            expected = total / share if share >= 0.5 else 0
            agree.append(abs(moved[i, row, column] - expected) < 1e-3)
    assert np.mean(agree) > 0.99, "but for places where just half of the weight is valid"
    assert np.isfinite(moved).all()
    assert ((moved == 0) | (moved >= 1)).all(), "nothing between invalid and valid"


def test_depth_keeps_its_dtype_and_its_metres():
    depth = torch.full((2, 8, 8), 3.0, dtype=torch.float16)
    moved = apply_targets(
        depth, Parameters(2, matrix=torch.tensor([[[0.5, 0, 0], [0, 0.5, 0]]]).expand(2, 2, 3)), "depth"
    )
    assert moved.dtype == torch.float16
    assert (moved == 3).all(), "an enlarged image is not a nearer one"


def test_boxes_equal_a_loop():
    rng = np.random.default_rng(0)
    low = rng.random((60, 2)) * 0.8
    corners = np.concatenate([low, low + rng.random((60, 2)) * (1 - low)], axis=1).astype(np.float32)
    boxes = Boxes(torch.arange(60) % 4, torch.from_numpy(corners), torch.arange(60) + 100)
    parameters = drawn(config=WILD.model_copy(update={"translation": 0.6}))
    moved = apply_targets(boxes, parameters, "boxes")
    expected = {}
    for k in range(60):
        matrix = np.vstack([parameters.matrix[k % 4].double().numpy(), [0, 0, 1]])
        points = []
        for x in corners[k, [0, 2]]:
            for y in corners[k, [1, 3]]:
                points.append(np.linalg.solve(matrix, [2 * x - 1, 2 * y - 1, 1])[:2] / 2 + 0.5)
        left, top = np.clip(np.min(points, axis=0), 0, 1)
        right, bottom = np.clip(np.max(points, axis=0), 0, 1)
        if right > left and bottom > top:
            expected[100 + k] = (left, top, right, bottom)
    assert 10 < len(expected) < 60, "some are dropped"
    assert moved.number.tolist() == list(expected)
    assert (moved.image == (moved.number - 100) % 4).all()
    np.testing.assert_allclose(moved.corners, np.array(list(expected.values())), atol=1e-5)


def test_a_box_that_touches_the_image_from_outside_is_dropped():
    boxes = Boxes(torch.zeros(2, dtype=torch.int64), torch.tensor([[0.5, 0, 1, 1], [0, 0, 0.6, 1]]), torch.arange(2))
    half_right = invert(torch.tensor([[[1.0, 0, 1], [0, 1, 0]]]))
    moved = apply_targets(boxes, Parameters(1, matrix=half_right), "boxes")
    assert moved.number.tolist() == [1]
    np.testing.assert_allclose(moved.corners, [[0.5, 0, 1, 1]], atol=1e-6)
    empty = apply_targets(
        Boxes(boxes.image[:0], boxes.corners[:0], boxes.number[:0]), Parameters(1, half_right), "boxes"
    )
    assert empty.corners.shape == (0, 4)


def test_without_geometry_targets_are_handed_back():
    mask = torch.ones(2, 3, 3, dtype=torch.uint8)
    parameters = drawn(2, from_preset("none", {"noise_std": 1.0, "mixup_alpha": 0.2}))
    assert apply_targets(mask, parameters, "mask") is mask
