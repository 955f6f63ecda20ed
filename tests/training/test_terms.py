"""Terms of the loss: each is what a naive loop over rows, layers and sections makes of it."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from heima.config import Hardware
from heima.cot.rendering import RENDERINGS, Rendering
from heima.cot.sections import with_controls
from heima.cot.thinking import Thinking
from heima.data.encoding import fit_turns
from heima.data.images import ImageZip
from heima.data.tokens import IGNORED, Vocabulary
from heima.families.batches import Collator
from heima.families.feeding import Feed
from heima.families.registry import FAMILIES
from heima.training.backbone import body
from heima.training.loop import AnswerLoss
from heima.training.merged_lora import merged_forward
from heima.training.terms import Align, Explain
from heima.vlm.models import add_lora

COUNT = Thinking(tokens=2)
BARE = Rendering(summary="token", caption="filler", reasoning="omit", tags="none")
TAGGED = Rendering(summary="token", caption="text", reasoning="token", tags="token")


@pytest.fixture
def words(toy_processor, toy_vocabulary):
    return Vocabulary(toy_processor.tokenizer, with_controls(toy_vocabulary.reserved))


@pytest.fixture
def student(toy_vlm):
    """An adapter that does something, on a copy of the text-CoT model."""
    model = copy.deepcopy(toy_vlm)
    for name, weight in model.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.constant_(weight, 0.7)
    teacher = copy.deepcopy(model)
    lora = SimpleNamespace(rank=2, alpha=4, dropout=0.0)
    adapted = add_lora(model, FAMILIES["toy-mllama"].vlm_lora, lora, 5)
    torch.manual_seed(2)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return SimpleNamespace(adapted=adapted, teacher=teacher)


def supervised(turns, rendering, words):
    return fit_turns(
        turns, rendering, words, max_length=None, too_long="refuse", thinking=COUNT, supervised=True
    ).samples


def collator(toy_processor, toy_source, thoughts=None):
    images = ImageZip(toy_source / "images.zip")
    return Collator(FAMILIES["toy-mllama"], toy_processor, images, thoughts=thoughts)


def layers_of(model, batch, at):
    """What each layer gives in one column of one row, by a pass of its own."""
    seen = []
    base = model.base_model.model if hasattr(model, "base_model") and hasattr(
        model, "peft_config") else model  # fmt: skip
    hooks = [
        layer.register_forward_hook(lambda m, a, out: seen.append(out[0, at]))
        for layer in base.model.language_model.layers
    ]
    hidden = body(model)(**batch)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen), hidden


@pytest.mark.parametrize("rendering", [RENDERINGS["p3"], RENDERINGS["p1"], BARE, TAGGED])
def test_the_places_of_a_turn_are_found(words, toy_turns, rendering):
    for turn, sample in zip(
        toy_turns[:6], supervised(toy_turns[:6], rendering, words), strict=True
    ):
        ids, found = sample.encoded.input_ids, sample.supervision
        rest = words.decode(ids[found.before + 1 :])
        assert rest.split()[: len(turn.conclusion.split())] == turn.conclusion.split()
        whole = words.encode(
            turn.question, "first" if turn.image_first else "last", turn.written("text-cot")
        ).input_ids
        assert list(found.teacher) == whole[: len(found.teacher)]
        assert words.tokenizer.convert_ids_to_tokens(found.teacher[-1]) == "<CONCLUSION>"
        named = [s for s, form in rendering.forms.items() if form in ("token", "filler")]
        assert len(found.sections) == len(named)
        for section, (places, text) in zip(named, found.sections, strict=True):
            assert len(places) == 2
            assert {ids[place] for place in places} <= set(words.thinking_ids.values())
            assert (
                words.decode(text).split()
                == words.decode(words.text_ids(turn.sections[section])).split()
            )
            assert text[-1] == words.tokenizer.eos_token_id


@pytest.mark.parametrize("rendering", [RENDERINGS["p3"], BARE], ids=["p3", "bare"])
def test_align_is_the_naive_sum(student, words, toy_turns, toy_processor, toy_source, rendering):
    """And its gradient: rows one by one, layers one by one, the teacher a model of its own."""
    samples = supervised(toy_turns[:5], rendering, words)
    collate = collator(toy_processor, toy_source)
    items = sum(sample.labelled for sample in samples)
    weight = 0.7
    naive = torch.zeros(())
    for sample in samples:
        plain = SimpleNamespace(encoded=sample.encoded, image=sample.image, supervision=None)
        batch = collate([plain])
        labels = batch.pop("labels")
        ours, hidden = layers_of(student.adapted, batch, sample.supervision.before)
        taught = SimpleNamespace(
            encoded=SimpleNamespace(
                input_ids=list(sample.supervision.teacher),
                labels=[IGNORED] * len(sample.supervision.teacher),
                body=0,
            ),
            image=sample.image,
            supervision=None,
        )
        there = collate([taught])
        there.pop("labels")
        with torch.no_grad():
            theirs, _ = layers_of(student.teacher, there, -1)
        logits = student.adapted.base_model.model.lm_head(hidden[0, :-1])
        naive = naive + torch.nn.functional.cross_entropy(
            logits, labels[0, 1:], ignore_index=IGNORED, reduction="sum"
        )
        term = 0.0
        for one, other in zip(ours, theirs, strict=True):
            off = (one - other).abs()
            term = term + torch.where(off < 1, off**2 / 2, off - 0.5).mean() / other.std()
        naive = naive + weight * sample.labelled * term / len(ours)
    (naive / items).backward()
    expected = gradients(student.adapted)

    align = Align(student.adapted, body(student.adapted))
    answering = AnswerLoss(
        student.adapted, Hardware(), body=body(student.adapted), align=(weight, align)
    )
    for context in (lambda: merged_forward(student.adapted), torch.enable_grad):
        with context():
            loss = answering(**collate(samples), num_items_in_batch=items)
            loss.backward()
        torch.testing.assert_close(loss, naive / items, rtol=1e-4, atol=1e-5)
        assert_close(gradients(student.adapted), expected)
    # A batch in parts is the same sum; held-out losses are of tokens alone.
    parts = sum(
        answering(**collate(samples[a : a + 2]), num_items_in_batch=items) for a in (0, 2, 4)
    )
    torch.testing.assert_close(parts, loss, rtol=1e-5, atol=1e-6)
    plain = AnswerLoss(student.adapted, Hardware(), body=body(student.adapted))
    with torch.no_grad():
        sums, _ = answering(**collate(samples))
        assert torch.equal(sums, plain(**collate(samples))[0])
    assert abs(loss - sums.sum() / items) > 1e-3


def gradients(model):
    found = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(found, expected):
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("fed", [False, True])
def test_explain_is_the_naive_sum(student, words, toy_turns, toy_processor, toy_source, fed):
    """Section by section, a text read up to each of its tokens."""
    rendering, weight = TAGGED, 0.3
    samples = supervised(toy_turns[:4], rendering, words)
    feed = Feed(frozenset(words.thinking_ids.values())) if fed else None
    collate = collator(toy_processor, toy_source, feed.ids if fed else None)
    states = body(student.adapted, feed=feed)
    explain = Explain(student.adapted, seed=3, fed=fed)
    items = sum(sample.labelled for sample in samples)
    answering = AnswerLoss(student.adapted, Hardware(), body=states, explain=(weight, explain))
    plain = AnswerLoss(student.adapted, Hardware(), body=states)
    table = student.teacher.get_input_embeddings()
    naive = plain(**collate(samples), num_items_in_batch=items)
    for sample in samples:
        batch = collate([sample])
        batch = {k: v for k, v in batch.items() if not k.startswith(("align_", "explain_", "lab"))}
        hidden = states(**batch)[0]
        nats, count = 0.0, 0
        for places, text in sample.supervision.sections:
            read = [hidden[place - fed] for place in places]
            for token in text:
                out = explain.decoder(inputs_embeds=torch.stack(read)[None], use_cache=False)
                logits = out.last_hidden_state[0, -1] @ table.weight.T
                nats, count = nats - logits.log_softmax(-1)[token], count + 1
                read.append(table(torch.tensor(token)))
        naive = naive + weight * sample.labelled * nats / count / items
    loss = answering(**collate(samples), num_items_in_batch=items)
    torch.testing.assert_close(loss, naive, rtol=1e-4, atol=1e-5)
    # States are not detached: the adapter learns from it, and so does the decoder.
    (loss - plain(**collate(samples), num_items_in_batch=items)).backward()
    assert all(weight.grad is not None for weight in explain.parameters())
    assert sum(w.grad.abs().sum() for n, w in student.adapted.named_parameters() if "lora_A" in n
               and w.grad is not None) > 0  # fmt: skip
    assert not any("explainer" in name for name in student.adapted.state_dict())


def test_align_needs_an_adapter(toy_vlm):
    with pytest.raises(ValueError, match=r"losses\.align needs an adapter on the text-CoT model"):
        Align(toy_vlm, body(toy_vlm))


def test_align_goes_with_gradient_checkpointing(
    student, words, toy_turns, toy_processor, toy_source
):
    samples = supervised(toy_turns[:4], "p3", words)
    collate = collator(toy_processor, toy_source)
    found = []
    for again in (False, True):
        model = copy.deepcopy(student.adapted).train()
        answering = AnswerLoss(
            model,
            Hardware(gradient_checkpointing=again),
            body=body(model),
            align=(1.0, Align(model, body(model))),
        )
        answering(**collate(samples), num_items_in_batch=50).backward()
        found.append(gradients(model))
    assert_close(*found)
