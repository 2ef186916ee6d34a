"""What may be written into a run's folder: a new run, or more of the one that the same configuration began.

In: a folder, a configuration, the cache.   Out: the folder's RunPaths, with config.yaml and images.json in it. Caches
are compared by their images, not by their paths: one that was moved is the same, another image set at its path is not.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from loffta.config import TrainConfig, parse, read_yaml, to_yaml
from loffta.errors import LofftaError
from loffta.files.durable import find_parts, replace_file, sweep_tree
from loffta.heads import with_new_fields
from loffta.runs.known_images import KnownImages, read_known
from loffta.runs.run import RunPaths, write_json
from loffta.store.cache import Cache
from loffta.store.labels import Annotations
from loffta.store.recipe import differing_fields


def start_run(root: Path, config: TrainConfig, cache: Cache | None = None) -> RunPaths:
    """Makes the run's directory, or opens one that the same configuration began.

    Args:
        cache: whose images the run is to know; None for a training online.
    Raises:
        LofftaError: as `check_out`.
    """
    check_out(root, config, cache)
    sweep_tree(root)  # a killed process may have left half a checkpoint
    paths = RunPaths(root)
    if cache is not None:
        _note_images(paths, cache)
    if _saved_config(paths) != config:
        replace_file(paths.config, to_yaml(config))
    return paths


def is_begun(root: Path, config: TrainConfig) -> bool:
    """Whether the run of this configuration has been begun there."""
    return _saved_config(RunPaths(root)) == config


def _note_images(paths: RunPaths, cache: Cache) -> None:
    """Writes down which images the run is to know, and where they are; what a training began with stays."""
    before, now = read_known(paths), KnownImages.of(cache, paths.root)
    if has_work(paths.root):
        if before is None:  # of an older version: nobody can tell
            return
        now = before.model_copy(update={"cache": now.cache})
    elif cache.labels is not None:  # the labels first: images.json says that they are there
        replace_file(paths.labels, Annotations.of(cache.table).to_parquet())
    if now != before:
        write_json(paths.images, now.model_dump())


def check_out(root: Path, config: TrainConfig, cache: Cache | None = None, *, ignore: Collection[str] = ()) -> None:
    """Refuses a directory that cannot take the run. A run that failed before it had a head may be begun anew.

    Args:
        ignore: fields of the configuration that are not known yet.
    Raises:
        LofftaError: the directory holds a run of another configuration (the fields are named), of other images, or
            something else.
    """
    paths = RunPaths(root)
    old = _saved_config(paths)
    if old is None and root.exists() and _is_other(paths):
        old = _saved_config(paths)  # another rank may have begun the run meanwhile
        if old is None:
            raise LofftaError("this folder holds something else", where=root, remedy="choose an empty or new --out")
    if old is None or not has_work(root):
        return
    fields, lines = set(ignore), []
    known = read_known(paths)
    if known is not None and cache is not None:
        fields.add("cache")
        if not known.begins(cache):
            lines = [
                f"images: {known.images}, digest {known.digest} -> {len(cache.table)}, digest {cache.table.digest}"
            ]
    # an older loffta did not know all fields of a recipe: those have their defaults
    old, config = (c.model_copy(update={"recipe": with_new_fields(c.head, c.recipe)}) for c in (old, config))
    lines += differing_fields(
        old.model_dump(mode="json", exclude=fields), config.model_dump(mode="json", exclude=fields)
    )
    if lines:
        raise LofftaError(
            "this run was made with another configuration:\n    " + "\n    ".join(lines),
            where=paths.config,
            remedy="choose another --out, or give the old options to continue it",
        )


def _is_other(paths: RunPaths) -> bool:
    """Whether there is more than what a run has before its configuration."""
    known = (paths.scoring, paths.images, paths.labels, *paths.claims().values())
    return not paths.root.is_dir() or _others(paths.root, *known)


def has_work(root: Path) -> bool:
    """Whether a run's folder holds anything that took a training: a checkpoint, scores, heads."""
    paths = RunPaths(root)
    known = (paths.config, paths.log, paths.scoring, paths.holdout, paths.turns, paths.images, paths.labels, paths.deal)
    return paths.config.exists() and _others(root, *known, *paths.claims().values())


def _others(root: Path, *known: Path) -> bool:
    """Whether there is more in `root` than these and what killed processes left."""
    parts = {part.path for part in find_parts(root)}
    return any(path not in known and path not in parts for path in root.iterdir())


def _saved_config(paths: RunPaths) -> TrainConfig | None:
    return parse(TrainConfig, read_yaml(paths.config), where=paths.config) if paths.config.exists() else None
