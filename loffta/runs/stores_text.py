"""What a run's stores.json says, as types: where its features come from; see `loffta.runs.origins`.

In: JSON that `origins` reads.   Out: OriginsText, with a FeatureText for each array that a head is fed from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from loffta.limits import MANY, MAX_PX
from loffta.runs.records import Natural, Record
from loffta.tokens import Kind

Side: TypeAlias = Annotated[int, Field(ge=1, le=1 << 24)]  # of a tensor


class Spec(Record):
    """stores.json: what a head is fed of one store; a FeatureSpec."""

    backbone: str
    taps: list[str] = Field(min_length=1, max_length=MANY)
    kind: Kind
    shape: list[Side] = Field(min_length=1, max_length=3)
    image_px: int = Field(ge=1, le=MAX_PX)
    registers_only: bool = False


class ScalesText(Record):
    """What decodes an int8 array: base64 of little-endian float32."""

    shape: list[Side] = Field(min_length=2, max_length=2)
    scale: str
    zero: str


class FeatureText(Record):
    """One array that a head is fed from."""

    store: str
    array: str
    kind: Kind
    dtype: Literal["float16", "float32", "int8"]
    shape: list[Side] = Field(min_length=2, max_length=4)
    scales: ScalesText | None
    spec: Spec


class ThumbsText(Record):
    """The thumbnails that a head is guided by."""

    px: int = Field(ge=1, le=MAX_PX)
    background: str | None = None
    range: str | None = None


class OriginsText(Record):
    """stores.json."""

    format: Natural
    classes: list[str]
    stores: dict[str, dict[str, Any]]
    features: list[FeatureText] = Field(min_length=1, max_length=MANY)
    thumbs: ThumbsText | None = None  # of heads that are guided by them; absent in runs of old
