"""The compact forms of the tables: what an author puts into a paper.

One row a model, one number a cell, what it costs in parentheses, the best in bold; no intervals, no
n (the appendix form has them). Each is a float in two forms: `NAME.tex`, a `table*` for the width
of a page, and `NAME-column.tex`, a `table` for one column of two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from heima.config import Params
from heima.results.measures import judge_name
from heima.results.scores import CHANCE, MEAN
from reports.tables.ablation import DIFFERENCES
from reports.tables.audit import ACCURACY, FOLLOWS, LOST, REPLACED
from reports.tables.audit import VERDICTS as AUDIT_VERDICTS
from reports.tables.floats import FORMS, Compact, Group, Value, typeset
from reports.tables.interpreters import OTHERS
from reports.tables.kept import Kept
from reports.tables.methods import METHODS
from reports.tables.model import Block, Entry, Label, Panel, Table
from reports.tables.names import heading, variant
from reports.tables.numbers import fixed
from reports.tables.panels import ACCURACIES, DECODED, PUBLISHED_TOKENS
from reports.tables.published import EACH, SHARED
from reports.tables.samples import shortened
from reports.tables.theorem import BITS, COSTS, GAP_OF, SAVES

_SHORT = 160
"""Characters of a text in a paper."""


def compact_files(
    tables: Mapping[str, Table], params: Params, kept: Sequence[Kept] = ()
) -> dict[str, str]:
    """File name -> LaTeX, of every compact table in each form.

    `kept` is what blocks of other profiles are of.
    """
    return {
        f"{one.name}{ending}.tex": typeset(one, form)
        for table in tables.values()
        for one in _of(table, params, kept)
        for ending, form in FORMS.items()
    }


def _of(table: Table, params: Params, kept: Sequence[Kept]) -> Iterator[Compact]:
    if table.name == "interpreters":
        yield from _interpreters(table, params)
    elif table.name == "latency":
        yield _latency(table.blocks[0], params)
    elif table.name == "audit":
        yield from _audit(table.blocks[0], params)
    elif table.name == "theorem":
        yield from _theorem(table.blocks[0], params)
    elif table.name == "methods":
        yield _methods(table.blocks[0], params)
    elif table.name == "samples":
        yield from _samples(table.blocks[0], params)
    elif table.name == "reported":
        yield from _reported(table.blocks[0], params)
    else:
        for block in table.blocks:
            if _panel(block, ACCURACIES):
                yield _scores(table.name, block, params, kept)


def _panel(block: Block, title: str) -> Panel | None:
    return next((panel for panel in block.panels if panel.title == title), None)


def _is_published(block: Block) -> bool:
    return block.origin.startswith("paper (")


_KINDS = {
    "benchmarks": "Benchmarks",
    "ablation": "Ablation",
    "tokens_per_stage": "Thinking tokens a section",
    "retention_ratio": "Share of tokens retained as thinking tokens",
    "families": "Families",
}


def _seeds(seeds: Sequence[int]) -> str:
    return f"means over {len(seeds)} training seeds" if len(seeds) > 1 else "one seed"


def _scores(name: str, block: Block, params: Params, kept: Sequence[Kept]) -> Compact:
    """Accuracy, with tokens in parentheses where they are known; the ablation's difference."""
    accuracy = _panel(block, ACCURACIES)
    if accuracy is None:
        raise ValueError(f"the block {block.title!r} has no panel {ACCURACIES!r}")
    tokens = _panel(block, DECODED) or _panel(block, PUBLISHED_TOKENS)
    gaps = _panel(block, DIFFERENCES)
    groups: dict[str, dict[str, list[Value]]] = {}
    for row in accuracy.rows:
        # Behind its family where there are several.
        family, _, own = row.rpartition(", ")
        values = groups.setdefault(family, {})[variant(own)] = [
            _score(accuracy, tokens, row, column, ranked=row != CHANCE)
            for column in accuracy.digits
        ]
        if gaps is not None:
            gap = gaps.entries.get((row, MEAN))
            shown = f"{gap.value:+.1f}" if isinstance(gap, Entry) else "–"
            values.append(Value(shown.replace("-", "−")))
    columns = tuple(heading(column) for column in accuracy.digits)
    if gaps is not None:
        columns += ("vs. Heima",)
    cell = "Accuracy in percent" + (" (tokens an answer)" if tokens else "")
    gap_words = " Last: paired difference to Heima, each question once." if gaps else ""
    if _is_published(block):
        of = "" if name == "families" else f" ({params.published_family})"
        words = f"{_KINDS[name]} as the paper reports them{of}. {cell}."
        ending = "-published"
    else:
        protocol = block.origin.rpartition(" ")[2]
        other = next((k for k in kept if block.origin.startswith(f"{k.profile} profile,")), None)
        profile, seeds, judge, ending = params.profile, params.seeds, judge_name(params.judge), ""
        if other:
            profile, seeds, judge = other.profile, other.seeds, other.judge
            ending = f"-{profile}"
        ran = f"{_seeds(seeds)}, judge {judge}"
        if name == "families":
            profile, ran = f"{profile} and other", "training seeds as run"
        words = f"{_KINDS[name]}, {profile} profile, protocol {protocol}. {cell}; {ran}.{gap_words}"
        ending += f"-{protocol}"
    return Compact(
        f"{name}{ending}",
        f"{words} Best in bold.",
        "model" if accuracy.corner.endswith("variant") else accuracy.corner,
        columns,
        tuple(Group(rows, family) for family, rows in groups.items()),
    )


def _score(accuracy: Panel, tokens: Panel | None, row: str, column: str, *, ranked: bool) -> Value:
    entry = accuracy.entries[row, column]
    if isinstance(entry, Label):
        return Value(entry.text)
    text = fixed(entry.value, 1)
    count = tokens.entries.get((row, column)) if tokens else None
    behind = f" ({count.value:.0f})" if isinstance(count, Entry) else ""
    # Equal as shown is equal: what follows the decimal ranks nothing.
    return Value(text, float(text) if ranked else None, behind)


_PUBLISHED_INTERPRETERS = {EACH: "one each", SHARED: "one for all"}


_SHORT_NAMES = {"shuffled-same-gold": "same gold"}
_LEFT_OUT = "zero"
"""A control that a paper's column has no room for: no state is near it, so it decides nothing."""


def _interpreters(table: Table, params: Params) -> Iterator[Compact]:
    """Rows: the states given, for each section; and the paper's, for each section."""
    ours, *theirs = table.blocks
    groups = []
    columns: tuple[str, ...] = ()
    for section in params.sections:
        given = _panel(ours, f"{section}: state given")
        gains = _panel(ours, f"{section}: own minus control")
        if given is None or gains is None:
            raise ValueError(f"the interpreters' table has no panels of the {section}")
        shown = [one for one in given.digits if one not in ("empty of n", "nll_per_token")]
        columns = (*(heading(one) for one in shown), "NLL gain")
        rows: dict[str, Sequence[Value]] = {}
        for row in params.reconstruct.controls:
            if row == _LEFT_OUT:
                continue
            values = [_number(given.entries[row, c], given.digits[c], rank=1) for c in shown]
            gain = gains.entries.get((row, "nll_gain"))
            rows[_SHORT_NAMES.get(row, row)] = [
                *values,
                Value("–") if gain is None else _number(gain, 2, rank=0),
            ]
        groups.append(Group(rows, section))
    yield Compact(
        "interpreters",
        f"Sections rebuilt from their own thinking state and from controls, {params.profile} "
        f"profile, {_seeds(params.seeds)}. Text metrics in percent; NLL gain: nats a text that the "
        "own state saves against the control. Best of a section in bold.",
        "state",
        columns,
        tuple(groups),
    )
    yield from _one_against_each(ours, params)
    for block in theirs:
        titles = [_PUBLISHED_INTERPRETERS[panel.title] for panel in block.panels]
        yield Compact(
            "interpreters-published",
            f"Reconstructions as the paper reports them ({params.published_family}), in percent, "
            "by an interpreter for each section and by one for all. Best of a section in bold.",
            "section",
            tuple(heading(column) for column in block.panels[0].digits),
            tuple(
                Group(
                    {
                        title: [
                            _number(panel.entries[section, column], 1, rank=1)
                            for column in panel.digits
                        ]
                        for title, panel in zip(titles, block.panels, strict=True)
                    },
                    section,
                )
                for section in params.sections
            ),
        )


def _one_against_each(ours: Block, params: Params) -> Iterator[Compact]:
    """Own states read by an interpreter for each section and by one for all, where that was run."""
    others = _panel(ours, OTHERS)
    shared = {
        params.reconstructions[name].section: name
        for name in (others.rows if others else ())
        if name in params.reconstructions  # and not one of the paper's rows
        and set(params.interpreters[params.reconstructions[name].interpreter].sections)
        == set(params.sections)
    }
    groups = []
    columns: tuple[str, ...] = ()
    for section, name in shared.items():
        given = _panel(ours, f"{section}: state given")
        if given is None or others is None:
            raise ValueError(f"the interpreters' table has no panel of the {section}")
        shown = [one for one in others.digits if one != "nll_per_token"]
        columns = tuple(heading(one) for one in shown)
        rows = {
            _PUBLISHED_INTERPRETERS[EACH]: [
                _number(given.entries["own", c], given.digits[c], rank=1) for c in shown
            ],
            _PUBLISHED_INTERPRETERS[SHARED]: [
                _number(others.entries[name, c], others.digits[c], rank=1) for c in shown
            ],
        }
        groups.append(Group(rows, section))
    if groups:
        yield Compact(
            "interpreters-shared",
            f"Sections rebuilt from their own thinking state by an interpreter for each and by one "
            f"for all, {params.profile} profile, {_seeds(params.seeds)}. Text metrics in percent. "
            "Best of a section in bold.",
            "interpreter",
            columns,
            tuple(groups),
        )


def _number(entry: Entry | Label, digits: int, *, rank: int) -> Value:
    """A value that ranks by its size (1), by its smallness (-1), or not at all (0)."""
    if isinstance(entry, Label):
        return Value("–")
    text = fixed(entry.value, digits)
    return Value(text.replace("-", "−"), rank * float(text) if rank else None)


def _latency(block: Block, params: Params) -> Compact:
    sizes = [
        match.group(1)
        for panel in block.panels
        if (match := re.fullmatch(r"Batch (\d+): latency", panel.title))
    ]
    speedups = next((p for p in block.panels if p.title.startswith("End-to-end time of")), None)
    rows: dict[str, list[Value]] = {}
    panels = {size: _panel(block, f"Batch {size}: latency") for size in sizes}
    cases = dict.fromkeys(case for panel in panels.values() if panel for case in panel.rows)
    for size, panel in panels.items():
        for case in cases:
            if panel is not None and case not in panel.rows:
                # What is looked up is measured at batch 1 alone.
                rows.setdefault(variant(case), []).append(Value("–", -float("inf"), ""))
                continue
            time = panel.entries[case, "e2e_ms"] if panel else None
            if not isinstance(time, Entry):
                raise ValueError(f"latency of {case} at batch {size} is no number")
            text = fixed(time.value, 1)
            gain = speedups.entries.get((case, f"batch {size}")) if speedups else None
            behind = f" ({gain.value:.1f}×)" if isinstance(gain, Entry) else ""
            rows.setdefault(variant(case), []).append(Value(text, -float(text), behind))
    base = speedups.title.removeprefix("End-to-end time of ").partition(" ")[0] if speedups else ""
    gains = f" (speed-up over {variant(base)})" if base else ""
    return Compact(
        "latency",
        f"Milliseconds of a batch end to end{gains}, {params.profile} profile, medians on "
        f"{heading(params.latency.benchmark)}, models of the first training seed. Shortest in "
        "bold.",
        "model",
        tuple(f"batch {size}" for size in sizes),
        (Group(rows),),
    )


def _audit(block: Block, params: Params) -> Iterator[Compact]:
    """A row a checkpoint: accuracy lost to replacements, whom answers follow, the verdict."""
    lost, verdicts = _panel(block, LOST), _panel(block, AUDIT_VERDICTS)
    if lost is None or verdicts is None:
        return
    donors = next(one for one in block.panels if FOLLOWS in one.digits)
    replaced = [one for one in REPLACED if one in lost.digits]
    rows = {}
    for row in lost.rows:
        shown = [verdicts.entries[row, ACCURACY]]
        shown += [*(lost.entries[row, one] for one in replaced), donors.entries[row, FOLLOWS]]
        found = verdicts.entries[row, "verdict"]
        text = found.text if isinstance(found, Label) else ""
        rows[row] = [*(_number(one, 1, rank=0) for one in shown), Value(text)]
    yield Compact(
        "audit",
        f"Do thinking states matter? Accuracy, points lost under other states, and answers that "
        f"follow a donor of another conclusion, beyond chance; {params.profile} profile, "
        f"{_seeds(params.seeds)}.",
        "checkpoint",
        ("accuracy", *replaced, "follows", "verdict"),
        (Group(rows),),
    )


def _theorem(block: Block, params: Params) -> Iterator[Compact]:
    """What stands before a conclusion, what it costs then, and what it has of the answer."""
    costs, saves = _panel(block, COSTS), _panel(block, SAVES)
    if costs is None or saves is None:
        return
    none = Value("–")
    rows = {
        row: [
            _number(costs.entries[row, BITS], 3, rank=0),
            _number(saves.entries[row, BITS], 3, rank=0) if (row, BITS) in saves.entries else none,
        ]
        for row in costs.rows
    }
    rows |= {
        row: [none, _number(saves.entries[row, BITS], 3, rank=0)]
        for row in saves.rows
        if row.startswith(GAP_OF)
    }
    yield Compact(
        "theorem",
        "Theorem 3.1 in bits a conclusion: what it costs after C, and the V-information about it "
        f"in C, given the question and its image; {params.profile} profile, "
        f"{_seeds(params.seeds)}.",
        "C",
        ("cost", "information"),
        (Group(rows),),
    )


def _methods(block: Block, params: Params) -> Compact:
    """The first panel; fewer tokens and less time are better, of FLOPs none is best."""
    panel = _panel(block, METHODS)
    if panel is None:
        raise ValueError(f"the block {block.title!r} has no panel {METHODS!r}")
    # Tokens of one protocol: the other's are much the same. The appendix has updates, too.
    headings: dict[str, str] = {}
    for column in panel.digits:
        kind, _, of = column.partition(", ")
        if kind == "tokens" and kind not in headings.values():
            headings[column] = kind
        elif kind.endswith(("(%)", "FLOP")):
            headings[column] = kind.removesuffix(" (%)")
        elif kind == "ms":
            headings[column] = f"ms ({of.removeprefix('batch ')})"
    rows: dict[str, list[Value]] = {}
    for row in panel.rows:
        values = rows[variant(row)] = []
        for column in headings:
            entry = panel.entries[row, column]
            rank = 1 if column.endswith("(%)") else -1 if column.startswith(("tokens", "ms")) else 0
            text = Value(entry.text) if isinstance(entry, Label) else None
            values.append(text or _number(entry, panel.digits[column], rank=rank))
    return Compact(
        "methods",
        f"Methods, {params.profile} profile, {_seeds(params.seeds)}, judge "
        f"{judge_name(params.judge)}. Accuracy in percent under both protocols, tokens an answer, "
        "FLOPs of training, milliseconds of a batch (its size). Best in bold.",
        "method",
        tuple(headings.values()),
        (Group(rows),),
    )


def _samples(block: Block, params: Params) -> Iterator[Compact]:
    """The first turn, its texts in a column."""
    if not block.panels:
        return
    panel = block.panels[0]
    question = panel.title.partition(": ")[2]
    groups = [Group({"question": [Value(shortened(question, _SHORT))]})]
    for section in panel.rows:
        rows: dict[str, list[Value]] = {}
        for column in panel.digits:
            entry = panel.entries[section, column]
            text = entry.text if isinstance(entry, Label) else ""
            rows[column] = [Value(shortened(text, _SHORT))]
        groups.append(Group(rows, section))
    yield Compact(
        "samples",
        f"Sections of the first held-out turn and what interpreters write from a thinking state, "
        f"{params.profile} profile, training seed {params.seeds[0]}. Chosen by its place; long "
        "texts are cut.",
        "",
        ("text",),
        tuple(groups),
        prose=True,
    )


def _reported(block: Block, params: Params) -> Iterator[Compact]:
    """Of the accuracies: the paper's beside ours, and the verdicts where there are some."""
    if not block.panels:
        return
    panel = block.panels[0]
    models: dict[str, dict[str, str]] = {}
    for row in panel.rows:
        model, _, benchmark = row.rpartition(", ")
        models.setdefault(model, {})[benchmark] = row
    columns = tuple(next(iter(models.values())))
    comparable = "p" in panel.digits
    groups = []
    for model, cells in models.items():
        rows: dict[str, list[Value]] = {"paper": [], "ours": []}
        if comparable:
            rows |= {"difference": [], "verdict": []}
        for benchmark in columns:
            row = cells[benchmark]
            rows["paper"].append(_number(panel.entries[row, "reported"], 1, rank=0))
            rows["ours"].append(_number(panel.entries[row, "ours"], 1, rank=0))
            if comparable:
                gap = panel.entries[row, "difference"]
                verdict = panel.entries[row, "verdict"]
                rows["difference"].append(_number(gap, 1, rank=0))
                text = verdict.text if isinstance(verdict, Label) else ""
                rows["verdict"].append(Value(text.partition(":")[0]))
        groups.append(Group(rows, variant(model)))
    end = (
        "Verdicts by equivalence bounds, after Holm."
        if comparable
        else "The two are not comparable: no difference is computed."
    )
    yield Compact(
        "reported",
        f"Accuracy in percent as the paper reports it ({params.published_family}) and in the "
        f"{params.profile} profile, protocol vlmevalkit. {end}",
        "model",
        columns,
        tuple(groups),
    )
