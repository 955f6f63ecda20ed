"""What batched prediction saves: `python -m timings.predict [--models FOLDER] [--data FOLDER]`

Answers the toy's six benchmarks (protocol lmms, greedy) with models of `--models`

- through the baseline, a batch-1 loop as lmms-eval's own `llama_vision` is one: for each request
  the chat template, the processor on image and text, `generate`, decode. That class itself needs
  torchvision, so the loop is written here; its images are loaded before, in its favour;
- through `heima.vlm.generation` with batches of 1, 8 and 64: with each distinct image of a batch
  encoded once, with an encoding for each prompt, and with transformers' static cache.

Without a trained model below `--models` an untrained toy answers, and the table says so. Loading
is in no time; times are CPU seconds of one thread, for the machine may be busy. `--few` lets the
batch-1 rows answer so many requests, evenly taken, and scales their time; the table says how many.

It fails where any greedy text differs. The last line is a JSON object:

- `ratio`: the baseline's time over that of the pipeline's way (the batch size of params.yaml);
  above 1 we are faster. It is the least of the models, which `ratios` has one by one;
- `identical`: whether all rows gave equal texts wherever they answered the same request;
- `trained`: whether the models are;
- `requests`, `baseline_requests`: how many the pipeline's way and the loop answered.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from eval import lmms_start

lmms_start.quiet()
lmms_start.ask_no_judge()

import torch  # noqa: E402
from lmms_eval.api.instance import Instance  # noqa: E402
from transformers import PreTrainedModel, ProcessorMixin  # noqa: E402

from eval import benchmark_data, tasks  # noqa: E402
from eval.decoding import prompts_of  # noqa: E402
from heima import config  # noqa: E402
from heima.config import Params  # noqa: E402
from heima.vlm.generation import Prompt, generate  # noqa: E402
from heima.vlm.models import load_vlm, vocabulary  # noqa: E402

PARAMS = Path(__file__).parents[1] / "params.yaml"
TRAINED = ("text-cot", "recover")
TARGET = ">= 10"
PIPELINE = "batch {}, an image encoded once"


@dataclass(frozen=True)
class Row:
    """One way of answering: CPU seconds for all requests, and the texts of those it answered."""

    name: str
    seconds: float
    answered: int
    texts: list[str]


def batch_1_loop(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    requests: Sequence[tuple[str, Any]],
    max_new_tokens: int,
    decode: Callable[[list[int]], str],
) -> list[str]:
    """Answer (question, image) pairs one by one."""
    texts = []
    for question, image in requests:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(
            images=[image], text=prompt, add_special_tokens=False, return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, temperature=None
            )
        texts.append(decode(output[0, inputs["input_ids"].shape[-1] :].tolist()))
    return texts


def ask(params: Params, cache: Path) -> list[Prompt]:
    """What the six tasks ask."""
    requests: list[tuple[str, Instance]] = []
    datasets = {}
    for benchmark in params.benchmarks:
        task = tasks.load(params, "lmms", benchmark, cache)
        task.build_all_requests()
        datasets[task.config.task] = task.dataset
        requests += [(benchmark, request) for request in task.instances]
    return prompts_of(requests, datasets)


@contextlib.contextmanager
def static_cache(model: PreTrainedModel) -> Iterator[None]:
    """Let `generate` allocate its cache at once, as long as it may become."""
    with mock.patch.object(model.generation_config, "cache_implementation", "static"):
        yield


def own_images(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts, as if no two shared an image."""
    return [replace(prompt, image_key=f"{i}") for i, prompt in enumerate(prompts)]


def every(items: Sequence[Any], count: int) -> list[int]:
    """`count` places, evenly over all items."""
    return sorted({round(i * len(items) / count) for i in range(min(count, len(items)))})


def measure(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    params: Params,
    prompts: Sequence[Prompt],
    few: int,
) -> tuple[list[Row], bool]:
    """The rows of a model's table, and whether all texts agree. The first row is the baseline."""
    words = vocabulary(processor.tokenizer, params)
    decoding = params.decoding("lmms")
    some = every(prompts, few)
    pairs = [(prompts[i].question, prompts[i].load_image()) for i in some]

    def ours(batch_size: int, these: Sequence[Prompt]) -> list[str]:
        changed = decoding.model_copy(update={"batch_size": batch_size})
        found = generate(model, processor, words, these, decoding=changed, seed=0)
        return [one.text for one in found]

    def timed(name: str, answer: Callable[[], list[str]], answered: int) -> Row:
        start = time.process_time()
        texts = answer()
        seconds = time.process_time() - start
        return Row(name, seconds * len(prompts) / answered, answered, texts)

    def loop() -> list[str]:
        return batch_1_loop(model, processor, pairs, decoding.max_new_tokens, words.decode)

    ours(decoding.batch_size, prompts[: decoding.batch_size])  # a first call is slow
    picked, full = [prompts[i] for i in some], decoding.batch_size
    rows = [
        timed("batch-1 loop", loop, len(some)),
        timed(PIPELINE.format(1), lambda: ours(1, picked), len(some)),
        timed(PIPELINE.format(8), lambda: ours(8, prompts), len(prompts)),
        timed(PIPELINE.format(full), lambda: ours(full, prompts), len(prompts)),
        timed(
            f"batch {full}, an encoding for each prompt",
            lambda: ours(full, own_images(prompts)),
            len(prompts),
        ),
    ]
    with static_cache(model):
        rows.append(timed(f"batch {full}, static cache", lambda: ours(full, prompts), len(prompts)))
    reference = rows[0].texts
    identical = all(
        (row.texts if row.answered == len(some) else [row.texts[i] for i in some]) == reference
        for row in rows
    )
    complete = [row.texts for row in rows if row.answered == len(prompts)]
    return rows, identical and all(texts == complete[0] for texts in complete)


def report(name: str, rows: Sequence[Row], pipeline: str, total: int) -> str:
    lines = [["", "CPU seconds", "ms a request", "ratio", "target", "requests"]]
    for row in rows:
        ratio = rows[0].seconds / row.seconds
        lines.append(
            [
                row.name,
                f"{row.seconds:.1f}",
                f"{1000 * row.seconds / total:.1f}",
                f"{ratio:.1f}",
                TARGET if row.name == pipeline else "",
                str(row.answered),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    return "\n".join([f"{name}, {total} requests", *shown, ""])


def write_toy(folder: Path, params: Params, trained: Path | None) -> list[str]:
    """Let `folder` have models; their names. Untrained ones where none are trained."""
    if trained is not None:
        folder.symlink_to(trained.resolve())
        return [name for name in TRAINED if (trained / name).is_dir()]
    from heima.toy.mllama import build_processor, build_vlm

    vlm = params.teach.vlm
    if vlm.kind != "train":
        raise ValueError(f"{PARAMS} has no toy to build: give trained models by --models")
    processor = build_processor()
    model = build_vlm(processor, hidden_size=vlm.hidden_size, seed=1)
    model.save_pretrained(folder / "text-cot")
    processor.save_pretrained(folder / "text-cot")
    return ["text-cot"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--data", type=Path, default=benchmark_data.FOLDER)
    parser.add_argument("--few", type=int, help="requests of the batch-1 rows (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="few requests: does it run, do they agree"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    params = config.load(PARAMS)
    trained = options.models if (options.models / "text-cot").is_dir() else None
    if options.quick or trained is None:
        changes = {"max_new_tokens": 24 if options.quick else 72}
        params = params.model_copy(update={"predict": params.predict.model_copy(update=changes)})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = options.data
        if options.quick or not data.is_dir():
            from heima.toy.benchmarks import write_benchmarks

            data = folder / "data"
            if options.quick:
                sizes = dict.fromkeys(params.benchmarks, 4)
            elif params.source.kind == "toy":
                sizes = dict(params.source.benchmark_sizes)
            else:
                raise ValueError(f"{PARAMS} draws no benchmarks: give their data by --data")
            write_benchmarks(data, sizes=sizes, seed=params.seed)
        with mock.patch.object(benchmark_data, "FOLDER", data):
            prompts = ask(params, folder / "cache")
        few = 6 if options.quick else options.few or len(prompts)
        names = write_toy(folder / "models", params, trained)
        ratios, identical, pipeline = {}, True, PIPELINE.format(params.predict.batch_size)
        for name in names:
            model, processor = load_vlm(folder / "models", name, params)
            rows, same = measure(model, processor, params, prompts, few)
            title = (
                name if trained else f"an untrained toy, cut at {changes['max_new_tokens']} tokens"
            )
            print(report(title, rows, pipeline, len(prompts)))
            ours = next(row for row in rows if row.name == pipeline)
            ratios[name] = round(rows[0].seconds / ours.seconds, 1)
            identical &= same
    print("CPU seconds of one thread; rows of fewer requests are scaled to all.")
    result = {
        "benchmark": "predict",
        "baseline": "batch-1 loop",
        "ratio": min(ratios.values()),
        "ratios": ratios,
        "identical": identical,
        "trained": trained is not None,
        "requests": len(prompts),
        "baseline_requests": rows[0].answered,
    }
    print(json.dumps(result))
    if not identical:
        raise SystemExit("greedy texts differ from the batch-1 loop's")


if __name__ == "__main__":
    main()
