"""What the boxes of an image set are of: classes by name or by number, whichever their JSON has.

In:  the JSON of every image that has boxes.   Out: names of the classes in order. Called by `table_file` and
`hugging_face`, when they list; no image is opened for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from loffta.images.targets import BadTarget, parse_boxes
from loffta.store.names import in_order, text_fault
from loffta.targets import IGNORE_16


def box_classes(cells: Iterable[tuple[str, bytes | str]], faults: list[str]) -> tuple[str, ...]:
    """Names in the order of `names.in_order`; of numbers 0, 1, ... up to the largest.

    Args:
        cells: (place for messages, JSON).
        faults: gains what is wrong: JSON that is none, names beside numbers.
    """
    names: dict[str, str] = {}  # place by name
    last, place_of_last = -1, ""
    for place, data in cells:
        try:
            for _, name, _ in parse_boxes(data):
                if isinstance(name, str):
                    names.setdefault(name, place)
                elif name > last:
                    last, place_of_last = name, place
        except BadTarget as error:
            faults.append(f"{place}: the boxes: {error}")
    for name, place in names.items():
        if fault := text_fault(name) if name else "it is empty":
            faults.append(f"{place}: the boxes: {name!r} cannot be a class: {fault}")
    if names and last >= 0:
        faults.append(f"{place_of_last}: the boxes: class {last} is a number, but others are names")
    if last >= IGNORE_16:
        faults.append(f"{place_of_last}: the boxes: class {last}, over {IGNORE_16 - 1}")
        return ()
    return tuple(in_order(names)) if names else tuple(str(i) for i in range(last + 1))
