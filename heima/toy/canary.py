"""A tiny run of all that decides the toy's numbers, as hashes: does this machine give those bits?

The real classes, the product's loop and both of its optimizers, sampled decoding, a bootstrap: what
a whole run does, a few updates of it. One changed bit in one of a thousand sums changes the hash of
its part and, as parts build on each other, those after it.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from heima.config import Decoding, Params, Schedule, ToySource, expected
from heima.data import rewriting
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.data.turns import load_turns
from heima.families import registry
from heima.families.registry import FAMILIES
from heima.results.statistics import cell
from heima.toy.optim import MuonWithAdamW
from heima.toy.source import write_source
from heima.toy.twins import TWINS
from heima.training import loop
from heima.training.backbone import body
from heima.vlm import models
from heima.vlm.added_tokens import equip
from heima.vlm.generation import Prompt, generate

_SEED = 7
_SCHEDULE = Schedule(
    steps=4,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=1,
    weight_decay=0.01,
    max_grad_norm=1.0,
)
_MUON_RATE = 0.02
_DECODING = Decoding(temperature=0.6, top_k=50, max_new_tokens=12, batch_size=8)
_DRAWS = 500


def bits(params: Params) -> dict[str, str]:
    """Part -> SHA-256 of its bytes, in the order in which they build on each other.

    Of `params` (a toy's) the family, the kinds of questions, the form of LoRA and how training
    computes count; sizes and schedules are the canary's own.
    """
    twin = TWINS[params.family]
    processor, published = twin.build_processor(), twin.build_processor()
    equip(processor.tokenizer, FAMILIES[params.family])
    vocabulary = models.vocabulary(processor.tokenizer, params)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = expected(ToySource, params.source, "source")
        write_source(folder, records=24, turns=2, mix=source.mix, seed=_SEED)
        rewriting.rewrite(folder, folder, params.rewrite, seed=_SEED, workers=1)
        turns = load_turns(folder / "train.parquet")
        found["data"] = _digest(
            (folder / file).read_bytes()
            for file in ("train.jsonl", "images.zip", "train.parquet", "heldout.parquet")
        )
        images = ImageZip(folder / "images.zip")
        collate = models.collator(processor, images, params)

        def fit(
            model: nn.Module, rendering: str, optimizer: torch.optim.Optimizer | None = None
        ) -> loop.AnswerLoss:
            answering = loop.AnswerLoss(model, params.hardware, body=body(model))
            samples = encode_turns(turns, rendering, vocabulary, max_length=512)
            loop.train(
                answering,
                samples,
                collate,
                _SCHEDULE,
                seed=_SEED,
                precision=params.precision,
                training=params.training,
                hardware=params.hardware,
                groups=[sample.image for sample in samples],
                optimizer=optimizer,
            )
            return answering

        model = twin.build_vlm(published, hidden_size=64, seed=_SEED)
        muon = MuonWithAdamW(model, matrix_learning_rate=_MUON_RATE, learning_rate=3e-3)
        fit(model, "text-cot", muon)
        found["teach"] = _weights(model)
        adapted = models.add_lora(
            model, FAMILIES[params.family].vlm_lora, params.distill.lora, _SEED
        )
        answering = fit(adapted, "p3")
        found["distill"] = _weights(adapted)
        samples = encode_turns(turns, "p3", vocabulary, max_length=512)
        losses = loop.heldout_losses(answering, samples, collate, batch_size=8)
        found["losses"] = _digest([np.array(losses).tobytes()])
        found["bootstrap"] = _digest([repr(cell(losses, draws=_DRAWS, seed=_SEED)).encode()])
        prompts = [
            Prompt(turn.question, turn.image, functools.partial(images.read, turn.image))
            for turn in turns[:16]
        ]
        answers = generate(
            registry.pretrained(adapted).eval(),
            processor,
            vocabulary,
            prompts,
            decoding=_DECODING,
            seed=_SEED,
        )
        found["sample"] = _digest(answer.text.encode() for answer in answers)
    found["arithmetic"] = _arithmetic()
    return found


def _arithmetic() -> str:
    """What vectorised functions of torch, numpy and the C library make of the same numbers."""
    rng = np.random.default_rng(_SEED)
    numbers = rng.integers(1, 2**20, (97, 61)) / 2.0**17
    small = torch.from_numpy(numbers.astype(np.float32))
    torch.manual_seed(_SEED)
    outcomes = [
        *(f(small).numpy() for f in (torch.exp, torch.log, torch.sqrt, torch.tanh, torch.sin)),
        small.pow(1.7).numpy(),
        small.softmax(-1).numpy(),
        torch.nn.functional.silu(small).numpy(),
        torch.nn.functional.gelu(small).numpy(),
        torch.randn(64, 64).numpy(),
        torch.multinomial(small, 9).numpy(),
        *(f(numbers) for f in (np.exp, np.log, np.sqrt, np.sin, np.tanh)),
        numbers**1.7,
        numbers.T @ numbers,
        numbers.std(axis=0),
        np.quantile(numbers, [0.025, 0.5, 0.975], axis=1),
        np.argsort(rng.integers(0, 9, 4000)),
        np.linalg.svd(numbers, compute_uv=False),
    ]
    return _digest(np.ascontiguousarray(outcome).tobytes() for outcome in outcomes)


def _weights(model: nn.Module) -> str:
    return _digest(
        part
        for name, weight in sorted(model.state_dict().items())
        for part in (name.encode(), weight.contiguous().numpy().tobytes())
    )


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]
