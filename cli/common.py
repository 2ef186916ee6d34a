"""What every command shares: the `--json` option, and the one line that it prints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="End with the result as one JSON object on stdout.")


def emit(result: Mapping[str, Any], as_json: bool) -> None:
    """Prints `result` as one line of JSON when `--json` was given, else nothing; a command calls it last.

    NaN and infinities become null: JSON has no word for them, and Python's own `NaN` breaks every strict parser.
    """
    if as_json:
        click.echo(json.dumps(_plain(result), allow_nan=False))


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
