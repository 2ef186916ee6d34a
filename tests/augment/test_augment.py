"""Augmentation of features against the same done to images: numpy, scipy and loops."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from kornia.geometry.transform import warp_affine

from loffta.augment import PRESETS, AugmentConfig, Parameters, apply, draw, from_preset
from loffta.augment.ops import invert, sum_rows
from loffta.errors import UsageError
from tests.augment.shown import CPU, generator, move, spec

CELL = 4  # pixels: the "backbone" of these tests gives the mean of each patch


def picture(n_images=2, size=32, channels=3, seed=0, smooth=3):
    """Smooth images [B, H, W, C]."""
    noise = np.random.default_rng(seed).normal(size=(n_images, size, size, channels))
    return scipy.ndimage.gaussian_filter(noise, (0, smooth, smooth, 0), mode="nearest") * 10


def patch_means(images, cell=CELL):
    """[B, 1, H, W, D], float32."""
    n, height, width, channels = images.shape
    cells = images.reshape(n, height // cell, cell, width // cell, cell, channels).mean((2, 4))
    return torch.from_numpy(cells).float()[:, None]


def forward(linear, shift=(0.0, 0.0), n_images=2):
    """Parameters that send a place p to `linear` @ p + `shift`."""
    matrix = torch.tensor([[[*linear[0], shift[0]], [*linear[1], shift[1]]]], dtype=torch.float64)
    return Parameters(n_images, matrix=invert(matrix).float().expand(n_images, -1, -1))


IDENTITY = ((1.0, 0.0), (0.0, 1.0))
EXACT = {
    "nothing": (IDENTITY, (0, 0), lambda image: image),
    "left-right": (((-1, 0), (0, 1)), (0, 0), lambda image: image[:, ::-1]),
    "upside down": (((1, 0), (0, -1)), (0, 0), lambda image: image[::-1]),
    "quarter turn clockwise": (((0, -1), (1, 0)), (0, 0), lambda image: np.rot90(image, -1)),
    "half turn": (((-1, 0), (0, -1)), (0, 0), lambda image: np.rot90(image, 2)),
    "two cells right": (IDENTITY, (0.5, 0), lambda image: np.pad(image, ((0, 0), (8, 0), (0, 0)))[:, :32]),
    "one cell up": (IDENTITY, (0, -0.25), lambda image: np.pad(image, ((0, 4), (0, 0), (0, 0)))[4:]),
}


@pytest.mark.parametrize("name", EXACT)
def test_features_move_as_their_image(name):
    """To the last bit: the cells are only permuted."""
    linear, shift, on_image = EXACT[name]
    images = picture()
    moved = move(patch_means(images), forward(linear, shift))
    assert torch.equal(moved, patch_means(np.stack([on_image(image) for image in images])))


@pytest.mark.parametrize("cells", [7, 14, 18, 37])
def test_flips_and_turns_only_permute_cells_of_any_grid(cells):
    """Their sources are rounded to cells: unrounded, some blend in a millionth of a neighbour."""
    grid = torch.randn(2, 2, cells, cells, 3, generator=generator())
    config = AugmentConfig(hflip_p=1.0, rotation_deg=1e-4)  # far less than a step of the rounding
    assert torch.equal(move(grid, draw(config, 2, generator(), CPU)), grid.flip(3))
    assert torch.equal(move(grid, forward(((0, -1), (1, 0)))), grid.rot90(-1, (2, 3)))


def test_sums_of_rows_equal_a_loop():
    """What MPS does, where torch has no embedding bag."""
    table, weights = torch.randn(6, 3, generator=generator()), torch.rand(5, 4, generator=generator())
    cells = torch.randint(6, (5, 4), generator=generator())
    expected = [sum(w * table[c] for c, w in zip(*pair, strict=True)) for pair in zip(cells, weights, strict=True)]
    torch.testing.assert_close(sum_rows(cells, table, weights), torch.stack(expected))


@pytest.mark.parametrize("factor", [1.15, 0.85])
def test_scale_about_the_centre_as_scipy_does_it_to_the_image(factor):
    images = picture(size=96, smooth=6)
    places = (np.arange(96) - 47.5) / factor + 47.5
    rows, columns = np.meshgrid(places, places, indexing="ij")
    scaled = np.stack(
        [
            np.stack([scipy.ndimage.map_coordinates(image[..., c], [rows, columns], order=1) for c in range(3)], -1)
            for image in images
        ]
    )
    moved = move(patch_means(images), forward(((factor, 0), (0, factor))))
    inner = np.s_[:, :, 4:-4, 4:-4]
    expected = patch_means(scaled)[inner]
    wrong = (moved[inner] - expected).abs().mean() / expected.abs().mean()
    unmoved = (patch_means(images)[inner] - expected).abs().mean() / expected.abs().mean()
    assert wrong < 0.08 < 0.3 < unmoved


def test_resampling_is_kornias_warp():
    """Any map; kornia wants pixels, and channels first. Its zeros begin at the outermost centres, ours at the edge."""
    grid = torch.randn(5, 2, 9, 6, 4, generator=generator())
    config = AugmentConfig(rotation_deg=60, shear=0.5, translation=0.3, scale=(0.5, 2), hflip_p=0.5, crop_area=(0.5, 1))
    parameters = draw(config, 5, generator(1), CPU)
    to_pixels = torch.tensor([[3.0, 0, 2.5], [0, 4.5, 4], [0, 0, 1]])
    rows = torch.tensor([[[0.0, 0, 1]]]).expand(5, 1, 3)
    inverse = torch.cat([parameters.matrix, rows], dim=1)
    pixels = to_pixels @ torch.linalg.inv(inverse) @ torch.linalg.inv(to_pixels)
    for fill, padding in (("zero", "border"), ("border", "border"), ("reflect", "reflection")):
        moved = move(grid, Parameters(5, matrix=parameters.matrix, fill=fill))
        for tap in range(2):
            first = grid[:, tap].permute(0, 3, 1, 2)
            warped = warp_affine(first, pixels[:, :2], (9, 6), align_corners=False, padding_mode=padding)
            warped = warped.permute(0, 2, 3, 1)
            if fill == "zero":
                y, x = torch.meshgrid(
                    (2 * torch.arange(9) + 1) / 9 - 1, (2 * torch.arange(6) + 1) / 6 - 1, indexing="ij"
                )
                places = torch.stack([x, y, torch.ones(9, 6)]).flatten(1)
                beside = (parameters.matrix @ places).abs().amax(1).view(5, 9, 6) > 1
                assert 0.1 < beside.float().mean() < 0.8
                warped = warped.masked_fill(beside[..., None], 0)
            np.testing.assert_allclose(moved[:, tap], warped, atol=2e-3)


def test_one_map_is_the_composition():
    """Turned, then enlarged, in two resamplings: the same as in one, but for what the second blurs."""
    images = picture(size=64)
    turn = ((np.cos(0.4), -np.sin(0.4)), (np.sin(0.4), np.cos(0.4)))
    grow = ((1.2, 0), (0, 1.2))
    grid = patch_means(images, 2)
    twice = move(move(grid, forward(turn)), forward(grow))
    once = move(grid, forward(np.array(grow) @ turn))
    inner = np.s_[:, :, 8:-8, 8:-8]
    assert (once - twice)[inner].abs().mean() < 0.08 * once[inner].abs().mean()
    assert (once - grid)[inner].abs().mean() > 0.3 * once[inner].abs().mean()


def test_grids_of_all_sizes_stay_registered():
    """A ramp over the image's places, seen by grids of 16, 7 and 4 cells: all of them show the moved ramp."""

    def ramp(cells):
        centres = (2 * torch.arange(cells) + 1) / cells - 1
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return torch.stack([x, y], dim=-1).expand(3, 1, -1, -1, -1)

    config = AugmentConfig(rotation_deg=20, shear=0.1, scale=(1.5, 1.8))  # enlarged: nothing from beside the image
    parameters = draw(config, 3, generator(), CPU)
    grids = [ramp(cells) for cells in (16, 7, 4)]
    moved = apply(grids, [spec(shape=grid.shape[2:]) for grid in grids], parameters)
    for before, after in zip(grids, moved, strict=True):
        ones = torch.ones_like(before[..., :1])
        expected = torch.einsum("bij,blhwj->blhwi", parameters.matrix, torch.cat([before, ones], -1))
        clear = (expected.abs() < 1 - 1 / before.shape[2]).all(-1)  # beyond the outermost centres the ramp is flat
        assert clear.float().mean() > 0.7
        np.testing.assert_allclose(after[clear], expected[clear], atol=1e-3)


def test_identity_hands_the_features_back():
    features = [torch.randn(2, 1, 4, 4, 3).half(), torch.randn(2, 1, 2, 3)]
    specs = [spec(shape=(4, 4, 3)), spec("prefix", (2, 3))]
    for parameters in (Parameters(2), draw(PRESETS["none"], 2, generator(), CPU)):
        assert all(a is b for a, b in zip(apply(features, specs, parameters), features, strict=True))
    drawn = draw(AugmentConfig(rotation_deg=1e-9), 2, generator(), CPU)  # a map that moves nothing
    assert torch.equal(apply(features, specs, drawn)[0], features[0])


def test_what_comes_in_is_never_written_to():
    """A feed on the CPU hands out its own buffers."""
    features = [torch.randn(4, 2, 5, 5, 3), torch.randn(4, 2, 1, 3), torch.randn(4, 2, 3)]
    specs = [spec(k, f.shape[2:], ("a", "b")) for k, f in zip(("grid", "prefix", "mean"), features, strict=True)]
    before = [feature.clone() for feature in features]
    config = from_preset("loff-ta", {"mixup_alpha": 0.4, "token_drop": 0.3})
    augmented = apply(features, specs, draw(config, 4, generator(), CPU))
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(augmented, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_stays_and_the_maths_is_float32(dtype):
    grid = torch.randn(3, 2, 6, 6, 4, generator=generator()).to(dtype)
    parameters = draw(from_preset("loff-ta", {"mixup_alpha": 1.0}), 3, generator(), CPU)
    augmented = move(grid, parameters)
    assert augmented.dtype == dtype
    assert torch.equal(augmented, move(grid.float(), parameters).to(dtype))


def test_noise_follows_each_channels_spread():
    scales = torch.tensor([0.01, 1.0, 100.0])
    grid = torch.randn(6, 2, 20, 20, 3, generator=generator()) * scales + 1000 * scales
    noise = move(grid, draw(AugmentConfig(noise_std=0.05), 6, generator(1), CPU)) - grid
    np.testing.assert_allclose(noise.std((2, 3)) / grid.std((2, 3)), 0.05, rtol=0.25)
    np.testing.assert_allclose(noise.mean((0, 1, 2, 3)) / scales, 0, atol=0.003)
    flat = noise[..., 1].flatten(2)  # images and taps get noise of their own
    assert abs(np.corrcoef(flat.reshape(12, -1)) - np.eye(12)).max() < 0.2


@pytest.mark.parametrize(("kind", "shape"), [("prefix", (2, 3)), ("mean", (3,))])
def test_tokens_without_a_place_get_noise_and_mixing_alone(kind, shape):
    tokens = torch.randn(2000, 1, *shape, generator=generator()) * torch.tensor([0.1, 1.0, 10.0]) + 5
    specs = [spec(kind, shape)]
    moved = draw(from_preset("loff-ta", {"noise_std": 0.0, "token_drop": 0.5}), 2000, generator(), CPU)
    assert apply([tokens], specs, moved)[0] is tokens
    noisy = apply([tokens], specs, draw(AugmentConfig(noise_std=0.1), 2000, generator(1), CPU))[0]
    np.testing.assert_allclose((noisy - tokens).std(0) / tokens.std(0), 0.1, rtol=0.1)


def test_constant_channels_get_no_noise():
    grid = torch.full((1, 1, 8, 8, 2), 3.0)
    augmented = move(grid, draw(AugmentConfig(noise_std=0.5), 1, generator(), CPU))
    assert (augmented - grid).abs().max() < 0.5 * 3e-4 * 3 * 5


def test_mixing_equals_a_loop():
    """All kinds are mixed with the same partner, after the partner was moved by its own map."""
    features = [torch.randn(5, 2, 4, 4, 3), torch.randn(5, 1, 2, 3)]
    specs = [spec(shape=(4, 4, 3), taps=("a", "b")), spec("prefix", (2, 3))]
    parameters = draw(AugmentConfig(mixup_alpha=0.5, rotation_deg=90), 5, generator(), CPU)
    moved = [move(features[0], Parameters(5, matrix=parameters.matrix)), features[1]]
    mixed = apply(features, specs, parameters)
    assert sorted(parameters.partner.tolist()) == list(range(5))
    for i in range(5):
        partner, weight = int(parameters.partner[i]), float(parameters.weight[i])
        for before, after in zip(moved, mixed, strict=True):
            np.testing.assert_allclose(after[i], weight * before[i] + (1 - weight) * before[partner], atol=1e-6)


def test_mixing_weights_are_beta():
    weight = draw(AugmentConfig(mixup_alpha=2.0), 4000, generator(), CPU).weight.numpy()
    assert 0 <= weight.min() < weight.max() <= 1
    assert abs(weight.mean() - 0.5) < 0.02
    assert abs(weight.var() - 1 / (4 * (2 * 2.0 + 1))) < 0.005


def test_dropped_tokens_are_zero_in_all_taps():
    grid = torch.rand(40, 2, 10, 10, 3) + 1
    dropped = move(grid, draw(AugmentConfig(token_drop=0.2), 40, generator(), CPU))
    gone = (dropped == 0).all(-1)
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert abs(gone.float().mean() - 0.2) < 0.03
    assert torch.equal(dropped[~gone], grid[~gone])


def test_finer_grids_lose_the_same_places():
    grids = [torch.ones(8, 1, cells, cells, 2) for cells in (12, 4, 8)]
    parameters = draw(AugmentConfig(token_drop=0.4), 8, generator(), CPU)
    fine, coarse, middle = apply(grids, [spec(shape=grid.shape[2:]) for grid in grids], parameters)
    assert 0 < coarse.mean() < 1
    for grid, factor in ((fine, 3), (middle, 2)):
        assert torch.equal(grid, coarse.repeat_interleave(factor, 2).repeat_interleave(factor, 3))


def test_presets_and_changes():
    config = from_preset("loff-ta", {"scale": [0.9, 1.1], "mixup_alpha": 0.2})
    assert config.scale == (0.9, 1.1)
    assert config.model_copy(update={"scale": (0.8, 1.2), "mixup_alpha": None}) == PRESETS["loff-ta"]
    assert not PRESETS["none"].moves
    assert PRESETS["none"] == AugmentConfig()
    assert all(
        AugmentConfig(**{name: 0.5}).moves for name in ("hflip_p", "vflip_p", "rotation_deg", "shear", "translation")
    )
    assert AugmentConfig(scale=(1, 1.1)).moves
    assert AugmentConfig(crop_area=(0.5, 1)).moves


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("loffta", {}, "unknown augmentation 'loffta'\n  where:  --augment\n  remedy: did you mean loff-ta"),
        ("trivial", {"rotation": 3}, "unknown key 'rotation'.*--augment trivial: rotation.*did you mean.*rotation_deg"),
        ("none", {"hflip_p": 2}, r"hflip_p: .*less than or equal to 1 \(got 2\)\n.*--augment none\n.*give a value"),
        ("none", {"scale": [1.2, 0.8]}, "scale: .*it must be a range .low, high. with 0 < low <= high"),
        ("none", {"crop_area": [0.5, 1.5]}, "crop_area: .*a crop cannot be larger than the image"),
        ("none", {"fill": "mean"}, "fill: input should be 'zero', 'border' or 'reflect'"),
        ("none", {"noise_std": float("nan")}, "noise_std: input should be a finite number"),
        ("none", {"token_drop": 1.0}, "token_drop: input should be less than 1"),
    ],
)
def test_wrong_settings(name, changes, text):
    with pytest.raises(UsageError, match=f"(?s){text}"):
        from_preset(name, changes)
