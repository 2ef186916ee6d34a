"""A backbone as the first half of a network in training: pixels in, what a head is fed out.

In: a backbone and an OnlineConfig.   Out: FeatureSpecs and tensors as `features` and `feed` would give them, but
never rounded and, where the backbone is trained, with gradients. Called by `train` of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from loffta.backbones import Backbone, TapTokens
from loffta.config import ExtractConfig, OnlineConfig
from loffta.errors import UsageError
from loffta.extraction.forward import Job
from loffta.extraction.jobs import describe, make_request
from loffta.images.geometry import PixelGeometry
from loffta.pooling import pool_mean
from loffta.store.cache import Store
from loffta.store.recipe import StoreInfo
from loffta.taps import resolve_taps
from loffta.tokens import FeatureSpec, FedKind, Kind


@dataclass(frozen=True)
class Network:
    """A backbone, frozen or not, and the features that are taken of it."""

    backbone: Backbone
    info: StoreInfo  # what a store of these features would say of itself
    specs: tuple[FeatureSpec, ...]
    class_token: bool = False  # a `mean` is the class token in fact

    @property
    def geometry(self) -> PixelGeometry:
        """How images become pixels where they are not augmented: what `extract` would do."""
        return Job(Store(self.info.name, self.info, ()), [], self.backbone, torch.device("cpu")).geometry

    @property
    def model(self) -> nn.Module:
        """The network that can be trained; see `refuse_untrainable`."""
        model = self.backbone.model  # type: ignore[attr-defined]
        assert isinstance(model, nn.Module), "the caller refused what cannot be trained"
        return model

    def refuse_untrainable(self) -> None:
        """Raises UsageError for a custom backbone, whose weights nobody but its function knows."""
        if not isinstance(getattr(self.backbone, "model", None), nn.Module):
            raise UsageError(
                f"{self.backbone.name} is no timm model and cannot be trained",
                where="--unfrozen",
                remedy="leave it out",
            )

    def features(self, pixels: UInt8[Tensor, "B 3 S S"], *, gradients: bool) -> list[Tensor]:
        """One [B, L, *shape] per spec, float32 (or as the autocast around it has it) on the backbone's device."""
        taps = list(dict.fromkeys(tap for spec in self.specs for tap in spec.taps))
        run: Callable[..., Mapping[str, TapTokens]] = self.backbone
        grad: AbstractContextManager[object] = nullcontext()
        if gradients:
            run, grad = self.backbone.run, torch.enable_grad()  # type: ignore[attr-defined]
        with grad:
            tokens = run(pixels, taps)
            return [
                torch.stack([self._take(tokens[tap], spec.kind) for tap in spec.taps], dim=1) for spec in self.specs
            ]

    def _take(self, tokens: TapTokens, kind: FedKind) -> Tensor:
        if kind == "mean":
            return tokens.prefix[:, 0] if self.class_token else pool_mean(tokens.grid)
        return tokens.grid if kind == "grid" else tokens.prefix


def linear_network(backbone: Backbone, config: OnlineConfig) -> Network:
    """For `online-linear`: one vector, of the final norm where the net has that as a tap, else of the last output.

    Raises:
        UsageError: the class token of a net that has none.
    """
    info = _describe(backbone, config)
    taps = [spec.tap for spec in backbone.specs]
    wanted = config.backbone.taps or ("norm" if "norm" in taps else "last")
    names = resolve_taps(wanted, taps, where=f"--taps {wanted}, backbone {backbone.name}")
    if len(names) != 1:
        raise UsageError(
            "online-linear takes one tap", where=f"--taps {wanted}", remedy="name one, or leave --taps out"
        )
    spec = next(spec for spec in backbone.specs if spec.tap == names[0])
    has_class_token = spec.n_prefix > 0 and not spec.registers_only
    if config.pooling == "class" and not has_class_token:
        raise UsageError(f"{backbone.name} has no class token", where="--pooling class", remedy="use --pooling mean")
    class_token = has_class_token if config.pooling == "auto" else config.pooling == "class"
    vector = FeatureSpec(info.label, names, "mean", spec.shape("mean"), backbone.geometry.image_px)
    return Network(backbone, info, (vector,), class_token)


def network_for(backbone: Backbone, config: OnlineConfig, kinds: Sequence[Kind], default_taps: str) -> Network:
    """For any head: the kinds that it is fed, of the taps asked for; in the order in which a cache would give them.

    Raises:
        UsageError: no such tap, or none of the kinds.
    """
    info = _describe(backbone, config)
    available = [spec.tap for spec in backbone.specs]
    wanted = config.backbone.taps or default_taps
    names = resolve_taps(wanted, available, where=f"--taps {wanted}, backbone {backbone.name}")
    px = backbone.geometry.image_px
    specs: list[FeatureSpec] = []
    for kind in kinds:
        chosen = [s for s in backbone.specs if s.tap in names and (kind != "prefix" or s.n_prefix)]
        for (shape, registers_only), run in groupby(chosen, key=lambda spec: (spec.shape(kind), spec.registers_only)):
            names_of_run = tuple(spec.tap for spec in run)
            specs.append(FeatureSpec(info.label, names_of_run, kind, shape, px, registers_only))
    if not specs:
        raise UsageError(
            f"{backbone.name} has no {' or '.join(kinds)} tokens",
            where="--backbone",
            remedy="use another head or backbone, or for the linear head --set pooling=mean",
        )
    return Network(backbone, info, tuple(specs))


def _describe(backbone: Backbone, config: OnlineConfig) -> StoreInfo:
    """As `extract` would describe the store: float32, since nothing is rounded."""
    options = ExtractConfig.model_validate(
        {
            "source": config.source,
            "cache": ".",
            "backbones": (config.backbone,),
            "resize": config.resize,
            "background": config.background,
            "range": config.range,
            "dtype": "float32",
        }
    )
    return describe(backbone, make_request(options.backbones[0], None, options))
