"""A rehearsal's batches on a GPU: `python -m timings.rehearsal.on_device`

- the loss and the adapter's gradients of one batch on the CPU and on the GPU, both ways: of a model
  that the CPU has loaded (`fp32`, `bf16`), and of an adapter that the GPU has trained (`trained`);
- the training loop and prediction as the stages call them, in bf16 with recomputed layers.

Narrow models in the real shapes, both families. Prints a table; the last line is a JSON object with
it: `families`, each with `losses` and `run`. Exits with 1 where in fp32 a loss is off by more than
1e-4 or a gradient by more than 1e-3 of the largest. Without a GPU both sides are the CPU, and what
is shown is that it runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from heima.config import Hardware, Schedule
from heima.training import loop
from heima.training.backbone import body
from heima.vlm import models
from heima.vlm.generation import Prompt, generate
from timings.rehearsal import batch, make

CPU = torch.device("cpu")
LOSS, GRADIENT = 1e-4, 1e-3
"""How far fp32 on a GPU may be off: sums of some thousand terms in another order."""
STEPS, DECODED = 3, 16


def rehearse(made: Path, family: str, images: int) -> dict[str, Any]:
    """One family: its losses there and back, and what training and prediction took."""
    losses = {precision: there(made, family, precision, images) for precision in ("fp32", "bf16")}
    params = batch.parameters(family, "bf16")
    rehearsed = batch.prepare(made, family, params, models.device())
    places = batch.of_distinct_images(rehearsed, images)
    run = train(rehearsed, places)
    losses["trained"] = back(rehearsed, places)
    rehearsed.model.to(device=models.device(), dtype=torch.bfloat16)
    return {"losses": losses, "run": run | predict(rehearsed, places)}


def there(made: Path, family: str, precision: str, images: int) -> dict[str, float]:
    """What the CPU computes with a model that it has loaded, and the device with the same."""
    params = batch.parameters(family, precision)
    rehearsed = batch.prepare(made, family, params, CPU)
    places = batch.of_distinct_images(rehearsed, images)
    cpu = batch.loss_and_gradients(rehearsed, places)
    rehearsed.model.to(models.device())
    return _compared(cpu, batch.loss_and_gradients(rehearsed, places))


def back(rehearsed: batch.Rehearsed, places: Sequence[int]) -> dict[str, float]:
    """What the device computes with the adapter that it has trained, and the CPU with the same, in
    fp32."""
    rehearsed.model.float()
    found = batch.loss_and_gradients(rehearsed, places)
    rehearsed.model.to(CPU)
    return _compared(batch.loss_and_gradients(rehearsed, places), found)


def _compared(
    cpu: tuple[float, dict[str, torch.Tensor]], found: tuple[float, dict[str, torch.Tensor]]
) -> dict[str, float]:
    return {
        "cpu": cpu[0],
        "device": found[0],
        "loss_off_by": abs(found[0] - cpu[0]),
        "gradient_off_by": batch.largest_difference(cpu[1], found[1]),
    }


def train(rehearsed: batch.Rehearsed, places: Sequence[int]) -> dict[str, Any]:
    """A few updates by the stages' loop, in bf16 with recomputed layers."""
    samples = [rehearsed.samples[place] for place in places]
    hardware = Hardware(gradient_checkpointing=True, micro_batch_size=2)
    model = rehearsed.model
    started = time.monotonic()
    curve = loop.train(
        loop.AnswerLoss(model, hardware, body=body(model)),
        samples,
        rehearsed.collate,
        Schedule(
            steps=STEPS,
            batch_size=len(samples),
            learning_rate=1e-3,
            warmup_steps=1,
            weight_decay=0.01,
            max_grad_norm=1.0,
        ),
        seed=batch.SEED,
        precision="bf16",
        training=rehearsed.params.training,
        hardware=hardware,
        groups=[sample.image for sample in samples],
    )
    model.gradient_checkpointing_disable()
    seconds = round(time.monotonic() - started, 1)
    return {"curve": [row["loss"] for row in curve], "train_seconds": seconds}


def predict(rehearsed: batch.Rehearsed, places: Sequence[int]) -> dict[str, Any]:
    """Answers by the stages' decoder, sampled as the paper's are."""
    started = time.monotonic()
    answers = generate(
        rehearsed.model.merge_and_unload().eval(),
        rehearsed.processor,
        models.vocabulary(rehearsed.processor.tokenizer, rehearsed.params),
        [
            Prompt(turn.question, turn.image, functools.partial(rehearsed.images.read, turn.image))
            for turn in (rehearsed.turns[place] for place in places)
        ],
        decoding=rehearsed.params.decoding("vlmevalkit").model_copy(
            update={"max_new_tokens": DECODED}
        ),
        seed=batch.SEED,
    )
    seconds = round(time.monotonic() - started, 1)
    return {"predict_seconds": seconds, "decoded": [one.counts.decoded for one in answers]}


def main(families: Sequence[str], images: int) -> None:
    # TF32 would make fp32 something else.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        make.write(made, families, records=max(4, images), benchmarks=False)
        for family in families:
            found[family] = rehearse(made, family, images)
    print(
        tabulate(
            [
                [family, which, *(f"{value:.7g}" for value in one.values())]
                for family, both in found.items()
                for which, one in both["losses"].items()
            ],
            ["", "", "CPU", "device", "loss off by", "gradient off by"],
            disable_numparse=True,
        )
    )
    for family, one in found.items():
        run = one["run"]
        print(
            f"{family}: {STEPS} updates in {run['train_seconds']} s, losses "
            f"{', '.join(f'{loss:.4f}' for loss in run['curve'])}; {sum(run['decoded'])} tokens "
            f"decoded in {run['predict_seconds']} s"
        )
    wrong = [
        f"{family} {which}"
        for family, one in found.items()
        for which in ("fp32", "trained")
        if one["losses"][which]["loss_off_by"] > LOSS
        or one["losses"][which]["gradient_off_by"] > GRADIENT
    ]
    print(
        json.dumps(
            {
                "benchmark": "rehearsal",
                "device": str(models.device()),
                "families": found,
                "wrong": wrong,
            }
        )
    )
    if wrong:
        sys.exit(f"error: another loss on the device than on the CPU: {', '.join(wrong)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="LLaVA-NeXT alone, two images")
    given = parser.parse_args()
    main(make.FAMILIES[1:] if given.quick else make.FAMILIES, 2 if given.quick else 4)
