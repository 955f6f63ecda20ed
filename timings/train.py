"""Training steps with and without what saves work: `python -m timings.train`

    python -m timings.train              # random weights, 0.1 B parameters, on a CPU: 11 minutes
    python -m timings.train --size 11b   # the paper's architecture, random weights, on a GPU
    python -m timings.train --states     # states fed back and tokens alone, in turns
    python -m timings.train --quick      # the toy, to see that it runs

The baseline is Hugging Face's Trainer as it comes: transformers' own forward pass and loss, an
image a row, every position through the lm_head. The others are `heima.training.loop`, with one
saving turned off, with all exact ones, and with `tiles: real`, or states fed back, too. All train
the same LoRA from the same weights on the same batches in the same order: turns of the compressed
phases' length with three thinking tokens, 2.6 to an image, images of 560 px tiles, of which most
have fewer than the four that Mllama pads them to. The sizes of encoder and text model are such that
the encoder has about the share of the work that it has in the 11B model. With `--size 11b` all rows
but two compute activations again in the backward pass (gradient checkpointing), in bf16; a row that
the GPU has no room for is left out and named.

The toy's layers are so small that all rows but the baseline add each adapter to its weight
(`heima.training.merged_lora`); those of the other sizes are not.

A row's loss is the mean over its steps; `off by` is its largest difference from the baseline's in
any step. `tokens/s` are those of the text, padding apart. `MFU` is what was computed (counted in
the first step, which is not timed; recomputation included, as in `stages.plan --mfu`) over the
device's peak, measured or stated with --peak. The last line is a JSON object:

- `ratio`: samples a second of all exact savings over the baseline's;
- `ratio_state_feed`: samples a second with states fed back, in segments, over those with tokens fed
  and all else the same; the two take turns on the same batches, and on a CPU the seconds are of its
  time alone, so that a busy machine changes both alike;
- `ratio_real_tiles`: that of `tiles: real`, whose loss is another by `real_tiles_loss_off_by`;
- `ratios`, `mfu`, `peak_gb`: those of every row, memory on a GPU alone;
- `loss_off_by`: the largest difference of an exact row;
- `real_tiles`: how far the switch moves logits and loss (`heima.training.backbone.tile_shift`);
- `size`, `device`, `threads`, `dtype`, `tflops`: what was measured on what; `skipped`: rows that
  did not fit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from transformers import (
    MllamaConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from eval import timing
from heima.config import Hardware, Lora, Schedule, Training
from heima.cot.rendering import render
from heima.cot.sections import COMPRESSIBLE, SECTIONS
from heima.data.encoding import Sample
from heima.data.images import ImageZip
from heima.data.tokens import Vocabulary
from heima.families import registry
from heima.families.batches import Collator
from heima.families.feeding import Feed
from heima.families.registry import FAMILIES
from heima.toy.mllama import build_processor, build_vlm
from heima.toy.world import IMAGE_SIDE
from heima.training import batch_order, loop
from heima.training.backbone import body, tile_shift
from heima.training.merged_lora import merged_forward
from heima.vlm import models
from timings.random_models import (
    gpu_for,
    mllama,
    papers_vlm,
    random_model,
    special_ids,
    tiled,
)

SEED = 0
TILES = 4
IMAGES_A_BATCH, TURNS_A_BATCH = 5, 13
"""2.6 turns an image, as in LLaVA-CoT-100k."""
TILE_COUNTS = (1, 2, 1, 4, 2)
"""Real tiles of a batch's images; a photograph of 640 x 480 pixels has two."""
QUESTION_WORDS, ANSWER_WORDS = (30, 90), (8, 30)
"""What a question has, and what the compressed answer has besides its tags."""
STEPS = 4
"""The way from the first to the second does not count."""

SPARE_BYTES = 40 * 10**9
"""For the activations of a batch of the 11B model, besides its weights."""

PLAIN = "plain Trainer"
ALL = "all exact savings"
REAL = "and real tiles"
STATES = "states fed back"
SAVINGS = {
    "no image once": (Training(images_once=False), Hardware()),
    "all positions through the lm_head": (Training(), Hardware(labelled_only=False)),
    ALL: (Training(), Hardware()),
    REAL: (Training(tiles="real"), Hardware()),
    STATES: (Training(), Hardware()),
}

KEPT = "all exact savings, nothing recomputed"


@dataclass(frozen=True)
class Size:
    """What is trained: tiles of `side` pixels, in a precision, with or without recomputation."""

    side: int
    precision: str
    checkpointing: bool

    @property
    def rows(self) -> dict[str, tuple[Training, Hardware]]:
        """Every row but the baseline, and how it trains."""
        rows = {
            name: (
                training,
                # With it segments would lose their cache.
                hardware.model_copy(
                    update={"gradient_checkpointing": self.checkpointing and name != STATES}
                ),
            )
            for name, (training, hardware) in SAVINGS.items()
        }
        if self.checkpointing:
            rows[KEPT] = SAVINGS[ALL]
        return rows

    @property
    def tokens_fed(self) -> str:
        """The row that is as the one with states fed back, but for what is fed."""
        return KEPT if self.checkpointing else ALL


SIZES = {
    "toy": Size(IMAGE_SIDE, "fp32", False),
    "mid": Size(560, "fp32", False),
    "11b": Size(560, "bf16", True),
}


def mid(tokenizer: Any) -> MllamaConfig:
    """An Mllama of about 0.1 B parameters with four tiles of 560 pixels."""
    return mllama(
        MllamaTextConfig(
            vocab_size=32_768,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            intermediate_size=2048,
            cross_attention_layers=[3, 7, 11],
            **special_ids(tokenizer),
        ),
        MllamaVisionConfig(
            hidden_size=192,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=4,
            intermediate_size=768,
            vision_output_dim=384,
            intermediate_layers_indices=[0],
            image_size=560,
            patch_size=14,
            max_num_tiles=TILES,
        ),
        tokenizer,
    )


def build(name: str, processor: Any) -> PreTrainedModel:
    """The model of a size, its gates half open: closed ones would hide the encoder's work."""
    tokenizer = processor.tokenizer
    if name == "toy":
        return build_vlm(processor, max_tiles=TILES, seed=SEED).to(models.device())
    if name == "11b":
        config = papers_vlm(tokenizer)
        place = gpu_for(config, torch.bfloat16, SPARE_BYTES)
        model = random_model(config, torch.bfloat16, place, tokenizer, seed=SEED)
    else:
        model = random_model(mid(tokenizer), torch.float32, models.device(), tokenizer, seed=SEED)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if weight_name.endswith("gate"):
                weight.fill_(0.5)
    return model


def write_images(path: Path, batches: int, side: int) -> list[str]:
    """Noise with the tile counts of `TILE_COUNTS`, a batch's after the other's; their names."""
    rng = np.random.default_rng(SEED)
    names = []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(batches * IMAGES_A_BATCH):
            tiles = TILE_COUNTS[number % IMAGES_A_BATCH]
            width, height = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[tiles]
            pixels = rng.integers(0, 256, (height * side, width * side, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
            names.append(f"{number}.png")
            archive.writestr(names[-1], file.getvalue())
    return names


def write_samples(vocabulary: Vocabulary, names: Sequence[str]) -> list[Sample]:
    """Turns of random length, 3, 3, 3, 2 and 2 of them about a batch's five images."""
    rng = np.random.default_rng(SEED)
    counts = np.diff(np.linspace(0, TURNS_A_BATCH, IMAGES_A_BATCH + 1).round()).astype(int)
    words = ["what", "total", "a1", "b2", "red-circle", "is"]

    def some(low: int, high: int) -> str:
        return " ".join(rng.choice(words, size=rng.integers(low, high)))

    return [
        Sample(
            vocabulary.encode(
                some(*QUESTION_WORDS),
                "first",
                render({**dict.fromkeys(SECTIONS, ""), "conclusion": some(*ANSWER_WORDS)}, "p3"),
            ),
            name,
        )
        for number, name in enumerate(names)
        for _ in range(counts[number % IMAGES_A_BATCH])
    ]


@dataclass
class Result:
    """A row: seconds from step to step but the first, each step's loss, FLOPs of a step, and the
    peak of the GPU's memory."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    flops: int = 0
    peak_bytes: int = 0


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""What PyTorch's table of formulas lacks: the CPU's kernel of attention."""


@contextlib.contextmanager
def measured(model: PreTrainedModel, passes: int = 1) -> Iterator[Result]:
    """Fills a result, but for its losses, while a loop of whatever kind trains the model.

    Between two starts of the text model, or `passes` times as many, passes a whole step, reading
    images included. The first such step is counted instead of timed.
    """
    text = registry.pretrained(model).model.language_model
    times: list[float] = []
    starts = itertools.count()
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    counting = contextlib.ExitStack()

    def started(*_: object) -> None:
        if next(starts) % passes:
            return
        if not times:
            counting.enter_context(counter)
        else:
            counting.close()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    result = Result()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with counting, text.register_forward_pre_hook(started):
        yield result
    result.seconds = np.diff(times).tolist()[1:]
    result.flops = counter.get_total_flops()
    if torch.cuda.is_available():
        result.peak_bytes = torch.cuda.max_memory_allocated()


class _Losses(TrainerCallback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


class _Ordered(Trainer):
    """The Trainer with given batches."""

    def __init__(self, *args: Any, batches: Sequence[list[int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches = batches

    def _get_train_sampler(self, train_dataset: Any = None) -> list[int]:
        return list(itertools.chain(*self._batches))


def plain_trainer(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    collate: Any,
    schedule: Schedule,
    size: Size,
) -> Result:
    """Hugging Face's Trainer on transformers' own loss, an image a row."""

    def plain(some: Sequence[Sample]) -> dict[str, torch.Tensor]:
        batch = collate(some)
        del batch["image_rows"]
        return batch

    steps = _Losses()
    with tempfile.TemporaryDirectory() as scratch, measured(model) as result:
        trainer = _Ordered(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=schedule.steps,
                per_device_train_batch_size=schedule.batch_size,
                learning_rate=schedule.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=schedule.warmup_steps,
                weight_decay=schedule.weight_decay,
                max_grad_norm=schedule.max_grad_norm,
                optim="adamw_torch",
                bf16=size.precision == "bf16",
                gradient_checkpointing=size.checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False},
                seed=SEED,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=list(samples),
            data_collator=plain,
            callbacks=[steps],
            batches=batches_of(samples, schedule),
        )
        # Its own printing of each step's loss.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    result.losses = steps.losses
    return result


def batches_of(samples: Sequence[Sample], schedule: Schedule) -> list[list[int]]:
    """The batches that `heima.training.loop` draws."""
    found = batch_order.batches(
        [len(sample) for sample in samples],
        [sample.image for sample in samples],
        schedule.batch_size,
        seed=SEED,
        by_length=True,
    )
    return list(itertools.islice(found, schedule.steps))


def ours(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    collate: Callable,
    schedule: Schedule,
    training: Training,
    hardware: Hardware,
    size: Size,
    feed: Feed | None = None,
) -> Result:
    """`heima.training.loop` with the given savings."""
    answering = loop.AnswerLoss(model, hardware, body=body(model, tiles=training.tiles, feed=feed))
    # A segment up to each thinking token, and one behind the last.
    with measured(model, passes=1 + len(COMPRESSIBLE) if feed else 1) as result:
        curve = loop.train(
            answering,
            samples,
            collate,
            schedule,
            seed=SEED,
            precision=size.precision,
            training=training,
            hardware=hardware,
            groups=[sample.image for sample in samples],
        )
    result.losses = [row["loss"] for row in curve]
    return result


def in_turns(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    once: Any,
    aligned: Any,
    feed: Feed,
    size: Size,
) -> float:
    """Seconds of a training step's passes with tokens fed over those with states fed back.

    Forward and backward, without the optimizer, which is the same in both. The first batch does not
    count; of the others, each ratio is of one batch, and the median is given.
    """
    cuda = model.device.type == "cuda"
    read = time.perf_counter if cuda else time.process_time
    hardware = Hardware()
    ways = [
        (loop.AnswerLoss(model, hardware, body=body(model, feed=fed)), collate)
        for fed, collate in ((None, once), (feed, aligned))
    ]

    def seconds(answering: nn.Module, batch: Mapping[str, torch.Tensor], items: int) -> float:
        if cuda:
            torch.cuda.synchronize()
        start = read()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=size.precision == "bf16"):
            loss = answering(**batch, num_items_in_batch=items)
        loss.backward()
        if cuda:
            torch.cuda.synchronize()
        return read() - start

    model.train()
    ratios = []
    with merged_forward(model):
        for first in range(0, len(samples), TURNS_A_BATCH):
            some = samples[first : first + TURNS_A_BATCH]
            items = sum(sample.labelled for sample in some)
            found = [0.0, 0.0]
            # Each goes first once.
            for which in (0, 1, 1, 0):
                answering, collate = ways[which]
                batch = {key: value.to(model.device) for key, value in collate(some).items()}
                found[which] += seconds(answering, batch, items)
                model.zero_grad(set_to_none=True)
            ratios.append(found[0] / found[1])
    return float(np.median(ratios[1:]))


@contextlib.contextmanager
def adapted(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with a new LoRA, the same each time, which is gone afterwards."""
    lora = Lora(rank=16, alpha=32, dropout=0.0)
    whole = models.add_lora(model, FAMILIES["toy-mllama"].vlm_lora, lora, SEED)
    try:
        yield whole
    finally:
        whole.unload()
        model.gradient_checkpointing_disable()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=("mid", "11b"), default="mid")
    parser.add_argument("--states", action="store_true", help="states and tokens fed, in turns")
    parser.add_argument("--quick", action="store_true", help="the toy instead of 560 px tiles")
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="the maker's")
    arguments = parser.parse_args()
    name = "toy" if arguments.quick else arguments.size
    if name == "toy" or arguments.states:
        # Threads that wait for each other use up a CPU's time, too.
        torch.set_num_threads(1)
    size = SIZES[name]
    processor = tiled(build_processor(), tiles=TILES, side=size.side)
    model = build(name, processor)
    vocabulary = Vocabulary(processor.tokenizer, FAMILIES["toy-mllama"].thinking_tokens)
    schedule = Schedule(
        steps=STEPS,
        batch_size=TURNS_A_BATCH,
        learning_rate=1e-4,
        warmup_steps=1,
        weight_decay=0.01,
        max_grad_norm=1.0,
    )
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "images.zip"
        samples = write_samples(vocabulary, write_images(path, STEPS, size.side))
        images = ImageZip(path)
        once, each = (
            Collator(FAMILIES["toy-mllama"], processor, images, once=choice)
            for choice in (True, False)
        )
        feed = Feed(frozenset(vocabulary.thinking_ids.values()))
        aligned = Collator(FAMILIES["toy-mllama"], processor, images, thoughts=feed.ids)
        rows = {} if arguments.states else {PLAIN: None, **size.rows}
        for row, settings in rows.items():
            try:
                with adapted(model) as whole:
                    if settings is None:
                        results[row] = plain_trainer(whole, samples, each, schedule, size)
                    else:
                        collate = once if settings[0].images_once else each
                        fed = feed if row == STATES else None
                        results[row] = ours(
                            *(whole, samples, aligned if fed else collate, schedule),
                            *settings,
                            size,
                            fed,
                        )
            except torch.cuda.OutOfMemoryError:
                skipped[row] = "the GPU has no room for it"
                torch.cuda.empty_cache()
        state_ratio = None
        try:
            with adapted(model) as whole:
                state_ratio = in_turns(whole, samples, once, aligned, feed, size)
        except torch.cuda.OutOfMemoryError:
            skipped["in turns"] = "the GPU has no room for it"
            torch.cuda.empty_cache()
        if arguments.states:
            print(f"states fed back: {state_ratio:.2f} of the samples a second of tokens fed")
            print(json.dumps({"benchmark": "train", "ratio_state_feed": state_ratio, "size": name}))
            return
        answering = loop.AnswerLoss(model, Hardware(), body=body(model))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=size.precision == "bf16"):
            some = samples[:TURNS_A_BATCH]
            shift = tile_shift(answering, some, once, batch_size=TURNS_A_BATCH)
    tflops = arguments.peak or timing.measured_peaks(model.device, model.dtype).tflops
    tokens = np.mean([len(sample) for sample in samples])
    report(
        *(results, skipped, shift, state_ratio, model),
        name=name,
        tflops=tflops,
        tokens=float(tokens),
    )


def report(
    results: Mapping[str, Result],
    skipped: Mapping[str, str],
    shift: Mapping[str, float],
    state_ratio: float | None,
    model: PreTrainedModel,
    *,
    name: str,
    tflops: float,
    tokens: float,
) -> None:
    """Print the table and the JSON; `tokens` are the mean of a sample's."""
    step = {row: float(np.median(result.seconds)) for row, result in results.items()}
    speed = {row: TURNS_A_BATCH / seconds for row, seconds in step.items()}
    mfu = {row: result.flops / step[row] / (tflops * 1e12) for row, result in results.items()}
    peak = {row: result.peak_bytes / 1e9 for row, result in results.items() if result.peak_bytes}
    plain = results.get(PLAIN)
    ratios = {row: round(speed[row] / speed[PLAIN], 2) for row in results} if plain else {}
    off = (
        {
            row: max(abs(a - b) for a, b in zip(result.losses, plain.losses, strict=True))
            for row, result in results.items()
        }
        if plain
        else {}
    )
    exact = [off[row] for row in off if row not in (PLAIN, REAL, STATES)]
    environment = timing.environment(model)
    print(
        f"{model.num_parameters() / 1e6:,.0f} M random parameters in {environment['dtype']} on "
        f"{environment['device']}, {environment['threads']} CPU threads; a peak of "
        f"{tflops:.3g} TFLOP/s"
    )
    lines = [
        [
            row,
            f"{speed[row]:.3f}",
            f"{tokens * speed[row]:,.0f}",
            f"{ratios[row]:.2f}" if plain else "-",
            f"{result.flops / TURNS_A_BATCH / 1e12:.3g}",
            f"{mfu[row]:.0%}",
            f"{peak[row]:.1f}" if row in peak else "-",
            f"{np.mean(result.losses):.4f}",
            f"{off[row]:.1e}" if plain else "-",
        ]
        for row, result in results.items()
    ]
    columns = ["samples/s", "tokens/s", "ratio", "TFLOP a sample", "MFU", "GB", "loss", "off by"]
    print(
        tabulate(
            lines,
            ["", *columns],
            colalign=("left", *["right"] * len(columns)),
            disable_numparse=True,
        )
    )
    for row, reason in skipped.items():
        print(f"{row} was left out: {reason}")
    print(
        json.dumps(
            {
                "benchmark": "train",
                "baseline": PLAIN,
                "ratio": ratios.get(ALL),
                "ratio_real_tiles": ratios.get(REAL),
                "ratio_state_feed": None if state_ratio is None else round(state_ratio, 2),
                "ratios": ratios,
                "mfu": {row: round(share, 3) for row, share in mfu.items()},
                "peak_gb": {row: round(size, 1) for row, size in peak.items()},
                "loss_off_by": max(exact, default=None),
                "real_tiles_loss_off_by": off.get(REAL),
                "real_tiles": shift,
                "size": name,
                **{key: environment[key] for key in ("device", "threads", "dtype")},
                "tflops": round(tflops, 4),
                "skipped": skipped,
            }
        )
    )


if __name__ == "__main__":
    main()
