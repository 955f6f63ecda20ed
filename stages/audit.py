"""Ask what conclusions owe to thinking states: `python -m stages.audit recover 42`

Writes `audits/<checkpoint>/<seed>.parquet`: a row for each question, a column for each measure (see
`eval.audit.measures.of_batch`; of `eval.audit.words` where answers have words before conclusions).
The questions are the same for all checkpoints and seeds.

On several GPUs it starts itself once on each, and the processes share the batches. Finished batches
stay in `.cache/batches/` until the result is written: a killed run goes on from them, on any number
of processes, and ends with the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from eval.audit import items, measures, words
from heima import config
from heima.config import chains
from heima.data.turns import Turn
from heima.results.files import atomic
from heima.training import snapshots
from heima.vlm import kept_batches, models, processes
from stages import arguments, launch, reading


def main(checkpoint: str, seed: int) -> None:
    import pandas as pd

    params = config.load_resolved()
    launch.on_all_devices(params, "stages.audit", checkpoint, str(seed))
    turns, images = items.asked(params)
    batches = processes.batches(range(len(turns)), params.audit.batch_size)
    donors = {
        same: items.partners(turns, same_gold=same, seed=params.seed) for same in (True, False)
    }
    kept = kept_batches.KeptBatches(_kept(checkpoint, seed, params))
    of_batch, decoding = measures.of_batch, params.audit.decoding
    if _has_words(checkpoint, params):
        of_batch = words.of_batch
        decoding = decoding.model_copy(update={"max_new_tokens": params.predict.max_new_tokens})

    def work(numbers: Sequence[int]) -> Iterator[bytes]:
        read = reading.loaded(checkpoint, seed, params)
        asked = chains.audited(params, checkpoint)
        by_source = reading.passes(read, params, reading.source(params), asked)
        moments = measures.fitted(by_source, params)
        asking = reading.passes(read, params, images, asked)
        for number in numbers:
            rows = batches[number]
            found = of_batch(
                asking,
                _batch(turns, donors, rows, seed=processes.batch_seed(params.seed, number)),
                moments,
                decoding=decoding,
                windows=params.audit.windows,
            )
            buffer = io.BytesIO()
            pd.DataFrame(found).to_parquet(buffer, index=False)
            yield buffer.getvalue()

    with processes.joined() as shared:
        complete = kept_batches.compute(
            len(batches), kept, shared, work, title=f"audit@{checkpoint}-{seed}"
        )
    if not complete:
        return
    parts = [pd.read_parquet(io.BytesIO(kept.get(one))) for one in range(len(batches))]
    table = pd.DataFrame(
        {
            "turn": [turn.id for turn in turns],
            "image": [turn.image for turn in turns],
            "kind": [turn.kind for turn in turns],
            "gold": [turn.conclusion for turn in turns],
            **pd.concat(parts, ignore_index=True),
        }
    )
    with atomic(Path("audits") / checkpoint / f"{seed}.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    kept.discard()
    right, follows = table["own/right"].mean(), table["other/followed"].mean()
    print(
        f"{len(table)} questions: {100 * right:.1f} % right, {100 * follows:.1f} % answered as the "
        f"donor does ({100 * table['other/alike'].mean():.1f} % without its states)"
    )


def _batch(
    turns: Sequence[Turn], donors: dict[bool, np.ndarray], rows: Sequence[int], *, seed: int
) -> measures.Batch:
    """These turns with their donors; a turn without one is its own."""
    here = np.asarray(rows)
    lent = {same: found[here] != items.NOBODY for same, found in donors.items()}
    chosen = {
        same: [turns[row] for row in np.where(lent[same], found[here], here)]
        for same, found in donors.items()
    }
    return measures.Batch(
        [turns[row] for row in rows], chosen[True], chosen[False], lent[True], lent[False], seed
    )


def _has_words(checkpoint: str, params: config.Params) -> bool:
    """Whether answers have words between their thinking tokens and the conclusion."""
    return not chains.audited_rendering(params, checkpoint).constant


def _kept(checkpoint: str, seed: int, params: config.Params) -> Path:
    """Where finished batches are: a folder named by all that they depend on."""
    inputs = [
        *(Path(f"data/rewritten/{split}.parquet") for split in ("train", "heldout")),
        models.ROOT / "text-cot",
        models.ROOT / params.trained(checkpoint, seed),
    ]
    used = ["seed", "family", "precision", "image_decoding", "source", "training"]
    others = ("checkpoints", "predictors", "asks")
    used += [f"audit.{one}" for one in type(params.audit).model_fields if one not in others]
    if checkpoint in params.audit.asks:
        used += [f"audit.asks.{checkpoint}", "control_words"]
    if _has_words(checkpoint, params):
        used.append("predict.max_new_tokens")
    key = snapshots.key(
        f"audit@{checkpoint}-{seed}", params, *used, f"checkpoints.{checkpoint}", inputs=inputs
    )
    return (
        kept_batches.ROOT / f"{key}-{reading.source(params).fingerprint()}-{models.fingerprint()}"
    )


if __name__ == "__main__":
    name, chosen = arguments.read(
        __doc__,
        why=chains.no_audit,
        checkpoint=chains.auditable,
        seed=lambda params: params.seeds,
    )
    main(name, int(chosen))
