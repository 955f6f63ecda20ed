"""Theorem 3.1 in numbers: usable information about the answer, in bits a conclusion."""

from __future__ import annotations

from collections.abc import Mapping

from heima.config import Params, given
from heima.results.cells import Cell
from reports.tables import captions
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


def theorem_table(params: Params, cells: Mapping[str, Mapping[str, Cell]], source: str) -> Table:
    """The table `theorem`, of the cells in the file `source`.

    Raises `ValueError` where the parameters name no predictors.
    """
    named = given(params.audit.predictors, "audit.predictors")
    by = {
        "nothing": named.nothing,
        "tokens/ids": named.tokens,
        "tokens/states": named.tokens,
        "text": named.text,
    }
    entropies: dict[tuple[str, str], Entry | Label] = {}
    for name, shown in ENTROPIES.items():
        entropies[shown, BITS] = Entry.of(cells["entropy"][name], source)
        entropies[shown, BY] = Label(by[name], source)
    known: dict[tuple[str, str], Entry | Label] = {(EXACT, BITS): Entry(0.0, source)}
    measured: dict[tuple[str, str], Entry | Label] = {
        (name, BITS): Entry.of(cell, source) for name, cell in cells["information"].items()
    }
    panels = (
        Panel(
            "What a conclusion costs after C, H(Y | X, C)",
            "C",
            tuple(ENTROPIES.values()),
            {BITS: 3, BY: 0},
            entropies,
        ),
        Panel(
            "What C saves, I(Y; C | X), and the gap of the text chain",
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
                    "is. The gap is what the text has more. "
                    "Each format has a predictor of its own, which stands for the best of the "
                    "adapters on text-CoT there: no checkpoint was trained on all of them. The "
                    "chain is the data's own, not a model's. Ids: the tokens with "
                    "states that are the same for all questions. They are constants, so that they "
                    "carry 0 bits exactly, whatever reads them; a predictor may still do better or "
                    "worse behind them. Intervals: 95 %, over images and training seeds."
                ),
                panels=panels,
            ),
        ),
    )
