"""A pipeline made small, for proving that everything runs where its data and networks are not: `loffta run --small`.

In: a PipelineConfig.   Out: the same stages with tiny networks of random weights. No figure from them means anything.
"""

from __future__ import annotations

import re
from typing import Any

from loffta.pipeline.file import PipelineConfig

SMALL_CLASS = 8  # training images of a class, of the stand-ins
TINY = ("test_vit", "vit_tiny_patch16_224", "test_vit2", "test_vit4")  # uniform, 64 to 192 channels wide
N_NORMED = 2  # the first have a class token and a final norm over all tokens, as the sets `final` and `alf` need
N_BLOCKS = 6  # of the shallowest
SMALL_RECIPE = {"epochs": 2, "min_steps": 1}
SMALL_HEADS: dict[str, dict[str, Any]] = {  # two blocks of a transformer show as much as twelve
    "combo": {"width": 32, "depth": 2},
    "loff": {"width": 32, "depth": 2, "n_heads": 2},
}
SMALL_SEARCH = {"search_lr": [1e-3, 1e-2], "search_weight_decay": [1e-4]}


def shrink(config: PipelineConfig) -> PipelineConfig:
    """The same stages with tiny networks: inputs of 32 px (64 where they were above 256), two epochs, seeds and draws.

    Heads that are transformers have two narrow blocks; a search tries two rates.

    Backbones take the tiny ones in order of appearance. Left out are backbones that are more than there are tiny ones,
    or tiny ones with a final norm where that is stored, and taps of blocks that these lack.
    """
    names: dict[str, str] = {}
    online = [values["online"]["backbone"] for values in config.train.values() if "online" in values]
    for backbone in [*(b for values in config.extract.values() for b in values["backbones"]), *online]:
        if backbone["name"] not in names and len(names) < len(TINY):
            names[backbone["name"]] = TINY[len(names)]
    return config.model_copy(
        update={
            "extract": {
                cache: values | {"backbones": [_tiny(b, names) for b in values["backbones"] if _has_tiny(b, names)]}
                for cache, values in config.extract.items()
            },
            "train": {run: _short(values, names) for run, values in config.train.items()},
        }
    )


def _short(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A run of few steps."""
    features = [str(feature).split(":") for feature in values.get("features", ())]
    recipe = values.get("recipe", {}) | SMALL_RECIPE | SMALL_HEADS.get(values["head"], {})
    short = values | {
        "features": [":".join([names.get(name, name), *taps]) for name, *taps in features],
        "recipe": recipe | (SMALL_SEARCH if values.get("search") else {}),
        "seeds": min(2, values.get("seeds", 1)),
    }
    if "shots" in values:
        short |= {"shots": [n for n in values["shots"] if n <= SMALL_CLASS], "draws": 2}
    if "online" in values:
        short["online"] = values["online"] | {"backbone": _tiny(values["online"]["backbone"], names)}
    return short


def _has_tiny(backbone: dict[str, Any], names: dict[str, str]) -> bool:
    tiny = TINY[:N_NORMED] if backbone.get("taps") in ("final", "alf") else TINY
    return names.get(backbone["name"]) in tiny


def _tiny(backbone: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    name = names[backbone["name"]]
    px = 64 if (backbone.get("image_px") or 0) > 256 else 32
    taps = [tap.strip() for tap in str(backbone.get("taps", "last")).split(",")]
    there = [
        tap for tap in taps if not (block := re.match(r"(?:module:)?blocks\.(\d+)", tap)) or int(block[1]) < N_BLOCKS
    ]
    return {"name": name, "weights": f"random:{TINY.index(name)}", "taps": ",".join(there), "image_px": px}
