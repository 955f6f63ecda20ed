"""How similar reconstructions are to their sections: a value for every sample, cells with controls.

The metrics are those of the paper's interpreter table (recipe, section 4): BLEU-4, METEOR and
ROUGE-L (`eval.lexical`), BERTScore (`eval.bertscore`), and a judge's grade from 1 to 5
(`eval.judge`), here beside what the paper lacks: every control, likelihoods, paired intervals, and
BLEU over the whole corpus. An empty reconstruction counts 0 in every text metric (1 for the judge,
its lowest grade), stays in n, and is a failure of the cell.

A resource that is missing raises `MissingResource` with the command or parameter that mends it.
Nothing is replaced silently: what another resource computes has another name (`heima.measures`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import lexical
from eval.bertscore import bertscore
from heima import statistics
from heima.config import Params
from heima.interpreter import official_references
from heima.measures import (
    BERTSCORE,
    BLEU_STATISTICS,
    CORPUS_BLEU,
    NLL_GAIN,
    difference,
    judge_column,
    text_metrics,
)
from heima.results import Cell, Cells

Rows = Sequence[Mapping[str, Any]]


class InconsistentRows(ValueError):
    """Reconstructions that do not belong together; the message names what is missing or double."""


def evaluate(
    rows: Rows, params: Params, *, section: str, judgements: Rows = ()
) -> tuple[dict[str, list[Any]], Cells, dict[str, Any]]:
    """Measure the reconstructions of one section under every control.

    `rows` holds one row for each turn and control: id, kind, image, control, reference, text, nll
    (sum over the reference's tokens, in nats), n_tokens. Every control must have every turn, so
    that own and control are compared on the same turns. `judgements` has one row for each of those
    turns under each control of `similarity.judged`: id, control, grade (1 to 5, or None), failure
    (why there is no grade, or that the reconstruction is empty), model, system_fingerprint.

    Returns
    - columns of per-sample values (percent for text metrics, counts for `BLEU_STATISTICS`, None
      without a grade), in the order of the controls of the parameters, then of the turns;
    - cells: a group for each control with its metrics, corpus BLEU, NLL a token (total over
      total) and a text; a group `own-minus-<control>` with paired differences and `nll_gain` =
      NLL(control) - NLL(own) a text. Turns on one image are resampled together. A grade's n counts
      the turns that have one, for a difference under both controls;
    - what computed them, with the judge's missing grades and their reasons.

    Raises `InconsistentRows` and `MissingResource`.
    """
    controls = params.reconstruct.controls
    by_control = _by_control(rows, controls)
    ordered = [row for control in controls for row in by_control[control]]
    n = len(by_control["own"])
    clean = [row["reference"] for row in ordered]
    references = clean
    if params.similarity.references == "official":
        tagged = official_references(section, clean[:n], seed=params.seed)
        references = tagged * len(controls)
    columns, computed_with = _score(references, clean, [row["text"] for row in ordered], params)

    empty = {c: np.array([not row["text"].strip() for row in by_control[c]]) for c in controls}
    images = [row["image"] for row in by_control["own"]]
    cells = _text_cells(columns, by_control, empty, images, params)
    table: dict[str, list[Any]] = {
        name: [row[name] for row in ordered] for name in ("id", "kind", "image", "control")
    }
    table |= {name: values.tolist() for name, values in columns.items()}
    if params.similarity.judged:
        grades = _grades(judgements, by_control, params)
        _add_judge_cells(cells, grades, empty, images, params)
        table[judge_column(params.judge)] = [
            None if np.isnan(grade) else float(grade)
            for control in controls
            for grade in grades.get(control, np.full(n, np.nan))
        ]
        computed_with["judge"] = _judge_record(judgements, params)
    table |= {name: [row[name] for row in ordered] for name in ("nll", "n_tokens")}
    computed_with["references"] = params.similarity.references
    return table, cells, computed_with


def _score(
    references: Sequence[str], clean: Sequence[str], hypotheses: Sequence[str], params: Params
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Column -> values of every pair, and what computed them (`MissingResource`).

    Models and data are looked for before anything is computed.
    """
    bert, made = bertscore(params.similarity)
    columns, computed_with = lexical.scores(references, hypotheses, params.similarity)
    found = {
        **columns,
        BERTSCORE[params.similarity.bertscore]: 100 * bert.f1(references, hypotheses),
        # With tags and a sentence around it nothing would ever be equal.
        "exact": 100
        * np.array([lexical.exact(*pair) for pair in zip(clean, hypotheses, strict=True)]),
    }
    order = (*text_metrics(params.similarity), *BLEU_STATISTICS)
    return {name: found[name] for name in order}, {**computed_with, "bertscore": made}


def _text_cells(
    columns: Mapping[str, NDArray[np.float64]],
    by_control: Mapping[str, Rows],
    empty: Mapping[str, NDArray[np.bool_]],
    images: Sequence[str],
    params: Params,
) -> dict[str, dict[str, Cell]]:
    """The cells of every text metric and likelihood, of each control and each difference."""
    n = len(images)
    names = text_metrics(params.similarity)
    part = {control: slice(i * n, (i + 1) * n) for i, control in enumerate(by_control)}
    values: dict[tuple[str, str], NDArray[np.float64]] = {}
    n_failed: dict[tuple[str, str], int] = {}
    for control, rows in by_control.items():
        values |= {(control, name): columns[name][part[control]] for name in names}
        n_failed |= {(control, name): int(empty[control].sum()) for name in names}
        # A likelihood needs no generated text, so an empty one is no failure there.
        values[control, "nll"] = np.array([row["nll"] for row in rows], dtype=np.float64)
    for control in _others(by_control):
        group = difference(control)
        failed = int((empty["own"] | empty[control]).sum())
        values |= {(group, m): values["own", m] - values[control, m] for m in names}
        n_failed |= {(group, name): failed for name in names}
        values[group, NLL_GAIN] = values[control, "nll"] - values["own", "nll"]

    resampling: dict[str, Any] = {
        "draws": params.similarity.draws,
        "seed": params.seed,
        "clusters": images,
    }
    flat = statistics.cells(values, **resampling, n_failed=n_failed)
    tokens = np.array([row["n_tokens"] for row in by_control["own"]], dtype=np.float64)
    per_token = statistics.cells(
        {control: values[control, "nll"] / tokens for control in by_control},
        **resampling,
        weights=tokens,
    )
    bleu, drawn = {}, {}
    for control in by_control:
        counts = np.stack([columns[name][part[control]] for name in BLEU_STATISTICS], axis=1)
        sums = statistics.bootstrap_sums(counts, **resampling)
        both = np.vstack([counts.sum(axis=0), sums])
        bleu[control], *drawn[control] = lexical.corpus_bleu(
            dict(zip(BLEU_STATISTICS, both.T, strict=True))
        )

    cells: dict[str, dict[str, Cell]] = {}
    for (group, name), cell in flat.items():
        cells.setdefault(group, {})[name] = cell
    for control, rows in by_control.items():
        cells[control]["nll_per_token"] = per_token[control]
        cells[control][CORPUS_BLEU] = statistics.drawn_cell(
            bleu[control], drawn[control], n=len(rows), n_failed=int(empty[control].sum())
        )
    for control in _others(by_control):
        cells[difference(control)][CORPUS_BLEU] = statistics.drawn_cell(
            bleu["own"] - bleu[control],
            np.subtract(drawn["own"], drawn[control]),
            n=n,
            n_failed=int((empty["own"] | empty[control]).sum()),
        )
    return cells


def _others(controls: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [control for control in controls if control != "own"]


def _add_judge_cells(
    cells: dict[str, dict[str, Cell]],
    grades: Mapping[str, NDArray[np.float64]],
    empty: Mapping[str, NDArray[np.bool_]],
    images: Sequence[str],
    params: Params,
) -> None:
    """Add the judge's mean grades, and own minus control, over the turns that have a grade."""
    column = judge_column(params.judge)

    def cell(values: NDArray[np.float64], failed: NDArray[np.bool_]) -> Cell:
        there = np.flatnonzero(~np.isnan(values))
        return statistics.cell(
            values[there],
            draws=params.similarity.draws,
            seed=params.seed,
            clusters=[images[i] for i in there],
            n_failed=int(failed[there].sum()),
        )

    for control, values in grades.items():
        cells[control][column] = cell(values, empty[control])
    for control in _others(grades):
        cells[difference(control)][column] = cell(
            grades["own"] - grades[control], empty["own"] | empty[control]
        )


def _grades(
    judgements: Rows, by_control: Mapping[str, Rows], params: Params
) -> dict[str, NDArray[np.float64]]:
    """Judged control -> the grade of each turn in their order, not-a-number where it is missing.

    Raises `InconsistentRows` where a judged turn has no judgement, or a control no grade at all.
    """
    found = {(row["control"], row["id"]): row["grade"] for row in judgements}
    grades = {}
    for control in params.similarity.judged:
        lacking = [r["id"] for r in by_control[control] if (control, r["id"]) not in found]
        if lacking:
            raise InconsistentRows(
                f"{len(lacking)} reconstructions under {control} were not judged, {lacking[0]} "
                "among them: run `dvc repro judge`"
            )
        values = [found[control, row["id"]] for row in by_control[control]]
        grades[control] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        if np.isnan(grades[control]).all():
            raise InconsistentRows(f"no reconstruction under {control} has a grade")
    return grades


def _judge_record(judgements: Rows, params: Params) -> dict[str, Any]:
    """Who answered, and which grades are missing for which reason."""
    answered = [row for row in judgements if row["model"] is not None]
    missing = [
        {"id": row["id"], "control": row["control"], "reason": row["failure"]}
        for row in judgements
        if row["grade"] is None
    ]
    return {
        "column": judge_column(params.judge),
        **params.judge.model_dump(mode="json", include={"backend", "base_url", "model"}),
        "prompt": sorted({row["prompt"] for row in answered}),
        "answered": dict(sorted(Counter(row["model"] for row in answered).items())),
        "system_fingerprints": sorted(
            {row["system_fingerprint"] for row in answered if row["system_fingerprint"]}
        ),
        "missing": missing,
    }


def _by_control(rows: Rows, controls: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each control in the order of own's turns; raises `InconsistentRows`."""
    found: dict[str, dict[Any, Mapping[str, Any]]] = {control: {} for control in controls}
    for row in rows:
        if row["control"] not in found:
            raise InconsistentRows(
                f"turn {row['id']} has control {row['control']!r}, which reconstruct.controls "
                f"does not name ({', '.join(controls)})"
            )
        if row["id"] in found[row["control"]]:
            raise InconsistentRows(f"turn {row['id']} has control {row['control']} twice")
        found[row["control"]][row["id"]] = row
    own = found["own"]
    if not own:
        raise InconsistentRows("no turn was reconstructed from its own state")
    for control, turns in found.items():
        if missing := sorted(own.keys() ^ turns.keys(), key=str):
            raise InconsistentRows(
                f"own and {control} must have the same turns; {len(missing)} are in one of them "
                f"only: {', '.join(map(str, missing[:5]))}"
            )
        for turn, row in turns.items():
            for name in ("reference", "n_tokens"):
                if row[name] != own[turn][name]:
                    raise InconsistentRows(
                        f"turn {turn} has another {name} under {control} than under own"
                    )
    return {control: [turns[turn] for turn in own] for control, turns in found.items()}
