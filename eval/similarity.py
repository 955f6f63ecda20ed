"""How similar reconstructions are to their sections: a value for every sample, cells with controls.

The metrics are those of the paper's interpreter table (docs/recipe.md, section 4): BLEU-4, METEOR
and ROUGE-L (`eval.lexical`), BERTScore (`eval.bertscore`), and a judge's grade from 1 to 5
(`eval.judge`), here beside what the paper lacks: every control, likelihoods, paired intervals, and
BLEU over the whole corpus. An empty reconstruction counts 0 in every text metric (1 for the judge,
its lowest grade), stays in n, and is a failure of the cell.

A resource that is missing raises `MissingResource` with the command or parameter that mends it.
Nothing is replaced silently: what another resource computes has another name
(`heima.results.measures`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import lexical
from eval.bertscore import bertscore
from heima.config import Control, Params
from heima.interpreting.wordings import official_references
from heima.results import statistics
from heima.results.cells import Cell, Cells
from heima.results.measures import (
    BERTSCORE,
    BLEU_STATISTICS,
    CORPUS_BLEU,
    NLL_GAIN,
    difference,
    judge_column,
    text_metrics,
)

Rows = Sequence[Mapping[str, Any]]


class InconsistentRows(ValueError):
    """Reconstructions that do not belong together; the message names what is missing or double."""


def evaluate(
    rows: Mapping[int, Rows],
    params: Params,
    *,
    section: str,
    judgements: Mapping[int, Rows] | None = None,
) -> tuple[dict[str, list[Any]], Cells, dict[str, Any]]:
    """Measure the reconstructions of one section under every control, by every training seed.

    `rows` holds for each training seed one row for each turn and control: id, kind, image, control,
    reference, text, nll (sum over the reference's tokens, in nats), n_tokens. Every seed and
    control must have every turn, so that they are compared on the same turns. `judgements` has
    one row for each of those turns under each control of `similarity.judged`: id, control, grade
    (1 to 5, or None), failure (why there is no grade, or that the reconstruction is empty), model,
    system_fingerprint.

    Returns
    - columns of per-sample values (percent for text metrics, counts for `BLEU_STATISTICS`, None
      without a grade), in the order of the training seeds, the controls of the parameters, the
      turns;
    - cells: a group for each control with its metrics, corpus BLEU, NLL a token (total over
      total) and a text; a group `own-minus-<control>` with paired differences and `nll_gain` =
      NLL(control) - NLL(own) a text. Training seeds and turns are resampled, turns on one image
      together. A grade counts where every training seed has one for that turn, in a difference
      under both controls;
    - what computed them, with the judge's missing grades and their reasons.

    Raises `InconsistentRows` and `MissingResource`.
    """
    controls = params.reconstruct.controls
    by_control = {seed: _by_control(found, controls) for seed, found in rows.items()}
    _check_seeds(by_control)
    ordered = [row for same in by_control.values() for control in controls for row in same[control]]
    turns = next(iter(by_control.values()))["own"]
    clean = [row["reference"] for row in turns]
    references = clean
    if params.similarity.references == "official":
        references = official_references(section, clean, seed=params.seed)
    copies = len(controls) * len(rows)
    columns, computed_with = _score(
        references * copies, clean * copies, [row["text"] for row in ordered], params
    )

    images = [row["image"] for row in turns]
    samples = _Samples(by_control, columns, images, params)
    cells = _text_cells(samples)
    table: dict[str, list[Any]] = {
        "training_seed": [seed for seed in rows for _ in range(len(controls) * len(turns))],
        **{name: [row[name] for row in ordered] for name in ("id", "kind", "image", "control")},
    }
    table |= {name: values.tolist() for name, values in columns.items()}
    if params.similarity.judged:
        grades = {
            seed: _grades((judgements or {}).get(seed, ()), same, params)
            for seed, same in by_control.items()
        }
        _add_judge_cells(cells, grades, samples)
        table[judge_column(params.judge)] = [
            None if np.isnan(grade) else float(grade)
            for found in grades.values()
            for control in controls
            for grade in found.get(control, np.full(len(turns), np.nan))
        ]
        computed_with["judge"] = _judge_record(judgements or {}, params)
    table |= {name: [row[name] for row in ordered] for name in ("nll", "n_tokens")}
    computed_with["references"] = params.similarity.references
    return table, cells, computed_with


def _check_seeds(by_control: Mapping[int, Mapping[str, Rows]]) -> None:
    """Raise `InconsistentRows` where training seeds have other turns or references."""
    (first, known), *others = by_control.items()
    for seed, same in others:
        for key in ("id", "reference", "n_tokens"):
            if [row[key] for row in same["own"]] != [row[key] for row in known["own"]]:
                raise InconsistentRows(
                    f"the reconstructions of the training seeds {first} and {seed} must have the "
                    f"same turns in the same order; they differ in {key}"
                )


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


class _Samples:
    """Every value by training seed and control, and how it is resampled."""

    def __init__(
        self,
        by_control: Mapping[int, Mapping[str, Rows]],
        columns: Mapping[str, NDArray[np.float64]],
        images: Sequence[str],
        params: Params,
    ) -> None:
        self.rows = by_control
        self.images = images
        self.params = params
        self.controls = params.reconstruct.controls
        self._columns = columns
        self.empty: dict[str, NDArray[np.bool_]] = {
            control: np.array(
                [[not row["text"].strip() for row in same[control]] for same in by_control.values()]
            )
            for control in self.controls
        }
        """Control -> (seeds, turns)."""

    @property
    def seeds(self) -> list[int]:
        return list(self.rows)

    @property
    def resampling(self) -> dict[str, Any]:
        return {
            "draws": self.params.similarity.draws,
            "seed": self.params.seed,
            "clusters": self.images,
        }

    def column(self, name: str, control: str) -> dict[int, NDArray[np.float64]]:
        """Training seed -> a value of every turn."""
        n, count = len(self.images), len(self.controls)
        starts = [(i * count + self.controls.index(control)) * n for i in range(len(self.rows))]
        return {
            seed: self._columns[name][start : start + n]
            for seed, start in zip(self.rows, starts, strict=True)
        }

    def nll(self, control: str) -> dict[int, NDArray[np.float64]]:
        """Training seed -> the negative log-likelihood of every turn's text, in nats."""
        return {
            seed: np.array([row["nll"] for row in same[control]], dtype=np.float64)
            for seed, same in self.rows.items()
        }

    def failed(self, *controls: str) -> int:
        """How many samples are empty under one of the controls, over all training seeds."""
        return int(np.logical_or.reduce([self.empty[control] for control in controls]).sum())


def _text_cells(samples: _Samples) -> dict[str, dict[str, Cell]]:
    """The cells of every text metric and likelihood, of each control and each difference."""
    params, controls, seed = samples.params, samples.controls, samples.params.seed
    names = text_metrics(params.similarity)
    values: dict[tuple[str, str], dict[int, NDArray[np.float64]]] = {}
    n_failed: dict[tuple[str, str], int] = {}
    for control in controls:
        values |= {(control, name): samples.column(name, control) for name in names}
        n_failed |= {(control, name): samples.failed(control) for name in names}
        # A likelihood needs no generated text, so an empty one is no failure there.
        values[control, "nll"] = samples.nll(control)
    for control in _others(controls):
        group = difference(control)
        values |= {(group, m): _minus(values["own", m], values[control, m]) for m in names}
        n_failed |= {(group, name): samples.failed("own", control) for name in names}
        values[group, NLL_GAIN] = _minus(values[control, "nll"], values["own", "nll"])

    flat = statistics.resample(values, **samples.resampling, n_failed=n_failed)
    own = next(iter(samples.rows.values()))["own"]
    tokens = np.array([row["n_tokens"] for row in own], dtype=np.float64)
    per_token = statistics.resample(
        {
            control: {one: nll / tokens for one, nll in values[control, "nll"].items()}
            for control in controls
        },
        **samples.resampling,
        weights=tokens,
    )
    bleu = {control: _corpus_bleu(samples, control) for control in controls}

    cells: dict[str, dict[str, Cell]] = {}
    for (group, name), one in flat.items():
        cells.setdefault(group, {})[name] = one.cell(seed=seed)
    for control in controls:
        cells[control]["nll_per_token"] = per_token[control].cell(seed=seed)
        cells[control][CORPUS_BLEU] = bleu[control].cell(seed=seed)
    for control in _others(controls):
        cells[difference(control)][CORPUS_BLEU] = statistics.minus(
            bleu["own"], bleu[control], n_failed=samples.failed("own", control)
        ).cell(seed=seed)
    return cells


def _minus(
    left: Mapping[int, NDArray[np.float64]], right: Mapping[int, NDArray[np.float64]]
) -> dict[int, NDArray[np.float64]]:
    return {seed: values - right[seed] for seed, values in left.items()}


def _corpus_bleu(samples: _Samples, control: str) -> statistics.Resampled:
    """BLEU of each training seed's whole corpus, no mean over samples: from sums of counts."""
    columns = {name: samples.column(name, control) for name in BLEU_STATISTICS}
    values, drawn = {}, []
    for seed in samples.seeds:
        counts = np.stack([columns[name][seed] for name in BLEU_STATISTICS], axis=1)
        sums = statistics.bootstrap_sums(counts, **samples.resampling)
        both = np.vstack([counts.sum(axis=0), sums])
        value, *resampled = lexical.corpus_bleu(dict(zip(BLEU_STATISTICS, both.T, strict=True)))
        values[seed] = float(value)
        drawn.append(resampled)
    return statistics.Resampled(
        values,
        np.array(drawn).T,
        n=len(samples.images) * len(values),
        n_failed=samples.failed(control),
    )


def _others(controls: Sequence[Control]) -> list[Control]:
    return [control for control in controls if control != "own"]


def _add_judge_cells(
    cells: dict[str, dict[str, Cell]],
    grades: Mapping[int, Mapping[str, NDArray[np.float64]]],
    samples: _Samples,
) -> None:
    """Add the judge's mean grades, and own minus control, over the turns that have a grade."""
    column = judge_column(samples.params.judge)

    def cell(values: Mapping[int, NDArray[np.float64]], *controls: str) -> Cell:
        there = np.flatnonzero(~np.isnan(list(values.values())).any(axis=0))
        if not len(there):
            raise InconsistentRows(
                f"no turn has a grade of every training seed under {' and '.join(controls)}"
            )
        failed = np.logical_or.reduce([samples.empty[control] for control in controls])
        return statistics.seeded_cell(
            {seed: found[there] for seed, found in values.items()},
            draws=samples.params.similarity.draws,
            seed=samples.params.seed,
            clusters=[samples.images[i] for i in there.tolist()],
            n_failed=int(failed[:, there].sum()),
        )

    def graded(control: str) -> dict[int, NDArray[np.float64]]:
        return {seed: found[control] for seed, found in grades.items()}

    judged = samples.params.similarity.judged
    for control in judged:
        cells[control][column] = cell(graded(control), control)
    for control in _others(judged):
        paired = _minus(graded("own"), graded(control))
        cells[difference(control)][column] = cell(paired, "own", control)


def _grades(
    judgements: Rows, by_control: Mapping[str, Rows], params: Params
) -> dict[str, NDArray[np.float64]]:
    """Judged control -> the grade of each turn in their order, not-a-number where it is missing.

    Raises `InconsistentRows` where a judged turn has no judgement, or a control no grade at all.
    """
    found = {(row["control"], row["id"]): row["grade"] for row in judgements}
    grades: dict[str, NDArray[np.float64]] = {}
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


def _judge_record(judgements: Mapping[int, Rows], params: Params) -> dict[str, Any]:
    """Who answered, and which grades are missing for which reason."""
    answered = [row for found in judgements.values() for row in found if row["model"] is not None]
    missing = [
        {
            "training_seed": seed,
            "id": row["id"],
            "control": row["control"],
            "reason": row["failure"],
        }
        for seed, found in judgements.items()
        for row in found
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
