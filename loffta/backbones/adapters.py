"""Merges a PEFT adapter (LoRA and its kin) into a timm model, which then has its plain tensors again.

In: a loaded model and an adapter's folder.   Out: the model with the adapter's change in its weights.
Called by `timm_backbone` for `--weights BASE+DIR`; needs the `peft` package (`loffta[adapters]`).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any

from safetensors import safe_open
from torch import nn

from loffta.backbones.checkpoint import classifiers
from loffta.backbones.weights import ADAPTER_CONFIG, ADAPTER_FILE
from loffta.errors import LofftaError
from loffta.files.documents import from_json, read_bytes

REASON_LETTERS = 240  # peft lists every missing tensor
INSIDE = "base_model.model."  # where PEFT puts the model that it adapts


def merge_adapter(model: Any, folder: Path) -> nn.Module:
    """Adds the adapter's change to the weights, on the CPU.

    A classifier that was tuned along (PEFT's `modules_to_save`) is taken over, or taken off where it has another width.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
    Returns:
        The model, with the same tensors by name and shape.
    Raises:
        LofftaError: peft is not installed, the adapter is for another model, or cannot be merged.
    """
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    except ImportError as error:
        remedy = "pip install 'loffta[adapters]'"
        raise LofftaError("adapters need the package peft", where=f"--weights {folder}", remedy=remedy) from error
    plain = {name: tensor.shape for name, tensor in model.state_dict().items()}
    n_classes = model.num_classes
    try:
        shapes = _shapes(folder / ADAPTER_FILE)
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise _unmergeable(folder, str(from_json(read_bytes(folder / ADAPTER_CONFIG))["peft_type"]))
        tuned_classes = _tuned_classes(model, shapes)
        if tuned_classes not in (None, n_classes):
            model.reset_classifier(tuned_classes)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # tensors that are missing, options that are not understood
            adapted = PeftModel.from_pretrained(model, str(folder), config=config, torch_device="cpu")
            surplus = sorted(shapes.keys() - get_peft_model_state_dict(adapted).keys())
            if surplus:
                raise ValueError(f"{len(surplus)} of its tensors have no place in the model, the first: {surplus[0]}")
            merged: Any = adapted.merge_and_unload(safe_merge=True)
    except LofftaError:
        raise
    except AttributeError as error:  # PEFT's kinds that only run beside the model have no such method
        raise _unmergeable(folder, type(error).__name__) from error
    except Exception as error:  # peft raises its own, torch's, safetensors' and the json module's errors, and warnings
        reason = shorten(str(error) or type(error).__name__, REASON_LETTERS)  # also folds its lines into one
        raise LofftaError(
            f"the adapter does not fit: {reason}",
            where=f"--weights {folder}",
            remedy="pass the backbone and the base weights (BASE+DIR) that it was trained on",
        ) from error
    if merged.num_classes != n_classes:
        merged.reset_classifier(0)
    after = {name: tensor.shape for name, tensor in merged.state_dict().items()}
    if not after.items() <= plain.items():
        raise _unmergeable(folder, "an adapter that adds or reshapes tensors")
    return merged  # type: ignore[no-any-return]


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, not a dict


def _tuned_classes(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Rows of the classifier that the adapter brings along; None where it brings none."""
    return next((shapes[n][0] for c in classifiers(model) if (n := f"{INSIDE}{c}.weight") in shapes), None)


def _unmergeable(folder: Path, kind: str) -> LofftaError:
    return LofftaError(
        f"this adapter ({kind}) cannot be merged into the weights",
        where=f"--weights {folder}",
        remedy="load model and adapter in a function of yours: --backbone custom:MODULE:FUNCTION (docs/weights.md)",
    )
