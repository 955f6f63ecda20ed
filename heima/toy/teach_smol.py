"""The models of the family `smol`: SmolLM2 as it is, and two VLMs around it.

As the paper's, `text-cot` knows answers in sections, and `base` bare ones, for as many FLOPs. The
new parts learn what is to be seen, then all learns to answer, the language model slowly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from heima.config import GgufLlm, GrownVlm, Params, Schedule, expected
from heima.cot.sections import COMPRESSIBLE
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.data.tokens import ImagePlace
from heima.data.turns import Turn
from heima.families.registry import FAMILIES
from heima.interpreting.interpreter import Reading, ReadingCollator, StateReader
from heima.interpreting.wordings import PLAIN_WORDING, asking
from heima.toy import mllama, smol
from heima.toy.models import warm_up_vision
from heima.toy.teach import RENDERING, Taught, equal_flops
from heima.toy.world import Scene
from heima.training import loop
from heima.training.backbone import body
from heima.vlm import models
from heima.vlm.added_tokens import equip


def teach_vlm(
    name: str,
    params: Params,
    train: Sequence[Turn],
    heldout: Sequence[Turn],
    images: ImageZip,
    scenes: Mapping[str, Scene],
) -> Taught:
    """Train `text-cot`, or `base` for as many FLOPs as `text-cot` takes.

    Raises `SmolError` where the language model is not there.
    """
    options = expected(GrownVlm, params.teach.vlm, "teach.vlm")
    llm, tokenizer = smol.language_model(expected(GgufLlm, params.teach.llm, "teach.llm"))
    processor = smol.build_processor(tokenizer)
    equip(processor.tokenizer, FAMILIES[params.family])
    vocabulary = models.vocabulary(processor.tokenizer, params)
    collate = models.collator(processor, images, params)
    limit = params.distill.max_length
    samples, held = (
        encode_turns(turns, RENDERING[name], vocabulary, max_length=limit)
        for turns in (train, heldout)
    )
    model = smol.build_vlm(llm, seed=params.seed)
    facts: dict[str, Any] = {
        "vision_accuracy": warm_up_vision(
            mllama,
            model,
            processor,
            list(scenes.values()),
            steps=options.vision_steps,
            seed=params.seed,
        )
    }
    answering = loop.AnswerLoss(model, params.hardware, body=body(model))
    schedule: Schedule = options
    if name == "base":
        reference = encode_turns(train, RENDERING["text-cot"], vocabulary, max_length=limit)
        schedule, counted = equal_flops(options, answering, samples, reference, collate)
        facts |= counted
    new = {id(weight): weight for weight in smol.new_parts(model)}
    known = [weight for weight in model.parameters() if id(weight) not in new]
    for weight in known:
        weight.requires_grad_(options.text_learning_rate is not None)
    curve = loop.train(
        answering,
        samples,
        collate,
        schedule,
        seed=params.seed,
        precision=params.precision,
        training=params.training,
        hardware=params.hardware,
        groups=[sample.image for sample in samples],
        optimizer=torch.optim.AdamW(
            [
                # The loop shows the last group's learning rate.
                *(
                    [{"params": known, "lr": options.text_learning_rate}]
                    if options.text_learning_rate
                    else []
                ),
                {"params": list(new.values()), "lr": options.learning_rate},
            ],
            weight_decay=options.weight_decay,
            fused=True,
        ),
    )
    losses = loop.heldout_losses(answering, held, collate, batch_size=options.batch_size)
    return Taught(model, processor, curve, losses, facts)


def take_llm(params: Params, heldout: Sequence[Turn]) -> Taught:
    """SmolLM2 as it is, with its held-out loss on sections for a question alone.

    Raises `SmolError` where it is not there.
    """
    llm, tokenizer = smol.language_model(expected(GgufLlm, params.teach.llm, "teach.llm"))
    equip(tokenizer, FAMILIES[params.family])
    vocabulary = models.vocabulary(tokenizer, params)
    chats: list[tuple[str, ImagePlace, str]] = [
        (asking(PLAIN_WORDING, turn.question, section, 0), "none", turn.sections[section])
        for turn in heldout
        for section in COMPRESSIBLE
    ]
    # No token of a prompt stands for it.
    unread = torch.zeros(1, llm.config.hidden_size)
    held = [Reading(encoded, unread) for encoded in vocabulary.encode_all(chats)]
    reader = StateReader(llm, [])
    answering = loop.AnswerLoss(reader, params.hardware, body=reader.forward)
    collate = ReadingCollator(tokenizer.pad_token_id)
    losses = loop.heldout_losses(answering, held, collate, batch_size=16)
    return Taught(llm, tokenizer, [], losses, {})
