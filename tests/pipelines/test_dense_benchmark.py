"""The benchmark of dense heads: every head takes its steps, on features that it is fed."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from loffta.heads import DENSE_HEADS

BENCHMARKS = Path(__file__).parents[2] / "pipelines" / "benchmarks"


@pytest.mark.parametrize("name", ["featup", "deap"])  # one with thumbnails and one without
def test_a_head_is_measured(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "dense", raising=False)
    import dense

    found = dense.measure(name, Namespace(cells=4, output_px=16, batch=1, dim=16, steps=1))
    by_hand = {
        # a map of 16 to 1; two stages of 7 x 7 neighbours, 32 channels of colours, a temperature and a width
        "featup": 17 + 2 * (4 * 32 + 33 * 32 + (52 + 1) * 49 + 50 * 49 + 2),
        # a norm, keys and values, queries, sigmas, 32 -> 64 -> 16 with a norm, the decoder
        "deap": 2 * 24 + 25 * 48 + 9 * 16 + 8 + 33 * 64 + 65 * 16 + 32 + 1_102,
    }
    assert found.n_parameters == by_hand[name]
    assert found.seconds > 0
    assert found.peak_mib >= 0
    assert {*by_hand} < {*DENSE_HEADS}
