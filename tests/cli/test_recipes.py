"""The options of `loffta extract` that decide a store: crop, interpolation, pooling, views, precision."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zarr
from loffta_cli.main import main
from PIL import Image
from timm.data import create_transform

from loffta.images.geometry import View, view_box
from loffta.store.cache import Cache

VIT = ["--backbone", "test_vit", "--weights", "random:0", "--kinds", "grid,mean", "--dtype", "float32"]
SMALL = ["--unit-images", "4", "--device", "cpu", "--batch-size", "4"]
N = 6


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of six photographs-to-be of different shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(N):
        shape = (200 + 10 * i, 310 - 20 * i, 3)
        smooth = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize(shape[1::-1], Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vit").eval()


def extract(pictures, cache, *options):
    assert main(["extract", str(pictures), "--cache", str(cache), *VIT, *SMALL, *options]) == 0


def stored(cache, index=0, kind="grid"):
    """[n, ...] of the last tap through zarr-python; stores by view, the plain one first."""
    groups = [zarr.open_group(p.parent, mode="r") for p in sorted(Path(cache).glob("stores/*/zarr.json"))]
    groups.sort(key=lambda g: -1 if (view := g.attrs["loffta"]["recipe"]["view"]) is None else view["index"])
    return groups[index][f"{kind}-0"][:, 0]


def last_block(model, squares):
    """[n, H, W, D] of the last block, from images [S, S, 3] with values 0-255."""
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = torch.stack([torch.from_numpy(np.array(s)).permute(2, 0, 1).float() / 255 for s in squares])
    seen = []
    hook = model.blocks[-1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        model.forward_features((images - mean) / std)
    hook.remove()
    tokens = seen[0][:, model.num_prefix_tokens :]
    side = int(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), side, side, -1).numpy()


def images_of(pictures):
    return {p.name: Image.open(p).convert("RGB") for p in sorted(pictures.iterdir())}


def test_crop_is_timms_evaluation_transform(pictures, model, tmp_path):
    extract(pictures, tmp_path / "c", "--resize", "crop")
    config = model.pretrained_cfg
    transform = create_transform(
        config["input_size"][-1],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    assert config["crop_pct"] < 1  # else this proves little
    squares = [(transform(image) * 255).round().permute(1, 2, 0).numpy() for image in images_of(pictures).values()]
    np.testing.assert_allclose(stored(tmp_path / "c"), last_block(model, squares), atol=1e-4)
    (store,) = Cache.open(tmp_path / "c").stores()
    assert store.info.recipe["input"]["crop_pct"] == config["crop_pct"]


def test_interpolation_is_the_one_asked_for(pictures, model, tmp_path):
    extract(pictures, tmp_path / "c", "--interpolation", "bilinear")
    side = model.pretrained_cfg["input_size"][-1]
    squares = [image.resize((side, side), Image.Resampling.BILINEAR) for image in images_of(pictures).values()]
    np.testing.assert_allclose(stored(tmp_path / "c"), last_block(model, squares), atol=1e-4)


def test_views_are_stores_beside_the_plain_one(pictures, model, tmp_path, capsys):
    cache = tmp_path / "c"
    extract(pictures, cache, "--views", "2", "--view-seed", "7", "--pool", "2x2", "--taps", "last")
    assert len(Cache.open(cache).stores()) == 3
    side = model.pretrained_cfg["input_size"][-1]
    for index in range(3):
        squares = []
        for key, image in images_of(pictures).items():
            part = image
            if index:
                box = view_box(View(7, index - 1), key, *image.size)
                part = image.crop(box[:4])
            square = part.resize((side, side), Image.Resampling.BICUBIC)
            squares.append(square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if index and box.mirrored else square)
        grid = last_block(model, squares)
        n, h, w, d = grid.shape
        pooled = grid.reshape(n, h // 2, 2, w // 2, 2, d).mean((2, 4))
        np.testing.assert_allclose(stored(cache, index), pooled, atol=1e-4)
        np.testing.assert_allclose(stored(cache, index, "mean"), grid.mean((1, 2)), atol=1e-4)

    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    capsys.readouterr()
    extract(pictures, cache, "--views", "3", "--view-seed", "7", "--pool", "2x2", "--taps", "last", "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["units"] == 2
    assert len(Cache.open(cache).stores()) == 4  # one more view is one more store, and only that is computed
    assert {p: t for p in before if (t := p.stat().st_mtime_ns) != before[p] and p.is_file()} == {}


def test_bf16_is_another_store_with_nearly_the_same_features(pictures, tmp_path):
    cache = tmp_path / "c"
    extract(pictures, cache)
    extract(pictures, cache, "--precision", "bf16")
    plain, half = (
        zarr.open_group(s.parent)["grid-0"][:]
        for s in sorted(
            cache.glob("stores/*/zarr.json"),
            key=lambda p: json.loads(p.read_bytes())["attributes"]["loffta"]["recipe"]["precision"] != "fp32",
        )
    )
    difference = np.abs(plain - half).max() / np.abs(plain).max()
    assert 1e-5 < difference < 0.05


@pytest.mark.parametrize(
    "options", [["--views", "1"], ["--resize", "crop"], ["--pool", "2x2"], ["--precision", "bf16"]]
)
def test_repair_writes_the_very_bytes_again(pictures, tmp_path, options):
    cache = tmp_path / "c"
    extract(pictures, cache, *options)
    shards = {p: p.read_bytes() for p in cache.glob("stores/*/*/c.*")}
    for path in shards:
        path.unlink()
    assert main(["verify", str(cache), "--repair"]) == 0
    assert {p: p.read_bytes() for p in cache.glob("stores/*/*/c.*")} == shards


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--pool", "2"], ["pool", "it must be rowsxcolumns, for example 2x2"]),
        (["--pool", "0x2"], ["pool.0", "from 1 to 1,000"]),
        (["--views", "-1"], ["views", "from 0 to 100"]),
        (["--image-px", "big"], ["image_px", "(got 'big')"]),
        (["--resize", "stretch"], ["'stretch' is not one of 'squash', 'crop'"]),
        (["--precision", "fp8"], ["'fp8' is not one of 'fp32', 'bf16', 'fp16'"]),
        (["--batch-size", "some"], ["batch_size", "(got 'some')"]),
    ],
)
def test_mistakes(pictures, tmp_path, capsys, options, parts):
    assert main(["extract", str(pictures), "--cache", str(tmp_path / "c"), *VIT, *options]) == 2
    err = capsys.readouterr().err
    for part in parts:
        assert part in err
    assert not (tmp_path / "c").exists()
