"""Training steps with and without what saves work: `python -m benchmarks.train`

    python -m benchmarks.train            # a random Mllama of 0.1 B parameters, on a CPU: minutes
    python -m benchmarks.train --quick    # the toy, to see that it runs

The baseline is Hugging Face's Trainer as it comes: transformers' own forward pass and loss, an
image a row, every position through the lm_head. The others are `heima.training`, with one saving
turned off, with all exact ones, and with `tiles: real`, too. All train the same LoRA from the same
weights on the same batches in the same order: turns of the compressed phases' length, 2.6 to an
image, images of 560 px tiles, of which most have fewer than the four that Mllama pads them to. The
sizes of encoder and text model are such that the encoder has about the share of the work that it
has in the 11B model.

A row's loss is the mean over its steps; `off by` is its largest difference from the baseline's in
any step. The last line is a JSON object:

- `ratio`: samples a second of all exact savings over the baseline's;
- `ratio_real_tiles`: that of `tiles: real`, whose loss is another by `real_tiles_loss_off_by`;
- `ratios`: that of every row; `loss_off_by`: the largest difference of an exact row;
- `real_tiles`: how far the switch moves logits and loss (`heima.bodies.tile_shift`).
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from heima import order, training
from heima.batching import MllamaCollator, Sample
from heima.bodies import body, tile_shift
from heima.config import Lora, Schedule, Training
from heima.corpus import ImageZip
from heima.families import FAMILIES
from heima.models import add_lora, pretrained
from heima.tokens import Vocabulary
from heima.toy.models import CHAT_TEMPLATE, build_processor, build_vlm

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

SAVINGS = {
    "no image once": {"images_once": False},
    "all positions through the lm_head": {"labelled_only": False},
    "all exact savings": {},
    "and real tiles": {"tiles": "real"},
}


def mid(tokenizer: Any) -> MllamaForConditionalGeneration:
    """A random Mllama of about 0.1 B parameters with four tiles of 560 pixels."""
    text = MllamaTextConfig(
        vocab_size=32_768,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        cross_attention_layers=[3, 7, 11],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = MllamaVisionConfig(
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
    )
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    torch.manual_seed(SEED)
    model = MllamaForConditionalGeneration(
        MllamaConfig(text_config=text, vision_config=vision, image_token_index=image)
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Closed gates would hide from the loss what the encoder does.
            if name.endswith("gate"):
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
                f"<SUMMARY> {some(*ANSWER_WORDS)} </SUMMARY>",
            ),
            name,
        )
        for number, name in enumerate(names)
        for _ in range(counts[number % IMAGES_A_BATCH])
    ]


def clock(model: PreTrainedModel) -> list[float]:
    """Fills up with the times at which the text model starts, once a step.

    From one to the next passes a whole step, of whatever loop: reading images, too.
    """
    times: list[float] = []
    text = pretrained(model).model.language_model
    text.register_forward_pre_hook(lambda *_: times.append(time.perf_counter()))
    return times


class _Losses(TrainerCallback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any):
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


class _Ordered(Trainer):
    """The Trainer with given batches."""

    def __init__(self, *args: Any, batches: Sequence[list[int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches = batches

    def _get_train_sampler(self, train_dataset: Any = None) -> list[int]:
        return list(itertools.chain(*self._batches))


Result = tuple[list[float], list[float]]
"""The seconds from step to step, and the loss of each."""


def plain_trainer(
    model: PreTrainedModel, samples: Sequence[Sample], collate: Any, schedule: Schedule
) -> Result:
    """Hugging Face's Trainer on transformers' own loss, an image a row."""

    def plain(some: Sequence[Sample]) -> dict[str, torch.Tensor]:
        batch = collate(some)
        del batch["image_rows"], batch["num_tiles"]
        return batch

    steps, times = _Losses(), clock(model)
    with tempfile.TemporaryDirectory() as scratch:
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
        trainer.train()
    return np.diff(times).tolist(), steps.losses


def batches_of(samples: Sequence[Sample], schedule: Schedule) -> list[list[int]]:
    """The batches that `heima.training` draws."""
    found = order.batches(
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
    settings: Training,
) -> Result:
    """`heima.training` with the given savings."""
    answering = training.AnswerLoss(model, settings, body=body(model, tiles=settings.tiles))
    times = clock(model)
    curve = training.train(
        answering,
        samples,
        collate,
        schedule,
        seed=SEED,
        precision="fp32",
        training=settings,
        groups=[sample.image for sample in samples],
    )
    return np.diff(times).tolist(), [row["loss"] for row in curve]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="the toy instead of 560 px tiles")
    arguments = parser.parse_args()
    side = 48 if arguments.quick else 560
    small = build_processor()
    processor = MllamaProcessor(
        type(small.image_processor)(size={"height": side, "width": side}, max_image_tiles=TILES),
        small.tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    model = (
        build_vlm(small, max_tiles=TILES, seed=SEED) if arguments.quick else mid(small.tokenizer)
    )
    family = FAMILIES["toy-mllama"]
    vocabulary = Vocabulary(processor.tokenizer, family.thinking_tokens)
    schedule = Schedule(
        steps=STEPS,
        batch_size=TURNS_A_BATCH,
        learning_rate=1e-4,
        warmup_steps=1,
        weight_decay=0.01,
        max_grad_norm=1.0,
    )

    def adapted() -> PreTrainedModel:
        lora = Lora(rank=16, alpha=32, dropout=0.0)
        return add_lora(copy.deepcopy(model), family.vlm_lora, lora, SEED)

    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "images.zip"
        samples = write_samples(vocabulary, write_images(path, STEPS, side))
        images = ImageZip(path)
        once, each = (MllamaCollator(processor, images, once=choice) for choice in (True, False))
        results["plain Trainer"] = plain_trainer(adapted(), samples, each, schedule)
        for name, saving in SAVINGS.items():
            collate = once if saving.get("images_once", True) else each
            results[name] = ours(adapted(), samples, collate, schedule, Training(**saving))
        answering = training.AnswerLoss(model, Training(), body=body(model))
        shift = tile_shift(answering, samples[:TURNS_A_BATCH], once, batch_size=TURNS_A_BATCH)
    report(results, shift, model, quick=arguments.quick)


def report(
    results: dict[str, Result], shift: dict[str, float], model: PreTrainedModel, *, quick: bool
) -> None:
    speed = {name: TURNS_A_BATCH / np.median(seconds[1:]) for name, (seconds, _) in results.items()}
    _, expected = results["plain Trainer"]
    off = {
        name: max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        for name, (_, losses) in results.items()
    }
    ratios = {name: round(float(speed[name] / speed["plain Trainer"]), 2) for name in results}
    print(
        f"{model.num_parameters() / 1e6:.0f} M random parameters, "
        f"{torch.get_num_threads()} CPU threads"
    )
    print(
        tabulate(
            [
                [
                    name,
                    f"{speed[name]:.3f}",
                    f"{ratios[name]:.2f}",
                    np.mean(losses),
                    f"{off[name]:.1e}",
                ]
                for name, (_, losses) in results.items()
            ],
            ["", "samples/s", "ratio", "loss", "off by"],
        )
    )
    exact = [name for name in results if name not in ("plain Trainer", "and real tiles")]
    print(
        json.dumps(
            {
                "benchmark": "train",
                "baseline": "plain Trainer",
                "ratio": ratios["all exact savings"],
                "ratio_real_tiles": ratios["and real tiles"],
                "ratios": ratios,
                "loss_off_by": max(off[name] for name in exact),
                "real_tiles_loss_off_by": off["and real tiles"],
                "real_tiles": shift,
                "quick": quick,
            }
        )
    )


if __name__ == "__main__":
    main()
