"""`folder:PATH`: images in folders named after splits and classes, or in no order at all.

`<split>/<class>/...` when every folder that holds images is named as a split, else `<class>/...`, else flat: no labels.
What was understood is said on stderr, for it is guessed from names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from loffta.errors import LofftaError, UsageError
from loffta.images.endings import count_endings, decodable, describe_endings, ending_of
from loffta.images.files import FileRoot, Place, existing, key_fault, say_followed
from loffta.machine.progress import say
from loffta.store.label_cells import one_class
from loffta.store.names import one_folder_down, split_name
from loffta.store.table import ImageTable
from loffta.words import first_of


class ImageFolder:
    """The images below one folder; keys are paths relative to it."""

    def __init__(self, path: Path, *, follow_links: bool = False) -> None:
        self._root = FileRoot(path, follow_links=follow_links)
        self.read = self._root.read
        self._source = f"folder:{Place(str(self._root.path), follow_links=follow_links)}"

    def listing(self) -> ImageTable:
        """Every image by name and size, none opened, sorted by key; hidden files and folders are passed over.

        Raises:
            UsageError: no images.
            LofftaError: a folder cannot be listed.
        """
        skipped: dict[str, list[str]] = {}
        other: list[str] = []
        try:
            sizes = dict(sorted(self._scan(skipped, other)))
        except OSError as error:
            raise LofftaError(
                f"cannot list the images ({error.strerror or error})",
                where=error.filename or self._root.path,
                remedy="make it readable, or move it out of the image set",
            ) from error
        layout, splits, classes = _understand(sorted(sizes), skipped)
        for reason, keys in skipped.items():
            shown = first_of([repr(key) for key in sorted(keys)], ", ")
            say(f"{self._source}: skipped {len(keys)} ({reason}): {shown}")
        not_taken = count_endings(other)
        if not_taken:
            say(f"{self._source}: not taken (no image that can be decoded here): {describe_endings(not_taken)}")
        say_followed(self._source, self._root, sizes)
        if not splits:
            raise UsageError(
                "no images in this folder",
                where=f"SOURCE {self._source}",
                remedy=f"known endings are {' '.join(sorted(decodable()))}; for other names write a table: "
                "table:FILE.csv; links that lead out are taken with --follow-links",
            )
        labels = one_class([classes[key] for key in splits])
        table = labels.table(self._source, list(splits), [sizes[key] for key in splits], list(splits.values()))
        table = replace(table, not_taken=not_taken)
        counts = ", ".join(f"{split} {n}" for split, n in table.split_sizes().items())
        say(f"{self._source}: read as {layout}; images: {counts}; classes: {len(table.classes) or 'none'}")
        if len(table.classes) == 1 and (cause := one_folder_down(self._source, table.keys, table.classes[0])):
            say(f"{self._source}: all images are of one class, '{table.classes[0]}': {cause}")
        return table

    def _scan(self, skipped: dict[str, list[str]], other: list[str]) -> Iterator[tuple[str, int]]:
        """(key, bytes) of every image in no order; `skipped` is filled by reason, `other` with what is no image."""
        folders, linked, seen = [""], list[str](), set[str]()
        while folders or linked:
            prefix = folders.pop() if folders else linked.pop(0)  # what lies in the root goes before links to it
            real = os.path.realpath(self._root.path / prefix)
            if self._root.follows and real in seen:
                skipped.setdefault("links to folders that are listed already", []).append(prefix.rstrip("/"))
                continue
            seen.add(real)
            with os.scandir(real) as entries:
                for entry in sorted(entries, key=lambda e: e.name) if self._root.follows else entries:
                    key = prefix + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{key}/")
                    elif self._root.follows and entry.is_symlink() and Path(entry.path).is_dir():
                        linked.append(f"{key}/")
                    elif reason := self._fault(key, entry):
                        skipped.setdefault(reason, []).append(key)
                    elif _is_image(entry.name):
                        yield key, entry.stat().st_size
                    elif entry.is_file():
                        other.append(entry.name)

    def _fault(self, key: str, entry: os.DirEntry[str]) -> str | None:
        """Why something that looks like an image, or a linked folder, is not taken."""
        if entry.is_symlink() and Path(entry.path).is_dir():  # entry.is_dir() raises for a link to itself
            return "links to folders"  # followed, they could lead out or round in circles
        if not _is_image(entry.name):
            return None
        if entry.is_symlink():
            try:
                self._root.locate(key)
            except OSError:
                return "links that are broken or leave the folder"
        if not entry.is_file():
            return "no regular files"
        return "names with control characters or not UTF-8" if key_fault(key) else None


def open_folder(text: str) -> ImageFolder:
    """The image set of a folder that is there."""
    place = Place.parse(text)
    return ImageFolder(existing(place.path, source=f"folder:{text}", folder=True), follow_links=place.follow_links)


def _is_image(name: str) -> bool:
    return ending_of(name) in decodable()


def _understand(keys: list[str], skipped: dict[str, list[str]]) -> tuple[str, dict[str, str], dict[str, str | None]]:
    """The layout in words; split by key, class by key; images beside the folders that count go to `skipped`."""
    tops = list(dict.fromkeys(key.split("/")[0] for key in keys if "/" in key))
    named = {top: split for top in tops if (split := split_name(top))}
    if not tops or len(named) < len(tops):
        classes = _by_class(keys, 0, skipped)
        layout = "<class>/..." if tops else "images without classes"
        if named:
            layout += f" ({', '.join(named)} taken for classes: {next(t for t in tops if t not in named)} is no split)"
        return layout, dict.fromkeys(classes, "train"), classes
    in_folder: dict[str, list[str]] = {top: [] for top in tops}
    for key in keys:
        top, slash, _ = key.partition("/")
        if slash:
            in_folder[top].append(key)
        else:
            skipped.setdefault("images beside the folders of splits", []).append(key)
    classes = {key: name for part in in_folder.values() for key, name in _by_class(part, 1, skipped).items()}
    renamed = ", ".join(f"{top} is {split}" for top, split in named.items() if top != split)
    layout = "<split>/<class>/..." if any(classes.values()) else "<split>/... without classes"
    return layout + (f" ({renamed})" if renamed else ""), {key: named[key.split("/")[0]] for key in classes}, classes


def _by_class(keys: list[str], depth: int, skipped: dict[str, list[str]]) -> dict[str, str | None]:
    """Class by key, from the folder at `depth`; where there are such folders, images beside them are skipped."""
    classes = {key: parts[depth] if len(parts := key.split("/")) > depth + 1 else None for key in keys}
    if any(name is not None for name in classes.values()):
        strays = [key for key, name in classes.items() if name is None]
        if strays:
            skipped.setdefault("images beside the folders of classes", []).extend(strays)
        return {key: name for key, name in classes.items() if name is not None}
    return classes
