"""Say what an audit comes to, over training seeds: `python -m stages.effects recover`

Reads  audits/<checkpoint>/<training seed>.parquet: what became of each question's answer
Writes metrics/effects/<checkpoint>.json: effects with 95 % intervals, the verdict by the rule of
       docs/audit.md, the p values behind it, the questions that an effect leaves out, and the power
"""

from __future__ import annotations

from heima import config
from heima.config import chains
from heima.results.cells import write_metrics
from heima.results.provenance import provenance
from stages import arguments


def main(checkpoint: str) -> None:
    params = config.load_resolved()

    import pandas as pd

    from eval.audit import effects

    seeds = params.training_seeds(checkpoint)
    tables = {seed: pd.read_parquet(f"audits/{checkpoint}/{seed}.parquet") for seed in seeds}
    try:
        found = effects.audited(tables, draws=params.similarity.draws, seed=params.seed)
    except ValueError as error:
        raise SystemExit(f"effects of {checkpoint}: {error}") from error
    questions = len(tables[seeds[0]])
    power = effects.power(questions)
    write_metrics(
        f"metrics/effects/{checkpoint}.json",
        found.cells,
        provenance(
            f"effects@{checkpoint}",
            params,
            training_seeds=list(seeds),
            questions=questions,
            power=power,
            verdict=found.verdict,
            p=found.p,
            left_out=found.left_out,
        ),
    )
    print(
        f"{checkpoint}: the thinking states matter to the conclusion: {found.verdict} "
        f"({questions} questions, {len(seeds)} training seeds)"
    )
    print(
        f"where {effects.DIFFERING:.0%} of the answers differ, so many questions show an effect "
        f"within {effects.MARGIN:g} points to be so with a probability of {100 * power:.0f} %"
    )
    for test, p in found.p.items():
        print(f"p = {p:.4f}: {test}")
    for effect, count in found.left_out.items():
        print(f"{count} of {questions} questions have no value for {effect}")


if __name__ == "__main__":
    (chosen,) = arguments.read(__doc__, why=chains.no_audit, checkpoint=chains.auditable)
    main(chosen)
