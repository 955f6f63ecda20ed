"""The toy models that stand where the paper starts from pretrained ones, trained from scratch.

`text-cot` learns full staged answers (in the paper: Llama-3.2V-11B-cot), `base` learns bare
conclusions for the same compute (Llama-3.2-11B-Vision-Instruct), and the interpreter LLM learns to
write sections for a question (Llama-3.1-8B-Instruct).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from heima import models, training
from heima.added_tokens import equip
from heima.batching import Sample, encode_turns, pad_text
from heima.bodies import body
from heima.config import Params, Schedule, ToyLlm, ToyVlm
from heima.corpus import ImageZip, Turn
from heima.cot import COMPRESSIBLE
from heima.families import FAMILIES
from heima.interpreter import PLAIN_WORDING
from heima.tokens import IGNORED, Encoded, Vocabulary
from heima.toy.families import TOYS
from heima.toy.models import build_llm, warm_up_vision
from heima.toy.optim import MuonWithAdamW
from heima.toy.source import source_scenes
from heima.toy.world import CELLS, COLOURS, LETTERS, OBJECTS, RANGES, Scene
from heima.training import token_losses

OPTIONS = (*COLOURS, *RANGES)
NAMED = (*OBJECTS, *OPTIONS)
"""What the throw-away head of `_Grounded` tells apart."""

RENDERING = {"text-cot": "text-cot", "base": "answer-only"}
"""What each VLM is trained on."""


@dataclass(frozen=True)
class Taught:
    """A trained model, its loss curve, its held-out losses (nats a token), and how it got there.

    `processor` (of a VLM; of an LLM the tokenizer) is as published: without the thinking tokens
    that a family adds to it.
    """

    model: PreTrainedModel
    processor: ProcessorMixin | PreTrainedTokenizerBase
    curve: list[dict[str, float]]
    heldout_losses: list[float]
    facts: dict[str, Any]


def teach_vlm(
    name: str,
    params: Params,
    train: Sequence[Turn],
    heldout: Sequence[Turn],
    images: ImageZip,
    scenes: Mapping[str, Scene],
) -> Taught:
    """Train `text-cot`, or `base` for as many FLOPs as `text-cot` takes.

    The FLOPs of one sample are counted for both renderings on the untrained model, forward and
    backward, so the budget needs no run of the other model.
    """
    vlm: ToyVlm = params.teach.vlm
    toy = TOYS[params.family]
    processor, published = toy.build_processor(), toy.build_processor()
    equip(processor.tokenizer, FAMILIES[params.family])
    vocabulary = models.vocabulary(processor.tokenizer, params)
    collate = models.collator(processor, images, params)
    limit = params.distill.max_length
    samples, held = (
        encode_turns(turns, RENDERING[name], vocabulary, max_length=limit)
        for turns in (train, heldout)
    )
    model = toy.build_vlm(published, hidden_size=vlm.hidden_size, seed=params.seed)
    look = body(model)
    answering = training.AnswerLoss(model, params.training, body=look)
    schedule, facts = vlm, {}
    if name == "base":
        reference = encode_turns(train, RENDERING["text-cot"], vocabulary, max_length=limit)
        own, other = (
            training.flops_per_sample(answering, some, collate, batch_size=vlm.batch_size)
            for some in (samples, reference)
        )
        schedule = vlm.model_copy(update={"steps": round(vlm.steps * other / own)})
        facts = {"flops_per_sample": own, "flops_per_sample_text_cot": other}
    facts["vision_accuracy"] = warm_up_vision(
        model, processor, list(scenes.values()), steps=vlm.vision_steps, seed=params.seed
    )
    curve = _fit(
        _Grounded(model, look, params.seed),
        samples,
        _GroundedCollator(collate, scenes, vocabulary),
        schedule,
        vlm.muon_learning_rate,
        params,
        groups=[sample.image for sample in samples],
    )
    losses = training.heldout_losses(answering, held, collate, batch_size=vlm.batch_size)
    return Taught(model, published, curve, losses, facts)


class _GroundedCollator:
    """A VLM's batches with `named`, (batch, length): the `NAMED` thing that a prompt points to.

    At each cell that it names that is what stands there, and at its last token the option at A.
    """

    def __init__(
        self, collate: training.Collate, scenes: Mapping[str, Scene], vocabulary: Vocabulary
    ) -> None:
        self._collate = collate
        self._scenes = scenes
        ids = vocabulary.tokenizer.convert_tokens_to_ids
        self._cells = dict(zip(ids(list(CELLS)), CELLS, strict=True))
        self._options = {ids(one): NAMED.index(one) for one in OPTIONS}
        self._first = ids(LETTERS[0])

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        batch = self._collate(samples)
        named = torch.full_like(batch["labels"], IGNORED)
        for row, sample in enumerate(samples):
            scene = self._scenes[sample.image]
            # An image may have become more tokens than the sample's own: the labels tell its end.
            prompt = int((batch["labels"][row] != IGNORED).int().argmax())
            tokens = batch["input_ids"][row, :prompt].tolist()
            for place, token in enumerate(tokens):
                if token in self._cells:
                    named[row, place] = NAMED.index(scene.at(self._cells[token]))
            if self._first in tokens:
                option = tokens[tokens.index(self._first) + 1]
                named[row, prompt - 1] = self._options[option]
        return {**batch, "named": named}


class _Grounded(nn.Module):
    """A VLM that also learns, while it is trained, to look where a question points.

    A pretrained VLM knows what the image shows at a place that its prompt names, and finds the
    options in its prompt. A tiny one that learns to look from captions alone looks only while it
    writes captions, and with those compressed it cannot answer; and it finds the option at A late,
    because one token of an answer depends on it. So a throw-away head reads both from the last
    hidden states of the prompt (see `_GroundedCollator`); its loss is added to the language
    model's.
    """

    def __init__(self, model: PreTrainedModel, look: training.Body, seed: int) -> None:
        super().__init__()
        self.model = model
        self._look = look
        torch.manual_seed(seed)
        self.head = nn.Linear(model.config.text_config.hidden_size, len(NAMED))

    def forward(
        self,
        labels: torch.Tensor,
        named: torch.Tensor,
        num_items_in_batch: int,
        **inputs: torch.Tensor,
    ) -> torch.Tensor:
        hidden = self._look(**inputs)
        sums, _ = token_losses(self.model.lm_head(hidden), labels)
        here = named != IGNORED
        grounding = nn.functional.cross_entropy(self.head(hidden[here]), named[here])
        return sums.sum() / num_items_in_batch + grounding


def training_scenes(params: Params, images: Iterable[str]) -> dict[str, Scene]:
    """The scenes behind image paths of the source; held-out images teach no model anything."""
    source = params.source
    scenes = source_scenes(
        records=source.records, turns=source.turns, mix=source.mix, seed=params.seed
    )
    return {image: scenes[int(PurePosixPath(image).stem)] for image in sorted(images)}


class _TextCollator:
    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        return pad_text(samples, self._pad_id)


def teach_llm(
    params: Params,
    train: Sequence[Turn],
    heldout: Sequence[Turn],
) -> Taught:
    """Train the LLM that the interpreters start from.

    An instruction-tuned LLM can already use what its prompt tells it. A tiny one must learn that
    too, or an interpreter plateaus on what the question alone predicts: so half of its prompts
    give the answer's conclusion where an interpreter's prompt has the thinking token.
    """
    llm: ToyLlm = params.teach.llm
    toy = TOYS[params.family]
    tokenizer, published = toy.build_tokenizer(), toy.build_tokenizer()
    equip(tokenizer, FAMILIES[params.family])
    vocabulary = models.vocabulary(tokenizer, params)
    collate = _TextCollator(tokenizer.pad_token_id)
    samples, held = (
        [
            vocabulary.encode(_llm_prompt(turn, section, told), "none", turn.sections[section])
            for turn, told in zip(turns, _coin(len(turns), params.seed), strict=True)
            for section in COMPRESSIBLE
        ]
        for turns in (train, heldout)
    )
    model = build_llm(published, hidden_size=llm.hidden_size, seed=params.seed)
    answering = training.AnswerLoss(model, params.training)
    curve = _fit(answering, samples, collate, llm, llm.muon_learning_rate, params)
    losses = training.heldout_losses(answering, held, collate, batch_size=llm.batch_size)
    return Taught(model, published, curve, losses, {})


def _coin(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, size=count)


def _llm_prompt(turn: Turn, section: str, told: bool) -> str:
    source = f"of the hidden state {turn.conclusion} " if told else ""
    return PLAIN_WORDING.format(question=turn.question, section=section, source=source)


def _fit(
    model: nn.Module,
    samples: Sequence[Any],
    collate: training.Collate,
    schedule: Schedule,
    muon_learning_rate: float,
    params: Params,
    groups: Sequence[str] | None = None,
) -> list[dict[str, float]]:
    return training.train(
        model,
        samples,
        collate,
        schedule,
        seed=params.seed,
        precision=params.precision,
        training=params.training,
        groups=groups,
        optimizer=MuonWithAdamW(
            model,
            matrix_learning_rate=muon_learning_rate,
            learning_rate=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
        ),
    )
