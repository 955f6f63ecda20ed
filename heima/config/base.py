"""What all parts of a parameter file share: names, and what a value may be."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)

from heima.config import families
from heima.config.benchmarks import known

T = TypeVar("T")

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Section = Literal["summary", "caption", "reasoning"]
Control = Literal["own", "shuffled", "mean", "zero", "noise", "question-only"]
QuestionKind = Literal[
    "look-option", "sum-option", "look-free", "sum-number", "look-yes-no", "sum-yes-no"
]
InterpreterInput = Literal["own", "question-only"]
BenchmarkName = Annotated[str, AfterValidator(known)]
ProtocolName = Literal["lmms", "vlmevalkit"]
Family = Annotated[str, AfterValidator(families.known)]
Tiles = Literal["padded", "real"]
TooLong = Literal["drop", "cut", "refuse"]
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


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
