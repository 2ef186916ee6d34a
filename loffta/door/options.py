"""The command line's options as arguments: what they come to as keys of a configuration.

In: values as `loffta extract` and `loffta train` take them, from Python or from the command line.   Out: mappings for
ExtractConfig and TrainConfig.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from loffta.errors import UsageError

PathLike: TypeAlias = str | os.PathLike[str]
_AUGMENT = "augment."  # what --set changes of the augmentation begins with


def many(value: Any) -> tuple[Any, ...]:
    """One value, or several, as several; None is none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def open_up(source: PathLike, image_root: PathLike | None, follow_links: bool) -> str:
    """The source in the words that hold what its user opened.

    Raises:
        UsageError: a kind of source that has no such thing.
    """
    spec = os.fspath(source)
    if image_root is None and not follow_links:
        return spec
    from loffta.images.sources import with_options  # readers of every kind: dear where nothing is opened

    return with_options(
        spec, image_root=None if image_root is None else os.fspath(image_root), follow_links=follow_links
    )


def refuse_for(options: Mapping[str, Any], *, is_dense: bool) -> None:
    """Raises UsageError where one of `options`, which are not for this kind of run, was given."""
    for name in (name for name, value in options.items() if value):
        option, what = "--" + name.replace("_", "-"), "heads that give maps" if is_dense else "heads of whole images"
        raise UsageError(f"{option} is not for {what}, as this run's are", where=option, remedy="leave it out")


def pair_backbones(names: Sequence[str], **given: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Pairs each backbone with its weights, taps and size, each given once for all, once for each, or not at all.

    Raises:
        UsageError: another count; the pairs are shown.
    """
    for key, values in given.items():
        option = "--" + key.replace("_", "-")
        if values and not names:
            raise UsageError(
                f"{option} belongs to a --backbone, and none was given",
                where="loffta extract",
                remedy="repeat the backbone's name with --backbone, or write the value into the --config file",
            )
        if len(values) not in (0, 1, len(names)):
            pairs = [f"{n} with {values[i] if i < len(values) else '?'}" for i, n in enumerate(names)]
            raise UsageError(
                f"{option} was given {len(values)} times for {len(names)} backbone{'s' * (len(names) != 1)}: "
                f"{', '.join(pairs)}",
                where=option,
                remedy="give it once for all, or once for each --backbone in the same order",
            )
    spread = {key: [*values] * len(names) if len(values) == 1 else values for key, values in given.items()}
    return tuple(
        {"name": name} | {key: values[i] for key, values in spread.items() if values} for i, name in enumerate(names)
    )


def parse_share(text: str) -> tuple[int, int] | Literal["auto"]:
    """`0/4` -> (0, 4); `auto` is found when the work begins.

    Raises:
        UsageError: not i/n with 0 <= i < n.
    """
    if text == "auto":
        return "auto"
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(
            f"'{text}' is no share of the work",
            where="--shard",
            remedy="write I/N with 0 <= I < N, for example 0/4; or auto, under srun, torchrun or in a job array",
        )
    return int(index), int(count)


def parse_targets(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """`mask,depth`, or several, as several; each once."""
    names = value.split(",") if isinstance(value, str) else value or ()
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def split_settings(
    settings: Mapping[str, Any], augment: str | Mapping[str, Any]
) -> tuple[dict[str, Any], str | dict[str, Any]]:
    """What `set` says of the recipe, and the augmentation with what it says of that: `augment.KEY`."""
    ranges = {key.removeprefix(_AUGMENT): value for key, value in settings.items() if key.startswith(_AUGMENT)}
    recipe = {key: value for key, value in settings.items() if not key.startswith(_AUGMENT)}
    before = {"preset": augment} if isinstance(augment, str) else dict(augment)
    return recipe, {**before, **ranges} if ranges or not isinstance(augment, str) else augment


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that say nothing: a configuration has its own defaults for them."""
    return {key: value for key, value in values.items() if value is not None}
