"""The methods that the paper names, or that users of such models ask for: which rows are they?

A row is found by what the parameters say of it, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from heima.config import Checkpoint, GivenCheckpoint, Params, Variant
from heima.cot.rendering import Rendering
from reports.tables.ablation import lineage


@dataclass(frozen=True)
class Rival:
    """`found` gives the variants, or cases of latency, that are this method; `why_not` is said
    where there is none, `{profile}` in it is the profile's name."""

    found: Callable[[Params], tuple[str, ...]]
    why_not: str


_ELSEWHERE = "none in the profile {profile}: toy-methods and paper-methods have it"
_ALWAYS = "none: the profile {profile} leaves it out"


@dataclass(frozen=True)
class _Row:
    """A variant, its chain of checkpoints from text-CoT on, and how its answers are rendered."""

    variant: Variant
    chain: tuple[tuple[str, Checkpoint | GivenCheckpoint], ...]
    rendering: Rendering
    renderings: tuple[Rendering, ...]
    """Of each checkpoint of the chain, the first one where there are several."""

    @property
    def forms(self) -> set[str]:
        return set(self.rendering.forms.values())

    @property
    def last(self) -> Checkpoint | GivenCheckpoint | None:
        return self.chain[-1][1] if self.chain else None

    @property
    def as_heima(self) -> bool:
        """Thinking tokens between tags in words, with nothing else than heima has."""
        one = self.last
        return (
            one is not None
            and self.forms == {"token"}
            and self.rendering.tags == "text"
            and one.feed == "token"
            and not one.losses.any
            and self.plain
        )

    @property
    def phases(self) -> int:
        """Checkpoints of its chain that write no whole text."""
        return sum(set(one.forms.values()) != {"text"} for one in self.renderings)

    @property
    def plain(self) -> bool:
        return self.variant.forced_prefix is None and self.variant.budget is None


def _rows(params: Params) -> Iterator[tuple[str, _Row]]:
    for name, variant in params.variants.items():
        if variant.model != "base":
            chain = tuple(lineage(params, variant.model))
            every = tuple(params.rendering(one) for one, _ in chain)
            rendering = params.rendering(variant.model, variant.asks)
            yield name, _Row(variant, chain, rendering, every)


def _variants(
    suits: Callable[[_Row], bool], *, asking: bool = False
) -> Callable[[Params], tuple[str, ...]]:
    """Variants whose row suits; `asking`: those that ask for one of several renderings."""
    return lambda params: tuple(
        name
        for name, row in _rows(params)
        if (row.variant.asks is not None) == asking and suits(row)
    )


def _cases(*, in_words: bool) -> Callable[[Params], tuple[str, ...]]:
    """Cases of latency that look tokens up, of variants that write all in words, or do not."""
    return lambda params: tuple(
        name
        for name, case in params.latency.cases.items()
        if case.lookup is not None and _in_words(params, case.variant) == in_words
    )


def _in_words(params: Params, variant: str) -> bool:
    one = params.variants[variant]
    return set(params.rendering(one.model, one.asks).forms.values()) == {"text"}


def _by_sections(row: _Row) -> bool:
    """Sections go one after the other, and nothing takes their place."""
    kinds = [set(one.forms.values()) for one in row.renderings]
    return row.forms == {"omit"} and {"omit", "text"} in kinds


RIVALS: Mapping[str, Rival] = {
    "text-CoT": Rival(_variants(lambda row: row.forms == {"text"} and row.plain), _ALWAYS),
    "answer only": Rival(
        _variants(lambda row: row.forms == {"omit"} and not _by_sections(row)), _ALWAYS
    ),
    "Heima": Rival(_variants(lambda row: row.as_heima and row.phases > 1), _ALWAYS),
    "Heima without the curriculum": Rival(
        _variants(lambda row: row.as_heima and row.phases == 1), _ALWAYS
    ),
    "Heima, prefix forced": Rival(
        _variants(
            lambda row: (
                row.variant.forced_prefix is not None
                and row.last is not None
                and row.last.feed == "token"
            )
        ),
        _ALWAYS,
    ),
    "iCoT by sections": Rival(_variants(_by_sections), _ELSEWHERE),
    "filler tokens, progressive": Rival(
        _variants(lambda row: row.forms == {"filler"} and row.phases > 1), _ELSEWHERE
    ),
    "filler tokens, one-shot": Rival(
        _variants(lambda row: row.forms == {"filler"} and row.phases == 1), _ELSEWHERE
    ),
    "tags of one token": Rival(
        _variants(lambda row: row.forms == {"token"} and row.rendering.tags == "token"), _ELSEWHERE
    ),
    "no tags": Rival(
        _variants(
            lambda row: (
                row.rendering.tags == "none" and row.last is not None and row.last.feed == "token"
            )
        ),
        _ELSEWHERE,
    ),
    "short text": Rival(_variants(lambda row: row.forms == {"short"}), _ELSEWHERE),
    "text-CoT cut, conclusion forced": Rival(
        _variants(lambda row: row.forms == {"text"} and row.variant.budget is not None), _ELSEWHERE
    ),
    "states fed back": Rival(
        _variants(
            lambda row: row.last is not None and row.last.feed == "state" and row.last.thought_loss
        ),
        _ELSEWHERE,
    ),
    "Coconut": Rival(
        _variants(
            lambda row: (
                row.last is not None and row.last.feed == "state" and not row.last.thought_loss
            )
        ),
        _ELSEWHERE,
    ),
    "aligned states (CODI's term)": Rival(
        _variants(lambda row: row.last is not None and row.last.losses.align is not None),
        _ELSEWHERE,
    ),
    "explained states (SIM-CoT's term)": Rival(
        _variants(lambda row: row.last is not None and row.last.losses.explain is not None),
        _ELSEWHERE,
    ),
    "text-CoT with prompt lookup": Rival(_cases(in_words=True), _ELSEWHERE),
    "Heima with prompt lookup": Rival(_cases(in_words=False), _ELSEWHERE),
    "number of sections by a control word": Rival(
        _variants(lambda row: True, asking=True), _ELSEWHERE
    ),
    "number of sections by the model itself": Rival(
        _variants(lambda row: False),
        "none: it takes a rule of when an answer is sure enough, which is not built here",
    ),
    "tokens by a section's length": Rival(
        _variants(lambda row: row.last is not None and row.last.thinking.ratio is not None),
        "none in the profile {profile}: toy-thinking has it",
    ),
    "compressed CoT (Cheng & Van Durme)": Rival(
        _variants(lambda row: False),
        "none: no code of it is public, and its regression of gold states is not built here",
    ),
}
"""By the name under which they are asked for."""
