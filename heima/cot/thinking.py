"""How many thinking tokens stand for a section."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from heima.cot.sections import MAX_NUMBERED


class Thinking(BaseModel):
    """How many thinking tokens stand for a section (docs/recipe.md, section 1).

    `tokens`: so many, numbered; one has no number. `ratio`: that share of the section's own tokens,
    at least one. A ratio repeats the section's one token: numbers would run out of reserved ids.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Annotated[int, Field(ge=1, le=MAX_NUMBERED)] | None = None
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Thinking:
        if (self.tokens is None) == (self.ratio is None):
            raise ValueError("give exactly one of tokens and ratio")
        return self


ONE_TOKEN = Thinking(tokens=1)
"""The paper's method; everything else is an ablation."""


def shown(thinking: Thinking) -> str:
    """As in a parameter file.

    >>> shown(Thinking(ratio=0.3))
    '{ratio: 0.3}'
    """
    [(key, value)] = thinking.model_dump(exclude_none=True).items()
    return f"{{{key}: {value}}}"
