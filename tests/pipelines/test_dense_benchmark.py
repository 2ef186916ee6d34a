"""The benchmark of dense heads: every head takes its steps, on features that it is fed."""

import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from loffta.feed.batches import Feed
from loffta.heads import DENSE_HEADS

BENCHMARKS = Path(__file__).parents[2] / "pipelines" / "benchmarks"


def test_feed_and_step_beside_their_rivals(monkeypatch, capsys):
    """A tiny cache of noise: what is fed is what the readers read, a head learns of it, every ratio is printed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("dense", "dense_feed", "feed", "clock"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import dense
    import dense_feed
    import feed

    for name, px in (("MASK_PX", 16), ("THUMB_PX", 8), ("OUTPUT_PX", 16), ("STEPS", 1), ("BATCH", 2)):
        monkeypatch.setattr(dense_feed, name, px)
    monkeypatch.setattr(dense_feed, "GRID", feed.Shape("tiny", 1, 2, ("grid",)))
    step_of, losses = dense_feed.make_step, []

    def noted(*words):
        head, step = step_of(*words)
        return head, lambda *batch: losses.append(step(*batch))

    monkeypatch.setattr(dense_feed, "make_step", noted)
    monkeypatch.setattr(sys, "argv", ["dense.py", "--feed", "--images", "4", "--pairs", "1"])
    dense.main()
    lines = capsys.readouterr().out.splitlines()
    goals = [line.split("goal ")[1].split(":")[0] for line in lines if "goal" in line]
    assert goals == ["0.9", "0.95", "0.95"]
    assert len(losses) == 2 * (2 * 2 * 2)  # heads; warm-up and one pair, of two jobs, of two epochs of one batch
    assert losses[0] == pytest.approx(np.log(dense_feed.CLASSES), rel=0.5)


def test_the_dense_cache_is_what_is_fed(monkeypatch, tmp_path):
    """Features, thumbnails and masks in the order of the direct reader."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("dense_feed", "feed", "clock"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import dense_feed
    import feed

    monkeypatch.setattr(dense_feed, "MASK_PX", 16)
    monkeypatch.setattr(dense_feed, "THUMB_PX", 8)
    grid, thumbs, masks = dense_feed.make_dense_cache(tmp_path / "cache", feed.Shape("tiny", 1, 2, ("grid",)), 5)
    rows = np.arange(5)
    with Feed([grid, thumbs], rows, batch_size=5, maps=masks) as fed, ThreadPoolExecutor(1) as pool:
        batch = next(fed.in_order())
        direct = next(feed.DirectReader([grid, thumbs, masks], 5, pool).batches(rows))
        assert [tuple(part.shape) for part in direct] == [(5, 1, 2, 2, 768), (5, 8, 8, 3), (5, 16, 16)]
        for found, expected in zip((*batch.features, dense_feed.masks_of(batch.targets)), direct, strict=True):
            assert torch.equal(found.flatten(), expected.flatten())
        assert len(direct[2].unique()) == dense_feed.CLASSES


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
