"""What the keys of a recipe are made of: a group's strictness, ranges of numbers, durations."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def off_is_none(value: Any) -> Any:
    return None if value is False or value in ("off", "no", "none") else value


def weights_of_classes(value: Any) -> Any:
    """What may be weights of classes in the loss, told in one message where it is none of the kinds."""
    if (value := off_is_none(value)) is None or value in ("balanced", "effective"):
        return value
    if not isinstance(value, dict):
        raise ValueError("must be balanced, effective, or weights by the names of classes, as in {cat: 2, dog: 0.5}")
    if not value:
        raise ValueError("names no class: write {cat: 2, dog: 0.5}, or off")
    for name, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name} must be a number of 0 or more, not {weight}")
    return value


_FOLD = r"^[1-9]\d{0,3}/[1-9]\d{0,3}$"


def _is_a_fold(value: str) -> str:
    if not re.fullmatch(_FOLD, value) or value.endswith("/1"):
        raise ValueError("write it as 2/5, the second of 5 parts (2 or more)")
    number, of = map(int, value.split("/"))
    if number > of:
        raise ValueError(f"the folds of {of} are 1/{of} to {of}/{of}")
    return value


Fold = Annotated[str, AfterValidator(_is_a_fold), WithJsonSchema({"type": "string", "pattern": _FOLD})]


class Duration(NamedTuple):
    """A span of training in the unit the user wrote it in."""

    value: float
    unit: Literal["steps", "epochs", "minutes", "auto"]
    """auto: as often as pays, by `recipes.save_interval`; the value is 0."""

    def __str__(self) -> str:
        return self.unit if self.unit == "auto" else f"{self.value:g} {self.unit}"


def _parse_duration(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    if value == "auto":
        return Duration(0, "auto")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(step|epoch|minute)s?\s*", str(value))
    if not found or float(found[1]) <= 0:
        raise ValueError("must be a number and a unit, as in '500 steps', '1 epoch' or '30 minutes'; or auto")
    duration = Duration(float(found[1]), f"{found[2]}s")  # pyright: ignore[reportArgumentType]
    if duration.unit != "minutes" and duration.value != int(duration.value):
        raise ValueError(f"must be a whole number of {duration.unit}")
    return duration


DurationField = Annotated[
    Duration,
    BeforeValidator(_parse_duration),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(auto|\d+(\.\d+)? (step|epoch|minute)s?)$"}),
]


class Group(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        coerce_numbers_to_str=True,
    )
