"""What our deviations cost: the code's side of each against timm's own modules; images that are kept apart."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loffta.images.geometry import to_square
from loffta.images.sources import open_source

BENCHMARKS = Path(__file__).parents[2] / "pipelines" / "benchmarks"


@pytest.fixture
def ours(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ours

    yield ours
    for name in ("ours", "clock", "scores", "small_sets", "small_vit"):
        sys.modules.pop(name, None)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_class_token_stands_before_the_patches_as_the_network_has_it(ours, pixels):
    backbone = ours.with_class_token("random:0", 64, "cpu")
    model = backbone._plain.model
    with torch.no_grad():
        model.cls_token.normal_()
    found = backbone(pixels, [ours.STEM, "module:pos_drop", ours.AGAIN])
    assert list(found) == [ours.STEM, "module:pos_drop", ours.AGAIN]
    assert found[ours.STEM] is found[ours.AGAIN]

    def sequence(tokens):
        return torch.cat([tokens.prefix, tokens.grid.flatten(1, 2)], dim=1)

    with_positions = sequence(found[ours.STEM]) + model.pos_embed
    torch.testing.assert_close(with_positions, sequence(found["module:pos_drop"]))
    long = ours.WithClassToken(backbone._plain, as_long_as_patches=True)(pixels, [ours.STEM])[ours.STEM]
    torch.testing.assert_close(long.prefix.norm(dim=-1)[:, 0], long.grid.norm(dim=-1).flatten(1).mean(dim=1))


def test_pixels_are_cropped_and_scaled_as_alfs(ours, pixels):
    backbone = ours.alf_pixels("random:0", 64, "cpu")
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        wanted = backbone.model.forward_features((pixels / 255 - mean) / std)
    torch.testing.assert_close(backbone(pixels, ["norm"])["norm"].grid.flatten(1, 2), wanted[:, 1:])
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8))
    geometry = ours.replace(backbone.geometry, resize="crop")
    small = noise.resize((97, 73), Image.Resampling.BICUBIC)  # the short side 64 * 256 / 224
    top, left = round((73 - 64) / 2), round((97 - 64) / 2)
    cut = small.crop((left, top, left + 64, top + 64))
    assert np.array_equal(to_square(noise, geometry, "a"), np.asarray(cut))


def test_the_network_never_sees_what_its_features_are_tested_on(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(ours.small_sets, "FASHION_TRAIN", 3)
    monkeypatch.setattr(ours.small_sets, "FASHION_TEST", 2)
    archive = tmp_path / "f.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for label in range(10):
            data = json.dumps({"data": [[label, i, *[7] * 782] for i in range(8)] + [[]]}).encode()
            member = tarfile.TarInfo(f"package/src/clothes/{label}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    images, labels = ours.small_vit._rest(archive, 5)
    mine = {(int(image[0, 0]), int(image[0, 1])) for image in images}
    assert labels.tolist() == [image[0, 0] for image in images]
    found = open_source(ours.small_sets.fashion(tmp_path / "set", archive, seed=0))
    tested = [np.asarray(Image.open(io.BytesIO(found.read(key)))) for key in found.listing().keys]
    assert len(mine) == 30
    assert len(tested) == 50
    assert not mine & {(int(image[0, 0]), int(image[0, 1])) for image in tested}
