"""The official arrangement: which answers it keeps, and the texts of their phases.

Read in the official script (docs/recipe.md, section 1), and written anew:

- Sections are the tagged texts that a scan from the left finds one after the other, and the last
  of each name counts. An answer without a summary, caption or reasoning is dropped.
- Each text is replaced by its thinking token wherever it occurs in the answer, one section after
  the other. Filter A drops an answer where a token does not occur exactly once in a phase.
- Filter B looks for the tags among the tokens that Llama 3's tokenizer makes of the answer: for
  each section but the conclusion an opening tag whose `<` begins a token and whose `>` is one, and
  behind it a closing tag whose `</` is a token, with a blank before it or not, and whose `>` is one
  with exactly two line breaks. What else the answer holds does not matter.

Where a tag touches neither a letter nor a sign, its tokens follow from the text. Where one does
(`<SUMMARY>The`, `end.</SUMMARY>`) the vocabulary's merges decide: `Merges` asks a tokenizer, and
without one a rule stands in for it (`RULE`), which is right for single signs and for most words.
A carriage return behind a tag is such a case, too.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from tokenizers import Tokenizer

from heima.cot.sections import COMPRESSIBLE, SECTIONS, TAGS, thinking_token

PHASES = ("p1", "p2", "p3")

TOKENS = {section: thinking_token(section) for section in COMPRESSIBLE}

_SCAN = re.compile(rf"<({'|'.join(section.upper() for section in SECTIONS)})>(.*?)</\1>", re.DOTALL)


class Merges(Protocol):
    """What becomes of a tag's edge where it touches a letter or a sign."""

    def opens(self, behind: str) -> bool:
        """Whether the `>` before this run of letters, or of signs and line breaks, is a token."""

    def closes(self, before: str) -> bool:
        """Whether the `</` behind this run of signs, maybe with a blank before it, is a token."""


class _Rule:
    """Merges of Llama 3 by rule: for the words and single signs that its vocabulary joins to a tag.

    Of the 500 most frequent English words in it, 7 are taken for joined or not where the merges
    say otherwise, as `were` is; of signs in a row one in four.
    """

    _WORDS = frozenset(
        # Letters that stand alone, and words.
        "A B C D E F G H I J K L M N O P R S T V X Z a b c d e f i j k m n p r s t v w x y An ID "
        "If In NN No To We Add All New The You tag Data Date Edit Last List Main Nama Name Note "
        "Show This Type User Your null this true About Email Error Hello Login Lorem Title Total "
        "alert false xpath Action Create Delete Please Select Status equals manual tagger window "
        "Contact Loading Returns Welcome Password Description".split()
    )
    _BEHIND = frozenset("\r\"#$%&'()*+,-./:;<=>?@[\\]_`{|}")
    _BEFORE = frozenset("!\"%')*+,-.:;>?]}。：×")

    def opens(self, behind: str) -> bool:
        return behind not in self._WORDS and behind[0] not in self._BEHIND

    def closes(self, before: str) -> bool:
        return before[-1] not in self._BEFORE


RULE: Merges = _Rule()


class TokenizerMerges:
    """Merges as a tokenizer makes them.

    Args:
        path: a `tokenizer.json` of Llama 3, or the folder that holds one.

    Raises:
        ValueError: where there is none, or it is not Llama 3's.
    """

    def __init__(self, path: str | Path) -> None:
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        try:
            made = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"rewrite.llama_tokenizer = {str(path)!r} must be Llama 3's tokenizer.json, or the "
                f"folder that holds it: {error}"
            ) from error
        # Special tokens are text here, as in the official script.
        self._ask(Tokenizer.from_str(json.dumps({**made, "added_tokens": []})))
        for text, count in ((">", 1), ("</", 1), ("SUMMARY>\n\n", 3), ("<REASONING>", 5)):
            if len(self._ids(text)) != count:
                raise ValueError(
                    f"rewrite.llama_tokenizer = {str(path)!r} is not Llama 3's: it makes "
                    f"{len(self._ids(text))} tokens of {text!r}, not {count}"
                )

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenizerMerges:
        """The merges of any tokenizer."""
        made = cls.__new__(cls)
        made._ask(tokenizer)
        return made

    def _ask(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._opened, self._closed = self._ids(">")[0], self._ids("</")[0]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def opens(self, behind: str) -> bool:
        return self._ids(f">{behind}")[0] == self._opened

    def closes(self, before: str) -> bool:
        return self._ids(f"{before}</")[-1] == self._closed


# Sections and phases


def sections_of(answer: str) -> dict[str, str]:
    """Section -> text without the white space around it, of those that the scan finds."""
    return {name.lower(): text.strip() for name, text in _SCAN.findall(answer)}


def by_string(answer: str, sections: Mapping[str, str]) -> list[str]:
    """The answer in each of `PHASES`: a section's text replaced wherever it occurs."""
    texts = []
    for section, token in TOKENS.items():
        answer = answer.replace(sections[section], token)
        texts.append(answer)
    return texts


def token_fault(texts: Mapping[str, str]) -> str | None:
    """Filter A: what is wrong with the thinking tokens of an answer's phases."""
    for count, (phase, text) in enumerate(texts.items(), 1):
        for section in COMPRESSIBLE[:count]:
            found = text.count(TOKENS[section])
            if found != 1:
                return f"{TOKENS[section]} occurs {found} times in {phase}"
    return None


# Filter B


class Tags(NamedTuple):
    """What filter B finds: a fault or None, and whether merges were asked."""

    fault: str | None
    merged: bool


def tags(answer: str, merges: Merges = RULE) -> Tags:
    """Whether each section's tags are among the tokens of an answer."""
    edges = _Edges(answer, merges)
    for section in COMPRESSIBLE:
        opening, closing = TAGS[section]
        opened = next((end for end in edges.found(opening) if edges.opens(opening, end)), None)
        if opened is None:
            return Tags(f"no {opening} in canonical spacing", edges.merged)
        if not any(edges.closes(closing, end) for end in edges.found(closing, opened)):
            return Tags(f"no {closing} in canonical spacing", edges.merged)
    return Tags(None, edges.merged)


class _Edges:
    """The tags of an answer, and what they touch; `end` is where a tag ends."""

    def __init__(self, answer: str, merges: Merges) -> None:
        self._answer = answer
        self._merges = merges
        self.merged = False

    def found(self, tag: str, start: int = 0) -> Iterator[int]:
        while (start := self._answer.find(tag, start)) >= 0:
            start += len(tag)
            yield start

    def opens(self, tag: str, end: int) -> bool:
        before = self._answer[end - len(tag) - 1 : end - len(tag)]
        # A blank or a sign is one token with the `<` behind it.
        if before == " " or _is_sign(before):
            return False
        behind = self._answer[end : end + 1]
        if behind == "\n":
            return False
        if not (_is_letter(behind) or _is_sign(behind) or behind == "\r"):
            return True
        self.merged = True
        return self._merges.opens(self._run(end, letters=_is_letter(behind)))

    def closes(self, tag: str, end: int) -> bool:
        behind = self._answer[end : end + 3]
        if not behind.startswith("\n\n") or behind == "\n\n\n":
            return False
        start = first = end - len(tag)
        while first and _is_sign(self._answer[first - 1]):
            first -= 1
        if first == start:
            return True
        self.merged = True
        blank = self._answer[first - 1 : first] if first else ""
        return self._merges.closes((" " if blank == " " else "") + self._answer[first:start])

    def _run(self, start: int, *, letters: bool) -> str:
        """What a token could be of, from `start` on."""
        end = start
        while end < len(self._answer) and (_is_letter if letters else _is_sign)(self._answer[end]):
            end += 1
        while not letters and self._answer[end : end + 1] in ("\n", "\r"):
            end += 1
        return self._answer[start:end]


def _is_letter(character: str) -> bool:
    return character.isalpha()


def _is_sign(character: str) -> bool:
    """Neither a letter nor a number nor white space, as Llama 3 divides a text."""
    if not character or character.isalnum():
        return False
    if character.isspace():
        return character in "\x1c\x1d\x1e\x1f"
    return unicodedata.category(character)[0] != "N"
