"""States fed back: segments are whole passes, decoding is whole passes, in every family."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from heima.config import Decoding, Hardware
from heima.cot.rendering import RENDERINGS, Rendering, constant_prefix
from heima.cot.sections import numbered, with_controls
from heima.cot.thinking import Thinking
from heima.data.encoding import Sample, encode_turns, fit_turns, pad_aligned
from heima.data.tokens import IGNORED, Encoded, Vocabulary
from heima.families.batches import Collator
from heima.families.feeding import Feed
from heima.families.registry import FAMILIES
from heima.toy.twins import TWINS
from heima.training.backbone import body
from heima.training.loop import AnswerLoss
from heima.vlm.added_tokens import equip, fit
from heima.vlm.generation import Prompt, generate
from heima.vlm.models import add_lora

BARE = Rendering(summary="token", caption="filler", reasoning="token", tags="none")
MIDDLE = Rendering(summary="token", caption="text", reasoning="token", tags="token")
"""Between its thinking tokens stands text of different length."""

COUNT = Thinking(tokens=2)


class Noise:
    """Stands for an `ImageZip`: an image by name, of two shapes."""

    def read(self, name: str) -> Image.Image:
        seed = sum(map(ord, name))
        shape = (32, 32, 3) if seed % 2 else (30, 32, 3)
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture(scope="module", params=["toy-mllama", "toy-llava-next", "toy-idefics3"])
def twin(request):
    return a_twin(request.param)


def a_twin(name, *, shared=False):
    """A family's VLM in double precision, its processor and vocabulary; with `shared`, its heads
    share keys and values two by two, as those of Llama 3.2 do four by four."""
    family, processor = FAMILIES[name], TWINS[name].build_processor()
    published = TWINS[name].build_processor()
    model = TWINS[name].build_vlm(published, hidden_size=32, seed=3)
    if shared:
        text = model.config.text_config
        text.num_key_value_heads = text.num_attention_heads // 2
        torch.manual_seed(3)
        model = type(model)(model.config)
    equip(processor.tokenizer, family)
    fit(model, processor.tokenizer, family)
    words = Vocabulary(processor.tokenizer, with_controls(family.thinking_tokens))
    model = model.double().eval()
    if name == "toy-mllama":
        # Untrained, its gates keep the image out.
        for key, weight in model.named_parameters():
            if key.endswith("_gate"):
                torch.nn.init.constant_(weight, 0.7)
    return SimpleNamespace(name=name, family=family, processor=processor, words=words, model=model)


def feed_of(twin, scale="none") -> Feed:
    return Feed(frozenset(twin.words.thinking_ids.values()), scale)


def collator(twin, feed=None) -> Collator:
    thoughts = feed.ids if feed else None
    return Collator(twin.family, twin.processor, Noise(), thoughts=thoughts)


def doubled(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def core_inputs(twin, batch):
    """What the VLM without its lm_head takes of a batch, the text apart."""
    text = ("input_ids", "attention_mask", "labels", "image_rows", "position_ids")
    return {key: value for key, value in batch.items() if key not in text}


def whole_passes(twin, ids, image, feed):
    """Naive: K+1 passes over the whole row, each with one more state put in its place."""
    core = twin.model.model
    table = twin.model.get_input_embeddings()
    norm = table.weight.norm(dim=-1).mean()
    places = [place for place, token in enumerate(ids.tolist()) if token in feed.ids]
    embeds = table(ids)[None]
    for place in (*places, None):
        hidden = core(inputs_embeds=embeds, use_cache=False, **image).last_hidden_state
        if place is None:
            return hidden
        state = hidden[0, place - 1]
        if feed.scale == "match":
            state = state / state.norm() * norm
        before, after = embeds[:, :place], embeds[:, place + 1 :]
        embeds = torch.cat([before, state[None, None], after], dim=1)


@pytest.mark.parametrize(
    ("rendering", "scale"),
    [(RENDERINGS["p2"], "none"), (BARE, "match"), (MIDDLE, "none")],
    ids=["p2", "bare", "middle"],
)
def test_segments_are_whole_passes(twin, toy_turns, rendering, scale):
    segments_are_whole_passes(twin, toy_turns, rendering, scale)


def test_segments_are_whole_passes_where_heads_share_keys(toy_turns):
    """There an Mllama looks at its image in another way than in whole passes."""
    segments_are_whole_passes(a_twin("toy-mllama", shared=True), toy_turns, MIDDLE, "match")


def segments_are_whole_passes(twin, toy_turns, rendering, scale):
    """The loss, and the gradient of every weight that trains, of a batch of unequal rows."""
    feed = feed_of(twin, scale)
    turns = toy_turns[:4]
    samples = encode_turns(turns, rendering, twin.words, thinking=COUNT)
    adapted = add_lora(
        copy.deepcopy(twin.model),
        twin.family.vlm_lora,
        SimpleNamespace(rank=2, alpha=4, dropout=0.0),
        5,
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model = SimpleNamespace(**{**vars(twin), "model": adapted.base_model.model})
    answering = AnswerLoss(adapted, Hardware(), body=body(adapted, feed=feed))
    items = sum(sample.labelled for sample in samples)

    # First, for a body leaves hooks in an Mllama.
    naive = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        batch = doubled(collator(twin)([sample]))
        hidden = whole_passes(model, batch["input_ids"][0], core_inputs(twin, batch), feed)
        logits = adapted.base_model.model.lm_head(hidden[0, :-1])
        naive = naive + torch.nn.functional.cross_entropy(
            logits, batch["labels"][0, 1:], ignore_index=IGNORED, reduction="sum"
        )
    (naive / items).backward()
    expected = {n: w.grad for n, w in adapted.named_parameters() if w.grad is not None}
    adapted.zero_grad(set_to_none=True)

    loss = answering(**doubled(collator(twin, feed)(samples)), num_items_in_batch=items)
    loss.backward()
    found = {n: w.grad for n, w in adapted.named_parameters() if w.grad is not None}

    torch.testing.assert_close(loss.double(), naive / items, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    # And it is another function than feeding tokens.
    plain = AnswerLoss(adapted, Hardware(), body=body(adapted))
    other = plain(**doubled(collator(twin)(samples)), num_items_in_batch=items)
    assert abs(other - loss).item() > 2e-6


@pytest.fixture
def chatty(twin):
    """The model with an lm_head that prefers thinking tokens, and answers that differ."""
    state = copy.deepcopy(twin.model.state_dict())
    generator = torch.Generator().manual_seed(11)
    head = twin.model.lm_head
    with torch.no_grad():
        head.weight.normal_(0, 1, generator=generator)
        likely = [
            twin.words.thinking_ids[name] for tokens in numbered(2).values() for name in tokens
        ]
        head.weight[likely] *= 3
        # Each answer reaches the limit.
        head.weight[twin.processor.tokenizer.eos_token_id] = 0
    yield twin
    twin.model.load_state_dict(state)


QUESTIONS = ["What is at b2?", "What is the total of a1 and b1?", "a1?"]


def prompts():
    return [
        Prompt(question, f"image {i % 2}", lambda i=i: Noise().read(f"image {i % 2}"))
        for i, question in enumerate(QUESTIONS)
    ]


@torch.no_grad()
def naively(twin, prompt, feed, prefix, limit):
    """Greedy, by whole passes from the beginning for every token."""
    ids = twin.words.prompt_ids(prompt.question, "first")
    forced = twin.words.prompt_ids(prompt.question, "first", prefix)[len(ids) :]
    end = twin.processor.tokenizer.eos_token_id
    encoded = Encoded(ids, [IGNORED] * len(ids), len(ids))
    written: list[int] = []
    for step in range(len(forced) + limit):
        row = Encoded(ids + written, [IGNORED] * (len(ids) + len(written)), encoded.body)
        batch = doubled(collator(twin)([Sample(row, prompt.image_key)]))
        hidden = whole_passes(twin, batch["input_ids"][0], core_inputs(twin, batch), feed)
        best = twin.model.lm_head(hidden[0, -1]).argmax().item()
        written.append(forced[step] if step < len(forced) else best)
        if step >= len(forced) and written[-1] == end:
            break
    return written[len(forced) :]


@pytest.mark.parametrize(
    ("scale", "prefix"),
    [("none", ""), ("match", constant_prefix(BARE, numbered(2))),
     ("none", constant_prefix("p3", numbered(1)))],
)  # fmt: skip
def test_decoding_is_whole_passes(chatty, scale, prefix):
    """Batched, padded on the left, with a cache of keys and values; forced beginnings, too."""
    twin, feed, limit = chatty, feed_of(chatty, scale), 5
    thinking = set(feed.ids)
    rows = [naively(twin, prompt, feed, prefix, limit) for prompt in prompts()]
    assert prefix or sum(token in thinking for row in rows for token in row) > 3
    for size in (1, 4):
        found = generate(
            twin.model,
            twin.processor,
            twin.words,
            prompts(),
            decoding=Decoding(temperature=0, top_k=1, max_new_tokens=limit, batch_size=size),
            seed=1,
            prefix=prefix,
            feed=feed,
        )
        end = twin.processor.tokenizer.eos_token_id
        for one, row in zip(found, rows, strict=True):
            assert one.text == twin.words.decode([token for token in row if token != end])
            assert one.counts.decoded == len(row)
            assert one.counts.thinking == sum(token in thinking for token in row)


def test_the_hooks_are_gone_afterwards(chatty):
    twin = chatty
    decoding = Decoding(temperature=0, top_k=1, max_new_tokens=4, batch_size=4)

    def texts(feed):
        found = generate(
            *(twin.model, twin.processor, twin.words, prompts()),
            decoding=decoding, seed=1, feed=feed,
        )  # fmt: skip
        return [one.text for one in found]

    plain = texts(None)
    assert texts(feed_of(twin)) != plain == texts(None)


def test_decoding_takes_the_same_steps_as_with_tokens_fed(chatty):
    """A pass for the prompts, then one of one column for each further token."""
    twin, limit = chatty, 5
    decoding = Decoding(temperature=0, top_k=1, max_new_tokens=limit, batch_size=4)
    widths: list[int] = []
    hook = (
        twin.family.language_model(twin.model)
        .layers[0]
        .register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    )
    steps = {}
    for feed in (None, feed_of(twin)):
        widths.clear()
        found = generate(
            *(twin.model, twin.processor, twin.words, prompts()),
            decoding=decoding, seed=1, feed=feed,
        )  # fmt: skip
        assert len(widths) == max(one.counts.decoded for one in found) == limit
        steps[feed] = list(widths)
    hook.remove()
    plain, fed = steps.values()
    assert fed == plain and set(plain[1:]) == {1} and plain[0] > 1


@pytest.mark.parametrize("rendering", [RENDERINGS["p3"], RENDERINGS["p2"], BARE, MIDDLE])
def test_the_kth_thinking_token_is_one_column(toy_processor, toy_turns, toy_vocabulary, rendering):
    words = Vocabulary(toy_processor.tokenizer, with_controls(toy_vocabulary.reserved))
    ids = set(words.thinking_ids.values())
    rows = [one.encoded for one in encode_turns(toy_turns[:6], rendering, words, thinking=COUNT)]
    found = pad_aligned(rows, 0, ids)
    here = torch.isin(found["input_ids"], torch.tensor(sorted(ids)))
    assert torch.equal(here.any(0), here.all(0)) and here[0].sum() > 0
    for row, one in enumerate(rows):
        kept = found["attention_mask"][row].bool()
        assert found["input_ids"][row][kept].tolist() == one.input_ids
        assert found["labels"][row][kept].tolist() == one.labels
        assert found["position_ids"][row][kept].tolist() == list(range(len(one)))
        assert (found["labels"][row][~kept] == IGNORED).all()


def test_rows_with_different_numbers_are_refused(toy_turns, toy_vocabulary):
    ids = set(toy_vocabulary.thinking_ids.values())
    rows = [
        encode_turns(toy_turns[:1], "p3", toy_vocabulary, thinking=Thinking(tokens=count))[
            0
        ].encoded
        for count in (2, 1)
    ]
    with pytest.raises(ValueError, match="3 to 6 thinking tokens; feed = 'state' needs as many"):
        pad_aligned(rows, 0, ids)


def test_thinking_tokens_may_have_no_label(toy_turns, toy_vocabulary):
    """Coconut's loss leaves them out; all else is as it was."""
    ids = set(toy_vocabulary.thinking_ids.values())
    whole, without = (
        fit_turns(toy_turns, "p2", toy_vocabulary, max_length=None, too_long="refuse",
                  thought_loss=loss).samples
        for loss in (True, False)
    )  # fmt: skip
    for one, other in zip(whole, without, strict=True):
        assert one.encoded.input_ids == other.encoded.input_ids
        pairs = zip(one.encoded.labels, other.encoded.labels, strict=True)
        assert all(b == (IGNORED if a in ids else a) for a, b in pairs)
        assert other.labelled == one.labelled - 2
