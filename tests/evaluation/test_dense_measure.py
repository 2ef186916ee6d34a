"""Learning curves of dense figures that may be negative."""

import numpy as np
import pytest

from loffta.config import TrainConfig
from loffta.evaluation.dense_measure import Goal, measure_dense_run
from loffta.runs.turns import Turns, turn_names
from loffta.targets import DenseSettings
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.instances import Grouping


@pytest.mark.parametrize("worst", [-0.2, -0.45])
def test_the_interval_of_a_curve_goes_below_zero_where_the_figure_does(tmp_path, worst):
    """Down to -0.5, where the adjusted Rand index ends, and no further."""
    config = TrainConfig(cache=tmp_path, head="deap", task="instances", shots=(1, 2), draws=2)
    turns = Turns(np.arange(9), None, {name: np.arange(i + 1) for i, name in enumerate(turn_names(config))})
    values = np.random.default_rng(0).normal(worst, 0.05, (4, 20)).clip(-0.5)
    records = [[Grouping(2, float(value)) for value in of_head] for of_head in values]
    goal = Goal(DENSE_TASKS["instances"], (), DenseSettings())
    found = measure_dense_run(goal, config, turns, records, np.arange(20), tmp_path)
    for i, point in enumerate(found["learning_curve"]["points"]):
        low, high = point["interval"]
        assert -0.5 <= low < values[2 * i : 2 * i + 2].mean() < high < 0
