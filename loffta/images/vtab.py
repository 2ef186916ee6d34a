"""`vtab:ROOT/NAME`: one task of the VTAB-1k dump that NOAH made, as SSF, RepAdapter and most loaders read it.

ROOT/NAME/<list>.txt holds lines `relative_path label`, the images lie in ROOT/NAME/images/<list>/. The splits are
train (train800), val (val200) and test. train800val200 holds copies of the same images: it is `train+val`, and not
read again.
"""

from __future__ import annotations

import re
from pathlib import Path

from loffta.errors import UsageError, refuse, unknown_name
from loffta.images.files import FileList, FileRoot, existing, is_there, user_path
from loffta.machine.progress import say
from loffta.store.label_cells import one_class
from loffta.store.table import ImageTable

LISTS = {"train800": "train", "val200": "val", "test": "test"}
BOTH = "train800val200"
_LINE = re.compile(r"(\S.*?)\s+(\d{1,9})")
_MAX_CLASSES = 100_000  # VTAB's largest task has 397: a number above this is no class, and would make a list of names


class VtabDump:
    """One task; keys are the paths in its lists."""

    def __init__(self, path: Path) -> None:
        self._root = FileRoot(path)
        self.read = self._root.read
        self._source = f"vtab:{self._root.path}"

    def listing(self) -> ImageTable:
        """The images of all lists in the lists' order; classes are named by their numbers, 0 to the largest.

        Raises:
            UsageError: no list, or lines that cannot be used: all of them at once.
        """
        files = {name: split for name, split in LISTS.items() if self._list(name).is_file()}
        if not {"train800", "val200"} & set(files) and self._list(BOTH).is_file():
            files = {BOTH: "train", **files}
            say(f"{self._source}: no train800.txt and val200.txt, so all of {BOTH}.txt is split train")
        if not files:
            raise UsageError(
                "no lists of a VTAB-1k dump in this folder",
                where=f"SOURCE {self._source}",
                remedy=f"it needs {', '.join(f'{name}.txt' for name in LISTS)} with lines `relative_path label`",
            )
        missing = [f"{name}.txt" for name in LISTS if name not in files and (name == "test" or BOTH not in files)]
        if missing:
            say(f"{self._source}: no {' and no '.join(missing)}, so no such split")
        images = FileList(self._root)
        rows = [(*row, split) for name, split in files.items() for row in self._rows(name, images)]
        refuse(images.faults, where=f"SOURCE {self._source}", remedy="mend the lists or unpack the dump again")
        if not rows:
            raise UsageError("the lists are empty", where=f"SOURCE {self._source}", remedy="unpack the dump again")
        keys, numbers, splits = zip(*rows, strict=True)
        labels = one_class([str(i) for i in numbers], [str(i) for i in range(max(numbers) + 1)])
        return labels.table(self._source, keys, list(images.sizes.values()), splits)

    def _list(self, name: str) -> Path:
        return self._root.path / f"{name}.txt"

    def _rows(self, name: str, images: FileList) -> list[tuple[str, int]]:
        """(key, label) of one list; `images` is filled."""
        try:
            text = self._list(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            images.faults.append(f"{name}.txt cannot be read ({error})")
            return []
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            place = f"{name}.txt line {number}"
            parts = _LINE.fullmatch(line.strip())
            if parts is None or int(parts[2]) >= _MAX_CLASSES:
                images.faults.append(f"{place}: {line.strip()[:80]!r} is not `relative_path label`")
                continue
            if key := images.add(parts[1], place):
                rows.append((key, int(parts[2])))
        return rows


def open_vtab(text: str) -> VtabDump:
    """The task in a folder that is there.

    Raises:
        UsageError: no such folder; near names in ROOT are given.
    """
    path = user_path(text)
    if text and is_there(path.parent, folder=True) and not is_there(path, folder=True):
        names = sorted(p.parent.name for p in path.parent.glob("*/test.txt"))
        if names:
            raise unknown_name("VTAB task", path.name, names, where=f"SOURCE vtab:{text}")
    return VtabDump(existing(text, source=f"vtab:{text}", folder=True))
