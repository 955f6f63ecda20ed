"""The paper's cells beside ours, with a verdict on each by the rule of docs/verdicts.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from heima.config import ProtocolName
from heima.results import verdicts
from heima.results.cells import Cell
from heima.results.measures import BERTSCORE, METEOR
from heima.results.scores import ACCURACY, score_group
from reports.tables import captions
from reports.tables.kept import of_family
from reports.tables.model import Block, Entry, Label, Panel, Table
from reports.tables.names import heading
from reports.tables.numbers import probability
from reports.tables.panels import ACCURACIES
from reports.tables.published import PUBLISHED, PUBLISHED_NAMES
from reports.tables.results import Results
from reports.tables.series import SERIES, points

MARGINS = {"accuracy": 3.0, "reconstruction": 2.0}
"""How far from the paper's value, in points, ours is still the same (docs/verdicts.md)."""

PROTOCOL: ProtocolName = "vlmevalkit"
"""The paper's."""

REPRODUCED, UNDECIDED, ONE_SEED = "reproduced", "undecided", "one seed: no verdict"
NOT_RUN, OTHER_METRIC, COUNTED = "not run", "other metric", "counted otherwise"
HIGHER, LOWER = "higher", "lower"

TITLES = {
    "accuracy": "Accuracy (%)",
    "tokens": "Generated tokens, which the paper counts otherwise",
    "interpreters": "Reconstructions (%)",
    "tokens_per_stage": "Accuracy (%) by thinking tokens a section",
    "retention_ratio": "Accuracy (%) by retained share",
}


@dataclass(frozen=True)
class Comparison:
    """A value of the paper and ours.

    `margin` is that of its kind; None: such values are not compared, `why_not` says why. `p` is of
    the test that decided, after Holm.
    """

    panel: str
    row: str
    column: str
    reported: float
    published: str
    ours: Cell | None = None
    source: str = ""
    trained: bool = True
    margin: float | None = None
    why_not: str = NOT_RUN
    verdict: str = ""
    p: float | None = None


def comparisons(results: Results) -> list[Comparison]:
    """Every cell of the paper about this family, each with its verdict.

    Where models, data and rules are not the paper's, every verdict says that alone.
    """
    found = [*_benchmarks(results), *_interpreters(results)]
    for name in SERIES:
        found += _series(results, name)
    if not results.comparable:
        return [replace(one, verdict=f"{results.scale}: not comparable") for one in found]
    return judged(found)


def judged(found: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons with their verdicts; Holm over those that can be tested, of each test apart."""
    places, same, apart = [], [], []
    for place, one in enumerate(found):
        testable = not one.trained or (one.ours is not None and one.ours.sd is not None)
        if one.ours is not None and one.margin is not None and testable:
            places.append(place)
            same.append(verdicts.equivalent(one.ours, one.reported, one.margin))
            apart.append(verdicts.differs(one.ours, one.reported))
    adjusted = zip(verdicts.holm(same), verdicts.holm(apart), strict=True)
    decided = dict(zip(places, adjusted, strict=True))
    result = []
    for place, one in enumerate(found):
        if place not in decided or one.ours is None:
            no = ONE_SEED if one.ours is not None and one.margin is not None else one.why_not
            result.append(replace(one, verdict=no))
            continue
        p_same, p_apart = decided[place]
        if p_same <= verdicts.LEVEL:
            result.append(replace(one, verdict=REPRODUCED, p=p_same))
        elif p_apart <= verdicts.LEVEL:
            side = HIGHER if one.ours.value > one.reported else LOWER
            result.append(replace(one, verdict=side, p=p_apart))
        else:
            result.append(replace(one, verdict=UNDECIDED, p=p_apart))
    return result


def _score(results: Results, variant: str, column: str, metric: str) -> dict[str, object]:
    """Our cell of a variant under the paper's protocol, where there is one."""
    params = results.params
    if variant not in params.variants or PROTOCOL not in params.protocols:
        return {}
    if column not in params.benchmarks:
        return {}
    cells, source = results.scores[variant]
    return {
        "ours": cells[score_group(PROTOCOL, column)][metric],
        "source": source,
        "trained": params.variants[variant].model in params.checkpoints,
    }


_BENCHMARKS = {label: name for name, label in PUBLISHED_NAMES.items()}
"""The paper's name of a benchmark -> ours."""


def _benchmarks(results: Results) -> Iterator[Comparison]:
    source = "reports/published/benchmarks.csv"
    for title, column in (("accuracy", "accuracy"), ("tokens", "generated_tokens")):
        for row in results.published["benchmarks"]:
            name = _BENCHMARKS[row["benchmark"]]
            metric = ACCURACY if title == "accuracy" else "decoded_tokens"
            one = Comparison(
                title,
                row["model"],
                name,
                float(row[column]),
                source,
                **_score(results, row["model"], name, metric),  # type: ignore[arg-type]
            )
            yield (
                replace(one, margin=MARGINS["accuracy"])
                if title == "accuracy"
                else replace(one, why_not=COUNTED if one.ours else NOT_RUN)
            )


_METRICS = {
    "bleu4": "bleu4",
    "meteor": METEOR["wordnet"],
    "rougeL": "rougeL",
    "bertscore_f1": BERTSCORE["deberta-xlarge-mnli"],
}


def _interpreters(results: Results) -> Iterator[Comparison]:
    """One interpreter for each section against the paper's three, one for all against its one."""
    params = results.params
    for row in results.published["interpreters"]:
        read = {row["stage"]} if row["interpreters"] == "3" else set(params.sections)
        names = {
            name
            for name, one in params.reconstructions.items()
            if one.section == row["stage"]
            and set(params.interpreters[one.interpreter].sections) == read
        }
        one = Comparison(
            "interpreters",
            f"{row['interpreters']} interpreters, {row['stage']}"
            if row["interpreters"] != "1"
            else f"1 interpreter, {row['stage']}",
            row["metric"],
            float(row["value"]),
            "reports/published/interpreters.csv",
            margin=MARGINS["reconstruction"],
        )
        if names:
            cells, source = results.similarities[min(names)]
            cell = cells["own"].get(_METRICS[row["metric"]])
            one = replace(one, ours=cell, source=source, why_not=NOT_RUN if cell else OTHER_METRIC)
        yield one


def _series(results: Results, name: str) -> Iterator[Comparison]:
    """Ours where this profile trained the point, else what another one of this family has kept."""
    rows = points(results.params, name)
    for row in results.published[name]:
        value, benchmark = f"{float(row[name]):g}", _BENCHMARKS[row["benchmark"]]
        variant = rows.get(value)
        ours: dict[str, object] = (
            _score(results, variant, benchmark, ACCURACY)
            if variant
            else _kept(results, name, value, benchmark)
        )
        yield Comparison(
            name,
            f"{value} a section" if name == "tokens_per_stage" else f"{value} of the tokens",
            benchmark,
            float(row["accuracy"]),
            f"reports/published/{name}.csv",
            margin=MARGINS["accuracy"],
            **ours,  # type: ignore[arg-type]
        )


def _kept(results: Results, name: str, row: str, benchmark: str) -> dict[str, object]:
    """The cell of another profile's series under the paper's protocol, where there is one."""
    for one in of_family(results.kept, results.params.published_family):
        for block in one.blocks(name):
            if not block.origin.endswith(f"protocol {PROTOCOL}"):
                continue
            for panel in block.panels:
                entry = panel.entries.get((row, benchmark))
                if panel.title == ACCURACIES and isinstance(entry, Entry):
                    return {"ours": entry.cell(), "source": entry.source}
    return {}


def counts(found: Sequence[Comparison]) -> dict[str, int]:
    """Verdict -> how many cells of the paper have it."""
    return dict(sorted(Counter(one.verdict for one in found).items()))


def reported_table(results: Results, found: Sequence[Comparison]) -> Table:
    params = results.params
    if not found:
        title = f"Reported against ours ({captions.about(params)})"
        return Table("reported", (Block("", title, captions.NOTHING_PUBLISHED, ()),))
    panels = tuple(
        _panel(title, [one for one in found if one.panel == name], comparable=results.comparable)
        for name, title in TITLES.items()
        if any(one.panel == name for one in found)
    )
    family = PUBLISHED.format(params.published_family)
    block = Block(
        origin=f"{params.profile} profile beside the {family}",
        title=f"Reported against ours ({captions.about(params)})",
        caption=captions.reported(
            params,
            [
                one
                for one in of_family(results.kept, params.published_family)
                if any(one.blocks(name) for name in SERIES)
            ],
            comparable=results.comparable,
        ),
        panels=panels,
    )
    return Table("reported", (block,))


def _panel(title: str, found: Sequence[Comparison], *, comparable: bool) -> Panel:
    columns = {"reported": 1, "ours": 1}
    if comparable:
        columns |= {"difference": 1, "p": 3}
    columns["verdict"] = 0
    entries: dict[tuple[str, str], Entry | Label] = {}
    rows = []
    for one in found:
        row = f"{one.row}, {heading(one.column)}"
        rows.append(row)
        entries[row, "reported"] = Entry(one.reported, one.published)
        entries[row, "verdict"] = Label(one.verdict, one.source or one.published)
        entries[row, "ours"] = entries[row, "difference"] = entries[row, "p"] = Label(
            "–", one.source or one.published
        )
        if one.ours is not None:
            entries[row, "ours"] = Entry.of(one.ours, one.source)
            if one.margin is not None:
                entries[row, "difference"] = Entry.of(
                    verdicts.minus(one.ours, one.reported), one.source
                )
        if one.p is not None:
            entries[row, "p"] = Label(probability(one.p), one.source)
    kept = {key: entry for key, entry in entries.items() if key[1] in columns}
    return Panel(title, "cell of the paper", tuple(rows), columns, kept)
