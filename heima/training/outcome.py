"""What a training run leaves: its loss on held-out samples, and the files of the trained model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel

from heima.config import Params, Schedule
from heima.results.cells import Cell, write_metrics
from heima.results.files import atomic
from heima.results.statistics import DRAWS, seeded_cell
from heima.training.loop import (
    AnswerLoss,
    Collate,
    Trainable,
    heldout_losses,
    train,
    trained_weights,
    write_curve,
)
from heima.training.snapshots import Resume
from heima.vlm import models


@dataclass(frozen=True)
class Outcome:
    """A finished run: its loss curve (rows of `train`), how long it took, and its held-out losses.

    `losses` are nats a labelled token, one a held-out sample, in their order; `rows` samples were
    computed at once for them.
    """

    curve: list[dict[str, float]]
    seconds: float
    losses: list[float]
    rows: int

    def facts(self, model: PeftModel) -> dict[str, Any]:
        """What its provenance says about the run."""
        return {
            "updates": self.curve[-1]["step"],
            "trainable_parameters": models.trainable_parameters(model),
            "seconds": round(self.seconds, 1),
        }


def train_adapter(
    answering: AnswerLoss,
    samples: Sequence[Trainable],
    heldout: Sequence[Trainable],
    collate: Collate,
    schedule: Schedule,
    params: Params,
    *,
    seed: int,
    resume: Resume,
    groups: Sequence[str] | None = None,
) -> Outcome:
    """Train what of `answering` requires gradients, in place, and take its held-out losses.

    Raises `RuntimeError` where the loss is not finite.
    """
    started = time.monotonic()
    curve = train(
        answering,
        samples,
        collate,
        schedule,
        seed=seed,
        precision=params.precision,
        training=params.training,
        hardware=params.hardware,
        groups=groups,
        resume=resume,
    )
    seconds = time.monotonic() - started
    rows = params.hardware.micro_batch_size or schedule.batch_size
    return Outcome(
        curve, seconds, heldout_losses(answering, heldout, collate, batch_size=rows), rows
    )


def write_adapter(
    model: PeftModel,
    outcome: Outcome,
    folder: Path,
    metrics_file: str,
    params: Params,
    *,
    seed: int,
    origin: Mapping[str, Any],
    resume: Resume,
) -> None:
    """Write the adapter of the training seed `seed` and its metrics, then forget its snapshots.

    Every process must call it, since a sharded adapter is put together here; the first one writes.
    `origin` is the result's provenance.
    """
    weights = trained_weights(model)
    if not PartialState().is_main_process:
        return
    write(
        lambda temporary: models.save_adapter(model, temporary, weights),
        outcome.curve,
        seeded_cell({seed: outcome.losses}, draws=DRAWS, seed=params.seed),
        folder,
        metrics_file,
        origin=origin,
    )
    resume.discard()


def write(
    save: Callable[[Path], None],
    curve: Sequence[Mapping[str, float]],
    heldout: Cell,
    folder: Path,
    metrics_file: str,
    *,
    origin: Mapping[str, Any],
) -> None:
    """Write a model's folder, with its loss curve, and its metrics: the held-out loss.

    `save` makes the folder that it is given, and the model's files there.
    """
    with atomic(folder) as temporary:
        save(temporary)
        write_curve(temporary / "loss.jsonl", curve)
    write_metrics(metrics_file, {"heldout": {"loss": heldout}}, origin)
