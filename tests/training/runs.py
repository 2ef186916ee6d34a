"""Short trainings on a tiny cache, for the tests of `train`."""

import json

from loffta.config import TrainConfig
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths
from loffta.training.train import train

TINY = {"grid": 2, "width": 8, "depth": 1, "epochs": 2, "batch_size": 16}
SMALL = {
    "combo": {"grid": 2, "width": 8, "depth": 1},
    "loff": {"width": 8, "depth": 1, "n_heads": 2},
    "head2toe": {"keep_fraction": 0.5, "min_steps": 60},  # there are ten features
}


def make_config(cache, head="linear", **changes):
    recipe = changes.pop("recipe", {"epochs": 2, "batch_size": 16, "min_steps": None} | SMALL.get(head, {}))
    if head == "fusion":  # its own taps are a transformer's
        changes.setdefault("features", tuple(f"{store.name}:all" for store in cache.stores()))
    return TrainConfig(cache=cache.paths.root, head=head, device="cpu", recipe=recipe, **changes)


def go(cache, out, head="linear", **changes):
    return train(make_config(cache, head, **changes), out, StopFlag())


def files(root):
    return {p: p.stat().st_mtime_ns for p in sorted(root.rglob("*"))}


def log_of(out, seed=0):
    return [json.loads(line) for line in RunPaths(out).metrics(seed).read_text().splitlines()]
