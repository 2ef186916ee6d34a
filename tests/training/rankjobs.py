"""Trainings by several ranks, each a process, and what can happen to one of them."""

import json
import os
import socket
import sys
import time
from pathlib import Path

from loffta.errors import LofftaError
from loffta.machine.process import StopFlag
from loffta.training import dealt, fit
from loffta.training.train import train
from tests.forked import Forked

STOP_AT = 5  # the step, of all members, that something happens before


def start(config, out, n, ranks="batches", events=None, function=None):
    """`n` ranks of one training; `events` names what happens to which of them: `stop`, `die`.

    Ranks that members are dealt out to, and nothing happens to, wait for it: else they may have done all before.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(n)}
    before, started = dict(os.environ), []
    for rank in range(n):
        os.environ.update(told | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(n)})
        event = (events or {}).get(rank, "wait" if events and ranks == "auto" else None)
        started.append(Forked(function or work, config, out, ranks, event))
    os.environ.clear()
    os.environ.update(before)
    return started


def finish(started):
    """Exit codes, stdout and stderr by rank."""
    said = [rank.communicate() for rank in started]
    return [rank.returncode for rank in started], [out for out, _ in said], [err for _, err in said]


def work(config, out, ranks, event):
    """The training of one rank; its results on stdout."""
    dealt.LOOK_S, dealt.TRY_S = 0.05, 0.3
    stop = StopFlag()
    if event is not None:
        _arrange(event, stop, Path(f"{out}-happened"))
    try:
        results = train(config, out, stop, ranks)
    except LofftaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(results["metrics"]))
    return 0


def _arrange(event, stop, happened):
    prepare, steps = fit._prepare_step, []

    def happen(*given):
        steps.append(0)
        while event == "wait" and not happened.exists():
            time.sleep(0.02)
        if event != "wait" and len(steps) == STOP_AT:
            happened.touch()
            if event == "die":
                os._exit(9)
            stop.signal = 10
        prepare(*given)

    fit._prepare_step = happen


def reads(config, out, ranks, event):
    """The same; says how many images each read of a streamed array was of."""
    from loffta.feed.sources import StreamedArray

    fill, seen = StreamedArray.fill, []
    StreamedArray.fill = lambda self, places, *rest: seen.append(len(places)) or fill(self, places, *rest)
    code = work(config, out, ranks, event)
    print(json.dumps(seen))
    return code
