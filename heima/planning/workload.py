"""How much there is to compute: turns, images, tokens; measured where data is, else assumed.

Every number of a plan rests on these; `Workload.facts` says of each where it comes from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from heima.config import Params, ToySource
from heima.cot import parsing
from heima.cot.rendering import Form, Layout, Rendering, render, rendering_of
from heima.cot.sections import SECTIONS
from heima.cot.thinking import Thinking
from heima.data.encoding import thinking_count
from heima.data.turns import Turn, load_turns
from heima.families.registry import FAMILIES
from heima.results.files import read_json
from heima.toy.twins import TWINS
from heima.vlm import models
from heima.vlm.pointer import POINTER, locate

TURNS_AN_IMAGE = 2.6
_ALL_TURNS = 215_095
"""Of LLaVA-CoT-100k, what the official filters leave (recipe)."""
_SAMPLE = 2000
"""Turns whose tokens are counted, at most."""
CHARACTERS_A_TOKEN = 4.4
"""Of English text, in vocabularies of 32,000 and more."""

IMAGE = (480, 640)
"""Height and width that stand for all images: the commonest of COCO, where most come from."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a turn's parts.

    `prompt` is the chat text up to the answer's first token, `sections` the text of each section,
    the conclusion's included, `tags` what stands around it with its separator.
    """

    prompt: float
    sections: Mapping[str, float]
    tags: Mapping[str, float]

    def answer(self, rendering: str | Rendering, thinking: Thinking) -> float:
        """Tokens of an answer, its end included."""
        rendering = rendering_of(rendering)
        total = 1 + self.sections["conclusion"] + self._around("conclusion", rendering.tags)
        for section, form in rendering.forms.items():
            if form != "omit":
                total += self._around(section, rendering.tags)
                total += self.body(section, form, thinking)
        return total

    def _around(self, section: str, tags: Layout) -> float:
        return {"text": self.tags[section], "token": 2, "none": 0}[tags]

    def body(self, section: str, form: Form, thinking: Thinking) -> float:
        """Tokens that stand for a section, between its tags if it has any."""
        count = thinking_count(thinking, round(self.sections[section]))
        match form:
            case "text":
                return self.sections[section]
            case "token" | "filler":
                return count
            case "short":
                return min(count, self.sections[section])
            case "omit":
                return 0


# From the recipe: 10 + 10 + 12 tokens of the compressed sections, one of them the thinking token,
# and 9 of a conclusion of one. The texts: a guess that adds up to the paper's 155 to 227 tokens.
_LLAMA_LENGTHS = Lengths(
    prompt=60,
    sections={"summary": 35, "caption": 60, "reasoning": 85, "conclusion": 8},
    tags={"summary": 9, "caption": 9, "reasoning": 11, "conclusion": 8},
)


@dataclass(frozen=True)
class Workload:
    """What the stages work on; `facts` are lines for the reader, each with its source."""

    train: int
    heldout: int
    images: int
    lengths: Lengths
    facts: tuple[str, ...]

    @property
    def turns(self) -> int:
        return self.train + self.heldout

    @property
    def turns_an_image(self) -> float:
        return self.turns / self.images


def tokenizer(params: Params) -> PreTrainedTokenizerBase | None:
    """The VLM's tokenizer, if teach has provided it; a toy's is built."""
    if params.family in TWINS:
        return TWINS[params.family].build_processor().tokenizer
    folder = models.ROOT / "text-cot"
    if not (folder / POINTER).exists():
        return None
    return AutoTokenizer.from_pretrained(locate(folder))


def of(
    params: Params,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    data: Path = Path("data/rewritten"),
    metrics: Path = Path("metrics/rewrite.json"),
) -> Workload:
    """The workload of the parameters' profile.

    Without the VLM's `tokenizer`, tokens are assumed. `data` and `metrics` are what the stage
    rewrite wrote; they count where they belong to this profile.
    """
    facts = []
    rewritten = read_json(metrics) if metrics.exists() else None
    if rewritten and rewritten["provenance"]["profile"] == params.profile:
        train, heldout = (rewritten["turns"][split] for split in ("train", "heldout"))
        images = sum(rewritten["images"][split] for split in ("train", "heldout"))
        facts.append(f"turns and images: counted by the stage rewrite ({metrics})")
    else:
        rewritten = None
        if isinstance(params.source, ToySource):
            turns, images = params.source.records * params.source.turns, params.source.records
            facts.append("turns and images: those that params.source draws")
        else:
            turns, images = _ALL_TURNS, round(_ALL_TURNS / TURNS_AN_IMAGE)
            facts.append(
                f"turns: {turns:,} that the official filters leave of LLaVA-CoT-100k's 254,866 "
                f"(recipe); images: {TURNS_AN_IMAGE} turns each (assumed, by the recipe)"
            )
        heldout = round(turns * params.rewrite.heldout)
        train = turns - heldout
    lengths, source = _lengths(params, data if rewritten else None, tokenizer)
    facts.append(f"tokens a turn: {source}")
    return Workload(train, heldout, images, lengths, tuple(facts))


def _lengths(
    params: Params, data: Path | None, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Lengths, str]:
    """Mean lengths and where they come from."""
    if data is not None and (data / "train.parquet").exists():
        turns = load_turns(data / "train.parquet")
        turns = turns[:: max(1, len(turns) // _SAMPLE)][:_SAMPLE]
        source = f"{len(turns)} turns of {data}/train.parquet"
    elif isinstance(params.source, ToySource):
        turns, source = _drawn(params.source, params.seed), "turns drawn as params.source says"
    else:
        return _LLAMA_LENGTHS, (
            "assumed, for a tokenizer like Llama 3's: " + _shown(_LLAMA_LENGTHS)
        )
    if tokenizer is not None:
        measured = _measured(turns, tokenizer, FAMILIES[params.family].chat_template)
        long = _too_long(turns, params, tokenizer, measured)
        return measured, f"measured on {source}: {_shown(measured)}; {long}"
    sections = {
        section: fmean(len(getattr(turn, section)) for turn in turns) / CHARACTERS_A_TOKEN
        for section in SECTIONS
    }
    asked = fmean(len(turn.question) for turn in turns) / CHARACTERS_A_TOKEN
    found = Lengths(asked + 15, sections, _LLAMA_LENGTHS.tags)
    return found, (
        f"characters of {source}, {CHARACTERS_A_TOKEN} a token, for the tokenizer is not at hand: "
        + _shown(found)
    )


def _too_long(
    turns: Sequence[Turn], params: Params, tokenizer: PreTrainedTokenizerBase, lengths: Lengths
) -> str:
    """How many of the turns are longer than a checkpoint may have them, and what becomes of them.

    An image counts as one token: what a family makes of it depends on its size.
    """
    around = lengths.prompt - fmean(
        len(tokenizer(turn.question, add_special_tokens=False)["input_ids"]) for turn in turns
    )
    longest = [
        around + len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (f"{turn.question}\n{turn.written('text-cot')}" for turn in turns)
    ]
    limit = params.distill.max_length
    longer = sum(length > limit for length in longest)
    return (
        f"{longer} of them are longer than distill.max_length = {limit} as text-cot, the longest "
        f"has {max(longest):.0f} tokens, beside its image's; distill.too_long = "
        f"{params.distill.too_long}"
    )


def _shown(lengths: Lengths) -> str:
    parts = {"prompt": lengths.prompt, **lengths.sections}
    return ", ".join(f"{name} {value:.0f}" for name, value in parts.items())


def _drawn(source: ToySource, seed: int, records: int = 100) -> list[Turn]:
    """The first turns that `prepare` would draw."""
    from heima.toy.source import ANNOTATIONS, write_source

    with tempfile.TemporaryDirectory() as folder:
        write_source(
            Path(folder),
            records=records,
            turns=source.turns,
            mix=source.mix,
            seed=seed,
            english=source.english,
        )
        lines = (Path(folder) / ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    turns = []
    for record in map(json.loads, lines):
        said = [part["value"] for part in record["conversations"]]
        for question, answer in zip(said[::2], said[1::2], strict=True):
            turns.append(
                Turn(
                    id=record["id"],
                    image=record["image"],
                    question=question,
                    **parsing.parse(answer),
                    image_first=True,
                )
            )
    return turns


def _measured(
    turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> Lengths:
    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(question: str) -> int:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return length(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=False,
                add_generation_prompt=True,
                chat_template=chat_template,
            )
        )

    sections = {
        section: fmean(length(getattr(turn, section)) for turn in turns) for section in SECTIONS
    }
    # What a section costs beyond its text, in the place where it stands.
    words = dict.fromkeys(SECTIONS, "a")
    whole = render(words, "text-cot")
    tags, before = {}, 0
    for section in SECTIONS:
        end = whole.index(f"</{section.upper()}>") + len(f"</{section.upper()}>\n\n")
        upto = length(whole[:end])
        tags[section] = upto - before - length("a")
        before = upto
    return Lengths(fmean(prompt(turn.question) for turn in turns), sections, tags)
