"""A linear map of flattened grids, which no head of loffta is: the same input as ComBo's, without its transformer.

ComBo's `prepare` brings the taps to one grid and normalises them; here [N, K] of an image become one vector, which
`LinearHead` standardises and classifies, trained with its own recipe by the loop below.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scores import Score
from torch import Tensor

from loffta.dataset.features import choose_features, usable_rows
from loffta.feed.batches import Feed
from loffta.heads.combo import ComboHead
from loffta.heads.linear import LinearHead, LinearRecipe
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.tasks import TASKS
from loffta.tokens import FeatureSpec
from loffta.training.optim import lr_at, n_steps, parameter_groups


def score(cache_root: Path, feature: str, path: Path, *, grid: int, seeds: int, stop: StopFlag) -> Score:
    """Trains on split train, predicts test; kept in `path`, an .npz file."""
    cache = Cache.open(cache_root)
    if not path.exists():
        train, test = (_prepared(cache, feature, split, grid) for split in ("train", "test"))
        right = [_fit(train, test, len(cache.table.classes), seed, stop) for seed in range(seeds)]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, right=np.stack(right), rows=test[2])
        part.replace(path)
    kept = np.load(path)
    return Score(tuple(cache.table.keys[row] for row in kept["rows"]), kept["right"])


def _prepared(cache: Cache, feature: str, split: str, grid: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Vectors [n, N * K], labels and rows."""
    features = choose_features(cache, [feature], ("grid",), default_taps="all")
    rows = usable_rows(cache, features, split)
    combo = ComboHead([f.spec for f in features], 2, rng=torch.Generator().manual_seed(0), grid=grid)
    with Feed(features, rows, batch_size=64, device=torch.device("cpu")) as feed:
        vectors = torch.cat([combo.prepare(batch.features).flatten(1) for batch in feed.in_order()])
    return vectors, torch.tensor(cache.table.labels[rows]), rows


def _fit(
    train: tuple[Tensor, Tensor, np.ndarray],
    test: tuple[Tensor, Tensor, np.ndarray],
    n_classes: int,
    seed: int,
    stop: StopFlag,
) -> np.ndarray:
    """Which test images the head of this seed gets right."""
    vectors, labels, _ = train
    recipe = LinearRecipe()
    spec = FeatureSpec("flattened grids", ("all",), "mean", (vectors.shape[1],), 64)
    head = LinearHead([spec], n_classes, rng=torch.Generator().manual_seed(seed)).train()
    optimizer = torch.optim.AdamW(parameter_groups(head, recipe.weight_decay), lr=recipe.lr)
    total, step = n_steps(len(vectors), recipe.batch_size, recipe.epochs), 0
    order = torch.Generator().manual_seed(0)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(vectors), generator=order).split(recipe.batch_size):
            stop.check(f"training a linear map of flattened grids, step {step} of {total}")
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, total, recipe)
            loss = TASKS["classification"].loss(head(head.prepare([vectors[rows][:, None]])), labels[rows]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
    with torch.no_grad():
        predicted = head.eval()(head.prepare([test[0][:, None]])).argmax(dim=1)
    return (predicted == test[1]).numpy()
