"""Intervals of a scan's rows."""

import numpy as np
import pytest

from loffta.scanning.layers import Layer
from loffta.scanning.results import Answer, score_rows
from loffta.tasks import find_task


@pytest.mark.parametrize(("grouped", "n_units"), [(True, 40), (False, 400)])
def test_an_interval_is_over_what_fails_together(grouped, n_units):
    """The standard error of a share p of n independent units is sqrt(p (1 - p) / n): 40 patients of ten images each."""
    right = np.repeat(np.arange(40) % 10 < 7, 10)
    labels = np.zeros(400, dtype=np.int64)
    layer = Layer("vit-0", "vit", "blocks.1", "mean", ((0, 0),), 4)
    answer = Answer(layer, "ncm", None, np.where(right, 0, 1)[None], [])
    groups = [f"patient {i // 10}" for i in range(400)] if grouped else None
    (row,) = score_rows([answer], find_task("classification"), labels, groups)
    assert row.score == pytest.approx(0.7)
    error = np.sqrt(0.7 * 0.3 / n_units)
    assert (row.ci95[1] - row.ci95[0]) / 2 == pytest.approx(1.96 * error, rel=0.15)
