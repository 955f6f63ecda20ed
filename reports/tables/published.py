"""The paper's own values, in blocks of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from heima.config import Params
from heima.config.benchmarks import BENCHMARKS
from heima.results.scores import MEAN
from reports.tables import captions
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.panels import ACCURACIES, PUBLISHED_TOKENS

PAPERS = ("paper", "paper-llava-next")
"""The profiles whose models, data and rules are the paper's, so that values may be compared."""

PUBLISHED = "paper ({}, VLMEvalKit protocol, not comparable)"
PUBLISHED_NAMES = {name: one.published for name, one in BENCHMARKS.items() if one.published}
"""Benchmark -> its name in the paper's tables."""


def published_benchmarks(rows: Sequence[Mapping[str, str]]) -> tuple[Block, ...]:
    variants = _variants(rows, ("base", "text-cot", *_PUBLISHED_ABLATION))
    if not variants:
        return ()
    origin = PUBLISHED.format(rows[0]["family"])
    panels = _published_panels(rows, variants)
    return (Block(origin, f"Benchmarks, {origin}", captions.PUBLISHED_BENCHMARKS, panels),)


_PUBLISHED_ABLATION = ("heima", "heima-no-recover", "heima-no-progressive")


def published_ablation(rows: Sequence[Mapping[str, str]]) -> tuple[Block, ...]:
    """None for a family of which no ablation was published."""
    if _variants(rows, _PUBLISHED_ABLATION) != _PUBLISHED_ABLATION:
        return ()
    origin = PUBLISHED.format(rows[0]["family"])
    panels = _published_panels(rows, (*_PUBLISHED_ABLATION, "text-cot"))
    return (Block(origin, f"Ablation, {origin}", captions.PUBLISHED_ABLATION, panels),)


def _variants(rows: Sequence[Mapping[str, str]], names: tuple[str, ...]) -> tuple[str, ...]:
    known = {row["model"] for row in rows}
    return tuple(name for name in names if name in known)


def _published_panels(
    rows: Sequence[Mapping[str, str]], variants: tuple[str, ...]
) -> tuple[Panel, ...]:
    source = "reports/published/benchmarks.csv"
    found = {(row["model"], row["benchmark"]): row for row in rows}
    panels = []
    for title, column, digits in (
        (ACCURACIES, "accuracy", 1),
        (PUBLISHED_TOKENS, "generated_tokens", 1),
    ):
        entries: dict[tuple[str, str], Entry | Label] = {}
        for variant in variants:
            values = []
            for name, label in PUBLISHED_NAMES.items():
                values.append(float(found[variant, label][column]))
                entries[variant, name] = Entry(values[-1], source)
            entries[variant, MEAN] = Entry(float(np.mean(values)), source)
        panels.append(
            Panel(
                title,
                "variant",
                variants,
                dict.fromkeys((*PUBLISHED_NAMES, MEAN), digits),
                entries,
            )
        )
    return tuple(panels)


EACH, SHARED = "An interpreter for each section", "One shared interpreter"
"""Titles of the paper's interpreters."""


def published_interpreters(params: Params, rows: Sequence[Mapping[str, str]]) -> tuple[Block, ...]:
    """None for a family of which no reconstruction was published."""
    if not rows:
        return ()
    source = "reports/published/interpreters.csv"
    metrics = tuple(dict.fromkeys(row["metric"] for row in rows))
    panels = []
    for count, title in (("3", EACH), ("1", SHARED)):
        entries: dict[tuple[str, str], Entry | Label] = {
            (row["stage"], row["metric"]): Entry(float(row["value"]), source)
            for row in rows
            if row["interpreters"] == count
        }
        panels.append(Panel(title, "section", params.sections, dict.fromkeys(metrics, 1), entries))
    origin = PUBLISHED.format(rows[0]["family"])
    caption = captions.PUBLISHED_INTERPRETERS
    return (Block(origin, f"Interpreters, {origin}", caption, tuple(panels)),)
