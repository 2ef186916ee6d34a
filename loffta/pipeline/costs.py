"""What stages cost, kept beside what they made: stages.json, so that a second run that has nothing to do hides nothing.

In: finished stages.   Out: their seconds, bytes and results, by command. Called by the launchers and by `results`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loffta.errors import LofftaError
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import replace_file
from loffta.pipeline.stages import Stage


@dataclass
class StageResult:
    """What a stage cost."""

    name: str
    command: str
    seconds: float  # wall clock of the whole process
    bytes: int  # that the stage added to the cache
    result: dict[str, Any]  # the JSON object that the command printed


def keep_cost(out: Path, stage: Stage, seconds: float, result: dict[str, Any]) -> StageResult:
    """Writes what the stage cost into stages.json; of two runs of the same command, the seconds of the longer."""
    kept = read_costs(out)
    if stage.command in kept:
        seconds = max(seconds, kept[stage.command]["seconds"])
    done = StageResult(stage.name, stage.command, seconds, _bytes_of(result), result)
    kept[stage.command] = asdict(done)
    replace_file(_file(out), json.dumps(list(kept.values()), indent=2).encode())
    return done


def read_costs(out: Path) -> dict[str, dict[str, Any]]:
    """What stages cost before, by their commands.

    Raises:
        LofftaError: the file cannot be read.
    """
    path = _file(out)
    if not path.exists():
        return {}
    try:
        entries = from_json(read_bytes(path))
        return {str(entry["command"]): {**entry, "seconds": float(entry["seconds"])} for entry in entries}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise LofftaError(
            f"cannot read what the stages cost before ({error})",
            where=path,
            remedy="delete the file: only their costs are lost",
        ) from error


def _file(out: Path) -> Path:
    return out / "stages.json"


def _bytes_of(result: Mapping[str, Any]) -> int:
    stores = result.get("stores", [])
    return sum(store["bytes"] for store in stores)
