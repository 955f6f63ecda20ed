"""What all parts of a parameter file share: names, and what a value may be."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from heima.config import families
from heima.config.benchmarks import known

T = TypeVar("T")

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Section = Literal["summary", "caption", "reasoning"]
Control = Literal["own", "shuffled", "shuffled-same-gold", "mean", "zero", "noise", "question-only"]
QuestionKind = Literal[
    "look-option", "sum-option", "look-free", "sum-number", "look-yes-no", "sum-yes-no"
]
InterpreterInput = Literal["own", "question-only"]
BenchmarkName = Annotated[str, AfterValidator(known)]
ProtocolName = Literal["lmms", "vlmevalkit"]
Family = Annotated[str, AfterValidator(families.known)]
Tiles = Literal["padded", "real"]
TooLong = Literal["drop", "cut", "refuse"]
Fed = Literal["token", "state"]
FeedScale = Literal["none", "match"]
Attention = Literal["open", "blind", "bottleneck"]
ImageDecoding = Literal["faithful", "convert-rgb"]

PRETRAINED = ("text-cot", "base", "interpreter")
"""The models that `teach` provides; checkpoints are adapters on `text-cot`."""

REPOSITORY = r"^[\w.-]+/[\w.-]+$"
COMMIT = r"^[0-9a-f]{40}$"


class ConfigError(ValueError):
    """A parameter file that cannot be used; the message lists every wrong key."""


def given(value: T | None, name: str) -> T:
    """A value of which a validator has made sure; raises `ValueError` where it is None."""
    if value is None:
        raise ValueError(f"{name} is not given")
    return value


def expected(kind: type[T], value: object, key: str) -> T:
    """`value`, a part of the parameters of which there are several kinds, as the one wanted.

    Raises `ConfigError` where it is of another kind.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{key} must be a {kind.__name__} here, not a {type(value).__name__}")
    return value


LARGEST = 10**12
"""No count, size or rate of any pipeline is larger: such a number is a slip, and would only fail
hours later or never end."""


class Model(BaseModel):
    """A part of the parameters: no unknown keys, and only numbers that are numbers.

    YAML's `yes` is no 1, `.inf` and `.nan` are no sizes, and none is larger than `LARGEST`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, given: Any) -> Any:
        faults = []
        if isinstance(given, Mapping):
            for name, field in cls.model_fields.items():
                found = _numbers(given.get(name), in_mapping=get_origin(field.annotation) is dict)
                for key, one in found:
                    shown = f"{name}{key} = {one!r}"
                    if not isinstance(one, bool):
                        if not abs(one) <= LARGEST:
                            faults.append(f"{shown} must be a number up to {LARGEST:.0e} in size")
                    elif bool not in _kinds(field.annotation):
                        faults.append(f"{shown} must be no truth value (YAML's yes, no, on, off)")
        if faults:
            raise ValueError("; ".join(faults))
        return given


def _numbers(value: Any, *, in_mapping: bool) -> Iterator[tuple[str, int | float]]:
    """Numbers and truth values in plain data, each with where it stands below it.

    What may still become a `Model` of its own is left to that.
    """
    if isinstance(value, list | tuple):
        for number, one in enumerate(value):
            for key, found in _numbers(one, in_mapping=False):
                yield f".{number}{key}", found
    elif isinstance(value, Mapping) and in_mapping:
        for name, one in value.items():
            for key, found in _numbers(one, in_mapping=False):
                yield f".{name}{key}", found
    elif isinstance(value, str):
        # As pydantic reads it: YAML 1.1 takes 1e30 for a text.
        with contextlib.suppress(ValueError):
            if not abs(float(value)) <= LARGEST:
                yield "", float(value)
    elif isinstance(value, int | float):
        yield "", value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is put together from."""
    inner = {kind for one in get_args(annotation) for kind in _kinds(one)}
    return inner | {annotation} if isinstance(annotation, Hashable) else inner
