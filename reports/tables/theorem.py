"""Theorem 3.1 in numbers: usable information about the answer, in bits a conclusion."""

from __future__ import annotations

from pathlib import Path

from heima.config import Params, Predictor, Predictors, given
from heima.config.mixtures import mixture
from heima.results.cells import Cells
from reports.tables import captions, expected
from reports.tables.model import Block, Entry, Label, Panel, Table

ENTROPIES = {
    "nothing": "nothing",
    "tokens/ids": "thinking tokens, ids",
    "tokens/states": "thinking tokens, states",
    "text": "text chain",
}
"""Each entropy of the measurement as the table names what stands before the conclusion."""

EXACT = "thinking tokens, ids, exact"
BITS, BY = "bits", "predicted by"
COSTS = "What a conclusion costs after C, H(Y | X, C)"
SAVES = "What C saves, I(Y; C | X), and the gap of the text chain"
"""Titles by which compact forms find these panels."""
GAP_OF = "gap, "
GAP = f"{GAP_OF}states"
"""What the theorem says to be small, as far as the states of thinking tokens are read."""


METRICS = "metrics/theorem.json"


def read_theorem(root: Path, params: Params, problems: list[str]) -> Cells:
    """The cells of the measurement; none where the parameters name no predictors."""
    if params.audit.predictors is None:
        return {}
    found = expected.metrics(root, METRICS, "theorem", params, problems)
    if found is None:
        return {}
    cells, made = found
    if made["predictors"] != params.audit.predictors.model_dump():
        problems.append(f"{METRICS} has other predictors than audit.predictors: run `dvc repro`")
    return cells


def nothing(params: Params) -> Table:
    """What stands in its place where it is not measured."""
    title = f"Theorem 3.1 in bits a conclusion ({captions.about(params)})"
    return Table("theorem", (Block(f"{params.profile} profile", title, captions.NO_THEOREM, ()),))


def shown(predictor: Predictor) -> str:
    """A predictor as the table names it.

    >>> shown(Predictor(model="predictor", asks="p3"))
    'predictor, asked for p3'
    """
    asked = "" if predictor.asks is None else f", asked for {predictor.asks}"
    return f"{predictor.model}{asked}"


def predicting(params: Params) -> str:
    """Who predicts conclusions, in a few words; "" where the parameters name nobody."""
    named = params.audit.predictors
    if named is None:
        return ""
    if named.alone is not None:
        return f"{named.alone} in all formats"
    return ", ".join(f"{shown(one)} after {part}" for part, one in named.parts.items())


def _who(params: Params, named: Predictors) -> str:
    """Whose information it is, in a sentence or two."""
    if named.alone is None:
        return (
            "No one predictor was asked for all formats: each has the one named, which stands for "
            "the best of the adapters on text-CoT there."
        )
    mixed = given(mixture(params, named.alone), f"checkpoints.{named.alone}.data")
    shares = ", ".join(
        f"{one.asks} {100 * mixed[one.asks]:.3g} %" for one in named.parts.values() if one.asks
    )
    return (
        f"One checkpoint, {named.alone}, predicts in all formats, each asked for by a word behind "
        f"the question; it was trained on a mixture of them ({shares} of the turns)."
    )


def theorem_table(params: Params, cells: Cells, source: str = METRICS) -> Table:
    """The table `theorem`, of the cells in the file `source`.

    Raises `ValueError` where the parameters name no predictors.
    """
    named = given(params.audit.predictors, "audit.predictors")
    by = {name: shown(named.parts[name.partition("/")[0]]) for name in ENTROPIES}
    entropies: dict[tuple[str, str], Entry | Label] = {}
    for name, row in ENTROPIES.items():
        entropies[row, BITS] = Entry.of(cells["entropy"][name], source)
        entropies[row, BY] = Label(by[name], source)
    known: dict[tuple[str, str], Entry | Label] = {(EXACT, BITS): Entry(0.0, source)}
    measured: dict[tuple[str, str], Entry | Label] = {
        (name, BITS): Entry.of(cell, source) for name, cell in cells["information"].items()
    }
    panels = (
        Panel(
            COSTS,
            "C",
            tuple(ENTROPIES.values()),
            {BITS: 3, BY: 0},
            entropies,
        ),
        Panel(
            SAVES,
            "C",
            (EXACT, *cells["information"]),
            {BITS: 3},
            known | measured,
        ),
    )
    return Table(
        "theorem",
        (
            Block(
                origin=f"{params.profile} profile",
                title=f"Theorem 3.1 in bits a conclusion ({captions.about(params)})",
                caption=(
                    "V-information of the answer Y in the thinking tokens and in the text chain, "
                    "given the question with its image X: how many bits cheaper the conclusion "
                    "is. Theorem 3.1 says that thinking tokens lose little of it: the gap, what "
                    "the text has more, is small. V-information is a predictor's, not Shannon's: a "
                    "gap shows what these adapters do not use, and nothing of what is there. "
                    f"{_who(params, named)} "
                    "The chain is the data's own, not a model's. Ids: the tokens with states that "
                    "are the same for all questions. They are constants, so that they carry 0 "
                    "bits exactly, whatever reads them; a predictor may still do better or worse "
                    "behind them. Intervals: 95 %, over images and training seeds."
                ),
                panels=panels,
            ),
        ),
    )
