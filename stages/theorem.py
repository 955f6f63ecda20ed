"""Measure Theorem 3.1, what of the answer is usable in each format: `python -m stages.theorem 42`

Asks the predictors that `audit.predictors` names, of one training seed, the questions of an audit,
and writes `theorem/<seed>.parquet`: a row for each question, a column for what its
conclusion costs after each of `eval.audit.theorem.ENTROPIES`, in bits. The table `theorem` is made
of these.

On several GPUs it starts itself once on each, and the processes share the batches; a killed run
goes on from those that are finished, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.audit import items, measures, theorem
from eval.audit.passes import Passes
from heima import config
from heima.data.turns import load_turns
from heima.results.files import atomic
from heima.vlm import processes
from stages import arguments, launch, reading

FOLDER = Path("theorem")


def main(seed: int) -> None:
    import pandas as pd

    params = config.load_resolved()
    named = params.audit.predictors
    if named is None:
        sys.exit("error: audit.predictors must name who predicts conclusions in each format")
    launch.on_all_devices(params, "stages.theorem", str(seed))
    turns, images = items.asked(params)

    def work(batches: Sequence[Sequence[int]]) -> Iterator[bytes]:
        tokens = named.tokens
        prefix = params.prefix(tokens, params.checkpoints[tokens].data)
        by_source = reading.passes(tokens, seed, params, reading.source(params), prefix)
        moments = _moments(by_source, params)
        predictors = theorem.Predictors(
            reading.passes(named.nothing, seed, params, images, ""),
            reading.passes(tokens, seed, params, images, prefix),
            reading.passes(named.text, seed, params, images, ""),
        )
        for rows in batches:
            found = theorem.of_batch(predictors, [turns[row] for row in rows], moments)
            buffer = io.BytesIO()
            pd.DataFrame(found).to_parquet(buffer, index=False)
            yield buffer.getvalue()

    read = [params.trained(name, seed) for name in (named.nothing, named.tokens, named.text)]
    found = reading.batches("theorem", str(seed), read, len(turns), work, params)
    if found is None:
        return
    kept, contents = found
    table = pd.DataFrame(
        {
            "turn": [turn.id for turn in turns],
            "image": [turn.image for turn in turns],
            **pd.concat([pd.read_parquet(io.BytesIO(one)) for one in contents], ignore_index=True),
        }
    )
    with atomic(FOLDER / f"{seed}.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    kept.discard()
    print(
        f"{len(table)} questions, bits a conclusion: "
        + ", ".join(f"{name} {table[name].mean():.3f}" for name in theorem.ENTROPIES)
    )


def _moments(passes: Passes, params: config.Params) -> measures.Moments:
    """Of the thinking tokens' states of the first training turns."""
    turns = load_turns("data/rewritten/train.parquet")[: params.audit.fitted]
    asked = [dataclasses.replace(turn, image_first=True) for turn in turns]
    return measures.Moments.of(
        [
            measures.states(passes, part)[0]
            for part in processes.batches(asked, params.audit.batch_size)
        ]
    )


if __name__ == "__main__":
    (chosen,) = arguments.read(__doc__, seed=lambda params: params.seeds)
    main(int(chosen))
