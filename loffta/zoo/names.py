"""Short names for backbones, looked up without torch.

In: a name as the user writes it (`dinov2-b`, or any timm id).   Out: timm's id, after which the store is named.
Called when a configuration is parsed and by `loffta models` and `loffta fetch`; `families` and `pyramids` hold the
names, `facts` the shapes. Outside `backbones/`, whose import brings torch: the list of names must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from loffta.errors import unknown_name
from loffta.zoo.families import TRANSFORMERS, Family
from loffta.zoo.pyramids import PYRAMIDS


@dataclass(frozen=True)
class Facts:
    """What a timm model takes and gives at its native size, and timm's word on its licence.

    `taps` are the outputs alone, in depth order; whether a block has inner taps is proven when it is loaded.
    """

    px: int  # side of the square input
    n_params: int  # in millions
    licence: str  # as timm states it; "" where it states none
    mean: tuple[float, float, float]  # per RGB channel, in 0-1 units
    std: tuple[float, float, float]
    interpolation: str
    n_class: int  # prefix tokens before the registers: class token, a distillation token
    n_registers: int
    kind: str  # blocks (isotropic) or stages
    taps: tuple[tuple[int, int], ...]  # per output: side of its square grid, channels

    @property
    def n_prefix(self) -> int:
        return self.n_class + self.n_registers

    def tap_bytes(self) -> tuple[int, ...]:
        """Per output, bytes of one image's grid and prefix in float16, as `extract` stores them by default."""
        return tuple(2 * (side * side + self.n_prefix) * width for side, width in self.taps)


FAMILIES: dict[str, Family] = {**TRANSFORMERS, **PYRAMIDS}
ZOO: dict[str, str] = {short: timm_id for family in FAMILIES.values() for short, timm_id in family.members.items()}


def resolve_name(name: str, *, where: str = "--backbone") -> str:
    """timm's id for a short name; a timm id, with or without its pretrained tag, stays as it is.

    Only a name that the zoo does not know costs an import of timm (2-5 s).

    Raises:
        UsageError: neither; near names of both kinds are given.
    """
    if name in ZOO:
        return ZOO[name]
    if any(name in (timm_id, timm_id.partition(".")[0]) for timm_id in ZOO.values()):
        return name
    import timm

    if not timm.is_model(name.partition(".")[0]):
        known = [*ZOO, *timm.list_models(), *timm.list_pretrained()]
        raise unknown_name("backbone", name, known, where=where)
    check_name(name)  # its tag
    return name


def check_name(backbone: str) -> None:
    """Raises a UsageError with near names unless timm knows the model and, where one is given, its pretrained tag."""
    import timm
    from timm.models import get_arch_pretrained_cfgs

    architecture, _, tag = backbone.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("backbone", backbone, [*timm.list_models(), *timm.list_pretrained()], where="--backbone")
    tagged = get_arch_pretrained_cfgs(architecture)  # its keys are architecture.tag, as the user writes it
    if tag and backbone not in tagged:
        raise unknown_name("backbone", backbone, [architecture, *tagged], where="--backbone")
