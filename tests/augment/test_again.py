"""Features and targets that are moved equal those of the moved image: extracted again, by a tiny backbone."""

import numpy as np
import pytest
import torch

from loffta.augment import Parameters, apply, apply_targets
from loffta.augment.ops import invert
from loffta.images.geometry import PixelGeometry
from loffta.images.target_square import square_target
from loffta.shapes import Boxes
from loffta.targets import IGNORE, BoxList, NativeTarget
from loffta.tokens import FeatureSpec

PX, PATCH, DEPTH = 32, 4, {1: 2.5, 2: 4.0}
CELLS = PX // PATCH


@pytest.fixture(scope="module")
def backbone():
    """Patches of 4 x 4 pixels through two layers, each for itself, by kernels that are their own mirror images.

    Only so an image's tokens move with it; of other backbones they do nearly, which is what augmentation relies on.
    """
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=rng) for shape in ((8, 3, PATCH, PATCH), (6, 8, 1, 1))]

    weights[0] = sum(weights[0].flip(axes) for axes in ((), (2,), (3,), (2, 3)))

    def extract(images):  # [B, PX, PX, 3] -> [B, 1, CELLS, CELLS, 6]; of nothing comes nothing
        hidden = torch.relu(
            torch.nn.functional.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), weights[0], stride=4)
        )
        return torch.nn.functional.conv2d(hidden, weights[1]).permute(0, 2, 3, 1)[:, None]

    return extract


def scenes(seed=0, n=3):
    """Images of noise and, of each, a mask with a rectangle of classes 1 and 2."""
    rng = np.random.default_rng(seed)
    images = rng.random((n, PX, PX, 3)).astype(np.float32)
    masks = np.zeros((n, PX, PX), np.uint8)
    for mask in masks:
        for number in (1, 2):
            top, left, height, width = rng.integers(3, 12, 4)
            mask[top : top + height, left + 10 * (number - 1) : left + 10 * (number - 1) + width] = number
    return images, masks


def shifted(array, down, right, value):
    found = np.full_like(array, value)
    rows, columns = (slice(max(0, n), PX + min(0, n)) for n in (down, right))
    from_rows, from_columns = (slice(max(0, -n), PX + min(0, -n)) for n in (down, right))
    found[:, rows, columns] = array[:, from_rows, from_columns]
    return found


MOVES = {  # linear part and shift of places, and the same done to pixels; what comes in is `value`
    "left-right": (((-1, 0), (0, 1)), (0, 0), lambda a, value: a[:, :, ::-1]),
    "upside down": (((1, 0), (0, -1)), (0, 0), lambda a, value: a[:, ::-1]),
    "half turn": (((-1, 0), (0, -1)), (0, 0), lambda a, value: a[:, ::-1, ::-1]),
    "two patches down": (((1, 0), (0, 1)), (0, 0.5), lambda a, value: shifted(a, 8, 0, value)),
    "a patch left, a patch up": (((1, 0), (0, 1)), (-0.25, -0.25), lambda a, value: shifted(a, -4, -4, value)),
}


def extracted(kind, maps, px=PX):
    """What `extract --targets` writes; at half the side a centre would lie between two pixels, and flips break ties."""
    geometry = PixelGeometry(image_px=PX, interpolation="bilinear")
    squares = [square_target(NativeTarget(kind, PX, PX, map=one), geometry, "key", px) for one in maps]
    return torch.from_numpy(np.stack(squares))


@pytest.mark.parametrize("move", MOVES)
def test_moved_equals_extracted_again(backbone, move):
    linear, shift, on_pixels = MOVES[move]
    matrix = torch.tensor([[[*linear[0], shift[0]], [*linear[1], shift[1]]]], dtype=torch.float64)
    drawn = Parameters(3, matrix=invert(matrix).float().expand(3, -1, -1))
    images, masks = scenes()
    depths = np.vectorize(DEPTH.get, otypes=[np.float32])(masks, np.float32(1.0))
    moved_images = np.ascontiguousarray(on_pixels(images, 0))

    spec = FeatureSpec("tiny", ("a",), "grid", (CELLS, CELLS, 6), PX)
    moved = apply([backbone(images)], [spec], drawn)[0]
    torch.testing.assert_close(moved, backbone(moved_images), atol=1e-3, rtol=0)  # of up to 40

    again = {kind: np.ascontiguousarray(on_pixels(a, value)) for kind, a, value in
             (("mask", masks, IGNORE), ("depth", depths, 0.0), ("instances", masks.astype(np.uint16), 0))}  # fmt: skip
    assert torch.equal(apply_targets(extracted("mask", masks), drawn, "mask"), extracted("mask", again["mask"]))
    instances = extracted("instances", masks.astype(np.uint16)).to(torch.int32)
    expected = extracted("instances", again["instances"]).to(torch.int32)
    assert torch.equal(apply_targets(instances, drawn, "instances"), expected)
    depth = apply_targets(extracted("depth", depths), drawn, "depth")
    torch.testing.assert_close(depth, extracted("depth", again["depth"]), atol=1e-6, rtol=0)

    ours = apply_targets(boxes_of(masks), drawn, "boxes")
    theirs = boxes_of(again["instances"])
    assert ours.number.tolist() == theirs.number.tolist()
    torch.testing.assert_close(ours.corners, theirs.corners, atol=1e-6, rtol=0)


def boxes_of(masks):
    """Around each rectangle that is to be seen, by its own loop; numbered by image and class."""
    geometry = PixelGeometry(image_px=PX, interpolation="bilinear")
    found = []
    for i, mask in enumerate(masks):
        for number in (1, 2):
            rows, columns = np.nonzero(mask == number)
            if not len(rows):
                continue
            corners = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float64)
            native = NativeTarget("boxes", PX, PX, boxes=BoxList(corners, np.array([0]), np.array([False])))
            found.append((i, square_target(native, geometry, "key", PX).corners[0], 2 * i + number))
    image, corners, number = zip(*found, strict=True)
    return Boxes(torch.tensor(image), torch.tensor(np.array(corners), dtype=torch.float32), torch.tensor(number))


def test_thumbnails_move_with_the_grids_and_keep_their_numbers():
    """They guide a head to where things are: noise and dropped tokens would lead it astray."""
    images, _ = scenes()
    thumbs = torch.from_numpy((images * 255).astype(np.uint8))[:, None]
    specs = [
        FeatureSpec("tiny", ("a",), "grid", (PX, PX, 3), PX),
        FeatureSpec("images", ("thumb",), "thumb", (PX, PX, 3), PX),
    ]
    flip = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]).expand(3, -1, -1)
    drawn = Parameters(3, matrix=flip, noise_std=1.0, token_drop=0.5)
    grid, moved = apply([thumbs.float(), thumbs], specs, drawn)
    assert torch.equal(moved, thumbs.flip(3))
    assert not torch.equal(grid, thumbs.float().flip(3))
    mixed = Parameters(3, partner=torch.tensor([1, 2, 0]), weight=torch.full((3,), 0.25))
    blended = apply([thumbs], specs[1:], mixed)[0].float()
    expected = 0.25 * thumbs.float() + 0.75 * thumbs[[1, 2, 0]].float()
    assert (blended - expected).abs().max() <= 0.501
