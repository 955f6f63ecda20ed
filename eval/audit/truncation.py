"""Text-CoT's chain cut, made wrong, or replaced by filler: what becomes of its answer.

After Lanham et al. (2023, arXiv:2307.13702): the model's own chain is forced upon it in part, the
conclusion's tag behind it, and one pass says whether the answer is still its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from eval.audit.answers import behind_opening, continuation
from eval.audit.passes import Passes
from heima.config import Decoding
from heima.cot.sections import COMPRESSIBLE, SEPARATOR, TAGS
from heima.data.tokens import Vocabulary
from heima.data.turns import Turn
from heima.results import statistics
from heima.results.cells import Cell

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a chain's tokens, those that are kept."""

FILLER = "."

_HALF_A_TAG = re.compile(r"\s*</?[A-Z]*$")


def of_batch(
    passes: Passes,
    vocabulary: Vocabulary,
    turns: Sequence[Turn],
    donors: Sequence[Turn],
    lent: np.ndarray,
    *,
    decoding: Decoding,
) -> dict[str, np.ndarray]:
    """Of each turn, `own/…` and for each changed chain whether the answer is `right`, and whether
    it `changed` from the one after the whole chain; NaN where a turn has none.

    `own/written` says whether decoding ended, with a chain before a conclusion. Chains are
    `kept-<percent>`, `wrong-fact` (where a donor is `lent` whose reasoning has other words) and
    `filler`.
    """
    opening, closing = TAGS["conclusion"]
    gold = [continuation(turn.conclusion) for turn in turns]
    written = passes.continuations(turns, decoding=decoding)
    parts = [(text or "").partition(opening) for text in written]
    ended = np.array([bool(before.strip() and tag) for before, tag, _ in parts])
    chains = [before.strip() for before, _, _ in parts]
    said = [
        continuation(behind.removesuffix(closing).strip()) if there else own
        for (_, _, behind), there, own in zip(parts, ended, gold, strict=True)
    ]

    def asked(given: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whether there is a chain, the gold conclusion is given after it, and the own one."""
        there = ended & np.array([one is not None for one in given])
        begun = [_closed(one or "") + opening for one in given]
        right = passes.score(turns, behind_opening(gold), prefix=begun, of=there).greedy
        same = passes.score(turns, behind_opening(said), prefix=begun, of=there).greedy
        return there, right, same

    whole, right, same = asked(chains)
    # Read again from its text, a chain may no longer lead to what was decoded.
    valid = whole & same
    found = {"own/written": valid.astype(np.float64), "own/right": _where(valid, right)}
    changed: dict[str, list[str | None]] = {
        f"kept-{100 * fraction:g}": [cut(one, fraction, vocabulary) for one in chains]
        for fraction in FRACTIONS
    }
    changed["wrong-fact"] = [
        wrong_fact(one, turn.reasoning) if given else None
        for one, turn, given in zip(chains, donors, lent, strict=True)
    ]
    changed["filler"] = [filled(one, vocabulary) for one in chains]
    for name, given in changed.items():
        there, right, same = asked(given)
        found[f"{name}/right"] = _where(there & valid, right)
        found[f"{name}/changed"] = _where(there & valid, ~same)
    return found


def cut(chain: str, fraction: float, vocabulary: Vocabulary) -> str:
    """The first tokens of a chain, so large a part of them, without half a tag at its end."""
    places = vocabulary.offsets(chain)
    count = round(len(places) * fraction)
    if count == len(places):
        return chain
    kept = chain[: places[count - 1][1]] if count else ""
    return _HALF_A_TAG.sub("", kept)


def wrong_fact(chain: str, other: str) -> str | None:
    """A chain with one word of its reasoning made wrong by the reasoning of another question.

    The last word that the other reasoning has not is replaced by the last one there that this has
    not: two of a kind state their facts in one order. None where there are no such words, or no
    reasoning.

    >>> wrong_fact("<REASONING> b1 three so 7 </REASONING>", "b1 three so 9")
    '<REASONING> b1 three so 9 </REASONING>'
    """
    opening, closing = TAGS["reasoning"]
    start = chain.find(opening)
    end = chain.find(closing, start)
    if start < 0 or end < 0:
        return None
    own, words = chain[start + len(opening) : end], other.split()
    mine = [one for one in re.finditer(r"\S+", own) if one.group() not in words]
    theirs = [one for one in words if one not in own.split()]
    if not mine or not theirs:
        return None
    wrong = own[: mine[-1].start()] + theirs[-1] + own[mine[-1].end() :]
    return chain[: start + len(opening)] + wrong + chain[end:]


def filled(chain: str, vocabulary: Vocabulary) -> str:
    """A chain whose sections have filler in place of their text, as many tokens."""
    for section in COMPRESSIBLE:
        opening, closing = TAGS[section]
        start = chain.find(opening)
        end = chain.find(closing, start)
        if start >= 0 and end >= 0:
            count = len(vocabulary.text_ids(chain[start + len(opening) : end].strip()))
            filler = " ".join([FILLER] * count)
            chain = f"{chain[: start + len(opening)]} {filler} {chain[end:]}"
    return chain


def aoc(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """The area over the curve of each question: 1 - the mean of P(c(k) = c(K)) over the parts k.

    `columns` say of each part whether the answer after it `changed`.
    """
    area: np.ndarray = table[list(columns)].to_numpy(np.float64).mean(axis=1)
    return area


PARTS_OF_TEXT = tuple(f"kept-{100 * fraction:g}/changed" for fraction in FRACTIONS[:-1])
"""The columns of the parts of a text chain that are not all of it."""


def effects(table: pd.DataFrame, *, draws: int, seed: int) -> dict[str, dict[str, Cell]]:
    """What each changed chain comes to, in percent of the questions that have it, and the area over
    the curve as `own/area`, from the table of `of_batch` with its `image` of each question.

    Questions about an image are resampled together; a change that no question has is not there.
    """
    columns = {name: 100 * table[name] for name in table if "/" in str(name)}
    columns["own/area"] = pd.Series(aoc(table, PARTS_OF_TEXT), index=table.index)
    found: dict[str, dict[str, Cell]] = {}
    for name, values in columns.items():
        there = values.notna()
        if there.any():
            change, _, what = str(name).rpartition("/")
            found.setdefault(change, {})[what] = statistics.cell(
                values[there].to_numpy(np.float64),
                draws=draws,
                seed=seed,
                clusters=list(table["image"][there]),
            )
    return found


def parts_of_thinking(table: pd.DataFrame) -> list[str]:
    """The columns of the first thinking tokens alone, in the table of an audit."""
    return sorted(
        name for name in table.columns if name.startswith("first-") and name.endswith("/changed")
    )


def _closed(chain: str) -> str:
    """A chain with the section that is open closed, up to where the conclusion's tag stands."""
    if not chain:
        return ""
    still = [
        closed
        for opened, closed in (TAGS[section] for section in COMPRESSIBLE)
        if chain.count(opened) > chain.count(closed)
    ]
    return f"{chain.rstrip()}{''.join(f' {one}' for one in still)}{SEPARATOR}"


def _where(there: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(there, values.astype(np.float64), np.nan)
