"""Dense heads from a cache to results.json: what they learn, how they are measured, and that it goes on as it began."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loffta.runs.run import RunPaths, read_predictions, read_results
from tests.training.denseruns import dense_cache, go


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return dense_cache(tmp_path_factory.mktemp("dense") / "cache", kinds=("mask", "instances", "depth", "boxes"))


def test_segmentation_learns_what_features_say(cache, tmp_path):
    results = go(cache, tmp_path / "run", recipe={"epochs": 40, "lr": 0.01}, protocol="ours")
    assert results["metrics"]["miou"]["mean"] > 0.8
    assert read_results(RunPaths(tmp_path / "run").results("test"))["protocol"] == "ours"
