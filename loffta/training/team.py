"""Ranks that train together, each on its share of every batch: sums over all of them, and words of the first.

In: a Rank and a device.   Out: a Team, for `fit` and `train`; ALONE is that of one process, where nothing is exchanged.

torch's DistributedDataParallel averages gradients, takes no batch that some ranks have nothing of, and waits for ever
for a parameter that one rank did not use. Here each rank's loss is its part of the batch's mean, so that gradients are
summed: once a step, for all members, and with them the losses and the signals that have come.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from loffta.errors import LofftaError, Stopped, UsageError
from loffta.heads.batch_norm import share_batch_norms
from loffta.machine.process import StopFlag
from loffta.machine.ranks import Rank
from loffta.shares import Share, SharedGenerator
from loffta.training.members import Member

Value = TypeVar("Value")
# torch's own for gloo. A rank that is killed shows at once, by its connections; this is for one that stands still
TIMEOUT = timedelta(minutes=30)
_OF_OTHERS = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed? ?out", re.IGNORECASE)
_STOPPED = "stopped"
_numbers = count()


class Team:
    """The ranks of one training."""

    def __init__(self, rank: Rank, store: Any = None) -> None:
        self.rank = rank
        self.signal: int | None = None  # that a rank had got when the last step ended
        self._store = store
        self._share: Share | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank writes, logs and evaluates."""
        return self.rank.leads

    @property
    def is_shared(self) -> bool:
        """Whether others have images of the batch at hand."""
        return self._share is not None and not self._share.is_all

    @property
    def total(self) -> Callable[[Tensor], Tensor] | None:
        """The sum of a tensor over what all ranks have of the batch; gradients pass. None: there is one process."""
        return None if self.rank.of == 1 else self._total

    def signal_of(self, stop: StopFlag) -> int | None:
        """The signal that ends the training here, on all ranks alike."""
        return stop.signal if self.rank.of == 1 else self.signal

    def adopt(self, member: Member) -> Member:
        """A member that was just built; its statistics become those of whole batches."""
        if self.rank.of > 1:
            assert isinstance(member.head, nn.Module)
            share_batch_norms(member.head, self._total, lambda: self.is_shared)
            member.penalised = self.leads  # once, whatever the number of ranks
        return member

    def take(self, share: Share | None, members: Sequence[Member]) -> None:
        """Says what of the next batch this rank has."""
        self._share = share
        for member in members:
            if isinstance(member.rng, SharedGenerator):
                member.rng.share = share

    def add_up(self, members: Sequence[Member], losses: list[Tensor], signal: int | None) -> list[Tensor]:
        """Gives every rank the gradients, and the losses, of the whole batch; `signal` becomes known to all.

        A parameter that no rank has a gradient of is left without one, as in one process.
        """
        if self.rank.of == 1:
            return losses
        parameters = [p for member in members for p in member.head.parameters() if p.requires_grad]
        here = losses[0].device
        signals, known = torch.zeros(self.rank.of), torch.tensor([float(p.grad is not None) for p in parameters])
        signals[self.rank.number] = signal or 0
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
        found = torch.cat([known.to(here), torch.stack(losses).float(), *gradients])
        if not self.is_shared and not self.leads:
            found.zero_()  # each has computed all of it
        flat = torch.cat([signals.to(here), found])
        dist.all_reduce(flat)
        sizes = [self.rank.of, len(parameters), len(losses), *[p.numel() for p in parameters]]
        told, known, summed, *rest = flat.split_with_sizes(sizes)
        for p, n, gradient in zip(parameters, known.tolist(), rest, strict=True):
            p.grad = gradient.view_as(p).to(p.dtype) if n else None
        self.signal = int(told.max()) or None
        return list(summed)

    def agree(self, make: Callable[[], Value]) -> Value:
        """What the first rank has found; the others do not look."""
        if self.rank.of == 1:
            return make()
        words: list[Any] = [make() if self.leads else None]
        dist.broadcast_object_list(words)
        value: Value = words[0]
        return value

    def meet(self) -> None:
        """Waits until all are here."""
        if self.rank.of > 1:
            dist.all_reduce(torch.zeros(1))

    @contextmanager
    def explained(self, stop: StopFlag, where: Path) -> Iterator[None]:
        """Turns the end of another rank into a message, or into the same end where a signal has stopped it.

        Raises:
            Stopped: this rank or another was stopped.
            LofftaError: another has ended.
        """
        try:
            yield
        except Stopped:
            if self._store is not None and stop.signal is not None:
                with suppress(RuntimeError):  # who keeps the store may have ended
                    self._store.set(_STOPPED, str(stop.signal))
            raise
        except RuntimeError as error:
            if self.rank.of == 1 or not _OF_OTHERS.search(str(error)):
                raise
            stop.signal = stop.signal or self._signal_of_others()
            stop.check("another rank had ended; what the last checkpoint has is kept")
            raise LofftaError(
                f"another rank of this training has ended ({str(error).splitlines()[0]})",
                where=where,
                remedy="its own message says why; the same command goes on from the last checkpoint",
            ) from error

    def _signal_of_others(self) -> int | None:
        try:
            return int(self._store.get(_STOPPED)) if self._store.check([_STOPPED]) else None
        except RuntimeError:  # who keeps the store has ended, too
            return None

    def _total(self, tensor: Tensor) -> Tensor:
        if not self.is_shared:
            return tensor
        found: Tensor = _Sum.apply(tensor)
        return found


ALONE = Team(Rank())


class _Sum(torch.autograd.Function):
    """The sum over all ranks: each rank's part of the loss depends on it, so its gradient is their sum, too."""

    @staticmethod
    def forward(_context: Any, tensor: Tensor) -> Tensor:
        found = tensor.detach().clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        found = gradient.contiguous().clone()
        dist.all_reduce(found)
        return found


@contextmanager
def joined(rank: Rank, device: torch.device, where: Path) -> Iterator[Team]:
    """The team of all ranks, for as long as the block lasts. On CUDA it has never run.

    Raises:
        LofftaError: not all came.
    """
    if rank.of == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store = PrefixStore(f"loffta/{next(_numbers)}", _rendezvous(rank))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank.number, world_size=rank.of, timeout=TIMEOUT)
    except RuntimeError as error:
        raise LofftaError(
            f"the {rank.of} ranks of this training did not find each other ({str(error).splitlines()[0]})",
            where=where,
            remedy="do all of them run, and do MASTER_ADDR and MASTER_PORT name a port of the first one's node that "
            "the others reach?",
        ) from error
    try:
        yield Team(rank, store)
    finally:
        dist.destroy_process_group()


@cache
def _rendezvous(rank: Rank) -> Any:
    """Where ranks find each other, by torchrun's agent or the first rank: one for the life of the process."""
    address, port = _master()
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(address, port, rank.of, rank.leads and not agent, TIMEOUT)


def _master() -> tuple[str, int]:
    """torchrun's words; of srun alone the node that started the step, where the first rank is, and a port by its job.

    Raises:
        UsageError: nobody says it.
    """
    address = os.environ.get("MASTER_ADDR") or os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    job = int(os.environ.get("SLURM_JOB_ID", "0")) + 7 * int(os.environ.get("SLURM_STEP_ID", "0"))
    port = os.environ.get("MASTER_PORT") or str(20_000 + job % 20_000)
    if address is None or not port.isdecimal():
        raise UsageError(
            "nobody says where the ranks of this training meet",
            where="MASTER_ADDR and MASTER_PORT, in the environment",
            remedy="start it by torchrun, which sets them, or set them",
        )
    return address, int(port)
