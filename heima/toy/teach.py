"""The toy models that stand where the paper starts from pretrained ones, trained from scratch.

`text-cot` learns full staged answers (in the paper: Llama-3.2V-11B-cot), `base` learns bare
conclusions for the same compute (Llama-3.2-11B-Vision-Instruct), and the interpreter LLM learns to
write sections for a question and for what text-CoT knows of them (Llama-3.1-8B-Instruct).
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

from heima.config import Params, Schedule, ToyLlm, ToySource, ToyVlm, expected, given
from heima.cot.sections import COMPRESSIBLE, TAGS, thinking_token
from heima.data.encoding import Sample, encode_turns
from heima.data.images import ImageZip
from heima.data.tokens import IGNORED, ImagePlace, Vocabulary
from heima.data.turns import Turn
from heima.families.family import Body
from heima.families.registry import FAMILIES
from heima.interpreting.interpreter import Reading, ReadingCollator, StateReader
from heima.interpreting.wordings import PLAIN_WORDING, asking
from heima.toy.models import build_llm, warm_up_vision
from heima.toy.optim import MuonWithAdamW
from heima.toy.source import source_scenes
from heima.toy.twins import TWINS
from heima.toy.world import CELLS, COLOURS, LETTERS, OBJECTS, RANGES, Scene
from heima.training import loop
from heima.training.backbone import body
from heima.training.loop import token_losses
from heima.vlm import models
from heima.vlm.added_tokens import equip, fit

OPTIONS = (*COLOURS, *RANGES)
NAMED = (*OBJECTS, *OPTIONS)
"""What the throw-away head of `_Grounded` tells apart."""

RENDERING = {"text-cot": "text-cot", "base": "answer-only"}
"""What each VLM is trained on."""

TOLD, ALONE = 0.8, 0.6
"""The share of the LLM's prompts that tell a section's state, and of those without a question."""

_STATES_BATCH = 64


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
    vlm = expected(ToyVlm, params.teach.vlm, "teach.vlm")
    twin = TWINS[params.family]
    processor, published = twin.build_processor(), twin.build_processor()
    equip(processor.tokenizer, FAMILIES[params.family])
    vocabulary = models.vocabulary(processor.tokenizer, params)
    collate = models.collator(processor, images, params)
    limit = params.distill.max_length
    samples, held = (
        encode_turns(turns, RENDERING[name], vocabulary, max_length=limit)
        for turns in (train, heldout)
    )
    model = twin.build_vlm(published, hidden_size=vlm.hidden_size, seed=params.seed)
    look = body(model)
    answering = loop.AnswerLoss(model, params.hardware, body=look)
    schedule: Schedule = vlm
    facts: dict[str, Any] = {}
    if name == "base":
        reference = encode_turns(train, RENDERING["text-cot"], vocabulary, max_length=limit)
        schedule, facts = equal_flops(vlm, answering, samples, reference, collate)
    facts["vision_accuracy"] = warm_up_vision(
        twin, model, processor, list(scenes.values()), steps=vlm.vision_steps, seed=params.seed
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
    losses = loop.heldout_losses(answering, held, collate, batch_size=vlm.batch_size)
    return Taught(model, published, curve, losses, facts)


def equal_flops(
    schedule: Schedule,
    model: nn.Module,
    samples: Sequence[Sample],
    reference: Sequence[Sample],
    collate: loop.Collate,
) -> tuple[Schedule, dict[str, Any]]:
    """`schedule`, which trains `model` on `reference`, with as many updates as cost the same on
    `samples`; and the counted FLOPs of a sample of each, forward and backward."""
    own, other = (
        loop.flops_per_sample(model, some, collate, batch_size=schedule.batch_size)
        for some in (samples, reference)
    )
    steps = round(given(schedule.steps, "steps") * other / own)
    return schedule.model_copy(update={"steps": steps}), {
        "flops_per_sample": own,
        "flops_per_sample_text_cot": other,
    }


class _GroundedCollator:
    """A VLM's batches with `named`, (batch, length): the `NAMED` thing that a prompt points to.

    At each cell that it names that is what stands there, and at its last token the option at A.
    """

    def __init__(
        self, collate: loop.Collate, scenes: Mapping[str, Scene], vocabulary: Vocabulary
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

    def __init__(self, model: PreTrainedModel, look: Body, seed: int) -> None:
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
    source = expected(ToySource, params.source, "source")
    scenes = source_scenes(
        records=source.records, turns=source.turns, mix=source.mix, seed=params.seed
    )
    return {image: scenes[int(PurePosixPath(image).stem)] for image in sorted(images)}


def teach_llm(
    params: Params,
    train: Sequence[Turn],
    heldout: Sequence[Turn],
    vlm: PreTrainedModel,
    processor: ProcessorMixin,
    images: ImageZip,
) -> Taught:
    """Train the LLM that the interpreters start from; `vlm` and `processor` are text-CoT's.

    Llama 3.2 Vision is Llama 3.1 with frozen language weights and layers for images between them,
    so the paper's interpreter shares its VLM's hidden states from the start. A tiny LLM trained
    from scratch shares nothing, and an interpreter from it plateaus on what the question alone
    predicts. So `TOLD` of its prompts have, where an interpreter's has the thinking token, what
    text-CoT knows of the section (`section_states`), and `ALONE` of those no question beside it:
    else the question is enough for most words, and that place is not looked at. No thinking state
    is among them, and none of held-out turns is trained on.
    """
    llm = expected(ToyLlm, params.teach.llm, "teach.llm")
    twin = TWINS[params.family]
    tokenizer, published = twin.build_tokenizer(), twin.build_tokenizer()
    equip(tokenizer, FAMILIES[params.family])
    vocabulary = models.vocabulary(tokenizer, params)
    # What the schedule can use, each once.
    turns = train[: -(-llm.steps * llm.batch_size // len(COMPRESSIBLE))] if llm.steps else train
    rng = np.random.default_rng(params.seed)
    samples, held = (
        _told(some, section_states(vlm, processor, some, images, params), vocabulary, rng)
        for some in (turns, heldout)
    )
    model = build_llm(published, hidden_size=llm.hidden_size, seed=params.seed)
    fit(model, tokenizer, FAMILIES[params.family])
    reader = StateReader(
        model, [vocabulary.thinking_ids[thinking_token(section)] for section in COMPRESSIBLE]
    )
    answering = loop.AnswerLoss(reader, params.hardware, body=reader.forward)
    collate = ReadingCollator(tokenizer.pad_token_id)
    curve = _fit(answering, samples, collate, llm, llm.muon_learning_rate, params)
    losses = loop.heldout_losses(answering, held, collate, batch_size=llm.batch_size)
    return Taught(model, published, curve, losses, {})


@torch.no_grad()
def section_states(
    vlm: PreTrainedModel,
    processor: ProcessorMixin,
    turns: Sequence[Turn],
    images: ImageZip,
    params: Params,
) -> dict[str, torch.Tensor]:
    """Section -> (turns, hidden_size): the mean of the last hidden states (after the final norm)
    from a section's opening tag to its last token, in text-CoT's own answers to its training.
    """
    vocabulary = models.vocabulary(processor.tokenizer, params)
    collate = models.collator(processor, images, params)
    samples = encode_turns(
        turns, RENDERING["text-cot"], vocabulary, max_length=params.distill.max_length
    )
    ids = vocabulary.tokenizer.convert_tokens_to_ids
    tags = {section: ids(list(TAGS[section])) for section in COMPRESSIBLE}
    look = body(vlm)
    found: dict[str, list[torch.Tensor]] = {section: [] for section in COMPRESSIBLE}
    for start in range(0, len(samples), _STATES_BATCH):
        batch = collate(samples[start : start + _STATES_BATCH])
        del batch["labels"]
        for row, line in zip(look(**batch), batch["input_ids"].tolist(), strict=True):
            for section, (opens, closes) in tags.items():
                # An answer ends a row, so the last of a tag is the answer's.
                first, end = _last(line, opens), _last(line, closes)
                found[section].append(row[first:end].mean(dim=0))
    return {section: torch.stack(rows) for section, rows in found.items()}


def _last(line: Sequence[int], token: int) -> int:
    return len(line) - 1 - line[::-1].index(token)


def _told(
    turns: Sequence[Turn],
    states: Mapping[str, torch.Tensor],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> list[Reading]:
    chats: list[tuple[str, ImagePlace, str]] = []
    given = []
    for index, turn in enumerate(turns):
        for section in COMPRESSIBLE:
            told, alone = rng.random() < TOLD, rng.random() < ALONE
            question = "" if told and alone else turn.question
            prompt = asking(PLAIN_WORDING, question, section, int(told))
            chats.append((prompt, "none", turn.sections[section]))
            given.append(states[section][index : index + 1])
    return [
        Reading(encoded, state)
        for encoded, state in zip(vocabulary.encode_all(chats), given, strict=True)
    ]


def _fit(
    model: nn.Module,
    samples: Sequence[Any],
    collate: loop.Collate,
    schedule: Schedule,
    muon_learning_rate: float,
    params: Params,
    groups: Sequence[str] | None = None,
) -> list[dict[str, float]]:
    return loop.train(
        model,
        samples,
        collate,
        schedule,
        seed=params.seed,
        precision=params.precision,
        training=params.training,
        hardware=params.hardware,
        groups=groups,
        optimizer=MuonWithAdamW(
            model,
            matrix_learning_rate=muon_learning_rate,
            learning_rate=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
        ),
    )
