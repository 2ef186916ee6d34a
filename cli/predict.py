"""`loffta predict`: options in, one call of loffta.predict, a summary out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loffta.words import plural

from .common import emit, json_option, opening_options, show

if TYPE_CHECKING:
    from loffta.online.dense_predict import DensePrediction


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.parquet|FOLDER")
@click.option("--per-seed", is_flag=True, help="Each seed's own prediction, too, beside the mean of all.")
@click.option(
    "--calibrated",
    is_flag=True,
    help="Confidences with the run's temperature, which needs --holdout or --validate-on in its training.",
)
@click.option("--maps", type=click.Choice(["png", "npy"]), help="Of dense heads: how maps are written.  [png]")
@click.option("--overlay", is_flag=True, help="Of dense heads: each prediction over its image, too, as a picture.")
@click.option("--windows", metavar="SIDE/STRIDE", help="Of dense heads: slide windows over each image, in px: 512/341.")
@click.option("--cache", type=click.Path(path_type=Path), help="For runs of older versions: where the cache is now.")
@click.option("--batch-size", type=click.IntRange(1, 1 << 20), default=32, show_default=True, help="Images per pass.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option(
    "--max-bad-frac", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="More bad images: exit code 3."
)
@opening_options
@json_option
def command(run: Path, source: str, as_json: bool, **options: Any) -> None:
    """Tell the classes, or the values, of images by the trained heads of RUN.

    SOURCE is a folder, a table, one image file, or anything that `extract` takes. The file has a row per image, in
    order: key, status, reason (of images that cannot be used), predicted, confidence (the highest probability), and
    probabilities in the order of the classes in its metadata. Of heads trained on several classes per image, predicted
    is the list of those with a probability of 0.5 and more; of heads trained on numbers it is one, in their unit, and
    there are no probabilities. Nothing is cached, and no cache is needed.

    Of dense heads --out is a folder: a map per image at the image's own size, or the table boxes.parquet, and
    predictions.parquet, which says which file is of which image. What the numbers of a map mean stands in about.json.
    """
    import loffta
    from loffta.machine import process
    from loffta.online.dense_predict import DensePrediction

    stop = process.StopFlag().listen()
    process.cap_threads()
    done = loffta.predict(run, source, stop=stop, **options)
    if isinstance(done, DensePrediction):
        _show_dense(done)
        emit(asdict(done), as_json)
        return
    for name, n in sorted(done.counts.items(), key=lambda item: -item[1])[:10]:
        show(f"{n:7}  {name}")
    if done.values:
        show("predicted {min:.4g} to {max:.4g}, mean {mean:.4g}".format(**done.values))
    show(f"{done.images} {plural(done.images, 'image')}, {done.bad} bad; {done.out}")
    emit(asdict(done), as_json)


def _show_dense(done: DensePrediction) -> None:
    step = f", in steps of {done.means['step']:g}" if "step" in done.means else ""
    what = "maps" if done.boxes is None else f"{done.boxes} {plural(done.boxes, 'box', 'boxes')}"
    show(f"{done.task}: {what}; {done.means['unit']}{step}")
    show(f"{done.images} {plural(done.images, 'image')}, {done.bad} bad; {done.out}")
