"""The texts of a rehearsal: what real ones have that the toy's have not, in random order."""

from __future__ import annotations

import random
from collections.abc import Iterator

WORDS = (
    "the image shows a small red car near an old bridge while two people (left) walk towards it "
    "from 'here' and \"quote\" something of 12.5% about $x^2+1$ in a café — with 3/4 of the "
    "naïve, so-called options; 1,601 patches: α ≤ β, 中文, 🙂 and http://a.example/b?c=d"
).split()
TAGS = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")


def sentence(rng: random.Random, words: int) -> str:
    """So many words, the first one with a capital, and a full stop."""
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def answer(rng: random.Random, conclusion: str) -> str:
    """A staged answer as LLaVA-CoT's: tags with blanks inside and an empty line between."""
    steps = "\n".join(f"{number}. {sentence(rng, 8)}" for number in (1, 2))
    reasoning = f"{sentence(rng, 20)}\n\n{steps}\n\n**So** {sentence(rng, 5)}"
    texts = (sentence(rng, 12), sentence(rng, 25), reasoning, conclusion)
    return "\n\n".join(f"<{tag}> {text} </{tag}>" for tag, text in zip(TAGS, texts, strict=True))


def corpus() -> Iterator[str]:
    """What a tokenizer is built from."""
    rng = random.Random(0)
    for _ in range(50):
        yield answer(rng, "B")
        yield sentence(rng, 20)
