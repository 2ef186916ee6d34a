"""Images straight through a backbone into a head: the one wing that joins both halves.

In:  images, and a run or a TrainConfig.   Out: predictions, results, or a run as a cached training leaves it. Each
module is imported by the command that needs it: predict, evaluate --online, train --online, verify --recompute.
"""

ONLINE_LINEAR = "online-linear"


def head_of(name: str) -> str:
    """The head in HEADS; `online-linear` is the linear probe on one vector."""
    return "linear" if name == ONLINE_LINEAR else name
