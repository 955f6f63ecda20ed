"""One training loop for every model of the pipeline, on one process or many (accelerate).

AdamW (0.9, 0.999), warm-up then cosine to zero, clipped gradients, a fresh optimizer each time
(docs/recipe.md, section 2). The same parameters give the same weights on the same machine; a run
that was killed ends with the weights of an undisturbed one.

Started by `accelerate launch`, the processes share every batch, and, as their configuration says,
shard the model (FSDP2). A batch of the schedule is then still one batch: its gradient is that of
the sum of its token losses over the number of its labelled tokens, however it is divided.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    parse_flag_from_env,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import get_cosine_schedule_with_warmup

from heima.config import Hardware, Schedule, Training, given
from heima.data.tokens import IGNORED
from heima.families.batches import ALIGN, EXPLAIN
from heima.families.family import Body
from heima.families.registry import pretrained
from heima.training import batch_order
from heima.training.merged_lora import merged_forward
from heima.training.snapshots import Resume
from heima.training.terms import Align, Explain


class Trainable(Protocol):
    """A sample: its length in tokens groups batches, `labelled` counts those with a loss."""

    def __len__(self) -> int: ...

    @property
    def labelled(self) -> int: ...


Collate = Callable[[Sequence[Any]], dict[str, torch.Tensor]]

SHARDED_PRECISION = MixedPrecisionPolicy(reduce_dtype=torch.float32)
"""Of FSDP2, on every device: weights are gathered as they are (frozen ones in `precision`, adapters
in fp32), products are taken by autocast as on one process, gradients are summed up in fp32, and a
loss stays in the fp32 that it is computed in."""

_LOGS = 100
"""How many points a loss curve has, about."""


class AnswerLoss(nn.Module):
    """A model with the loss of its labelled tokens, as training and evaluation call it.

    `body` gives the hidden states for a batch without its labels (`heima.vlm.body`); None: `model`
    computes them itself. With `hardware.labelled_only`,
    only positions that predict a label go through the lm_head, `logits_chunk` of them at once,
    so that no more logits than that are ever kept. `align` and `explain` are terms with their
    weights (`heima.training.terms`); a loss that is asked for by rows has none of them.
    """

    def __init__(
        self,
        model: nn.Module,
        hardware: Hardware,
        *,
        body: Body | None = None,
        align: tuple[float, Align] | None = None,
        explain: tuple[float, Explain] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._align, self._explain = align, explain
        if explain:
            # Its weights train, too.
            self.explainer = explain[1]
        base = pretrained(model)
        self._body = body or (
            lambda **inputs: base.model(**inputs, use_cache=False).last_hidden_state
        )
        self._base = [base]  # in a list: it is part of `model` already
        self._hardware = hardware
        if hardware.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers that FSDP shards one by one.

        A class that the model has none of would stop it: LLaVA-NeXT names CLIP's text part.
        """
        present = {type(module).__name__ for module in self._base[0].modules()}
        return sorted(present & set(self._base[0]._no_split_modules))

    def forward(
        self,
        labels: torch.Tensor | None = None,
        num_items_in_batch: int | None = None,
        **inputs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over tokens and divided by `num_items_in_batch`, in nats.

        Without that number: the (rows,) sums, and the (rows,) numbers of labelled tokens. Without
        labels: the (rows, length, vocabulary) logits.
        """
        terms = {key: inputs.pop(key) for key in list(inputs) if key.startswith((ALIGN, EXPLAIN))}
        if not num_items_in_batch or labels is None or not terms:
            return self._token_loss(self._body(**inputs), labels, num_items_in_batch)
        hidden, more = self._with_terms(labels, inputs, terms)
        return self._token_loss(hidden, labels, num_items_in_batch) + more / num_items_in_batch

    def _with_terms(
        self,
        labels: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        batch: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states, and the sum of the terms over rows, each as often as it has labels."""
        counts = (labels[:, 1:] != IGNORED).sum(dim=1)
        sums = []
        if self._align:
            weight, align = self._align
            own = {key: value for key, value in batch.items() if key.startswith(ALIGN)}
            wanted = align.taught(own, inputs)
            with align.recording() as seen:
                hidden = self._body(**inputs)
            sums.append(weight * (align(seen, wanted, own) * counts).sum())
        else:
            hidden = self._body(**inputs)
        if self._explain:
            weight, _ = self._explain
            sums.append(weight * (self.explainer(hidden, batch) * counts).sum())
        return hidden, torch.stack(sums).sum() if sums else hidden.new_zeros(())

    def _token_loss(
        self, hidden: torch.Tensor, labels: torch.Tensor | None, num_items_in_batch: int | None
    ) -> Any:
        head = self._base[0].lm_head
        if labels is None:
            return head(hidden)
        if not self._hardware.labelled_only:
            sums, counts = token_losses(head(hidden), labels)
            return sums.sum() / num_items_in_batch if num_items_in_batch else (sums, counts)
        targets = labels[:, 1:]
        rows, places = (targets != IGNORED).nonzero(as_tuple=True)
        losses = self._losses(head, hidden[rows, places], targets[rows, places])
        if num_items_in_batch:
            return losses.sum() / num_items_in_batch
        zeros = losses.new_zeros(len(labels))
        return zeros.index_add(0, rows, losses), (targets != IGNORED).sum(dim=1)

    def each_token(self, labels: torch.Tensor, **inputs: Any) -> list[torch.Tensor]:
        """For each row the losses of its labelled tokens, in their order, in nats."""
        hidden = self._body(**inputs)
        targets = labels[:, 1:]
        rows, places = (targets != IGNORED).nonzero(as_tuple=True)
        losses = self._losses(self._base[0].lm_head, hidden[rows, places], targets[rows, places])
        return list(losses.split((targets != IGNORED).sum(dim=1).tolist()))

    def _losses(self, head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Each token's loss; hidden is (tokens, hidden_size)."""
        size = self._hardware.logits_chunk
        if len(targets) <= size:
            return _cross_entropy(head, hidden, targets)
        return torch.cat(
            [
                checkpoint(_cross_entropy, head, *part, use_reentrant=False)
                for part in zip(hidden.split(size), targets.split(size), strict=True)
            ]
        )


def _cross_entropy(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each row: (sum over labelled tokens in nats, their number).

    `logits` is (batch, length, vocabulary), `labels` (batch, length); token t is predicted at t-1.
    """
    shifted = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), shifted, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=1), (shifted != IGNORED).sum(dim=1)


def train(
    model: nn.Module,
    samples: Sequence[Trainable],
    collate: Collate,
    schedule: Schedule,
    *,
    seed: int,
    precision: str,
    training: Training,
    hardware: Hardware,
    groups: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    resume: Resume | None = None,
) -> list[dict[str, float]]:
    """Train the weights of `model` that require gradients, in place.

    Parameters: `model` is an `AnswerLoss`, or gives as it does the loss of a batch for
    `num_items_in_batch`; `collate` turns samples into its other arguments; samples of equal
    `groups` stand in one batch (the turns of an image); `optimizer` replaces AdamW with the
    schedule's learning rate and weight decay; `resume` keeps snapshots, and a run that it holds is
    continued.
    Returns the loss curve as rows {step, loss, learning_rate}; `loss` averages the steps since the
    row before. Raises `RuntimeError` where the loss is not finite.
    """
    accelerator = _accelerator(precision)
    optimizer = optimizer or torch.optim.AdamW(
        _trained(model), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )
    model, prepared = accelerator.prepare(model, optimizer)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharded:
        # As `prepare` does for every other way: so one process and many compute the same.
        model.forward = accelerator.autocast()(model.forward)
    trained = _trained(model)  # of what `prepare` gave: sharding replaces the weights
    per_epoch = -(-len(samples) // schedule.batch_size)
    total = schedule.steps or round(given(schedule.epochs, "epochs") * per_epoch)
    # Not prepared by accelerate, which would step it once a process.
    scheduler = get_cosine_schedule_with_warmup(prepared.optimizer, schedule.warmup_steps, total)
    progress: dict[str, Any] = {"step": 0, "loss": 0.0, "since": 0, "curve": []}
    found = resume.load(model, prepared.optimizer) if resume else None
    if found:
        progress = found
        scheduler.load_state_dict(progress.pop("scheduler"))
        if not accelerator.is_main_process:
            progress["loss"] = 0.0  # what all had seen is the first one's (`_gather_loss`)
        accelerator.print(f"goes on after step {progress['step']}/{total}")
    model.train()
    work = _Work(samples, collate, schedule, training, hardware, accelerator, seed, groups)
    with contextlib.nullcontext() if sharded else merged_forward(model):
        for step, (items, micros) in enumerate(
            work.updates(progress["step"], total), progress["step"] + 1
        ):
            # Where anything is drawn (dropout), an update draws the same after an interruption.
            torch.manual_seed(_step_seed(seed, step, accelerator.process_index))
            for last, batch in micros:
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    loss = model(**batch, num_items_in_batch=items)
                    # Gradients are averaged over the processes, and the batch's loss is a sum.
                    accelerator.backward(loss * accelerator.num_processes)
                progress["loss"] += loss.item()
            if not math.isfinite(progress["loss"]):
                raise RuntimeError(
                    f"the loss is not finite from step {step} on; lower the learning_rate"
                )
            accelerator.clip_grad_norm_(trained, schedule.max_grad_norm)
            rate = scheduler.get_last_lr()[-1]
            prepared.step()
            scheduler.step()
            prepared.zero_grad()
            progress["step"], progress["since"] = step, progress["since"] + 1
            if step % max(1, total // _LOGS) == 0 or step == total:
                _log(progress, rate, total, accelerator)
            if resume and step % hardware.snapshot_steps == 0 and step < total:
                _gather_loss(progress, accelerator)
                saved = {**progress, "scheduler": scheduler.state_dict()}
                resume.save(model, prepared.optimizer, saved)
    accelerator.free_memory()
    return progress["curve"]


def _accelerator(precision: str) -> Accelerator:
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "bf16": "bf16"}[precision],
        cpu=not torch.cuda.is_available(),
    )
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env(
        "ACCELERATE_USE_FSDP"
    ):
        # PyTorch shards on CPUs, too, and so a run on GPUs can be tested without any; accelerate
        # would take the configuration and ignore it.
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if state.distributed_type == DistributedType.FSDP:
        # On GPUs accelerate would have losses and gradients rounded to bf16, on CPUs it would not.
        state.fsdp_plugin.mixed_precision_policy = SHARDED_PRECISION
    return accelerator


class _Work:
    """The updates of a run as this process computes them."""

    def __init__(
        self,
        samples: Sequence[Trainable],
        collate: Collate,
        schedule: Schedule,
        training: Training,
        hardware: Hardware,
        accelerator: Accelerator,
        seed: int,
        groups: Sequence[str] | None,
    ) -> None:
        self._samples = samples
        self._collate = collate
        self._schedule = schedule
        self._training = training
        self._hardware = hardware
        self._accelerator = accelerator
        self._seed = seed
        self._groups = groups or range(len(samples))

    def updates(
        self, first: int, total: int
    ) -> Iterator[tuple[int, Iterator[tuple[bool, dict[str, torch.Tensor]]]]]:
        """For each update: its number of labelled tokens, and its micro-batches on the device.

        With each micro-batch: whether it is the update's last.
        """
        orders = batch_order.batches(
            [len(sample) for sample in self._samples],
            self._groups,
            self._schedule.batch_size,
            seed=self._seed,
            by_length=self._training.group_by_length,
        )
        batches = [batch for batch, _ in zip(orders, range(total), strict=False)][first:]
        shares = [
            batch_order.share(
                batch,
                process=self._accelerator.process_index,
                processes=self._accelerator.num_processes,
                micro_batch_size=self._hardware.micro_batch_size,
            )
            for batch in batches
        ]
        loader = iter(
            DataLoader(
                self._samples,  # type: ignore[arg-type]  # a sequence is a map-style data set
                batch_sampler=[list(micro.indices) for share in shares for micro in share],
                collate_fn=self._collate,
                num_workers=self._hardware.workers,
                pin_memory=torch.cuda.is_available(),
            )
        )
        for batch, share in zip(batches, shares, strict=True):
            items = sum(self._samples[index].labelled for index in batch)
            yield items, self._micros(share, loader)

    def _micros(
        self, share: Sequence[batch_order.Micro], loader: Iterator[dict[str, torch.Tensor]]
    ) -> Iterator[tuple[bool, dict[str, torch.Tensor]]]:
        for number, micro in enumerate(share, 1):
            batch = next(loader)
            if not micro.counted:
                batch["labels"] = torch.full_like(batch["labels"], IGNORED)
            yield number == len(share), _on(self._accelerator.device, batch)


def _on(device: torch.device, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def _step_seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step * 1009 + process) % 2**63


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _gather_loss(progress: dict[str, Any], accelerator: Accelerator) -> None:
    """Sum up what the processes have seen of the loss; from here on the first one holds it."""
    if accelerator.num_processes == 1:
        return
    seen = torch.tensor(progress["loss"], dtype=torch.float64, device=accelerator.device)
    total = accelerator.reduce(seen, "sum").item()
    progress["loss"] = total if accelerator.is_main_process else 0.0


def _log(progress: dict[str, Any], rate: float, total: int, accelerator: Accelerator) -> None:
    """Add a row to the curve, and print a few."""
    _gather_loss(progress, accelerator)
    curve, step = progress["curve"], progress["step"]
    mean = progress["loss"] / progress["since"]
    curve.append({"step": step, "loss": mean, "learning_rate": rate})
    progress["loss"], progress["since"] = 0.0, 0
    if len(curve) % (_LOGS // 5) == 0:
        accelerator.print(f"step {step}/{total} loss {mean:.4f}", flush=True)


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that train, whole, by name; on all processes but the first, none.

    Every process must call it: a sharded model is put together here.
    """
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=dist.is_initialized(), ignore_frozen_params=True
    )
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights


def write_curve(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")


@torch.no_grad()
def heldout_losses(
    model: nn.Module, samples: Sequence[Any], collate: Collate, *, batch_size: int, **options: Any
) -> list[float]:
    """The mean loss per labelled token of each sample, in nats, in the order of `samples`.

    `model` is an `AnswerLoss`, whose body gets the `options`. Processes share the batches, and all
    get all losses.
    """
    model.eval()
    state = PartialState()
    place = next(model.parameters()).device
    starts = list(range(0, len(samples), batch_size))
    values: dict[int, list[float]] = {}
    # Sharded processes must keep step: one that has no batch left repeats its first.
    for turn in range(-(-len(starts) // state.num_processes)):
        mine = turn * state.num_processes + state.process_index
        start = starts[mine if mine < len(starts) else 0]
        batch = _on(place, collate(samples[start : start + batch_size]))
        sums, counts = model(**batch, **options)
        values[start] = (sums / counts).tolist()
    if state.num_processes > 1:
        gathered: list[dict[int, list[float]]] = [{} for _ in range(state.num_processes)]
        dist.all_gather_object(gathered, values)
        values = {start: found for part in gathered for start, found in part.items()}
    return [value for start in starts for value in values[start]]


def flops_per_sample(
    model: nn.Module, samples: Sequence[Trainable], collate: Collate, *, batch_size: int
) -> float:
    """Counted FLOPs of one forward and backward pass, a sample, over the first few batches."""
    batches = 2
    place = next(model.parameters()).device
    used = samples[: batches * batch_size]
    with FlopCounterMode(display=False) as counter:
        for start in range(0, len(used), batch_size):
            batch = _on(place, collate(used[start : start + batch_size]))
            model(**batch, num_items_in_batch=1).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(used)
