"""The table of samples: what the interpreters write from a few turns' states, word for word.

Which turns is decided by their places alone, evenly over the held-out ones: nobody picks them.
Texts are of the first training seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heima.config import Params
from heima.results.files import read_jsonl
from reports.tables import captions, expected
from reports.tables.model import Block, Entry, Label, Panel

Rebuilt = Mapping[str, Sequence[Mapping[str, Any]]]
"""Section -> rows of `reconstructions/<section>/<seed>.jsonl` of the first training seed."""

TURNS = 3
SECTION = "the section"
STATES = {
    "own": "from its own state",
    "shuffled": "from another turn's",
    "question-only": "from the question alone",
}
"""Controls that are shown -> the heading of their column."""

_LONGEST = 240
"""Characters of a text that are shown."""


def evenly(total: int, most: int) -> list[int]:
    """At most `most` places of `total`, evenly spread, the first among them.

    >>> evenly(10, 3), evenly(2, 5), evenly(4, 0)
    ([0, 3, 6], [0, 1], [])
    """
    return [total * number // most for number in range(most)] if most < total else [*range(total)]


def shortened(text: str, longest: int = _LONGEST) -> str:
    """A text, cut where it is long.

    >>> shortened("a b c d", 5), shortened("a b", 5), shortened(" ", 5)
    ('a b …', 'a b', '(empty)')
    """
    line = " ".join(text.split())
    if len(line) > longest:
        return f"{line[: longest - 2].rstrip()} …"
    return line or "(empty)"


def read_rebuilt(root: Path, params: Params, problems: list[str]) -> Rebuilt:
    """The reconstructions of each section by its own interpreter, first training seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    seed = params.seeds[0]
    for section in params.sections:
        if section not in params.reconstructions:
            continue
        source = f"reconstructions/{section}/{seed}.jsonl"
        if expected.is_there(root, source, f"reconstruct@{section}-{seed}", problems):
            found[section] = read_jsonl(root / source)
    return found


def samples_block(params: Params, rebuilt: Rebuilt) -> Block:
    """A panel a turn: its sections, and what is rebuilt from each state."""
    shown = {c: words for c, words in STATES.items() if c in params.reconstruct.controls}
    columns = dict.fromkeys((SECTION, *shown.values()), 0)
    texts = {
        (section, row["control"], row["id"]): row
        for section, rows in rebuilt.items()
        for row in rows
    }
    ids = list(dict.fromkeys(row["id"] for rows in rebuilt.values() for row in rows))
    panels = []
    for place in evenly(len(ids), TURNS):
        turn = ids[place]
        entries: dict[tuple[str, str], Entry | Label] = {}
        question = ""
        for section in rebuilt:
            source = f"reconstructions/{section}/{params.seeds[0]}.jsonl"
            for control, words in shown.items():
                row = texts[section, control, turn]
                question = row["question"]
                entries[section, SECTION] = Label(shortened(row["reference"]), source)
                entries[section, words] = Label(shortened(row["text"]), source)
        title = f"{turn}: {shortened(question)}"
        panels.append(Panel(title, "section", tuple(rebuilt), columns, entries))
    return Block(
        f"{params.profile} profile, turns",
        f"Samples of reconstructions ({captions.about(params)})",
        captions.samples(params, len(ids)),
        tuple(panels),
    )
