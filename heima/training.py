"""One training loop for every model of the pipeline: Hugging Face's Trainer.

AdamW (0.9, 0.999), warm-up then cosine to zero, clipped gradients, a fresh optimizer each time
(recipe, section 2). Batches are drawn by the seed alone, so that the same parameters give the same
weights on the same machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from heima.config import Schedule
from heima.tokens import IGNORED

Collate = Callable[[Sequence[Any]], dict[str, torch.Tensor]]

_LOGS = 100
"""How many points a loss curve has, about."""


class _LossCurve(TrainerCallback):
    """Collects what the Trainer logs, one row {step, loss, learning_rate} a log; prints a few."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            self.rows.append(
                {
                    "step": state.global_step,
                    "loss": float(logs["loss"]),
                    "learning_rate": float(logs["learning_rate"]),
                }
            )
            if len(self.rows) % (_LOGS // 5) == 0:
                print(f"step {state.global_step}/{state.max_steps} loss {logs['loss']}", flush=True)


class _LikeLengths(Sampler[int]):
    """An epoch's order: batches of samples of like length, in random order.

    Every `_POOL` batches of a fresh shuffle are sorted by length, cut into batches, and the batches
    shuffled: little padding, yet neighbouring batches are not alike. (The Trainer's own grouping
    runs from long to short within each pool, which here means from one question kind to the next;
    the one trial of the toy teacher with it learnt next to nothing.)
    """

    _POOL = 16

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = self._rng.permutation(len(self._lengths)).tolist()
        pool = self._POOL * self._batch_size
        batches = []
        for start in range(0, len(order), pool):
            alike = sorted(order[start : start + pool], key=self._lengths.__getitem__)
            batches += [
                alike[i : i + self._batch_size] for i in range(0, len(alike), self._batch_size)
            ]
        # A short batch anywhere but at the end would shift all that follow it.
        last = [batches.pop()] if len(batches[-1]) < self._batch_size else []
        for index in self._rng.permutation(len(batches)).tolist():
            yield from batches[index]
        for batch in last:
            yield from batch


class _Trainer(Trainer):
    def __init__(self, *args, lengths: Sequence[int], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._lengths = lengths

    def _get_train_sampler(self, train_dataset=None) -> Sampler[int]:
        return _LikeLengths(self._lengths, self.args.train_batch_size, self.args.data_seed)


def train(
    model: nn.Module,
    samples: Sequence[Sized],
    collate: Collate,
    schedule: Schedule,
    *,
    seed: int,
    precision: str,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[dict[str, float]]:
    """Train the weights of `model` that require gradients, in place.

    Parameters: `collate` turns samples into the keyword arguments of `model`, labels included;
    the length of a sample is its tokens, by which batches are grouped;
    `optimizer` replaces AdamW with the schedule's learning rate and weight decay.
    Returns the loss curve as rows {step, loss, learning_rate}; `loss` averages the steps since the
    row before. Raises `RuntimeError` where the loss is not finite.
    """
    if torch.cuda.is_available():
        model.cuda()
    curve = _LossCurve()
    steps = schedule.steps or -1
    per_epoch = -(-len(samples) // schedule.batch_size)
    total = schedule.steps or round(schedule.epochs * per_epoch)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            num_train_epochs=schedule.epochs or 1.0,
            per_device_train_batch_size=schedule.batch_size,
            learning_rate=schedule.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=schedule.warmup_steps,
            weight_decay=schedule.weight_decay,
            max_grad_norm=schedule.max_grad_norm,
            optim="adamw_torch",
            seed=seed,
            data_seed=seed,
            bf16=precision == "bf16",
            logging_steps=max(1, total // _LOGS),
            # The default hides a loss that is not finite from the log.
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=list(samples),
            data_collator=collate,
            callbacks=[curve],
            optimizers=(optimizer, None),
            lengths=[len(sample) for sample in samples],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    bad = [row["step"] for row in curve.rows if not torch.isfinite(torch.tensor(row["loss"]))]
    if bad:
        raise RuntimeError(f"the loss is not finite from step {bad[0]} on; lower the learning_rate")
    return curve.rows


def write_curve(path: Path, rows: Sequence[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each row: (sum over labelled tokens in nats, their number).

    `logits` is (batch, length, vocabulary), `labels` (batch, length); token t is predicted at t-1.
    """
    shifted = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), shifted, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=1), (shifted != IGNORED).sum(dim=1)


@torch.inference_mode()
def heldout_losses(
    model: nn.Module, samples: Sequence[Any], collate: Collate, *, batch_size: int
) -> list[float]:
    """The mean loss per labelled token of each sample, in nats, in the order of `samples`."""
    model.eval()
    values: list[float] = []
    place = next(model.parameters()).device
    for start in range(0, len(samples), batch_size):
        batch = {k: v.to(place) for k, v in collate(samples[start : start + batch_size]).items()}
        labels = batch.pop("labels")
        sums, counts = token_losses(model(**batch).logits, labels)
        values.extend((sums / counts).tolist())
    return values


def flops_per_sample(
    model: nn.Module, samples: Sequence[Any], collate: Collate, *, batch_size: int
) -> float:
    """Counted FLOPs of one forward and backward pass, a sample, over the first few batches."""
    batches = 2
    place = next(model.parameters()).device
    used = samples[: batches * batch_size]
    with FlopCounterMode(display=False) as counter:
        for start in range(0, len(used), batch_size):
            batch = collate(used[start : start + batch_size])
            model(**{k: v.to(place) for k, v in batch.items()}).loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(used)
