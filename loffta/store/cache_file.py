"""cache.json: what a cache was made with, written once and never changed. Called by `cache` alone."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from loffta.errors import LofftaError, UsageError
from loffta.files.durable import create_file
from loffta.look import Look, look_fields, look_of
from loffta.store import FORMAT
from loffta.store.paths import CachePaths
from loffta.store.reads import read_document, reason
from loffta.store.table import ImageTable
from loffta.words import brief

DEFAULT_UNIT_IMAGES = 256
_MAX_UNIT_IMAGES = 1 << 24


class Settings(NamedTuple):
    """What it says."""

    unit_images: int
    thumb_px: int
    look: Look  # of extractions that name none


def make_files(paths: CachePaths, listing: ImageTable, settings: Settings) -> None:
    """Makes the table of images, then cache.json; the first writer of each wins.

    Raises:
        LofftaError: the folder holds something else.
    """
    if paths.is_foreign() and not paths.config.exists():  # asked again: another process may have just made it
        raise LofftaError("this folder holds something else", where=paths.root, remedy="choose an empty or new folder")
    create_file(paths.images, listing.to_parquet())
    config = {"format": FORMAT, "unit_images": settings.unit_images, "thumb_px": settings.thumb_px}
    create_file(paths.config, json.dumps(config | look_fields(settings.look)).encode())


def refuse_other_unit(paths: CachePaths, asked: int | None, unit_images: int) -> None:
    """Raises UsageError where a unit was asked for that is not the cache's."""
    if asked not in (None, unit_images):
        raise UsageError(
            f"--unit-images {asked}, but this cache was made with {unit_images}",
            where=paths.config,
            remedy=f"leave the option out, or give {unit_images}: it is fixed when a cache is made",
        )


def read_settings(paths: CachePaths) -> Settings:
    """Reads it.

    Raises:
        LofftaError: there is no cache, or one of a newer format.
    """
    try:
        config = read_document(paths.config)
        if config["format"] > FORMAT:
            raise ValueError(f"format {config['format']} is newer than this loffta knows ({FORMAT})")
        unit_images, thumb_px = (_side(config[name], name) for name in ("unit_images", "thumb_px"))
        return Settings(unit_images, thumb_px, look_of(config))
    except (FileNotFoundError, NotADirectoryError) as error:
        if paths.images.exists() and paths.stores.exists():
            raise LofftaError(
                "there is no cache here yet: a copy was begun and is not finished, or cache.json is lost",
                where=paths.root,
                remedy="run the same `loffta pack` or `loffta unpack` again: it goes on where it was stopped",
            ) from error
        raise LofftaError(
            "there is no cache here", where=paths.root, remedy="make one with `loffta extract SOURCE --cache DIR ...`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LofftaError(
            f"cannot read the cache's configuration ({reason(error)})",
            where=paths.config,
            remedy="use the loffta version that made it, or extract into a new cache",
        ) from error


def _side(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value <= _MAX_UNIT_IMAGES:
        raise ValueError(f"{name} is {brief(value)}")
    return value
