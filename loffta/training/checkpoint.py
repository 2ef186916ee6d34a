"""Where a training stands, in one file: the same command goes on from there and ends with the same weights.

In: members and a position.   Out: checkpoint.safetensors (tensors, and JSON in its metadata; nothing is pickled),
replaced at once. Losses that were logged, generators and optimisers are in it: a training that goes on from it ends
with the very bits of one that was never interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from loffta.errors import LofftaError
from loffta.files.documents import from_json
from loffta.files.tensor_file import NewerFormat, read_tensors, write_tensors
from loffta.machine.usage import Cost, Meter
from loffta.store.recipe import differing_fields
from loffta.training.members import Member
from loffta.training.team import ALONE, Team

_BEGIN_ANEW = "delete this file to begin the training anew"


class Position(NamedTuple):
    """What has been done: all epochs before `epoch`, and `batch` batches of it. Epochs count on from phase to phase."""

    epoch: int = 0
    batch: int = 0

    def phase(self, member: Member) -> int:
        """The phase that this lies in; the last one, too, when all is done."""
        return min(self.epoch // member.recipe.epochs, member.head.n_phases - 1)


class Keeper:
    """The checkpoints of one training.

    Args:
        identity: what a checkpoint must agree with to be gone on from; JSON.
        every_s: seconds between two.
        team: goes on from what its first rank finds: on NFS another may see what was there before.
    """

    def __init__(self, path: Path, identity: dict[str, Any], every_s: float, team: Team = ALONE) -> None:
        self.path, self._team = path, team
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._every_s = every_s
        self._started = self._saved = time.monotonic()
        self._seconds_before = 0.0
        self._meter, self._cost_before = Meter(), Cost()

    @property
    def seconds(self) -> float:
        """What the training took so far, earlier attempts included."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def cost(self) -> Cost:
        """What it has cost so far, earlier attempts included up to their last checkpoint."""
        return self._cost_before + self._meter.cost()

    def is_due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self._saved >= self._every_s

    def save(self, members: Sequence[Member], position: Position) -> bool:
        """Replaces the checkpoint, unless a weight is no number any more: the last good one is kept then.

        Raises:
            LofftaError: the disk is full, or nothing may be written.
        """
        going = {str(i): member for i, member in enumerate(members) if member.diverged_at is None}
        if not all(member.is_finite() for member in going.values()):
            return False
        state = {
            "identity": self._identity,
            "position": list(position),
            "seconds": self.seconds,
            "cost": self.cost.as_json(),
            "logs": [member.log for member in members],
            "diverged_at": [member.diverged_at for member in members],
        }
        tensors = {f"{i}/{name}": value for i, member in going.items() for name, value in member.tensors().items()}
        write_tensors(self.path, tensors, json.dumps(state))
        self._saved = time.monotonic()
        return True

    def restore(self, members: Sequence[Member]) -> Position:
        """Brings members that were just built to where the checkpoint is; the beginning where there is none.
        Raises:
            LofftaError: it is damaged, of a newer loffta, or of another training.
        """
        found = self._team.agree(lambda: read_checkpoint(self.path))
        if found is None:
            return Position()
        tensors, state = found
        if lines := differing_fields(state["identity"], self._identity):
            raise LofftaError(
                "this checkpoint is of another training:\n    " + "\n    ".join(lines),
                where=self.path,
                remedy=f"give the old options (and cache) to continue it, or {_BEGIN_ANEW}",
            )
        position = Position(*state["position"])
        for i, member in enumerate(members):
            member.log, member.diverged_at = state["logs"][i], state["diverged_at"][i]
            if member.diverged_at is None:
                prefix = f"{i}/"
                own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
                try:
                    member.restore(own, position.phase(member))
                except (RuntimeError, KeyError, ValueError) as error:
                    raise LofftaError(
                        f"this checkpoint does not fit the head ({str(error).splitlines()[0]})",
                        where=self.path,
                        remedy=f"was it made by another loffta? {_BEGIN_ANEW}",
                    ) from error
        self._seconds_before = state["seconds"]
        self._cost_before = Cost.of_json(state.get("cost", {}))
        return position


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the state that `Keeper` wrote; None where there is no file.

    Raises:
        LofftaError: it is damaged, or of a newer format.
    """
    try:
        tensors, text = read_tensors(path)
        state = from_json(text or "")
        if not isinstance(state, dict):
            raise ValueError("it holds no state of a training")
    except FileNotFoundError:
        return None
    except NewerFormat as error:
        raise LofftaError(
            f"this checkpoint has {error}",
            where=path,
            remedy=f"continue with the loffta that wrote it, or {_BEGIN_ANEW}",
        ) from error
    except ValueError as error:
        raise LofftaError(f"this checkpoint is damaged ({error})", where=path, remedy=_BEGIN_ANEW) from error
    return tensors, state
