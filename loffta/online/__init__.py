"""Images straight through a backbone into a head: the one package that joins both halves.

Each module is imported by the command that needs it: predict, evaluate --online, train --online, verify --recompute.
"""

ONLINE_LINEAR = "online-linear"


def head_of(name: str) -> str:
    """The head in HEADS; `online-linear` is the linear probe on one vector."""
    return "linear" if name == ONLINE_LINEAR else name
