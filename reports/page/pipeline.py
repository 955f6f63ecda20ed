"""The pipeline as a picture: which stage reads what another one writes, from dvc.yaml."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

WIDTH, HEIGHT, GAP = 116, 34, 26
"""Of a stage's box and between two rows, in pixels."""


@dataclass(frozen=True)
class Box:
    name: str
    runs: int
    about: str
    x: float
    y: float


@dataclass(frozen=True)
class Picture:
    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[tuple[float, float, float, float], ...]


def graph(pipeline: Mapping[str, Any]) -> nx.DiGraph:
    """Stages with an edge to each that reads their outputs, but none that a chain makes needless.

    So `resolve`, whose outputs all others read, is joined to the first of them alone.
    """
    stages = {name: stage.get("do", stage) for name, stage in pipeline["stages"].items()}
    outs = {
        name: [_fixed(path) for kind in ("outs", "metrics") for path in _paths(stage, kind)]
        for name, stage in stages.items()
    }
    found: nx.DiGraph = nx.DiGraph()
    found.add_nodes_from(stages)
    for name, stage in stages.items():
        for dep in map(_fixed, _paths(stage, "deps")):
            for other, written in outs.items():
                # A foreach reads other items of its own kind.
                if other != name and any(_within(dep, out) for out in written):
                    found.add_edge(other, name)
    return nx.transitive_reduction(found)


def _paths(stage: Mapping[str, Any], kind: str) -> list[str]:
    return [next(iter(one)) if isinstance(one, dict) else one for one in stage.get(kind, ())]


def _fixed(path: str) -> tuple[str, ...]:
    """A path's parts, as far as they name no item.

    >>> _fixed("models/${item.init}"), _fixed("reports/${profile}/tables")
    (('models',), ('reports', '*', 'tables'))
    """
    parts = path.replace("${profile}", "*").split("/")
    fixed = []
    for part in parts:
        if "${" in part:
            break
        fixed.append(part)
    return tuple(fixed)


def _within(dep: tuple[str, ...], out: tuple[str, ...]) -> bool:
    """Whether one of both holds the other."""
    short = min(len(dep), len(out))
    return short > 0 and dep[:short] == out[:short]


def picture(pipeline: Mapping[str, Any], names: Iterable[str]) -> Picture:
    """Boxes in rows, each below all that it reads from; `names` are the stages with their items."""
    runs = Counter(name.partition("@")[0] for name in names)
    stages = pipeline["stages"]
    drawn = graph(pipeline)
    rows = [sorted(row, key=list(stages).index) for row in nx.topological_generations(drawn)]
    width = max(map(len, rows)) * (WIDTH + GAP)
    places = {}
    for line, row in enumerate(rows):
        for place, name in enumerate(row):
            x = width / 2 + (place - (len(row) - 1) / 2) * (WIDTH + GAP)
            places[name] = x, GAP / 2 + HEIGHT / 2 + line * (HEIGHT + GAP)
    boxes = tuple(
        Box(name, runs[name], _about(stages[name]), x - WIDTH / 2, y - HEIGHT / 2)
        for name, (x, y) in places.items()
    )
    edges = tuple(
        (places[a][0], places[a][1] + HEIGHT / 2, places[b][0], places[b][1] - HEIGHT / 2)
        for a, b in drawn.edges
    )
    return Picture(width, len(rows) * (HEIGHT + GAP), boxes, edges)


def _about(stage: Mapping[str, Any]) -> str:
    """What a stage says of itself, a placeholder as the name of what stands there.

    >>> _about({"desc": "train ${item.checkpoint} of ${key}"})
    'train <checkpoint> of <key>'
    """
    return re.sub(r"\$\{(?:\w+\.)*(\w+)\}", r"<\1>", str(stage.get("do", stage).get("desc", "")))
