"""loffta: extract tokens from frozen vision backbones once, train many heads on them.

The front door: what `loffta COMMAND` does is `loffta.command(...)`, with the same names for the same options. A name is
imported when it is asked for; all else in this package is its own affair and may change.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from loffta.door.audit import audit
    from loffta.door.cache import OpenCache, open_cache
    from loffta.door.evaluate import evaluate
    from loffta.door.extract import extract
    from loffta.door.label import label
    from loffta.door.pack import pack, unpack
    from loffta.door.plan import plan
    from loffta.door.predict import predict
    from loffta.door.report import report
    from loffta.door.run import Run, load_run
    from loffta.door.scan import scan
    from loffta.door.selection import Selection
    from loffta.door.train import train
    from loffta.errors import DamageFound, LofftaError, NotSaved, Stopped, TooManyBadImages, UsageError

_PLACES = {
    "extract": "door.extract",
    "plan": "door.plan",
    "label": "door.label",
    "open_cache": "door.cache",
    "scan": "door.scan",
    "audit": "door.audit",
    "train": "door.train",
    "evaluate": "door.evaluate",
    "predict": "door.predict",
    "report": "door.report",
    "load_run": "door.run",
    "pack": "door.pack",
    "unpack": "door.pack",
    "OpenCache": "door.cache",
    "Selection": "door.selection",
    "Run": "door.run",
    "LofftaError": "errors",
    "UsageError": "errors",
    "TooManyBadImages": "errors",
    "DamageFound": "errors",
    "NotSaved": "errors",
    "Stopped": "errors",
}

__all__ = [
    "DamageFound",
    "LofftaError",
    "NotSaved",
    "OpenCache",
    "Run",
    "Selection",
    "Stopped",
    "TooManyBadImages",
    "UsageError",
    "__version__",
    "audit",
    "evaluate",
    "extract",
    "label",
    "load_run",
    "open_cache",
    "pack",
    "plan",
    "predict",
    "report",
    "scan",
    "train",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'loffta' has no attribute '{name}'")
    from importlib import import_module  # typing has it already

    found = getattr(import_module(f"loffta.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
