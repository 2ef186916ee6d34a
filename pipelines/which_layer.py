"""Which layer? A linear probe on each tap of one backbone, and on all of them, as a table and a figure.

    python pipelines/which_layer.py CACHE [--backbone tf_efficientnet_lite0] [--seeds 3] [--out docs/which-layer.svg]

CACHE is one that `loffta extract` made with --taps all, for example the demo's. Seen on digits: the last stage
is not the best (stages.3 is), and all five together are better still. Under a minute on 2 cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from loffta.config import TrainConfig, parse
from loffta.machine.process import StopFlag
from loffta.reporting.plots import Bar, bar_chart, percent_ticks
from loffta.store.cache import Cache
from loffta.tasks.figures import show, show_interval
from loffta.training.train import train
from loffta.words import printable

STYLE = "font-family:system-ui,sans-serif;background:#fff"


def main() -> None:
    """Trains the probes, prints the table and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the figure, as SVG")
    options = parser.parse_args()
    stores = [s for s in Cache.open(options.cache).stores() if s.info.recipe["backbone"] == options.backbone]
    taps = stores[0].stored_taps()
    bars = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in [*taps, "all"]:
            values = {
                "cache": options.cache,
                "head": "linear",
                "features": [f"{options.backbone}:{name}"],
                "seeds": options.seeds,
            }
            config = parse(TrainConfig, values, where=name)
            top1 = train(config, Path(scratch) / name, StopFlag())["metrics"]["top1"]
            label = f"all {len(taps)} taps" if name == "all" else name
            text = f"{show('top1', top1['mean'])} %"
            print(printable(f"{label:12}"), f"{text}, 95 % interval {show_interval('top1', top1['ci95'])}")
            bars.append(Bar(label, top1["mean"], text, whisker=tuple(top1["ci95"])))
    if options.out:
        chart = bar_chart(bars, title="Linear probe, top-1 on 797 test digits", high=1.0, ticks=percent_ticks(0, 1))
        options.out.write_text(chart.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{STYLE}" ', 1))


if __name__ == "__main__":
    main()
