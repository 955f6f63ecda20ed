"""How long answers take, full text against thinking tokens: `python -m timings.latency`

    python -m timings.latency                # the toy
    python -m timings.latency --size mid     # random weights, 0.3 B parameters, for a CPU
    python -m timings.latency --size 11b     # the paper's architecture, for a GPU

Runs `eval.timing`, as the stage `latency` does: the same batches through every case in turn.

- `toy`: the trained models in ./models where they are, with the cases, questions and lengths that
  params.yaml asks for; else an untrained toy model;
- `mid`: a random Mllama whose images are one tile of 560 pixels;
- `11b`: Llama-3.2-11B-Vision's architecture with random weights in bf16, made on the GPU; every
  image has four tiles, to which the model pads each. Its GPU must hold the weights and 8 GB.

Without training a model does not know where an answer ends. So its answers get the lengths of the
paper's format: 180 tokens of full text, 42 with thinking tokens, 10 where their constant prefix of
32 stands in the prompt or was left out in training, and full text cut to 42.

The machine's peaks are measured in the models' precision, or stated with --peaks. The last line is
a JSON object:

- `ratio`: end-to-end speed at batch 1 of thinking tokens (`heima`) over full text (`text-cot`);
- `ratios`: that of every case by batch size, medians over batches and rounds;
- `size`, `trained`, `device`, `threads`, `dtype`, `tflops`, `gb_per_s`: what was measured on what;
- `table`: what the table says, by case and batch size: medians, and the shares of the device's
  peaks, which are the roofline, that prefill and decoding reach;
- `skipped`: batch sizes without a result, and why.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from heima.toy.world import IMAGE_SIDE

if TYPE_CHECKING:
    from transformers import MllamaConfig, PreTrainedModel

    from eval.timing import Setup
    from heima.config import Peaks
    from heima.results.cells import Cell

SEED = 0
ROUNDS = 3
QUESTION_TOKENS = 100
"""About what a question with its options has on the paper's benchmarks."""
PREFIX_TOKENS = 32
"""Of the paper's constant prefix, with the Llama 3 tokenizer."""
SPARE_BYTES = 8 * 10**9
"""For activations and the cache at batch 1, besides the weights."""

LENGTHS = {
    "text-cot": 180,
    "text-cot-cut": 42,
    "heima": 42,
    "heima-forced-prefix": 10,
    "answer-only": 10,
}
QUICK_LENGTHS = {
    "text-cot": 12,
    "text-cot-cut": 4,
    "heima": 4,
    "heima-forced-prefix": 2,
    "answer-only": 2,
}

COLUMNS = {
    # Column -> metric, unit, digits.
    "tokens": ("longest_tokens", 1, 0),
    "image ms": ("preprocess_ms", 1, 1),
    "vision ms": ("vision_ms", 1, 1),
    "prefill ms": ("prefill_ms", 1, 1),
    "TTFT ms": ("ttft_ms", 1, 1),
    "TPOT ms": ("tpot_ms", 1, 2),
    "end to end ms": ("e2e_ms", 1, 1),
    "p90": ("e2e_p90_ms", 1, 1),
    "samples/s": ("samples_per_s", 1, 2),
    "GFLOP a sample": ("gflop_per_sample", 1, 2),
    "FLOP/s %": ("flop_utilisation", 100, 1),
    "bytes/s %": ("bandwidth_utilisation", 100, 1),
}


@dataclass(frozen=True)
class Size:
    """What `--size` stands for; `tiles` of `side` pixels make an image."""

    tiles: int
    side: int
    batch_sizes: Sequence[int]
    quick_batch_sizes: Sequence[int]
    dtype: str


SIZES = {
    "toy": Size(1, IMAGE_SIDE, (1, 8, 32, 64), (1, 4), "fp32"),
    "mid": Size(1, 560, (1, 4), (1,), "fp32"),
    "11b": Size(4, 560, (1, 8, 32, 64), (1, 8), "bf16"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def mid(tokenizer: Any) -> MllamaConfig:
    """A model of 0.26 B parameters; every fourth layer of its text model crosses to the image."""
    from transformers.models.mllama.configuration_mllama import (
        MllamaTextConfig,
        MllamaVisionConfig,
    )

    from timings.random_models import mllama, special_ids

    return mllama(
        MllamaTextConfig(
            vocab_size=32_768,
            hidden_size=1024,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=4,
            intermediate_size=2816,
            cross_attention_layers=[3, 7, 11, 15],
            **special_ids(tokenizer),
        ),
        MllamaVisionConfig(
            hidden_size=512,
            num_hidden_layers=4,
            num_global_layers=1,
            attention_heads=8,
            intermediate_size=2048,
            vision_output_dim=1024,
            intermediate_layers_indices=[1],
            image_size=560,
            patch_size=14,
            max_num_tiles=1,
            supported_aspect_ratios=[[1, 1]],
        ),
        tokenizer,
    )


def untrained(
    name: str, dtype: torch.dtype, lengths: Mapping[str, int], *, questions: int
) -> Setup:
    """Every case with the same random model, and answers of exactly the given lengths."""
    from eval.timing import Case, Question, Setup
    from heima.cot.rendering import constant_prefix
    from heima.data.tokens import Vocabulary
    from heima.families.registry import FAMILIES
    from heima.toy.mllama import build_processor, build_vlm
    from heima.vlm.models import device
    from timings.random_models import gpu_for, papers_vlm, random_model, tiled

    size = SIZES[name]
    processor = build_processor()
    words, prefix = ["what"] * QUESTION_TOKENS, " ".join(["what"] * PREFIX_TOKENS)
    if name == "toy":
        model = build_vlm(processor, seed=SEED).to(device=device(), dtype=dtype).eval()
        words, prefix = words[:20], constant_prefix("p3")
    else:
        processor = tiled(processor, tiles=size.tiles, side=size.side)
        tokenizer = processor.tokenizer
        config = papers_vlm(tokenizer) if name == "11b" else mid(tokenizer)
        place = gpu_for(config, dtype, SPARE_BYTES) if name == "11b" else torch.device("cpu")
        model = random_model(config, dtype, place, tokenizer, seed=SEED)
    rng = np.random.default_rng(SEED)
    # A square of whole tiles: the processor pads nothing and shrinks nothing.
    side = size.side * round(size.tiles**0.5)
    images = [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(4)
    ]
    return Setup(
        {
            case: Case(
                model,
                max_new_tokens=length,
                prefix=prefix if case == "heima-forced-prefix" else "",
                exact=True,
            )
            for case, length in lengths.items()
        },
        processor,
        Vocabulary(processor.tokenizer, FAMILIES["toy-mllama"].thinking_tokens),
        [Question(" ".join(words), images[i % len(images)]) for i in range(questions)],
    )


def the_toys(models: Path) -> Setup:
    """What the stage measures, with lmms-eval's questions."""
    from eval import lmms_start

    lmms_start.quiet()
    from eval import latency
    from heima import config

    return latency.load_setup(config.load(), models)


def describe(
    model: PreTrainedModel, trained: bool, environment: Mapping[str, Any], peaks: Peaks, source: str
) -> str:
    """What was measured, where, and what that machine can do."""
    parameters = sum(weight.numel() for weight in model.parameters())
    return (
        f"{parameters / 1e6:,.1f} M parameters, {'trained' if trained else 'random'}, in "
        f"{environment['dtype']} on {environment['device']}, {environment['threads']} CPU threads; "
        f"torch {environment['torch']}, transformers {environment['transformers']}.\n"
        f"Peaks ({source}): {peaks.tflops:.3g} TFLOP/s, {peaks.gb_per_s:.3g} GB/s. Medians over "
        "batches and rounds; the cases take turns on each batch.\n"
    )


def report(cells: Mapping[str, Mapping[str, Cell]]) -> str:
    """A line for each case and batch size."""
    lines = []
    for group, row in cells.items():
        if "speedup" in row:
            continue
        case, _, batch = group.partition("/batch-")
        speedup = cells.get(f"{case}-vs-text-cot/batch-{batch}", {}).get("speedup")
        lines.append(
            [
                case,
                batch,
                *(
                    f"{unit * row[metric].value:.{digits}f}" if metric in row else "-"
                    for metric, unit, digits in COLUMNS.values()
                ),
                f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]" if speedup else "",
            ]
        )
    return tabulate(
        lines,
        headers=["", "batch", *COLUMNS, "speed-up"],
        colalign=("left", *["right"] * (len(COLUMNS) + 2)),
        disable_numparse=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="toy")
    parser.add_argument(
        "--quick", action="store_true", help="short answers without training, few batches"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="precision of untrained models")
    parser.add_argument("--threads", type=int, help="of the CPU; the toy runs on one")
    parser.add_argument("--batch-sizes", type=int, nargs="+", metavar="N")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, and 1 with --quick")
    parser.add_argument(
        "--peaks", type=float, nargs=2, metavar=("TFLOPS", "GB_PER_S"), help="the maker's"
    )
    options = parser.parse_args()
    from eval import latency_cells, timing
    from heima.config import Peaks
    from heima.vlm import models

    threads = options.threads or (1 if options.size == "toy" else None)
    if threads:
        torch.set_num_threads(threads)
    size = SIZES[options.size]
    batch_sizes = options.batch_sizes or (
        size.quick_batch_sizes if options.quick else size.batch_sizes
    )
    found = (models.ROOT / "text-cot").exists()
    trained = options.size == "toy" and found and not options.quick
    if trained:
        setup = the_toys(models.ROOT)
    else:
        setup = untrained(
            options.size,
            DTYPES[options.dtype or size.dtype],
            QUICK_LENGTHS if options.quick else LENGTHS,
            questions=max(batch_sizes),
        )
    measured = timing.measure(
        setup,
        batch_sizes=batch_sizes,
        rounds=options.rounds or (1 if options.quick else ROUNDS),
        # Without training all batches of a size cost the same.
        most_batches=timing.BATCHES if trained else 1,
    )
    model = setup.cases["text-cot"].model
    environment = timing.environment(model)
    peaks = (
        Peaks(device=environment["device"], tflops=options.peaks[0], gb_per_s=options.peaks[1])
        if options.peaks
        else timing.measured_peaks(model.device, model.dtype)
    )
    cells = latency_cells.cells(measured, peaks, seed=SEED)
    source = "stated" if options.peaks else "measured"
    print(describe(model, trained, environment, peaks, source))
    print(report(cells))
    for batch, reason in measured.skipped.items():
        print(f"batch {batch} was left out: {reason}")
    ratios = {
        case: {
            str(batch): round(cells[f"{case}-vs-text-cot/batch-{batch}"]["speedup"].value, 3)
            for batch in batch_sizes
            if batch not in measured.skipped
        }
        for case in setup.cases
        if case != "text-cot"
    }
    print(
        json.dumps(
            {
                "benchmark": "latency",
                "baseline": "text-cot",
                "ratio": ratios["heima"].get("1"),
                "ratios": ratios,
                "size": options.size,
                "trained": trained,
                **{key: environment[key] for key in ("device", "threads", "dtype")},
                "tflops": round(peaks.tflops, 4),
                "gb_per_s": round(peaks.gb_per_s, 1),
                "table": {
                    group: {
                        metric: float(f"{row[metric].value:.4g}")
                        for metric, _, _ in COLUMNS.values()
                        if metric in row
                    }
                    for group, row in cells.items()
                    if "speedup" not in row
                },
                "skipped": {str(batch): reason for batch, reason in measured.skipped.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
