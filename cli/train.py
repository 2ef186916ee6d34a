"""`loffta train`: options in, one call of loffta.door.train.run, a summary out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from loffta.words import plural, printable

from .common import emit, json_option, merge_config, parse_settings, show, show_lines
from .train_online import online_options

if TYPE_CHECKING:
    from loffta.config import TrainConfig

_REQUIRED = {"cache": "CACHE", "head": "--head NAME"}  # or in the --config file


@click.command("train")
@click.argument("cache", required=False, type=click.Path(path_type=Path))
@click.option(
    "--head",
    metavar="NAME",
    help="Of whole images: linear, attentive, fusion, combo, loff, head2toe, smp. Of dense tasks: deap, dense-linear, "
    "combo-deap, bicubic, deconv, featup, dpt; of segmentation alone: dense-knn.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--features", multiple=True, metavar="STORE[:TAPS]", help="Store or backbone, and taps.  [all stores]")
@click.option("--views", is_flag=True, help="Train on the random views of the images, too, that the cache has.")
@click.option("--labels", metavar="NAME_OR_FILE", help="A set of labels of the cache, or a file.  [its source's]")
@click.option(
    "--task",
    default="auto",
    show_default=True,
    help="By the labels: classification, multi-label, regression; of dense heads segmentation, depth, boundaries, "
    "detection, instances.",
)
@click.option("--train-on", default="train", show_default=True, help="Split, or several joined by +.")
@click.option("--validate-on", metavar="SPLIT", help="Measured too; --search chooses by it.")
@click.option("--holdout", type=float, metavar="SHARE", help="Keep so much of --train-on out, as split 'holdout': 0.2.")
@click.option("--test-on", default="test", show_default=True, help="Split to evaluate at the end.")
@click.option("--folds", type=int, metavar="K", help="Cross-validate: part --train-on, test each part by the others.")
@click.option("--group", metavar="COLUMN", help="With --folds: what is never on both sides, for example patient.")
@click.option("--shots", metavar="N,N,...", help="Train on so many images of every class, for each N: 1,2,5,10.")
@click.option("--draws", type=int, metavar="D", help="With --shots: times that each N is drawn anew.  [5]")
@click.option("--seeds", type=int, default=1, show_default=True, help="Heads trained side by side on one read.")
@click.option("--data-seed", type=int, default=0, show_default=True, help="Decides the order of the images.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the head's recipe: epochs=12.")
@click.option(
    "--augment",
    metavar="PRESET",
    help="none, loff-ta or trivial, of features; --set augment.KEY=VALUE changes it.",
)
@click.option("--search", is_flag=True, help="Try the recipe's learning rates and weight decays first, keep the best.")
@click.option("--select", type=int, metavar="K", help="Score the backbones, keep the K best, retrain (combo, smp).")
@click.option("--feed", type=click.Choice(["auto", "device", "host", "stream"]), default="auto", show_default=True)
@click.option(
    "--order",
    type=click.Choice(["auto", "uniform", "windowed"]),
    default="auto",
    show_default=True,
    help="Windowed: stored neighbours are read together and mixed in a window, for cold disks.",
)
@click.option("--checkpoint-s", type=float, default=60.0, show_default=True, help="Seconds between two checkpoints.")
@click.option("--stage-dir", metavar="DIR", help="Copy what is read to this disk of the node first: $SLURM_TMPDIR.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option(
    "--ranks",
    type=click.Choice(["auto", "members", "batches"]),
    default="auto",
    show_default=True,
    help="Of several processes (torchrun, srun): deal seeds and folds out, or share every batch.",
)
@click.option("--partial", is_flag=True, help="Train on what is there though the cache is not finished.")
@click.option("--protocol", metavar="NAME", help="Of dense tasks: a word that the results carry, for comparisons.")
@click.option("--one-class", is_flag=True, help="Train though all images are of one class.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file with any of these options.")
@online_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    out: Path,
    settings: tuple[str, ...],
    file: Path | None,
    ranks: Literal["auto", "members", "batches"],
    as_json: bool,
    **options: Any,
) -> None:
    """Train a head on CACHE and evaluate it; with --online on images, without a cache.

    The recipe's defaults are those of the head's paper. A finished run is read back, not repeated; one that was cut
    off goes on from its last checkpoint.
    """
    from loffta.config import TrainConfig, parse
    from loffta.door.options import split_settings
    from loffta.door.train import run, take_online
    from loffta.errors import NotSaved
    from loffta.machine.process import StopFlag
    from loffta.machine.ranks import this_rank

    online = take_online(options)
    values = merge_config(ctx, file, options) | online
    config = parse(TrainConfig, values, where=file or "loffta train", options=_REQUIRED)
    recipe, augment = split_settings(parse_settings(settings), config.augment)
    config = config.model_copy(update={"recipe": config.recipe | recipe, "augment": augment})
    stop = StopFlag().listen()
    try:
        results = run(config, out, stop, ranks)
    except NotSaved as error:
        print_results(error.results)
        emit(error.results, as_json)
        raise
    if not this_rank().leads:
        return
    print_results(results)
    _print_next(out, config)
    emit(results, as_json)


def _print_next(out: Path, config: TrainConfig) -> None:
    """Where everything is, and what can be done with it."""
    from loffta.dataset.splits import OUT_OF_FOLD
    from loffta.machine.terminal import command as to_type
    from loffta.runs.run import RunPaths

    paths = RunPaths(out)
    heads = [] if config.folds or config.shots else [*map(paths.head, range(config.seeds))]
    split = OUT_OF_FOLD if config.folds else config.test_on
    files = [paths.results(split), paths.predictions(split), paths.predictions_dense(split), *heads]
    show(f"written to {out}: {', '.join(str(path.relative_to(out)) for path in files if path.exists())}")
    show("next:")
    if paths.predictions_dense(split).exists():
        show_lines(to_type(["loffta", "evaluate", str(out), "--split", config.train_on]))
        return
    show_lines(to_type(["loffta", "report", str(out)]))
    show_lines(to_type(["loffta", "predict", str(out), "IMAGES", "--out", "predictions.parquet"]))


def print_results(results: Mapping[str, Any]) -> None:
    """One line per metric; relevance where there is one."""
    from loffta.tasks.figures import in_words, metric_name, show_interval

    images, few = f"{results['n']} {plural(results['n'], 'image')}", "learning_curve" in results
    for name, metric in results["metrics"].items():
        n_seeds = len(metric["per_seed"])
        several = f"draws of {results['learning_curve']['points'][-1]['shots']} a class" if few else "seeds"
        several = f"heads of {results['heads']['folds']} folds" if "heads" in results else several
        seeds = f" over {n_seeds} {several}" if n_seeds > 1 else ""
        low, high = metric["ci95"]
        interval = show_interval(name, (low, high))
        show(f"{in_words(name, metric)}{seeds}, 95 % interval {interval} ({images})")
    if "dense" in results:
        _print_dense(results)
    if n_learnt := results.get("images", {}).get("trained_on"):
        which = "these images are" if n_learnt == results["n"] else f"{n_learnt} of these images are among"
        show(f"{which} what the heads were trained on: of new images the figures say nothing")
    if "labels" in results:
        show(f"what is right is said by the labels '{results['labels']}'")
    if "calibration" in results:
        _print_calibration(results["calibration"])
    if "now" in results.get("images", {}):
        from loffta.runs.known_images import growth

        show(growth(results["images"]["known"], results["images"]["now"]))
    if "other_set" in results.get("images", {}):
        show(f"measured on another image set than that of the training: {results['images']['other_set']}")
    what = f"target '{results['dense']['target']}'" if "dense" in results else "label"
    if n_unlabelled := results.get("images", {}).get("unlabelled"):
        show(f"images of split {results['split'].partition('@')[0]} without a {what}: {n_unlabelled}, left out")
    if "search" in results:
        chosen = results["search"]["chosen"]
        show(
            f"search chose lr {chosen['lr']:g}, weight decay {chosen['weight_decay']:g} "
            f"({in_words(results['search']['metric'], {'mean': chosen['score'], 'std': None})} "
            f"on {results['search']['validated_on']})"
        )
    _print_turns(results)
    for name, note in results.get("notes", {}).items():
        show(f"{metric_name(name)}: {note}")
    for entry in results.get("relevance", {}).get("backbones", []):
        show(f"relevance {entry['score']:.3f}  {entry['backbone']}")


def _print_dense(results: Mapping[str, Any]) -> None:
    """What the figures depend on beside the features."""
    dense, named = results["dense"], results.get("protocol")
    size = dense["settings"].get("eval_px")
    at = f"{size} x {size} pixels" if size else "the labels' own size"
    show(
        f"protocol {'without a name' if named is None else printable(named)}: outputs of {dense['output_px']} px, "
        f"measured at {at}; {dense['adapter_parameters']:,} parameters"
    )


def _print_turns(results: Mapping[str, Any]) -> None:
    """What folds, or draws of a few labels, say beside the metrics."""
    from loffta.tasks.figures import in_words, show_interval

    if "folds" in results:
        folds = results["folds"]
        of_groups = f" of {folds['groups']} groups by {printable(folds['group'])}" if folds.get("group") else ""
        told = ", ".join(in_words(name, found) for name, found in folds["metrics"].items())
        show(f"{folds['n']} folds{of_groups}, mean and deviation over them: {told}")
    if "learning_curve" in results:
        curve = results["learning_curve"]
        name, draws = curve["metric"], f"{curve['draws']} {plural(curve['draws'], 'draw')}"
        for point in curve["points"]:
            interval = f"95 % interval {show_interval(name, point['interval'])}"
            show(f"{point['shots']:5} a class: {in_words(name, point['metrics'][name])}, {interval} ({draws})")
        show(curve["told"])


def _print_calibration(found: Mapping[str, Any]) -> None:
    """How far confidences are off, with and without a temperature; and what refusing gains."""
    from loffta.tasks.figures import in_words

    def told(part: str, *names: str) -> str:
        return ", ".join(in_words(name, found[part]["figures"][name]) for name in names)

    show(f"calibration: {told('as_trained', 'ece_width15')}; {told('as_trained', 'top1_surest_90')}")
    if "temperature" in found:
        fitted = found["temperature"]
        values = ", ".join(f"{value:.2f}" for value in fitted["per_seed"])
        show(f"with temperature {values} of split {fitted['split']}: {told('calibrated', 'ece_width15')}")
