"""What every command shares: the `--json` option, the one line that it prints, and how all other lines are printed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from loffta.machine.terminal import wrap
from loffta.words import plural

_OPENING: dict[str, dict[str, Any]] = {
    "--image-root": {"type": click.Path(), "metavar": "DIR", "help": "Of a table: where its images lie."},
    "--follow-links": {"is_flag": True, "help": "Take images behind links that lead out of SOURCE, too."},
}
json_option = click.option("--json", "as_json", is_flag=True, help="End with the result as one JSON object on stdout.")


def opening_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that open what an image set keeps closed: --image-root and --follow-links."""
    for name, facts in reversed(_OPENING.items()):
        command = click.option(name, **facts)(command)
    return command


def emit(result: Mapping[str, Any], as_json: bool) -> None:
    """Prints `result` as one line of JSON when `--json` was given, else nothing; a command calls it last.

    NaN and infinities become null: JSON has no word for them, and Python's own `NaN` breaks every strict parser.
    """
    if as_json:
        click.echo(json.dumps(_plain(result), allow_nan=False))


def show(line: str) -> None:
    """One line on stdout, harmless to a terminal whatever names are in it, and wrapped to its width."""
    show_lines(wrap(line))


def show_lines(lines: Iterable[str]) -> None:
    """Lines on stdout that are made for the terminal's width already: of a Table, or a command."""
    for line in lines:
        click.echo(line)


def seen_line(facts: Mapping[str, Any]) -> str:
    """What else there is to know of the images of a cache, empty where there is nothing."""
    from loffta.images.endings import describe_endings

    flat, pages, several = facts["flat"], facts["pages_ignored"], facts["several_pages"]
    parts = [f"{flat} {plural(flat, 'image is', 'images are')} a single flat colour"] if flat else []
    if pages:
        parts.append(f"{pages} {plural(pages, 'page', 'pages')} of {several} {plural(several, 'image')} ignored")
    if facts["not_taken"]:
        total = sum(facts["not_taken"].values())
        parts.append(f"{total} {plural(total, 'file')} not taken ({describe_endings(facts['not_taken'])})")
    if facts.get("untold"):
        parts.append(f"flat images and pages are not known of {facts['untold']}, which an older version extracted")
    return "; ".join(parts)


def labels_line(facts: Mapping[str, Any], n_images: int) -> str:
    """What a set of labels says, in one line."""
    splits = ", ".join(f"{split} {count}" for split, count in facts["splits"].items())
    classes = f"{facts['classes']} {plural(facts['classes'], 'class', 'classes')}"
    what = facts["label_kind"] + (f", {classes}" if facts["label_kind"] != "regression" else "")
    groups = f"; groups of '{facts['group_column']}': {facts['groups']}" if facts["groups"] is not None else ""
    return f"labels '{facts['name']}': {facts['labelled']} of {n_images} labelled, {what} ({splits}){groups}"


def targets_line(facts: Mapping[str, Any]) -> str:
    """What there is of one kind of dense targets, in one line."""
    classes = f", {facts['classes']} {plural(facts['classes'], 'class', 'classes')}" if facts["classes"] else ""
    objects = f", {facts['objects']} {plural(facts['objects'], 'object')}" if facts["objects"] else ""
    px = f", squares of {facts['px']} px" if facts["px"] else ""
    bad = len(facts["bad"])
    return f"targets '{facts['kind']}': {facts['ok']}, {facts['missing']} missing, {bad} bad{classes}{objects}{px}"


def _plain(value: Any) -> Any:
    """The same value in what JSON knows: dict, list, str, int, finite float, bool, None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays, without importing either
        return _plain(value.tolist())
    return value  # json.dumps raises TypeError for what is left: a bug, so its traceback stays


def merge_config(ctx: click.Context, file: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a YAML file says, overruled by the options that were given, filled up by the options' defaults.

    Args:
        options: by configuration key; None and empty tuples are as good as not given.
    """
    from loffta.config import read_yaml

    values = read_yaml(file) if file else {}
    given = {
        parameter.name
        for parameter in ctx.command.params
        if parameter.name and ctx.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    }
    for key, value in options.items():
        if value not in (None, ()) and (key in given or key not in values):
            values[key] = value
    return values


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`--set key=value` pairs; values are read as JSON, else as YAML: 4 and 1e-3 are numbers, null is None.

    Raises:
        UsageError: no key, or a value that is neither.
    """
    from loffta.errors import UsageError
    from loffta.files.documents import from_json, from_yaml
    from loffta.words import brief

    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"{brief(pair)} is not key=value", where="--set", remedy="write for example --set epochs=12"
            )
        try:
            settings[key] = from_json(value)  # YAML 1.1 takes 1e-3 for a word
        except ValueError:
            try:
                settings[key] = from_yaml(value)
            except ValueError as error:
                raise UsageError(
                    f"the value of {brief(key)} cannot be read: {brief(value)}",
                    where="--set",
                    remedy="quote it as in YAML",
                ) from error
    return settings
