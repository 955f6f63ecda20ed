"""The toy world's answers in plain English, for a language model that knows the language.

The questions and the conclusions are those of `heima.toy.world`, and so are the rules by which an
answer follows; only the three sections before it are worded otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from heima.toy.world import CELLS, COLOURS, LETTERS, RANGES, WARMTH, Question, Scene, colour

PLACES = dict(zip(CELLS, ("top left", "top right", "bottom left", "bottom right"), strict=True))


def in_english(asked: Question, scene: Scene) -> Question:
    """A question about a scene with its sections in plain English."""
    return replace(
        asked,
        summary=_summary(asked),
        caption=_caption(asked, scene),
        reasoning=_reasoning(asked, scene),
    )


def listed(parts: Sequence[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _summary(asked: Question) -> str:
    if len(asked.cells) == 1:
        [cell] = asked.cells
        task = f"I am asked for the colour of the shape at {cell}, the one at the {PLACES[cell]}."
    else:
        worth = listed([f"{name} counts {points}" for name, points in COLOURS.items()])
        task = f"I am asked to add up the points of the shapes at {listed(asked.cells)}: {worth}."
    if asked.options:
        task += f" Then I choose one of the options, of which {LETTERS[0]} is {asked.options[0]}."
    elif asked.claim is not None:
        task += f" Then I say whether that is {_compared(asked)}."
    return task


def _compared(asked: Question) -> str:
    return str(asked.claim) if len(asked.cells) == 1 else f"more than {asked.claim}"


def _caption(asked: Question, scene: Scene) -> str:
    """The whole grid, the cells that were asked about first."""
    order = (*asked.cells, *(cell for cell in CELLS if cell not in asked.cells))
    seen = [f"a {_thing(scene, cell)} at the {PLACES[cell]} ({cell})" for cell in order]
    return f"The picture shows {listed(seen)}."


def _thing(scene: Scene, cell: str) -> str:
    return scene.at(cell).replace("-", " ")


def _reasoning(asked: Question, scene: Scene) -> str:
    if len(asked.cells) == 1:
        [cell] = asked.cells
        text = f"At {cell} there is a {_thing(scene, cell)}, so the colour is {asked.value}."
        found = asked.value
        if asked.claim is not None:
            text += f" The colour {found} is {WARMTH[found]}, so the answer is {asked.conclusion}."
    else:
        steps, total = [], 0
        for cell in asked.cells:
            name = colour(scene.at(cell))
            total += COLOURS[name]
            steps.append(f"{cell} is {name} and counts {COLOURS[name]}, which makes {total}")
        text = f"{'; '.join(steps)}. So the total is {asked.value}."
        found = next(name for name, totals in RANGES.items() if total in totals)
        if asked.options:
            text += f" It lies in {found}."
        if asked.claim is not None:
            more = "" if asked.conclusion == "yes" else "not "
            text += (
                f" {asked.value} is {more}more than {asked.claim}, so the answer is "
                f"{asked.conclusion}."
            )
    if asked.options:
        text += f" That is option {asked.conclusion}."
    return text
