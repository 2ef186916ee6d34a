"""Poolings, resizing and normalisation against numpy loops."""

import numpy as np
import pytest
import torch

from loffta.pooling import (
    average_areas,
    normalise_layers,
    normalise_tokens,
    pool_grid,
    pool_map,
    pool_mean,
    pool_sequence,
    resize_grid,
)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def bilinear_loop(cells, size):
    """One grid [H, W, D]: half-pixel centres, edges repeated, two neighbours per axis."""

    def neighbours(index, length):
        position = max(0.0, (index + 0.5) * length / size - 0.5)
        low = int(position)
        return low, min(low + 1, length - 1), position - low

    out = np.zeros((size, size, cells.shape[2]))
    for row in range(size):
        top, bottom, down = neighbours(row, cells.shape[0])
        for column in range(size):
            left, right, across = neighbours(column, cells.shape[1])
            upper = (1 - across) * cells[top, left] + across * cells[top, right]
            lower = (1 - across) * cells[bottom, left] + across * cells[bottom, right]
            out[row, column] = (1 - down) * upper + down * lower
    return out


def test_mean_sums_in_float32():
    grid = torch.full((2, 3, 100, 100, 4), 30.0, dtype=torch.float16)  # the sum, 300,000, is beyond float16
    pooled = pool_mean(grid)
    assert pooled.dtype == torch.float16
    assert pooled.shape == (2, 3, 4)
    assert (pooled == 30).all()


def test_mean_equals_numpy():
    grid = draw(2, 3, 4, 5, 6)
    np.testing.assert_allclose(pool_mean(grid), grid.numpy().mean(axis=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(pool_mean(grid[0, 0]), grid[0, 0].numpy().mean(axis=(0, 1)), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2, 40, 40, 192), (70, 4, 4, 320), (5, 3, 1, 1, 7), (0, 2, 3, 3, 4)])
def test_means_of_float16_have_the_bits_of_torch_however_many_are_averaged_at_once(shape):
    grid = (draw(*shape) * 3 + 1).half()
    expected = grid.mean(dim=(-3, -2), dtype=torch.float32).half()
    assert torch.equal(pool_mean(grid), expected)
    taps = grid.unsqueeze(1).expand(-1, 3, *grid.shape[1:])[:, 1:]  # no contiguous memory
    assert torch.equal(pool_mean(taps), expected.unsqueeze(1).expand(-1, 2, *expected.shape[1:]))


def test_right_size_keeps_every_value():
    grid = draw(2, 3, 7, 7, 5, dtype=torch.float16)
    assert resize_grid(grid, 7).dtype == torch.float32
    assert torch.equal(resize_grid(grid, 7), grid.float())


@pytest.mark.parametrize(("cells", "size"), [(16, 14), (7, 14), (9, 5), (1, 3), (14, 15)])
def test_bilinear_equals_loop(cells, size):
    grid = draw(2, 3, cells, cells, 4)
    resized = resize_grid(grid, size)
    for image in range(2):
        for tap in range(3):
            np.testing.assert_allclose(resized[image, tap], bilinear_loop(grid[image, tap].numpy(), size), atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_strong_downsampling_is_the_area_average(factor):
    size = 4
    grid = draw(2, 3, size * factor, size * factor, 5)
    averages = grid.numpy().reshape(2, 3, size, factor, size, factor, 5).mean(axis=(3, 5))
    np.testing.assert_allclose(resize_grid(grid, size), averages, atol=1e-5)


@pytest.mark.parametrize(("cells", "rows", "columns"), [(12, 4, 12), (33, 14, 5), (7, 3, 1)])
def test_areas_of_any_size_equal_torchs(cells, rows, columns):
    """What MPS does where torch's own refuses."""
    maps = draw(2, 3, cells, cells)
    expected = torch.nn.functional.interpolate(maps, size=(rows, columns), mode="area")
    torch.testing.assert_close(average_areas(maps, rows, columns), expected, atol=1e-6, rtol=1e-5)


def test_each_axis_goes_by_its_own_factor():
    grid = draw(1, 1, 12, 5, 2)  # rows: average of 3; columns: bilinear from 5 to 4
    rows = grid[0, 0].numpy().reshape(4, 3, 5, 2).mean(axis=1)
    np.testing.assert_allclose(resize_grid(grid, 4)[0, 0], bilinear_loop(rows, 4), atol=1e-5)


@pytest.mark.parametrize(("cells", "size"), [(16, 4), (9, 2), (5, 7)])
def test_the_papers_resize_is_always_bilinear(cells, size):
    grid = draw(1, 2, cells, cells, 3)
    resized = resize_grid(grid, size, resize="paper")
    for tap in range(2):
        np.testing.assert_allclose(resized[0, tap], bilinear_loop(grid[0, tap].numpy(), size), atol=1e-5)


def test_resize_takes_a_grid_that_is_not_contiguous():
    grid = draw(2, 4, 6, 6, 3)
    assert torch.equal(resize_grid(grid[:, ::2], 4), resize_grid(grid, 4)[:, ::2])


def test_normalisation_equals_numpy_loop():
    tokens = draw(3, 4, 49, 16) * torch.linspace(0.1, 50, 12).reshape(3, 4, 1, 1) + 7
    normalised = normalise_layers(tokens)
    for image in range(3):
        for tap in range(4):
            layer = tokens[image, tap].numpy().astype(np.float64)
            expected = (layer - layer.mean()) / np.sqrt(layer.var() + 1e-5)
            np.testing.assert_allclose(normalised[image, tap], expected, atol=1e-4)
    flat = normalised.double().flatten(2)
    np.testing.assert_allclose(flat.mean(dim=2), 0, atol=1e-5)
    np.testing.assert_allclose(flat.var(dim=2, correction=0), 1, atol=2e-3)  # smallest variance 0.01, eps 1e-5


def test_normalisation_per_token_equals_numpy_loop():
    tokens = draw(2, 3, 5, 16) * torch.linspace(0.1, 50, 6).reshape(2, 3, 1, 1) + 7
    normalised = normalise_tokens(tokens.half())
    assert normalised.dtype == torch.float32
    for image, tap, position in np.ndindex(2, 3, 5):
        token = tokens.half()[image, tap, position].numpy().astype(np.float64)
        expected = (token - token.mean()) / np.sqrt(token.var() + 1e-5)
        np.testing.assert_allclose(normalised[image, tap, position], expected, atol=1e-4)


def test_normalisation_takes_half_precision_and_constants():
    assert normalise_layers(draw(1, 2, 9, 4, dtype=torch.float16)).dtype == torch.float32
    assert torch.equal(normalise_layers(torch.full((1, 1, 9, 4), 3.0)), torch.zeros(1, 1, 9, 4))


@pytest.mark.parametrize(("window", "shape"), [((2, 2), (4, 6)), ((2, 3), (5, 7)), ((1, 1), (3, 3)), ((9, 2), (4, 4))])
def test_pool_grid_averages_windows(window, shape):
    grid = torch.randn(2, 3, *shape, 5, generator=torch.Generator().manual_seed(0))
    pooled = pool_grid(grid, *window)
    rows, columns = window
    assert pooled.shape == (2, 3, -(-shape[0] // rows), -(-shape[1] // columns), 5)
    for r in range(pooled.shape[2]):
        for c in range(pooled.shape[3]):
            part = grid[:, :, r * rows : (r + 1) * rows, c * columns : (c + 1) * columns].numpy()
            np.testing.assert_allclose(pooled[:, :, r, c], part.mean((2, 3)), atol=1e-6)


def test_pool_grid_sums_in_float32():
    grid = torch.full((1, 8, 8, 1), 1001.0, dtype=torch.float16)
    assert pool_grid(grid, 8, 8).item() == 1001.0
    assert pool_grid(grid, 8, 8).dtype == torch.float16


def test_loff_pool():
    """LOFF-TA + Pool: 512 px on a patch of 14 gives 36x36 tokens, pooled to the 18x18 of 256 px."""
    assert pool_grid(torch.zeros(1, 36, 36, 4), 2, 2).shape == (1, 18, 18, 4)


@pytest.mark.parametrize(
    ("n_tokens", "dim", "target", "window"),
    [
        (197, 768, 512, 197),  # wider than the target: the mean of all tokens
        (197, 768, 768, 197),
        (197, 768, 8192, 18),  # int(197 / 10.67): 10 windows, 17 tokens left out
        (197, 16, 512, 6),
        (10, 4, 8, 5),
        (3, 4, 100, 1),  # fewer values than wanted: all of them
    ],
)
def test_sequence_is_averaged_in_windows(n_tokens, dim, target, window):
    tokens = draw(2, n_tokens, dim)
    starts = range(0, n_tokens - window + 1, window)
    expected = [tokens[:, start : start + window].numpy().mean(axis=1) for start in starts]
    np.testing.assert_allclose(pool_sequence(tokens, target), np.concatenate(expected, axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dim", "target", "n", "window"),
    [
        ((7, 7), 320, 256, 1, (7, 7)),  # wider than the target: the mean of all cells
        ((7, 7), 320, 512, 1, (7, 7)),  # floor(sqrt(1)) windows a side
        ((14, 14), 40, 512, 3, (4, 4)),  # floor(sqrt(12)): two rows and columns left out
        ((8, 5), 3, 12, 2, (4, 2)),
        ((2, 2), 4, 8192, 2, (1, 1)),  # fewer values than wanted: all of them
    ],
)
def test_map_is_averaged_in_square_windows(shape, dim, target, n, window):
    grid = draw(2, *shape, dim)
    rows, columns = window
    expected = [
        grid[:, r * rows : (r + 1) * rows, c * columns : (c + 1) * columns].numpy().mean(axis=(1, 2))
        for r in range(n)
        for c in range(n)
    ]
    np.testing.assert_allclose(pool_map(grid, target), np.concatenate(expected, axis=1), atol=1e-5)


def test_pooling_to_a_size_sums_in_float32():
    tokens = torch.full((1, 64, 1), 1001.0, dtype=torch.float16)
    for pooled in (pool_sequence(tokens, 1), pool_map(tokens.reshape(1, 8, 8, 1), 1)):
        assert pooled.dtype == torch.float32
        assert pooled.item() == 1001.0
