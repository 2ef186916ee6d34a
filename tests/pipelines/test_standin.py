"""Stand-in image sets are what the real ones look like to the readers, and tiny networks take the real ones' places."""

import io
from collections import Counter

import numpy as np
import pytest
from loffta_pipelines import standin
from PIL import Image

from loffta.images.sources import open_source
from loffta.pipeline.file import PipelineConfig, TaskConfig
from loffta.pipeline.small import shrink


@pytest.mark.parametrize(
    ("source", "splits"),
    [
        ("vtab:{data}/cifar", {"train": 24, "val": 6, "test": 12}),
        ("table:{data}/aptos/images.csv", {"train": 24, "val": 6, "test": 12}),
        ("wds:{data}/dtd/{train,test}/*.tar", {"train": 24, "test": 12}),
        ("folder:{data}/photos", {"train": 24, "val": 6, "test": 12}),
    ],
)
def test_layouts_are_read_as_the_real_ones(source, splits, tmp_path):
    standin.write(source, tmp_path)
    found = open_source(source.replace("{data}", str(tmp_path)))
    table = found.listing()
    assert table.split_sizes() == splits
    assert len(table.classes) == 3
    assert Counter(table.labels[table.rows_of("test")].tolist()) == {0: 4, 1: 4, 2: 4}
    assert Image.open(io.BytesIO(found.read(table.keys[0]))).size == (32, 32)
    images = {found.read(key) for key in table.keys}
    assert len(images) == len(table.keys)  # no picture in two splits


def test_pictures_are_the_digits_that_their_labels_say():
    from sklearn.datasets import load_digits

    data, label = standin.digits()["test"][4]  # the first of class 1, behind 4 of class 0
    digits = load_digits()
    nth = np.flatnonzero(digits.target == label)[standin.IMAGES["train"] + standin.IMAGES["val"]]
    small = np.asarray(Image.open(io.BytesIO(data)).resize((8, 8), Image.Resampling.BOX), dtype=float)
    assert label == 1
    assert np.corrcoef(small.ravel(), digits.images[nth].ravel())[0, 1] > 0.95


TAPS = "all, blocks.5.mlp,blocks.6.attn, module:blocks.6.norm1,module:pos_drop"


def test_shrink():
    config = PipelineConfig(
        tasks=(TaskConfig(name="t", source="x"), TaskConfig(name="u", source="x")),
        extract={
            "one": {"backbones": [{"name": "big", "taps": "all", "image_px": 224}, {"name": "other", "image_px": 504}]},
            "two": {
                "backbones": [{"name": f"n{i}"} for i in range(9)] + [{"name": "big", "taps": TAPS}],
                "pool": "2x2",
            },
            "three": {"backbones": [{"name": "big", "taps": "alf"}, {"name": "n0", "taps": "final"}]},
        },
        train={
            "r": {"head": "combo", "features": ["big:all", "{backbone}:last"], "seeds": 5, "recipe": {"grid": 4}},
            "s": {"head": "linear", "search": True},
            "t": {
                "head": "online-linear",
                "online": {"backbone": {"name": "other", "image_px": 504}, "unfrozen": True},
            },
        },
    )
    small = shrink(config)
    assert small.extract["one"]["backbones"] == [
        {"name": "test_vit", "taps": "all", "weights": "random:0", "image_px": 32},
        {"name": "vit_tiny_patch16_224", "taps": "last", "weights": "random:1", "image_px": 64},
    ]
    assert [b["name"] for b in small.extract["two"]["backbones"]] == ["test_vit2", "test_vit4", "test_vit"]
    assert small.extract["two"]["backbones"][2]["taps"] == "all,blocks.5.mlp,module:pos_drop"  # it has six blocks
    assert [b["name"] for b in small.extract["three"]["backbones"]] == ["test_vit"]  # no final norm in the third
    assert small.extract["two"]["pool"] == "2x2"
    assert small.train["r"]["features"] == ["test_vit:all", "{backbone}:last"]
    assert small.train["r"]["recipe"] == {"grid": 4, "epochs": 2, "min_steps": 1, "width": 32, "depth": 2}
    assert [run["seeds"] for run in small.train.values()] == [2, 1, 1]
    assert [("search_lr" in run["recipe"]) for run in small.train.values()] == [False, True, False]
    tiny = {"name": "vit_tiny_patch16_224", "taps": "last", "weights": "random:1", "image_px": 64}
    assert small.train["t"]["online"] == {"backbone": tiny, "unfrozen": True}
    assert config.train["r"]["seeds"] == 5


def test_an_unknown_task_is_a_message(tmp_path, capsys):
    assert standin.main(["vtab1k/single.yaml", str(tmp_path), "--tasks", "cifr"]) == 2
    assert "did you mean cifar" in capsys.readouterr().err


def test_what_it_prints_is_harmless_to_a_terminal(tmp_path, capsys):
    (tmp_path / "x\x1b[2J.yaml").write_text("[")
    assert standin.main([str(tmp_path / "x\x1b[2J.yaml"), str(tmp_path)]) != 0
    said = capsys.readouterr().err
    assert "x\N{REPLACEMENT CHARACTER}[2J.yaml" in said
    assert "\x1b" not in said
