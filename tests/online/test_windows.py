"""Sliding windows against a plain loop: an image resized, cut, seen window by window, and averaged pixel by pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.special import softmax

import loffta
from loffta.crop import Windows
from loffta.door.run import load_run
from loffta.errors import UsageError
from loffta.online.dense_evaluate import evaluate_dense_online
from loffta.online.dense_predict import each_image, predict_dense
from loffta.online.opened_dense import open_dense
from loffta.online.stream import FreshStream
from loffta.online.windows import parse_windows
from loffta.targets import IGNORE
from loffta.tasks.depth import metres_of
from tests.fakes import DenseSource, FakeBackbone, picture
from tests.online.denseruns import N, Pictures, dense_cache, dense_run
from tests.online.runs import CPU, loader

TEST = range(0, N, 4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return dense_cache(tmp_path_factory.mktemp("cache") / "cache", ("mask", "depth", "boxes"))


def slid(image, head, side, stride, *, read=lambda outputs: outputs, mirrored=False):
    """mmsegmentation's loop over an image [h, w, 3]: the mean of its windows' outputs, [K, of the resized image]."""
    scale = side / min(image.shape[:2])
    width, height = (int(length * scale + 0.5) for length in (image.shape[1], image.shape[0]))  # mmcv's rescale_size
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else resized
    total, count = 0.0, np.zeros((height, width))
    for y in range(max(height - side + stride - 1, 0) // stride + 1):
        for x in range(max(width - side + stride - 1, 0) // stride + 1):
            bottom, right = min(y * stride + side, height), min(x * stride + side, width)
            top, left = max(bottom - side, 0), max(right - side, 0)
            pixels = np.array(resized.resize((16, 16), Image.Resampling.BICUBIC, (left, top, right, bottom)))
            tokens = FakeBackbone()(torch.from_numpy(pixels).permute(2, 0, 1)[None], ["stages.2"])
            with torch.no_grad():
                outputs = read(head(head.prepare([tokens["stages.2"].grid[:, None].half()])))[0].numpy()
            whole = np.zeros((len(outputs), height, width))
            whole[:, top:bottom, left:right] = outputs
            total = total + whole
            count[top:bottom, left:right] += 1
    return total / count


def enlarged(outputs, size):
    return F.interpolate(torch.from_numpy(outputs)[None].float(), size, mode="bilinear")[0].numpy()


def clear(outputs):
    """Where the best class is not a matter of last bits."""
    ordered = np.sort(outputs, axis=0)
    return ordered[-1] - ordered[-2] > 1e-4 * abs(ordered).max()


@pytest.mark.parametrize(("side", "stride"), [(16, 10), (20, 5)])
def test_masks_are_those_of_the_plain_loop(cache, tmp_path, side, stride):
    """A window of the backbone's own side, and one that has to be resized to it."""
    run = dense_run(cache, tmp_path / "run", epochs=1)
    windows = Windows(side, stride)
    predict_dense(run, DenseSource(N), tmp_path / "out", loader(), device=CPU, windows=windows, maps="npy")
    (head,), several, hits = open_dense(run, CPU, side).heads, 0, np.zeros((3, 3))
    for i in range(N):
        expected = slid(picture(i), head, side, stride)
        several += expected.shape[1:] != (side, side)
        expected = enlarged(expected, picture(i).shape[:2])
        found = np.load(tmp_path / "out" / "maps" / f"{i:04d}.png.npy")
        sure = clear(expected)
        assert sure.mean() > 0.95
        np.testing.assert_array_equal(found[sure], expected.argmax(axis=0)[sure])
        if i in TEST:
            labels = Pictures(N).target("mask", i).map
            np.add.at(hits, (labels[labels != IGNORE], expected.argmax(axis=0)[labels != IGNORE]), 1)
    assert several > N / 2, "most images take several windows"
    (results,) = evaluate_dense_online([run], Pictures(N), "test", loader(), device=CPU, windows=windows, batch_size=3)
    overlap = np.diag(hits) / (hits.sum(axis=0) + hits.sum(axis=1) - np.diag(hits))
    assert results["metrics"]["miou"]["mean"] == pytest.approx(overlap.mean(), abs=2e-3)
    assert results["dense"]["geometry"] == {"windows": f"{side}/{stride}"}
    assert results["dense"]["output_px"] == side
    assert results["timing"]["head_ms"] > 0


def test_from_python_they_are_the_same(cache, tmp_path):
    run, images = load_run(dense_run(cache, tmp_path / "run", epochs=1), device="cpu"), [picture(i) for i in range(4)]
    run._load = loader()
    (head,), differ = open_dense(tmp_path / "run", CPU, 16).heads, 0
    found, whole = (run.predict(images, windows=windows).found for windows in ("16/10", None))
    for i, image in enumerate(images):
        expected = enlarged(slid(image, head, 16, 10), image.shape[:2])
        np.testing.assert_array_equal(found[i][clear(expected)], expected.argmax(axis=0)[clear(expected)])
        differ += int((found[i] != whole[i]).sum())
    assert differ, "a slid window sees more"
    with pytest.raises(UsageError, match="no side and stride of windows"):
        run.predict(images, windows="16")


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_the_mean_over_mirror_images_which_have_windows_of_their_own(cache, tmp_path, task):
    run = dense_run(cache, tmp_path / "run", task, epochs=1, flip_average=True, depth_as="bins", depth_bins=8)
    opened = open_dense(run, CPU, windows=Windows(16, 10))
    (head,), asked = opened.heads, opened.recipe.settings()
    stream = FreshStream(
        opened.origins.features,
        source := DenseSource(N),
        source.listing(),
        range(N),
        load=loader(),
        device=CPU,
        mirrored=True,
        windows=opened.windows,
    )
    read = (lambda outputs: outputs) if task == "segmentation" else lambda outputs: metres_of(outputs, asked)
    moved = 0
    for batch in stream:
        ((row, outputs, found),) = each_image(opened, batch, source.listing().keys)
        one, other = (slid(picture(row), head, 16, 10, read=read, mirrored=mirrored) for mirrored in (False, True))
        moved += abs(one - other[:, :, ::-1]).max()
        if task == "segmentation":
            expected = np.log((softmax(one, axis=0) + softmax(other, axis=0)[:, :, ::-1]) / 2)
            np.testing.assert_allclose(outputs.numpy(), expected, atol=1e-4)
        else:
            expected = enlarged((one + other[:, :, ::-1]) / 2, picture(row).shape[:2])[0]
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert moved > 1e-3


def test_targets_of_a_run_on_centres_are_whole_and_a_bad_image_is_left_out(tmp_path):
    run = dense_run(dense_cache(tmp_path / "cache", resize="crop"), tmp_path / "run", epochs=1)
    source, how = Pictures(N, {4: b"no image"}), {"windows": Windows(16, 16), "max_bad_frac": 1.0}
    (results,) = evaluate_dense_online([run], source, "test", loader(), device=CPU, **how)
    masks = [Pictures(N).target("mask", i).map for i in TEST if i != 4]
    pixels = [int(sum((mask == c).sum() for mask in masks)) for c in range(3)]
    assert [one["pixels"] for one in results["dense"]["per_class"]] == pixels


def test_windows_cover_an_image_and_end_at_its_edge():
    windows = Windows(512, 341)
    assert windows.resized(640, 480) == (683, 512)
    assert windows.corners((683, 512)) == [(0, 0), (171, 0)]
    assert windows.corners((512, 1200)) == [(0, 0), (0, 341), (0, 682), (0, 688)]
    assert windows.corners((512, 512)) == [(0, 0)]
    assert windows.resized(1, 100_000) == (512, 2048)  # squashed: 52 million pixels else
    assert windows.resized(7, 7) == (512, 512)


@pytest.mark.parametrize("text", ["512", "512/", "0/0", "512/513", "512/127", "5000/5000", "512/341/2", "a/b", ""])
def test_what_is_no_side_and_stride(text):
    with pytest.raises(UsageError, match=r"no side and stride of windows(.|\n)*SIDE/STRIDE"):
        parse_windows(text)


def test_what_has_no_windows_is_refused(cache, tmp_path):
    assert parse_windows("512/341") == Windows(512, 341)
    run = dense_run(cache, tmp_path / "run", epochs=1)
    boxes = dense_run(cache, tmp_path / "boxes", "detection", epochs=1)
    with pytest.raises(UsageError, match="detection is of objects"):
        open_dense(boxes, CPU, windows=Windows(16, 10))
    with pytest.raises(UsageError, match=r"the side of their windows(.|\n)*leave one out"):
        open_dense(run, CPU, 32, Windows(16, 10))
    with pytest.raises(UsageError, match="--windows is for --online SOURCE"):
        loffta.evaluate(run, windows="16/10")
    with pytest.raises(UsageError, match="no side and stride"):
        loffta.predict(run, "demo:scenes#px=32,n=4", out=tmp_path / "out", windows="16/1", device="cpu")
