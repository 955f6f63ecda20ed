"""Count what the training of each checkpoint took: `python -m stages.flops`

Reads models/<checkpoint>/<seed>/loss.jsonl (the updates that were made), and data/rewritten, whose
turns say how many tokens an update has; writes metrics/flops.json: for each checkpoint that was
trained here its `updates` and its `flops`, those of the checkpoints before it left out.

FLOPs are those of `heima.planning`, forward and backward, without the activations that gradient
checkpointing computes again: what a method takes, on whatever machine. What is computed before the
first update (the surprisals of short texts) counts, a loss on held-out turns does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from heima import config
from heima.results.cells import Cell, write_metrics
from heima.results.files import read_jsonl
from heima.results.provenance import provenance
from stages import arguments

METRICS = Path("metrics/flops.json")


def main() -> None:
    params = config.load_resolved()
    try:
        updates = {
            name: {seed: _updates(params.trained(name, seed)) for seed in params.seeds}
            for name, one in params.checkpoints.items()
            if isinstance(one, config.Checkpoint)
        }
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} is missing: run `dvc repro`")
    write(params, updates)


def _updates(trained: str) -> int:
    return int(read_jsonl(Path("models") / trained / "loss.jsonl")[-1]["step"])


def write(params: config.Params, updates: dict[str, dict[int, int]]) -> None:
    """Write the metrics file; `updates` are those of each checkpoint and training seed."""
    from heima.planning import architectures, workload
    from heima.planning.machine import GPUS, Levers, Machine
    from heima.planning.trainings import Trainings

    work = workload.of(params, workload.tokenizer(params))
    levers = Levers(
        images_once=params.training.images_once,
        tiles=params.training.tiles,
        # The same on every machine, whatever `hardware` says.
        micro_batch_size=None,
        gradient_checkpointing=False,
        labelled_only=True,
        sharded=False,
    )
    # FLOPs are of no device.
    planned = Trainings(
        params, architectures.of(params), work, Machine("any", GPUS["h100"], 1, 1, 1), levers
    )
    cells: dict[str, dict[str, Cell]] = {}
    for name, by_seed in updates.items():
        one = config.expected(config.Checkpoint, params.checkpoints[name], f"checkpoints.{name}")
        found = planned.training(name, one)
        update = one.batch_size * found.sample(checkpointing=False)
        cells[name] = {
            "updates": _exact({seed: float(made) for seed, made in by_seed.items()}),
            "flops": _exact({s: found.before + made * update for s, made in by_seed.items()}),
        }
    write_metrics(METRICS, cells, provenance("flops", params, workload=list(work.facts)))


def _exact(by_seed: dict[int, float]) -> Cell:
    """Counts, of which nothing is uncertain: their bounds are the least and the most of a seed."""
    values = list(by_seed.values())
    mean = sum(values) / len(values)
    return Cell(mean, min(values), max(values), n=len(values), seeds=by_seed)


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
