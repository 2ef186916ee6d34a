"""What is true here of dense prediction: heads, masks, layers, backbones, sizes, storage and augmentation on scenes.

Run:     python pipelines/benchmarks/dense_accuracy.py [--tables a,b,c,d,e,f,g,h,i,j] [--work DIR] [--seeds 3]
Needs:   the extra `demo`; 1 GB of disk; about 20 minutes of a free core for each task, by what its parts took.
Expect:  see docs/benchmarks.md; what loses is in the tables like what wins, and what is undecided is called so.
Method:  demo:scenes, 700 of 128 px: 490 to train on, 70 that choose learning rates, 140 to test. EfficientNet-Lite 0,
         1, 2 (ImageNet) and a random ViT-Ti, the control, from one cache. `middle` are the grids of stages 2, 3 and 4
         side by side: 16 x 16 cells; `last` is stage 4 alone: 4 x 4 cells. Targets and outputs have 64 px in training;
         figures are of the labels' own 128 px. All heads have --steps steps of 8 images, a warm-up of a tenth, then a
         cosine to 0. Of each head and task the rate is searched on the middle layers of Lite0, and kept. Budgets are
         DeAP's count on the same features: the widths of `bicubic`, `deconv`, `dpt` and `combo-deap` are solved for
         them. `dense-linear` has no width to solve for: its count is in the table.
         Figures: mean ± standard deviation over seeds [95 % interval over images and seeds]; gains are paired by image.
         `loss` is that of the last epoch of the training.
         a  DeAP against its rivals at an equal budget       b  DeAP's sigmas: one a head, one, none, nothing else
         c  the last layer against the middle ones           d  several backbones and selected ones against one
         e  which layer serves which task and size           f  outputs of twice the size of the training's
         g  int8 against float16                             h  features moved by augmentation, or not
         i  combo-deap against DeAP on the last layer of the best backbone, at an equal budget
         j  five times the steps
A second call with the same --work continues and prints the tables again; calls with other --tasks may run beside each
other once the cache is there. --quick shows that everything runs: 20 scenes of 32 px, random weights, one step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from accuracy import ALL, TRAINED
from clock import print_machine
from dense_bench import LAST, LAYERS, MIDDLE, RECIPE, TASKS, Bench
from dense_scores import GROUND, Score, gain
from scores import markdown

from loffta.errors import LofftaError
from loffta.images.scene_plan import SIZES
from loffta.machine.process import StopFlag
from loffta.tasks.figures import smaller_is_better

RIVALS = ("bicubic", "deconv", "dense-linear", "dpt")
MASKS = {"own": "a sigma a head", "shared": "one sigma", "none": "no mask", "only": "nothing but the mask"}
LONGER = 5  # times the steps, of table j
MOVED = {"rotation_deg": 15, "translation": 0.1, "scale": (0.8, 1.25)}


def rivals(bench: Bench) -> str:
    """Table a."""
    rows = []
    for task in bench.tasks:
        for taps, called in ((MIDDLE, "middle"), (LAST, "last")):
            deap = bench.score(task, "deap", taps=taps)
            for head in ("deap", *RIVALS):
                score = deap if head == "deap" else bench.score(task, head, taps=taps)
                lead = "" if head == "deap" else gain(deap, score)
                rows.append([score.figure, called, head, *_figures(score), lead])
    return markdown(["of", "features", "head", "parameters", "loss", "figure", "DeAP over it"], rows)


def masks(bench: Bench) -> str:
    """Table b."""
    rows = []
    for task in bench.tasks:
        own = bench.score(task, "deap")
        for mask, called in MASKS.items():
            other = own if mask == "own" else bench.score(task, "deap", variant=mask, settings={"mask": mask})
            lead = "" if mask == "own" else gain(own, other)
            rows.append([own.figure, called, *_figures(other), lead])
    return markdown(["of", "mask", "parameters", "loss", "figure", "a sigma a head over it"], rows)


def last_against_middle(bench: Bench) -> str:
    """Table c; its runs are those of table a."""
    rows = []
    for task in bench.tasks:
        for head in ("deap", *RIVALS):
            last, middle = (bench.score(task, head, taps=taps) for taps in (LAST, MIDDLE))
            rows.append([last.figure, head, last.brief, middle.brief, gain(middle, last)])
    return markdown(["of", "head", "last", "middle", "gain"], rows)


def several_against_one(bench: Bench) -> str:
    """Table d; all of one budget: that of DeAP on the middle layers of Lite0."""
    rows = []
    for task in bench.tasks:
        fixed = {"settings": {"budget": bench.score(task, "deap").n_parameters}, "variant": "fixed"}
        single = {ALL[0]: bench.score(task, "combo-deap")}  # whose budget it is
        single |= {backbone: bench.score(task, "combo-deap", [backbone], **fixed) for backbone in ALL[1:]}
        best = max(TRAINED, key=lambda backbone: _goodness(single[backbone]))
        for backbone, score in single.items():
            called = backbone + (" (best one)" if backbone == best else "")
            rows.append([score.figure, called, *_figures(score), ""])
        several = {
            "three trained": bench.score(task, "combo-deap", TRAINED, **fixed),
            "and the control": bench.score(task, "combo-deap", ALL, **fixed),
            "two by relevance": bench.score(task, "combo-deap", ALL, **(fixed | {"variant": "top2"}), select=2),
        }
        for called, score in several.items():
            rows.append([score.figure, called, *_figures(score), gain(score, single[best])])
    return markdown(["of", "backbones", "parameters", "loss", "figure", "gain over the best one"], rows)


def layers_by_size(bench: Bench) -> str:
    """Table e: a linear map of one layer each, as a whole and on the pixels of objects of one size."""
    rows = []
    for task in bench.tasks:
        parts = [None] if task == "boundaries" else [None, *SIZES, *([GROUND] if task == "depth" else [])]
        for size in parts:
            found = {layer: bench.score(task, "dense-linear", taps=layer, size=size) for layer in (*LAYERS, MIDDLE)}
            ordered = sorted(LAYERS, key=lambda layer: -_goodness(found[layer]))
            first, second = ordered[:2]
            best = f"{first[-1]} over {second[-1]}: {gain(found[first], found[second])}"
            means = [score.brief.partition(" ")[0] for score in found.values()]
            rows.append([found[MIDDLE].figure, size or "all", *means, best])
    return markdown(["of", "pixels of", "stage 1", "2", "3", "4", "2-4", "best stage over the second"], rows)


def twice_the_size(bench: Bench) -> str:
    """Table f."""
    rows = []
    for task in bench.tasks:
        for head in ("deap", *RIVALS):
            as_trained = bench.score(task, head)
            larger = bench.score(task, head, output_px=32 if bench.quick else 2 * RECIPE["output_px"])
            rows.append(
                [
                    larger.figure,
                    head,
                    as_trained.brief,
                    larger.brief,
                    gain(larger, as_trained, same_heads=True),
                ]
            )
    return markdown(["of", "head", "outputs of 64 px", "outputs of 128 px", "gain"], rows)


def int8_against_float16(bench: Bench) -> str:
    """Table g."""
    rows = []
    for task in bench.tasks:
        for head in ("deap", "dense-linear"):
            exact = bench.score(task, head)
            rounded = bench.score(task, head, variant="int8", dtype="int8")
            rows.append([exact.figure, head, exact.brief, rounded.brief, gain(rounded, exact)])
    return markdown(["of", "head", "float16", "int8", "int8 over float16"], rows)


def moved_or_not(bench: Bench) -> str:
    """Table h."""
    rows = []
    for task in bench.tasks:
        for head in ("deap", "dense-linear"):
            still = bench.score(task, head)
            moved = bench.score(task, head, variant="moved", augment=MOVED)
            rows.append([still.figure, head, still.brief, moved.brief, gain(moved, still)])
    return markdown(["of", "head", "as they are", "moved", "gain"], rows)


def combo_deap_against_deap(bench: Bench) -> str:
    """Table i; the best backbone is that whose last layer serves DeAP best on the test images: an advantage for it."""
    rows = []
    for task in bench.tasks:
        single = {backbone: bench.score(task, "deap", [backbone], taps=LAST) for backbone in TRAINED}
        best = max(TRAINED, key=lambda backbone: _goodness(single[backbone]))
        deap = single[best]
        rows.append([deap.figure, "deap", f"{best}, last", f"{deap.n_parameters:,}", deap.text, ""])
        budget = {"settings": {"budget": deap.n_parameters}, "variant": "equal"}
        rivals = {
            f"{best}, last": ([best], LAST),
            f"{best}, middle": ([best], MIDDLE),
            "three, middle": (TRAINED, MIDDLE),
        }
        for called, (backbones, taps) in rivals.items():
            score = bench.score(task, "combo-deap", backbones, taps=taps, **budget)
            count = f"{score.n_parameters:,}"
            rows.append([score.figure, "combo-deap", called, count, score.text, gain(score, deap)])
    return markdown(["of", "head", "features", "parameters", "figure", "combo-deap over DeAP"], rows)


def trained_for_longer(bench: Bench) -> str:
    """Table j."""
    rows = []
    for task in bench.tasks:
        longer = {
            head: bench.score(task, head, variant="longer", settings={"min_steps": LONGER * bench.steps})
            for head in ("deap", "dense-linear")
        }
        for head, score in longer.items():
            lead = "" if head == "deap" else gain(longer["deap"], score)
            rows.append([score.figure, head, score.text, lead, gain(score, bench.score(task, head))])
    return markdown(["of", "head", "figure", "DeAP over it", "gain over fewer steps"], rows)


TABLES: dict[str, tuple[str, Callable[[Bench], str]]] = {
    "a": ("DeAP against its rivals at an equal budget (EfficientNet-Lite0)", rivals),
    "b": ("DeAP's masks (middle layers of EfficientNet-Lite0)", masks),
    "c": ("The last layer against the middle ones (EfficientNet-Lite0)", last_against_middle),
    "d": (
        "Several backbones, and selected ones, against one (combo-deap, middle layers, one budget)",
        several_against_one,
    ),
    "e": ("Layers by task and size of object (dense-linear, EfficientNet-Lite0)", layers_by_size),
    "f": ("Outputs of twice the size of the training's (middle layers of EfficientNet-Lite0)", twice_the_size),
    "g": ("int8 against float16 (middle layers of EfficientNet-Lite0)", int8_against_float16),
    "h": ("Features moved by augmentation, or not (middle layers of EfficientNet-Lite0)", moved_or_not),
    "i": (
        "combo-deap against DeAP on the last layer of the best backbone, at an equal budget",
        combo_deap_against_deap,
    ),
    "j": ("Five times the steps (middle layers of EfficientNet-Lite0)", trained_for_longer),
}


def _figures(score: Score) -> list[str]:
    return [f"{score.n_parameters:,}", f"{score.loss:.3f}", score.text]


def _goodness(score: Score) -> float:
    return -score.mean if smaller_is_better(score.metric) else score.mean


def main() -> int:
    """Extracts, trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default=",".join(TABLES), help="with commas")
    parser.add_argument("--tasks", default=",".join(TASKS), help="with commas")
    parser.add_argument("--work", type=Path, help="folder of caches and runs; a second call continues  [temporary]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of 8 images, of every training")
    parser.add_argument("--quick", action="store_true", help="tiny scenes, random weights, one step: it runs")
    options = parser.parse_args()
    tables, tasks = options.tables.split(","), options.tasks.split(",")
    if unknown := set(tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    if unknown := set(tasks) - set(TASKS):
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    with tempfile.TemporaryDirectory(prefix="loffta-bench-") as scratch:
        work = options.work or Path(scratch)
        seeds = 2 if options.quick else options.seeds
        bench = Bench(work, tuple(tasks), seeds, options.steps, StopFlag().listen(), options.quick)
        try:
            print_tables(bench, tables)
        except LofftaError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def print_tables(bench: Bench, tables: Sequence[str]) -> None:
    """All of one run of the script."""
    print_machine(("torch", "timm", "numpy", "zarr"))
    print(f"{bench.seeds} seeds, {'one step' if bench.quick else f'{bench.steps} steps of 8 images'}", flush=True)
    bench.extract()  # what is there is not done again
    for table in tables:
        title, make = TABLES[table]
        print(f"\n### {table}. {title}\n\n{make(bench)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
