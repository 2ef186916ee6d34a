"""Configurations in and out: every wrong key has a neighbour, every message says where."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from loffta.config import ExtractConfig, TrainConfig, parse, read_yaml, to_yaml
from loffta.errors import LofftaError, UsageError
from loffta.heads.combo import ComboRecipe
from loffta.pipeline.file import PipelineConfig

EXTRACT = {"source": "demo:digits", "cache": "c", "backbones": [{"name": "a"}, {"name": "b", "taps": "all"}]}
TRAIN = {"cache": "c", "head": "combo"}


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (TrainConfig, {**TRAIN, "sedes": 3}, r"unknown key 'sedes'(.|\n)*the file: sedes(.|\n)*did you mean seeds"),
        (TrainConfig, {**TRAIN, "zzz": 3}, r"unknown key 'zzz'(.|\n)*known: cache, head, features"),
        (
            ExtractConfig,
            {**EXTRACT, "backbones": [{"name": "a"}, {"name": "b", "weight": "hub"}]},
            r"unknown key 'weight'(.|\n)*the file: backbones.1.weight(.|\n)*did you mean weights",
        ),
        (ExtractConfig, {**EXTRACT, "bachsize": 1}, r"unknown key 'bachsize'(.|\n)*did you mean batch_size"),
        (ComboRecipe, {"warmup": 1}, r"unknown key 'warmup'(.|\n)*warmup_fraction"),
        (PipelineConfig, {"extracts": {}}, r"unknown key 'extracts'(.|\n)*did you mean extract"),
        (TrainConfig, {"head": "linear"}, r"'cache' is missing(.|\n)*where:  the file(.|\n)*give cache"),
        (ExtractConfig, {**EXTRACT, "backbones": [{}]}, r"'backbones.0.name' is missing"),
        (TrainConfig, {**TRAIN, "seeds": 0}, r"seeds: it must be from 1 to 1,000 \(got 0\)"),
        (TrainConfig, {**TRAIN, "seeds": "many"}, r"seeds: (.|\n)*got 'many'"),
        (TrainConfig, {**TRAIN, "recipe": [1]}, r"recipe: (.|\n)*got \[1\]"),
        (TrainConfig, {**TRAIN, "feed": "disk"}, r"feed: (.|\n)*'host'(.|\n)*got 'disk'"),
        (ExtractConfig, {**EXTRACT, "backbones": []}, "backbones: "),
        (ExtractConfig, {**EXTRACT, "backbones": [{"name": "a", "image_px": -1}]}, "backbones.0.image_px: "),
        (ComboRecipe, {"width": 5}, "value: (.|\n)*width 5 is not a multiple of n_heads 2"),
        (TrainConfig, {**TRAIN, 3: 4}, "3: "),
    ],
)
def test_messages(model, values, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(model, values, where="the file")
    assert caught.value.exit_code == 2
    assert caught.value.where.startswith("the file")


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (TrainConfig, TRAIN),
        (TrainConfig, {**TRAIN, "features": ["a:b"], "select": 2, "recipe": {"lr": 1e-7, "grid": None}}),
        (ExtractConfig, EXTRACT),
        (ExtractConfig, {**EXTRACT, "share": [1, 4], "kinds": ["mean"], "limit": 7}),
    ],
)
def test_yaml_round_trip(tmp_path, model, values):
    config = parse(model, values, where="test")
    path = tmp_path / "config.yaml"
    path.write_bytes(to_yaml(config))
    assert parse(model, read_yaml(path), where=path) == config
    said = {name for name, field in model.model_fields.items() if not field.exclude}  # the others are of one start
    assert set(yaml.safe_load(path.read_text())) == said  # resolved: defaults are spelled out


def test_values_of_yaml_fit():
    config = parse(ExtractConfig, EXTRACT, where="test")
    assert config.cache == Path("c")
    assert [b.taps for b in config.backbones] == ["last", "all"]
    with pytest.raises(ValidationError, match="frozen"):
        config.source = "other"


@pytest.mark.parametrize(
    "text",
    ["head: [linear", "- a\n- b\n", "", "just words", "a: !!python/object/apply:os.getcwd []", "\ta: b", "a: \x00"],
)
def test_files_that_are_no_configuration(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(LofftaError, match=r"cannot read the configuration(.|\n)*YAML syntax") as caught:
        read_yaml(path)
    assert caught.value.where == str(path)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes(b"a: \xe9\xff")
    for name in ("missing.yaml", ".", "latin"):
        with pytest.raises(LofftaError, match="cannot read the configuration"):
            read_yaml(tmp_path / name)
