"""The words of the toy world, and where its text is cut into them.

Toy tokenizers are word-level: each word is a token, and so are tags and constant phrases.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

from heima.toy.world import (
    CELLS,
    COLOURS,
    KINDS,
    LETTERS,
    MAX_POINTS,
    NUMBER_WORDS,
    OBJECTS,
    PHRASES,
    RANGES,
    STYLES,
    WARMTH,
    Scene,
    claims,
    compose,
    orders,
    places,
)

SECTION_TAGS = tuple(
    f"<{slash}{name}>"
    for name in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
    for slash in ("", "/")
)

# A line break separates options, a blank line separates sections and carries nothing.
# The mark behind an option's letter goes too: `A.`, `A:` and `A` are one token, so that the option
# of a letter is found by the same induction in every prompt format.
_REMOVED = Regex(rf"\n\n+| +|(?<=\b[{LETTERS[0]}-{LETTERS[-1]}])[.:](?= )")
_ISOLATED = Regex(r"\n|[?,]")
WORDS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(_REMOVED, behavior="removed"),
        pre_tokenizers.Split(_ISOLATED, behavior="isolated"),
    ]
)

EXTRA_WORDS = (
    # Words that interpreters' prompts and answers may use: the tokenizer must not lose them.
    "system user assistant the of and is in that was this from what how model which wrote hidden "
    "state summary caption reasoning question answer conclusion explain thinking token "
    "reconstruct : ! \n"
).split(" ")


def world_words() -> list[str]:
    """Every word that the world's prompts and sections can contain, sorted."""
    words = {*NUMBER_WORDS, *CELLS, *OBJECTS, *LETTERS, "yes", "no", *EXTRA_WORDS}
    words |= {*COLOURS, *WARMTH.values(), *RANGES}
    words |= {str(number) for number in range(MAX_POINTS + 1)}
    some = Scene((OBJECTS[0],) * len(CELLS), ((0, 0, 0),) * len(CELLS))
    for kind in KINDS:
        options = orders(kind)[0] if kind.endswith("option") else ()
        claim = claims(kind)[0] if kind.endswith("yes-no") else None
        for style in STYLES[kind]:
            for cells in places(kind):
                asked = compose(some, kind, cells, style=style, options=options, claim=claim)
                prompt = asked.prompt
                for phrase in PHRASES:
                    prompt = prompt.replace(phrase, " ")
                for text in (prompt, asked.summary, asked.caption, asked.reasoning):
                    words |= {word for word, _ in WORDS.pre_tokenize_str(text)}
    return sorted(words)
