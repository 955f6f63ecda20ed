"""The toy models that stand where the paper starts from pretrained ones, trained from scratch.

`text-cot` learns full staged answers (in the paper: Llama-3.2V-11B-cot), `base` learns bare
conclusions for the same compute (Llama-3.2-11B-Vision-Instruct), and the interpreter LLM learns to
write sections for a question (Llama-3.1-8B-Instruct).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from transformers import MllamaProcessor, PreTrainedModel, PreTrainedTokenizerBase

from heima import training
from heima.batching import MllamaCollator, encode_turns, pad_text
from heima.config import Params, Schedule, ToyLlm, ToyVlm
from heima.corpus import ImageZip, Turn
from heima.cot import COMPRESSIBLE
from heima.interpreter import PLAIN_WORDING
from heima.tokens import Encoded, Vocabulary
from heima.toy.models import build_llm, build_vlm, warm_up_vision
from heima.toy.optim import MuonWithAdamW
from heima.toy.source import source_scenes
from heima.toy.world import Scene

RENDERING = {"text-cot": "text-cot", "base": "answer-only"}
"""What each VLM is trained on."""


@dataclass(frozen=True)
class Taught:
    """A trained model, its loss curve, its held-out losses (nats a token), and how it got there."""

    model: PreTrainedModel
    curve: list[dict[str, float]]
    heldout_losses: list[float]
    facts: dict[str, Any]


def teach_vlm(
    name: str,
    params: Params,
    processor: MllamaProcessor,
    vocabulary: Vocabulary,
    train: Sequence[Turn],
    heldout: Sequence[Turn],
    images: ImageZip,
    scenes: Sequence[Scene],
) -> Taught:
    """Train `text-cot`, or `base` for as many FLOPs as `text-cot` takes.

    The FLOPs of one sample are counted for both renderings on the untrained model, forward and
    backward, so the budget needs no run of the other model.
    """
    vlm: ToyVlm = params.teach.vlm
    collate = MllamaCollator(processor, images)
    limit = params.distill.max_length
    samples, held = (
        encode_turns(turns, RENDERING[name], vocabulary, max_length=limit)
        for turns in (train, heldout)
    )
    model = build_vlm(processor, hidden_size=vlm.hidden_size, seed=params.seed)
    schedule, facts = vlm, {}
    if name == "base":
        reference = encode_turns(train, RENDERING["text-cot"], vocabulary, max_length=limit)
        own, other = (
            training.flops_per_sample(model, some, collate, batch_size=vlm.batch_size)
            for some in (samples, reference)
        )
        schedule = vlm.model_copy(update={"steps": round(vlm.steps * other / own)})
        facts = {"flops_per_sample": own, "flops_per_sample_text_cot": other}
    vision = warm_up_vision(model, processor, scenes, steps=vlm.vision_steps, seed=params.seed)
    curve = _fit(model, samples, collate, schedule, vlm.muon_learning_rate, params)
    losses = training.heldout_losses(model, held, collate, batch_size=vlm.batch_size)
    return Taught(model, curve, losses, {"vision_accuracy": vision, **facts})


def training_scenes(params: Params, images: Iterable[str]) -> list[Scene]:
    """The scenes behind the source's image paths; held-out images teach the eyes nothing either."""
    source = params.source
    scenes = source_scenes(
        records=source.records, turns=source.turns, mix=source.mix, seed=params.seed
    )
    return [scenes[int(PurePosixPath(image).stem)] for image in sorted(images)]


class _TextCollator:
    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, samples: Sequence[Encoded]):
        return pad_text(samples, self._pad_id)


def teach_llm(
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    train: Sequence[Turn],
    heldout: Sequence[Turn],
) -> Taught:
    """Train the LLM that the interpreters start from.

    An instruction-tuned LLM can already use what its prompt tells it. A tiny one must learn that
    too, or an interpreter plateaus on what the question alone predicts: so half of its prompts
    give the answer's conclusion where an interpreter's prompt has the thinking token.
    """
    llm: ToyLlm = params.teach.llm
    collate = _TextCollator(tokenizer.pad_token_id)
    samples, held = (
        [
            vocabulary.encode(_llm_prompt(turn, section, told), "none", turn.sections[section])
            for turn, told in zip(turns, _coin(len(turns), params.seed), strict=True)
            for section in COMPRESSIBLE
        ]
        for turns in (train, heldout)
    )
    model = build_llm(tokenizer, hidden_size=llm.hidden_size, seed=params.seed)
    curve = _fit(model, samples, collate, llm, llm.muon_learning_rate, params)
    losses = training.heldout_losses(model, held, collate, batch_size=llm.batch_size)
    return Taught(model, curve, losses, {})


def _coin(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, size=count)


def _llm_prompt(turn: Turn, section: str, told: bool) -> str:
    source = f"of the hidden state {turn.conclusion} " if told else ""
    return PLAIN_WORDING.format(question=turn.question, section=section, source=source)


def _fit(
    model: PreTrainedModel,
    samples: Sequence[Any],
    collate: training.Collate,
    schedule: Schedule,
    muon_learning_rate: float,
    params: Params,
) -> list[dict[str, float]]:
    return training.train(
        model,
        samples,
        collate,
        schedule,
        seed=params.seed,
        precision=params.precision,
        optimizer=MuonWithAdamW(
            model,
            matrix_learning_rate=muon_learning_rate,
            learning_rate=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
        ),
    )
