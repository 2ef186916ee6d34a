"""What stages wait for: computed from what they read and write, named by `after`, and where that cannot be."""

from itertools import permutations
from pathlib import Path

import pytest

from loffta.errors import UsageError
from loffta.pipeline.file import read_pipeline
from loffta.pipeline.plan import make_pipeline
from loffta.pipeline.stages import Stage, link

CACHE, RUN = Path("out/cache"), Path("out/runs/a")
EXTRACT = Stage("extract", ["extract"], writes=(CACHE,))
TRAIN = Stage("train", ["train"], reads=(CACHE,), writes=(RUN,))
TEST = Stage("test", ["evaluate"], reads=(RUN,))
ALONE = Stage("alone", ["info"])


@pytest.mark.parametrize("order", list(permutations([EXTRACT, TRAIN, TEST, ALONE])))
def test_stages_stand_behind_what_they_read(order):
    linked = link(order, where="p.yaml")
    assert {stage.name: stage.needs for stage in linked} == {
        "extract": (),
        "train": ("extract",),
        "test": ("train",),
        "alone": (),
    }
    places = [stage.name for stage in linked]
    assert places.index("extract") < places.index("train") < places.index("test")


def test_parts_of_one_extraction_write_one_cache():
    parts = [Stage(f"extract {i}/3", ["extract"], writes=(CACHE,), part=(i, 3)) for i in range(3)]
    *_, train = link([TRAIN, *parts], where="p.yaml")
    assert train.needs == ("extract 0/3", "extract 1/3", "extract 2/3")
    assert parts[2].command == "loffta extract --shard 2/3"
    assert {part.whole for part in parts} == {"extract"}
    assert len({part.mark for part in parts}) == 3


@pytest.mark.parametrize("path", [RUN, RUN / "below", Path("out")])
def test_two_stages_that_write_one_run(path):
    with pytest.raises(UsageError, match=r"'train' and 'other' both write|'other' and 'train' both write") as caught:
        link([TRAIN, Stage("other", ["train"], writes=(path,))], where="p.yaml")
    assert "names of their own" in caught.value.remedy


FILE = """
extract: {c: {source: x, backbones: [{name: a}]}}
train:
  one: {head: linear%s}
  two: {head: linear, after: [one]}
  three: {head: linear}
"""


def stages_of(tmp_path, text, shards=1):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return make_pipeline(read_pipeline(path), Path("out"), where=path, shards=shards).stages


def test_after(tmp_path):
    needs = {stage.name: stage.needs for stage in stages_of(tmp_path, FILE % "")}
    assert needs == {"extract": (), "one": ("extract",), "two": ("extract", "one"), "three": ("extract",)}
    assert [s.name for s in stages_of(tmp_path, FILE % ", after: [three]")] == ["extract", "three", "one", "two"]


def test_shards(tmp_path):
    stages = stages_of(tmp_path, FILE % "", shards=2)
    assert [stage.command.split()[-2:] for stage in stages[:2]] == [["--shard", "0/2"], ["--shard", "1/2"]]
    assert stages[2].needs == ("extract 0/2", "extract 1/2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (", after: [two]", r"stages wait for each other: 'one' -> 'two' -> 'one'|'two' -> 'one' -> 'two'"),
        (", after: [one]", "stages wait for each other: 'one' -> 'one'"),
        (", after: [tow]", r"unknown cache or run 'tow'(.|\n)*train.one.after(.|\n)*did you mean two"),
        (", after: two", "after must be a list"),
        (", afer: [two]", r"unknown key 'afer'"),
    ],
)
def test_what_cannot_be(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        stages_of(tmp_path, FILE % change)


def test_runs_of_one_name(tmp_path):
    """Of a run `a-b`, and of a run `a` for a backbone `b`."""
    text = """
extract: {c: {source: x, backbones: [{name: b}]}}
train: {a-b: {head: linear}, a: {head: linear, features: ["{backbone}:last"]}}
"""
    with pytest.raises(UsageError, match=r"both write out/runs/a-b(.|\n)*RUN-BACKBONE"):
        stages_of(tmp_path, text)
