"""How long answers take: the parts of a batch, variants in turn, and the share of the device used.

A batch runs through transformers' own `generate`, as prediction does, and a clock is read where its
parts meet: hooks around the image's encoder, and transformers' streamer, which is called with each
new token. The parts of a batch, in order:

- preprocess: images in memory to pixel tensors, and all tensors to the device;
- vision: the vision tower and the projector;
- prefill: the prompt, up to its first token; time to first token (`ttft`) is all up to there;
- decode: the other tokens; time per output token (`tpot`) is decode over their number, counted in
  the longest row, for a batch ends with it;
- end to end (`e2e`): all of it, with what `generate` prepares before the vision tower.

Texts are tokenized and images read from disk before the clock starts. Every sample's image is
encoded, also where two samples share one. Decoding is greedy under every protocol, so that each
round decodes the same tokens.

The clock waits for a GPU before it is read. FLOPs are counted by running a batch once more,
untimed, with a counter in place of the clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import Cache, PreTrainedModel, ProcessorMixin
from transformers.generation import BaseStreamer

from heima.config import Peaks
from heima.cot.mixtures import asked
from heima.data.tokens import Vocabulary
from heima.families import batches, registry
from heima.families.feeding import Feed, Forced, fed_back, unforced
from heima.results.bars import tracked
from heima.vlm.lookup import looking_up

BATCHES = 4
"""Batches of one size in a round, at most: at batch 1 a few samples tell enough."""

Shape = tuple[int, ...]

_GREEDY = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}


@dataclass(frozen=True)
class Question:
    """A question about an image, which stands before it; the image is in memory."""

    text: str
    image: Image.Image


@dataclass(frozen=True)
class Case:
    """What is timed: a model, the beginning of the answer that stands in the prompt, a limit.

    `exact` decodes `max_new_tokens` for every sample, as a model without training needs, which
    does not know where an answer ends. `feed`: states are fed back, and of a forced beginning the
    thinking tokens are written one by one: they belong to the prefill. `lookup` tokens are looked
    up a pass, at batch 1 alone. `word` is the control word behind each question.
    """

    model: PreTrainedModel
    max_new_tokens: int
    prefix: str = ""
    exact: bool = False
    feed: Feed | None = None
    lookup: int | None = None
    word: str | None = None


@dataclass(frozen=True)
class Setup:
    """Cases, and the questions that all of them are asked; their models share a processor."""

    cases: Mapping[str, Case]
    processor: ProcessorMixin
    vocabulary: Vocabulary
    questions: Sequence[Question]


@dataclass(frozen=True)
class Timing:
    """One batch of one case: samples batch * batch_size and following, in milliseconds.

    `decoded` has each sample's tokens, the end of turn included; `passes` are those that wrote an
    answer that was looked up, the prompt's included. `tpot_ms` is None where no answer has a second
    token. `texts` are the answers' token ids as a hash.
    """

    case: str
    batch_size: int
    round: int
    batch: int
    decoded: list[int]
    passes: int | None
    texts: str
    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    ttft_ms: float
    decode_ms: float
    tpot_ms: float | None
    e2e_ms: float


@dataclass(frozen=True)
class Work:
    """What a device has to do for one batch: FLOPs of each part, and the bytes of decoding.

    FLOPs are those that are carried out, padded tiles and finished rows included. Each step of
    decoding reads the language model's weights and the cache of keys and values at least once
    (`decode_bytes` for all steps together).
    """

    vision_flops: int
    prefill_flops: int
    decode_flops: int
    decode_bytes: int

    @property
    def flops(self) -> int:
        return self.vision_flops + self.prefill_flops + self.decode_flops


@dataclass(frozen=True)
class Measured:
    """Timings in the order in which they were taken; the work of each case's first batch by case
    and batch size; and why a batch size was left out."""

    timings: list[Timing]
    work: dict[tuple[str, int], Work]
    skipped: dict[int, str] = field(default_factory=dict)


def measure(
    setup: Setup, *, batch_sizes: Sequence[int], rounds: int, most_batches: int = BATCHES
) -> Measured:
    """Time every case on the same batches, one case after the other on each batch.

    The case that goes first changes from batch to batch, so that a device that slows down favours
    none. Of each size there are as many full batches as the questions fill, `most_batches` at most:
    the same ones in each round. Before a size's first round every case runs once, to warm up and to
    count its work.

    A size that is larger than the number of questions, or for which a case has too little memory
    (`torch.OutOfMemoryError`), is left out for all cases, and `skipped` says why.
    """
    measured = Measured([], {})
    for size in batch_sizes:
        batches = min(most_batches, len(setup.questions) // size)
        if not batches:
            measured.skipped[size] = f"there are only {len(setup.questions)} questions"
            continue
        try:
            one = _measure_size(setup, size, batches, rounds)
        except torch.OutOfMemoryError as error:
            measured.skipped[size] = f"out of memory: {str(error).splitlines()[0]}"
        else:
            measured.timings.extend(one.timings)
            measured.work.update(one.work)
        if size in measured.skipped and torch.cuda.is_available():
            # Beyond the handler nothing holds the failed batch's tensors.
            torch.cuda.empty_cache()
    return measured


def _measure_size(setup: Setup, size: int, batches: int, rounds: int) -> Measured:
    # What is looked up is of one answer.
    names = [name for name, case in setup.cases.items() if size == 1 or case.lookup is None]
    first = range(size)
    measured = Measured([], {(name, size): _work(setup, name, first) for name in names})
    turns = tracked(range(rounds * batches), f"batches of {size}", rounds * batches, "batch")
    for number in turns:
        turn, batch = divmod(number, batches)
        rows = range(batch * size, (batch + 1) * size)
        start = number % len(names)
        for name in (*names[start:], *names[:start]):
            clock = _clock(setup.cases[name].model.device)
            marks, answers, _ = _run(setup, name, rows, clock)
            one = _timing(name, size, turn, batch, marks, answers)
            if setup.cases[name].lookup is not None:
                one = replace(one, passes=marks.passes)
            measured.timings.append(one)
    return measured


def median_decoded(setup: Setup, case: str, *, batch_size: int) -> int:
    """The median number of decoded tokens of a case's answers (the upper one of two)."""
    decoded: list[int] = []
    for first in range(0, len(setup.questions), batch_size):
        rows = range(first, min(first + batch_size, len(setup.questions)))
        _, answers, _ = _run(setup, case, rows, lambda: 0)
        decoded += map(len, answers)
    return statistics.median_high(decoded)


@dataclass(frozen=True)
class _Marks:
    """What a gauge (a clock, or a counter of FLOPs) read where the parts of a batch meet."""

    start: float
    prepared: float
    vision: float
    seen: float
    first: float
    last: float
    end: float
    passes: int


class _TokenMarks(BaseStreamer):
    """Reads the gauge when `generate` has the next token of every row on the CPU."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._prompt = True
        self.readings: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        # The first call brings the prompt.
        if not self._prompt:
            self.readings.append(self._read())
        self._prompt = False

    def end(self) -> None:
        """The last token was read."""


@contextlib.contextmanager
def _around_vision(model: PreTrainedModel, read: Callable[[], float]) -> Iterator[list[float]]:
    """Readings before the vision tower and behind the projector."""
    readings: list[float] = []
    family = registry.of(model)
    hooks = (
        family.vision_tower(model).register_forward_pre_hook(lambda *_: readings.append(read())),
        family.projector(model).register_forward_hook(lambda *_: readings.append(read())),
    )
    try:
        yield readings
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def _run(
    setup: Setup, name: str, rows: Sequence[int], read: Callable[[], float]
) -> tuple[_Marks, list[list[int]], Cache]:
    """Answer the questions `rows` as one batch.

    Returns the gauge's readings, each answer's tokens up to its end, and the keys and values.
    """
    case, processor = setup.cases[name], setup.processor
    model = case.model
    questions = [setup.questions[row] for row in rows]
    ids = [
        setup.vocabulary.prompt_ids(asked(one.text, case.word), "first", case.prefix)
        for one in questions
    ]
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    start = read()
    family = registry.of(model)
    images = [family.process(one.image, processor) for one in questions]
    prompted, forced = unforced(ids, case.feed)
    inputs = batches.model_inputs(family, prompted, images, processor)
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    prepared = read()
    tokens = _TokenMarks(read)
    length = inputs["input_ids"].shape[1]
    with (
        _around_vision(model, read) as readings,
        fed_back(family.language_model(model), case.feed),
        looking_up(model, case.lookup) as looked,
    ):
        output = model.generate(
            **inputs,
            **_GREEDY,
            max_new_tokens=len(forced) + case.max_new_tokens,
            min_new_tokens=len(forced) + case.max_new_tokens if case.exact else None,
            eos_token_id=ends,
            pad_token_id=processor.tokenizer.pad_token_id,
            streamer=tokens,
            return_dict_in_generate=True,
            **({"logits_processor": [Forced(forced, length)]} if forced else {}),
            **looked,
        )
    answers = output.sequences[:, length + len(forced) :].tolist()
    end = read()
    vision, seen = readings
    written = tokens.readings[len(forced) :]
    marks = _Marks(
        *(start, prepared, vision, seen, written[0], written[-1], end), passes=len(written)
    )
    return marks, [_up_to_end(answer, ends) for answer in answers], output.past_key_values


def _up_to_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """An answer's tokens with its end of turn, without the padding behind it."""
    end = next((at for at, token in enumerate(row) if token in ends), len(row))
    return row[: end + 1]


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds, once the device has done all that it was given."""
    if device.type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def _timing(
    case: str, size: int, turn: int, batch: int, marks: _Marks, answers: Sequence[Sequence[int]]
) -> Timing:
    decoded = [len(answer) for answer in answers]
    later = max(decoded) - 1
    decode = 1e3 * (marks.last - marks.first)
    return Timing(
        case=case,
        batch_size=size,
        round=turn,
        batch=batch,
        decoded=decoded,
        passes=None,
        texts=hashlib.sha256(repr(answers).encode()).hexdigest()[:16],
        preprocess_ms=1e3 * (marks.prepared - marks.start),
        vision_ms=1e3 * (marks.seen - marks.vision),
        prefill_ms=1e3 * (marks.first - marks.seen),
        ttft_ms=1e3 * (marks.first - marks.start),
        decode_ms=decode,
        tpot_ms=decode / later if later else None,
        e2e_ms=1e3 * (marks.end - marks.start),
    )


# Work and peaks


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""What PyTorch's table of formulas lacks: the CPU's kernel of attention."""


def _work(setup: Setup, name: str, rows: Sequence[int]) -> Work:
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        marks, _, cache = _run(setup, name, rows, counter.get_total_flops)
    return Work(
        vision_flops=int(marks.seen - marks.vision),
        prefill_flops=int(marks.first - marks.seen),
        decode_flops=int(marks.last - marks.first),
        decode_bytes=_decode_bytes(setup.cases[name].model, cache, steps=marks.passes - 1),
    )


def _decode_bytes(model: PreTrainedModel, cache: Cache, *, steps: int) -> int:
    """Bytes that `steps` steps of decoding read at least, by the cache that they left behind."""
    family = registry.of(model)
    language = family.language_model(model)
    weights = sum(
        weight.nbytes
        for module in (language, model.lm_head)
        for weight in module.parameters()
        # Of the embeddings a step reads a row for each sample.
        if weight is not language.embed_tokens.weight
    )
    crossing = family.cross_attention_layers(model.config)
    total = steps * weights
    for index, layer in enumerate(cache.layers):
        held, length = layer.keys.nbytes + layer.values.nbytes, layer.keys.shape[2]
        # Each step has added a token to self-attention; what cross-attention reads is constant.
        mean = length if index in crossing else length - (steps - 1) / 2
        total += round(steps * held * mean / length)
    return total


def measured_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """What a large matrix product and a large copy reach on a device, each the best of five.

    A copy counts twice: each byte is read and written.
    """
    side, size = (8192, 2**31) if device.type == "cuda" else (1536, 2**28)
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(
        device=device_name(device),
        tflops=2 * side**3 / _fastest(lambda: a @ b, device) / 1e12,
        gb_per_s=2 * size / _fastest(lambda: target.copy_(source), device) / 1e9,
    )


def _fastest(call: Callable[[], Any], device: torch.device) -> float:
    read, seconds = _clock(device), []
    # The first call warms up.
    for _ in range(6):
        start = read()
        call()
        seconds.append(read() - start)
    return min(seconds[1:])


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def environment(model: PreTrainedModel) -> dict[str, Any]:
    """What timings depend on besides the model: device, threads, precision, versions."""
    return {
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
