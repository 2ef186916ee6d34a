"""The report of dense runs: which images it shows, what it draws of them, and curves and circles where they belong."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from loffta.drawing import class_colours, colour_depth, colour_embedding, draw_boxes
from loffta.heads.masked_attention import mask_bias
from loffta.reporting import Comparisons, format_table, read_good_runs, write_report
from loffta.reporting.dense_pictures import choose_three, draw_three
from loffta.reporting.dense_plots import HALF, look_circles, precision_recall
from loffta.runs.run import RunPaths, read_predictions
from loffta.targets import DenseSettings, NativeTarget
from tests.online.denseruns import Pictures, dense_cache, dense_run

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two of segmentation, one of detection."""
    root = tmp_path_factory.mktemp("dense")
    cache = dense_cache(root / "cache", ("mask", "boxes"))
    made = [dense_run(cache, root / "linear"), dense_run(cache, root / "deap", head="deap", mask="own")]
    return [*made, dense_run(cache, root / "boxes", "detection", head="deap")]


def pictures_of(page):
    """(what, key, pixels) of every picture."""
    found = re.findall(r'<img src="data:image/(?:png|jpeg);base64,([^"]+)" alt="(\w+): ([^"]+)">', page)
    return [(w, key, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for data, w, key in found]


def test_a_page_of_dense_runs(runs, tmp_path):
    config = runs[0] / "config.yaml"
    config.write_text(config.read_text().replace("protocol: null", f"protocol: '{HOSTILE}'"))
    path = RunPaths(runs[0]).results("test")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": HOSTILE}))
    loaded, left_out = read_good_runs(runs)
    assert not left_out
    write_report(loaded, tmp_path / "r.html", Comparisons(loaded))
    page = (tmp_path / "r.html").read_text()
    assert HOSTILE not in page
    assert "protocol &lt;script&gt;alert(1)&lt;/script&gt;, 16 px, at own size" in page
    assert "no protocol named, 16 px, at own size" in page
    assert "no protocol named, 16 px, at own size" in re.sub(r"\s+", " ", format_table([run.row for run in loaded]))
    best = max(loaded[:2], key=lambda run: run.row.main.mean)
    classes = page.split(f"Mean IoU: {best.row.name}")[1].split("</table>")[0]
    for one in best.results["dense"]["per_class"]:
        cells = f">{one['class']}</div>.*?>{one['pixels']:,}</div>.*?>{100 * one['iou']:.1f}</div>"
        assert re.search(cells, classes.split(f">{one['class']}<")[0][-60:] + classes, re.S)
    assert page.count('class="look"') == 8 + 16  # of detection two networks
    assert page.count('class="precision"') == 2
    shown = pictures_of(page)
    assert [what for what, *_ in shown] == ["image", "target", "prediction"] * (len(shown) // 3)
    section = page.split(f"<h2>Test images: {best.row.name}</h2>")[1].split("<h2>")[0]
    masks = [(key, pixels) for what, key, pixels in pictures_of(section) if what == "target"]
    assert len(masks) == 5, "all of the test images"
    for key, pixels in masks:
        mask = Pictures(20).target("mask", int(key[:4])).map
        expected = np.where((mask == 255)[..., None], [224, 224, 192], class_colours(256)[mask])
        np.testing.assert_array_equal(pixels, expected)


def test_figures_choose_the_images(runs):
    found = read_predictions(RunPaths(runs[0]).predictions_dense("test"), ["miou"])["miou"]
    chosen = choose_three(found.astype(float), "miou", 1)
    assert {group: found[place] for group, place in chosen} == {
        "worst": found.min(),
        "middling": np.sort(found)[len(found) // 2],
        "best": found.max(),
    }
    values = np.array([np.nan, 3.0, 1.0, 2.0, 9.0, 5.0, 4.0, 8.0])
    of_errors = choose_three(values, "rmse_pooled", 2)
    assert of_errors == [("worst", 4), ("worst", 7), ("middling", 1), ("middling", 6), ("best", 2), ("best", 3)]
    assert choose_three(np.array([0.5]), "miou", 3) == [("best", 0)]
    assert choose_three(np.array([np.nan]), "miou", 3) == []


def test_depths_share_one_range():
    truth = np.full((8, 6), 2.0, np.float32)
    truth[0], truth[1] = 4.0, 0.0

    outputs = torch.full((1, 2, 2), 4.0 - 1e-3)
    native = NativeTarget("depth", 8, 6, map=truth)
    _, target, found = draw_three("depth", np.zeros((4, 4, 3), np.uint8), native, outputs, DenseSettings())
    assert (target[0] == found[0]).all()
    assert (target[1] == 0).all()
    assert tuple(target[2, 0]) == (0x44, 0x01, 0x54)  # the nearest: viridis' first
    assert tuple(found[2, 0]) == (0xFD, 0xE7, 0x25)  # the farthest: its last
    assert tuple(colour_depth(np.array([[1.0, 2.0, 3.0]]))[0, 1]) == (0x21, 0x91, 0x8C)


def test_circles_lie_where_the_mask_is_half_of_its_height():
    sigma = torch.tensor([0.03, 0.2])
    places = torch.stack([torch.tensor([0.0, HALF * math.sqrt(s)]) for s in sigma.tolist()])
    bias = mask_bias(sigma, torch.zeros(1, 2), torch.cat([torch.zeros(1, 2), places]))[:, 0]
    for head in range(2):
        assert float(bias[head, 1 + head] / bias[head, 0]) == pytest.approx(0.5, abs=1e-5)
    drawn = look_circles([0.03, -0.2], (5, 5), title="<b>")
    radii = [float(r) for r in re.findall(r'class="look".*? rx="([\d.]+)"', drawn)]
    assert radii == pytest.approx([HALF * math.sqrt(s) * 4 / 5 * 300 for s in (0.03, 0.2)], abs=0.01)
    assert [dash != "none" for dash in re.findall(r"dasharray:([^;]+);fill:none\"><title>", drawn)] == [False, True]
    assert "<b>" not in drawn


def test_a_curve_goes_through_its_points():
    drawn = precision_recall([0.0, 0.5, 1.0], {"0.50": [1.0, 0.5, 0.0]}, title="t")
    (points,) = re.findall(r'class="precision" points="([^"]+)"', drawn)
    places = np.array([[float(x) for x in point.split(",")] for point in points.split()])
    np.testing.assert_allclose(places[1], (places[0] + places[2]) / 2)
    assert places[0, 1] < places[2, 1], "one is above nothing"


def test_boxes_are_their_edges_and_embeddings_their_components():
    found = draw_boxes(np.zeros((10, 12, 3), np.uint8), np.array([[2, 3, 8, 9], [-5, -5, 99, 99]]))
    edges = np.zeros((10, 12), bool)
    edges[3:9, 2:8] = True
    edges[4:8, 3:7] = False
    edges[[0, -1]] = edges[:, [0, -1]] = True
    np.testing.assert_array_equal((found != 0).any(axis=2), edges)
    values = np.random.default_rng(0).normal(size=(5, 4, 6)) * np.array([9, 5, 3, 1, 1])[:, None, None]
    centred = values.reshape(5, -1).T - values.reshape(5, -1).mean(axis=1)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    scores = (left * sizes)[:, :3]
    colours = colour_embedding(values).reshape(-1, 3).astype(float)
    for component, colour in zip(scores.T, colours.T, strict=True):
        inside = (colour > 0) & (colour < 255)
        assert abs(np.corrcoef(component[inside], colour[inside])[0, 1]) > 0.999
