"""A run's temperatures on disk: what was written comes back, and nothing else is taken for it."""

import numpy as np
import pytest
import torch

from loffta.config import TrainConfig
from loffta.errors import LofftaError, UsageError
from loffta.files.tensor_file import write_tensors
from loffta.runs.run import RunPaths
from loffta.runs.temperature import (
    Temperatures,
    held_out_split,
    need_temperatures,
    read_temperatures,
    write_temperatures,
)
from tests.tasks.scores import softmax

FOUND = Temperatures((1.25, 0.5), 1.1, "val", 40)


def config(**values):
    return TrainConfig(cache="c", head="linear", **{"task": "classification", "seeds": 2, **values})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"holdout": 0.2}, "holdout"),
        ({"validate_on": "val"}, "val"),
        ({"validate_on": "val+dev"}, "val+dev"),
        ({}, None),
        ({"holdout": 0.2, "test_on": "holdout"}, None),
        ({"validate_on": "test"}, None),
        ({"validate_on": "val+test"}, None),
        ({"validate_on": "val", "train_on": "train+val"}, None),
    ],
)
def test_never_fitted_on_what_is_trained_on_or_tests(values, expected):
    assert held_out_split(config(**values)) == expected


def test_what_was_written_comes_back(tmp_path):
    paths = RunPaths(tmp_path)
    assert read_temperatures(paths, config()) is None
    write_temperatures(paths, FOUND)
    assert read_temperatures(paths, config()) == need_temperatures(paths, config()) == FOUND


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_every_flipped_bit_of_the_values_is_found(tmp_path):
    paths = RunPaths(tmp_path)
    write_temperatures(paths, FOUND)
    whole = paths.temperature.read_bytes()
    for place in range(len(whole) - 3 * 8, len(whole)):
        paths.temperature.write_bytes(whole)
        flip(paths.temperature, place)
        with pytest.raises(LofftaError, match=r"is damaged(.|\n)*remedy: delete it; fit it on .* --split val"):
            read_temperatures(paths, config(validate_on="val"))


@pytest.mark.parametrize(
    ("tensors", "state"),
    [
        ({"per_seed": torch.ones(3), "of_mean": torch.tensor(1.0)}, '{"split": "val", "images": 4}'),
        ({"per_seed": torch.tensor([1.0, 0.0]), "of_mean": torch.tensor(1.0)}, '{"split": "val", "images": 4}'),
        ({"per_seed": torch.ones(2), "of_mean": torch.tensor(torch.nan)}, '{"split": "val", "images": 4}'),
        ({"per_seed": torch.ones(2, 2), "of_mean": torch.tensor(1.0)}, '{"split": "val", "images": 4}'),
        ({"per_seed": torch.ones(2)}, '{"split": "val", "images": 4}'),
        ({"per_seed": torch.ones(2), "of_mean": torch.tensor(1.0)}, '{"split": "val"}'),
        ({"per_seed": torch.ones(2), "of_mean": torch.tensor(1.0)}, None),
    ],
)
def test_what_cannot_be_temperatures_of_these_heads(tmp_path, tensors, state):
    write_tensors(RunPaths(tmp_path).temperature, tensors, state)
    with pytest.raises(LofftaError, match="is damaged"):
        read_temperatures(RunPaths(tmp_path), config())


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"holdout": 0.2}, "loffta evaluate RUN --split holdout"),
        ({"validate_on": "val"}, "loffta evaluate RUN --split val"),
        ({}, "train again with another --out .* --holdout 0.2 .* or --validate-on SPLIT"),
    ],
)
def test_without_one_it_says_how_to_get_one(tmp_path, values, remedy):
    with pytest.raises(LofftaError, match=rf"this run has no temperature(.|\n)*{remedy}"):
        need_temperatures(RunPaths(tmp_path), config(**values))


def test_several_classes_per_image_have_none(tmp_path):
    with pytest.raises(UsageError, match=r"task is multi-label(.|\n)*leave --calibrated out"):
        need_temperatures(RunPaths(tmp_path), config(task="multi-label"))


@pytest.mark.parametrize(
    ("values", "reason"), [({"folds": 5}, "folds"), ({"shots": (2,), "holdout": 0.2, "draws": 3}, "draws")]
)
def test_heads_of_other_images_have_none_in_common(tmp_path, values, reason):
    with pytest.raises(UsageError, match=rf"has {reason}(.|\n)*leave --calibrated out"):
        need_temperatures(RunPaths(tmp_path), config(**values))


def test_probabilities_are_those_of_divided_logits():
    """The mean of the seeds' probabilities is raised to the power 1 / T, and made to sum to 1."""
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32) * 3
    together, each = FOUND.apply(logits)
    np.testing.assert_allclose(each, [softmax(logits[0] / 1.25), softmax(logits[1] / 0.5)], rtol=1e-5)
    powers = softmax(logits).mean(axis=0) ** (1 / 1.1)
    np.testing.assert_allclose(together, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)
    assert together.dtype == each.dtype == np.float32
