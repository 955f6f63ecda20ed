"""Describe thinking states, and what they tell of the answer: `python -m stages.examine recover 42`

Writes `metrics/examine/<checkpoint>/<seed>.json`: for each position in forced answers how its
states lie to each other (`eval.audit.geometry`), and what a probe finds of the answer in those of
the prompt, of thinking tokens and where the conclusion begins, by kind of question
(`eval.audit.information`).
Kinds that are not probed stand in its provenance, with why.

On several GPUs it starts itself once on each, and the processes share the batches; a killed run
goes on from those that are finished, and ends with the same numbers.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.audit import geometry, information, items, recording
from heima import config
from heima.config import chains
from heima.results.files import write_json
from heima.results.provenance import provenance
from stages import arguments, launch, reading


def main(checkpoint: str, seed: int) -> None:
    params = config.load_resolved()
    launch.on_all_devices(params, "stages.examine", checkpoint, str(seed))
    turns, images = items.asked(params)
    donors, lent = reading.lent(turns, params)

    def work(batches: Sequence[Sequence[int]]) -> Iterator[bytes]:
        loaded = reading.loaded(checkpoint, seed, params)
        passes = reading.passes(loaded, params, images, chains.audited(params, checkpoint))
        for rows in batches:
            asked = [turns[row] for row in rows]
            shown = [donors[row].image for row in rows]
            own = recording.of_batch(passes, asked)
            other = recording.of_batch(passes, asked, shown)
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {
                **{f"own/{position}": part for position, part in own.items()},
                **{f"shown/{position}": part for position, part in other.items()},
            }
            np.savez(buffer, **arrays)
            yield buffer.getvalue()

    name = f"{checkpoint}-{seed}"
    read, pieces = [params.trained(checkpoint, seed)], reading.rows(turns, params)
    found = reading.batches("examine", name, read, pieces, work, params)
    if found is None:
        return
    kept, contents = found
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for content in contents:
        for key, part in np.load(io.BytesIO(content)).items():
            parts[key].append(part)
    states = {key: np.concatenate(part) for key, part in parts.items()}
    own, shown = (
        {key.partition("/")[2]: part for key, part in states.items() if key.startswith(side)}
        for side in ("own/", "shown/")
    )
    described = geometry.described(own, shown, lent, [turn.kind for turn in turns])
    probes, left_out = information.by_kind(own, turns, seed=params.seed)
    write_json(
        Path("metrics/examine") / checkpoint / f"{seed}.json",
        {
            "geometry": {
                position: {what: _number(value) for what, value in of.items()}
                for position, of in described.items()
            },
            "information": probes,
            "provenance": provenance(
                f"examine@{name}",
                params,
                training_seed=seed,
                questions=len(turns),
                not_probed=left_out,
            ),
        },
    )
    kept.discard()
    print(f"{len(turns)} questions: states at {len(own)} positions, {len(probes)} kinds probed")


def _number(value: float) -> float | None:
    """A number for JSON: None where there is none."""
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    name, chosen = arguments.read(
        __doc__, checkpoint=chains.examinable, seed=lambda params: params.seeds
    )
    main(name, int(chosen))
