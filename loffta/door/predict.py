"""`loffta.predict`: the classes or values of new images, by the trained heads of a run, as a file."""

from __future__ import annotations

from pathlib import Path

from loffta.door.options import PathLike, open_up
from loffta.extraction.begin import backbone_loader
from loffta.machine import process
from loffta.machine.borrowed import borrowed
from loffta.online.predict import Prediction, open_images
from loffta.online.predict import predict as predict_source


def predict(
    run: PathLike,
    source: PathLike,
    *,
    out: PathLike,
    per_seed: bool = False,
    calibrated: bool = False,
    cache: PathLike | None = None,
    batch_size: int = 32,
    device: str = "auto",
    max_bad_frac: float | int = 0.01,
    image_root: PathLike | None = None,
    follow_links: bool = False,
    progress: bool = True,
    stop: process.StopFlag | None = None,
) -> Prediction:
    """Tells the classes, or the values, of images by the trained heads of a run; `load_run` gives them without a file.

    >>> done = loffta.predict("runs/linear", "photos", out="predictions.parquet", device="cpu")
    >>> done.images, done.bad, sum(done.counts.values())
    (150, 0, 150)

    Args:
        source: a folder, a table, one image file, or anything that `extract` takes.
        out: a .parquet file: a row per image, in order, with key, status, reason, predicted, confidence, probabilities;
            numbers, in the unit of the values that were learnt, have neither of the last two.
        per_seed: each seed's own prediction, too, beside the mean of all.
        calibrated: confidences that are right as often as they say, with the temperature that was fitted on images
            held out of the training; what is predicted stays the same.
        cache: for runs of older versions: where the cache is now.
        batch_size: images per pass.
        max_bad_frac: a share; more bad images are an error.
        progress: show progress and notes on stderr.
        stop: looked at between the images; the command line's.
    Returns:
        How many images there were, how many of them could not be used, and how many are of each class; or the range
        of the numbers.
    Raises:
        UsageError: `out` is a folder, or no .parquet; or another option that cannot be used.
        LofftaError: `out` is something else; no run, no trained head, or a backbone that is not the features'; or no
            temperature, where nothing was held out.
        TooManyBadImages: over `max_bad_frac`; the file is written.
    """
    with borrowed(progress=progress):
        process.cap_threads()
        target = process.resolve_device(device)
        return predict_source(
            Path(run),
            open_images(open_up(source, image_root, follow_links)),
            Path(out),
            backbone_loader(target),
            device=target,
            cache_root=None if cache is None else Path(cache),
            per_seed=per_seed,
            calibrated=calibrated,
            batch_size=batch_size,
            max_bad_frac=float(max_bad_frac),
            stop=stop,
        )
