"""Measure Theorem 3.1, what of the answer is usable in each format: `python -m stages.theorem`

Asks the predictors that `audit.predictors` names the questions of an audit, those of each training
seed, and writes `theorem/<seed>.parquet`, for each seed what each question's conclusion costs after
each of `eval.audit.theorem.ENTROPIES`, in bits, and `metrics/theorem.json`, the information with
its intervals.

On several GPUs it starts itself once on each, and the processes share the batches; a killed run
goes on from those that are finished, and ends with the same numbers.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.audit import items, measures, theorem
from eval.audit.passes import Passes
from heima import config
from heima.config import chains
from heima.families.batches import Images
from heima.results.cells import write_metrics
from heima.results.files import atomic
from heima.results.provenance import provenance
from stages import arguments, launch, reading

FOLDER = Path("theorem")
METRICS = Path("metrics/theorem.json")


def main() -> None:
    import pandas as pd

    params = config.load_resolved()
    named = params.audit.predictors
    if named is None:
        sys.exit("error: audit.predictors must name who predicts conclusions in each format")
    launch.on_all_devices(params, "stages.theorem")
    turns, images = items.asked(params)
    asking = chains.asking(params)
    models = sorted({one.model for one in asking.values()})

    # One seed's after the other's: each of its models is loaded once.
    @functools.lru_cache(maxsize=1)
    def loaded(seed: int) -> tuple[theorem.Predictors, measures.Moments]:
        read = {model: reading.loaded(model, seed, params) for model in models}

        def passes(part: str, shown: Images) -> Passes:
            one = asking[part]
            return reading.passes(read[one.model], params, shown, one)

        moments = measures.fitted(passes("tokens", reading.source(params)), params)
        return theorem.Predictors(**{part: passes(part, images) for part in asking}), moments

    def work(pieces: Sequence[tuple[int, Sequence[int]]]) -> Iterator[bytes]:
        for seed, rows in pieces:
            predictors, moments = loaded(seed)
            found = theorem.of_batch(predictors, [turns[row] for row in rows], moments)
            buffer = io.BytesIO()
            pd.DataFrame(found).to_parquet(buffer, index=False)
            yield buffer.getvalue()

    pieces = [(seed, rows) for seed in params.seeds for rows in reading.rows(turns, params)]
    read = sorted({params.trained(model, seed) for model in models for seed in params.seeds})
    found = reading.batches("theorem", "-".join(models), read, pieces, work, params)
    if found is None:
        return
    kept, contents = found
    asked = pd.DataFrame(
        {"turn": [turn.id for turn in turns], "image": [turn.image for turn in turns]}
    )
    costs = {
        seed: pd.concat(
            [
                asked,
                pd.concat(
                    [
                        pd.read_parquet(io.BytesIO(content))
                        for (own, _), content in zip(pieces, contents, strict=True)
                        if own == seed
                    ],
                    ignore_index=True,
                ),
            ],
            axis=1,
        )
        for seed in params.seeds
    }
    cells = theorem.information(costs, draws=params.similarity.draws, seed=params.seed)
    with atomic(FOLDER) as temporary:
        temporary.mkdir()
        for seed, one in costs.items():
            one.to_parquet(temporary / f"{seed}.parquet", index=False)
    write_metrics(
        METRICS,
        cells,
        provenance(
            f"theorem@{named.tokens.model}",
            params,
            training_seeds=list(params.seeds),
            questions=len(turns),
            predictors=named.model_dump(),
        ),
    )
    kept.discard()
    for name, cell in cells["information"].items():
        print(f"{name}: {cell.value:.3f} bits [{cell.low:.3f}, {cell.high:.3f}]")


if __name__ == "__main__":
    arguments.parser_of(__doc__).parse_args()
    main()
