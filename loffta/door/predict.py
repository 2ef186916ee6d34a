"""`loffta.predict`: the classes or values of new images, or maps of them, by the trained heads of a run, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from loffta.door.options import PathLike, open_up, refuse_for
from loffta.extraction.begin import backbone_loader
from loffta.machine import process
from loffta.machine.borrowed import borrowed
from loffta.online.dense_predict import DensePrediction, predict_dense
from loffta.online.predict import Prediction, open_images
from loffta.online.predict import predict as predict_source
from loffta.online.windows import parse_windows
from loffta.runs.run import open_run
from loffta.tasks.dense import DENSE_TASKS


def predict(
    run: PathLike,
    source: PathLike,
    *,
    out: PathLike,
    per_seed: bool = False,
    calibrated: bool = False,
    maps: Literal["png", "npy"] | None = None,
    overlay: bool = False,
    windows: str | None = None,
    cache: PathLike | None = None,
    batch_size: int = 32,
    device: str = "auto",
    max_bad_frac: float | int = 0.01,
    image_root: PathLike | None = None,
    follow_links: bool = False,
    progress: bool = True,
    stop: process.StopFlag | None = None,
) -> Prediction | DensePrediction:
    """Tells the classes, or the values, of images by the trained heads of a run; `load_run` gives them without a file.

    Of a dense run it writes a map per image, or a table of boxes, into a folder.

    >>> done = loffta.predict("runs/linear", "photos", out="predictions.parquet", device="cpu")
    >>> done.images, done.bad, sum(done.counts.values())
    (150, 0, 150)

    Args:
        source: a folder, a table, one image file, or anything that `extract` takes.
        out: a .parquet file: a row per image, in order, with key, status, reason, predicted, confidence, probabilities;
            numbers, in the unit of the values that were learnt, have neither of the last two. Of a dense run a folder.
        per_seed: each seed's own prediction, too, beside the mean of all.
        calibrated: confidences that are right as often as they say, with the temperature that was fitted on images
            held out of the training; what is predicted stays the same.
        maps: of a dense run: "png", or "npy" for what the heads say without rounding. None: png.
        overlay: of a dense run: a picture of the prediction over each image, too.
        windows: of a dense run: slide windows of SIDE/STRIDE px over each image, "512/341". None: see it as the
            features were made.
        cache: for runs of older versions: where the cache is now.
        batch_size: images per pass.
        max_bad_frac: a share; more bad images are an error.
        progress: show progress and notes on stderr.
        stop: looked at between the images; the command line's.
    Returns:
        How many images there were, how many of them could not be used, and how many are of each class; or the range
        of the numbers; or what the numbers in the maps mean.
    Raises:
        UsageError: `out` is a folder, or no .parquet, or of a dense run a file; or another option that cannot be used.
        LofftaError: `out` is something else; no run, no trained head, or a backbone that is not the features'; or no
            temperature, where nothing was held out.
        TooManyBadImages: over `max_bad_frac`; the file is written.
    """
    root = Path(run)
    is_dense = open_run(root)[1].task in DENSE_TASKS
    of_others: dict[str, Any] = {"per_seed": per_seed, "calibrated": calibrated, "cache": cache}
    refuse_for(of_others if is_dense else {"maps": maps, "overlay": overlay, "windows": windows}, is_dense=is_dense)
    with borrowed(progress=progress):
        process.cap_threads()
        target = process.resolve_device(device)
        images = open_images(open_up(source, image_root, follow_links))
        how: dict[str, Any] = {"batch_size": batch_size, "max_bad_frac": float(max_bad_frac), "stop": stop}
        how |= {"device": target}
        if is_dense:
            load = backbone_loader(target)
            how["windows"] = None if windows is None else parse_windows(windows)
            return predict_dense(root, images, Path(out), load, maps=maps or "png", overlay=overlay, **how)
        return predict_source(
            root,
            images,
            Path(out),
            backbone_loader(target),
            cache_root=None if cache is None else Path(cache),
            per_seed=per_seed,
            calibrated=calibrated,
            **how,
        )
