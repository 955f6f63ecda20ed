"""Metrics of words: BLEU, ROUGE, METEOR and equality of a reconstruction with its reference.

Each is the value of the library that the paper's script reaches through HF `evaluate`
(docs/recipe.md, section 4), called directly and with what recurs computed once: 13a tokens, stems,
synonyms. The tests compare with the libraries' own calls; `python -m timings.similarity` says what
it saves.
An empty reconstruction scores 0 in every metric.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval import wordnet
from eval.resources import MissingResource
from heima.config import Similarity
from heima.results.bars import tracked
from heima.results.measures import BLEU_STATISTICS, METEOR

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Score = Callable[[str, str], float]
"""(reference, hypothesis) -> score between 0 and 1."""

_ORDER = 4
_REMEMBERED = 65536


# BLEU (Papineni et al. 2002), by sacrebleu


def bleu_statistics(reference: str, hypothesis: str) -> tuple[int, ...]:
    """What BLEU-4 is made of (`heima.results.measures.BLEU_STATISTICS`), over 13a tokens.

    The lengths of both texts, and for n = 1..4 the hypothesis's n-grams and those of them that the
    reference has, too.
    """
    words, truth = _tokens_13a(hypothesis), _tokens_13a(reference)
    matches, totals = [], []
    for n in range(1, _ORDER + 1):
        matches.append(_common(_grams(words, n), _grams(truth, n)))
        totals.append(max(len(words) - n + 1, 0))
    return (len(words), len(truth), *matches, *totals)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _common(left: Counter[Any], right: Counter[Any]) -> int:
    """How many items two multisets share, `(left & right).total()` without its loop in Python."""
    return sum(min(left[item], right[item]) for item in left.keys() & right.keys())


def bleu(statistics: Sequence[float], *, smoothing: str) -> float:
    """BLEU-4 from 0 to 1 of a text, or of a corpus: the sum of its texts' statistics.

    `smoothing` is sacrebleu's: `none` for the paper's sentence BLEU, `exp` (its default) for a
    corpus.
    """
    from sacrebleu.metrics.bleu import BLEU

    hypothesis, reference, *counts = map(int, statistics)
    return (
        BLEU.compute_bleu(
            counts[:_ORDER], counts[_ORDER:], hypothesis, reference, smooth_method=smoothing
        ).score
        / 100
    )


def bleu_signature() -> str:
    """sacrebleu's signature of the corpus BLEU."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


# ROUGE (Lin 2004), by rouge_score


def rouge(reference: str, hypothesis: str) -> tuple[float, float, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F without stemming."""
    found = _rouge_scorer().score(reference, hypothesis)
    return found["rouge1"].fmeasure, found["rouge2"].fmeasure, found["rougeL"].fmeasure


def exact(reference: str, hypothesis: str) -> float:
    """1 where both texts are equal but for the white space around them."""
    return float(reference.strip() == hypothesis.strip())


# METEOR (Banerjee and Lavie 2005; alpha .9, beta 3, gamma .5), by NLTK


class Meteor:
    """METEOR with given synonyms, over given tokens; stems and synonyms are looked up once."""

    def __init__(
        self, synonyms: wordnet.Synonyms, tokenize: Callable[[str], Sequence[str]]
    ) -> None:
        from nltk.translate.meteor_score import single_meteor_score

        self._score = single_meteor_score
        self._synonyms = synonyms
        self._stemmer = _Stemmer()
        self._tokenize = functools.lru_cache(maxsize=_REMEMBERED)(tokenize)

    def __call__(self, reference: str, hypothesis: str) -> float:
        words = self._tokenize(hypothesis)
        if not words:
            return 0.0
        return float(
            self._score(
                self._tokenize(reference), words, stemmer=self._stemmer, wordnet=self._synonyms
            )
        )


def meteor(similarity: Similarity) -> tuple[Meteor, dict[str, str]]:
    """METEOR as the parameters name it, and what it was made with.

    - `wordnet`: WordNet's synonyms, sentences split by NLTK's trained Punkt, as in the paper;
    - `wordnet-no-punkt`: Punkt without its trained data, which changes few texts (in trials 2 % of
      them, and the mean by 1e-5);
    - `exact-stem`: without synonyms too; words match exactly or by stem.

    Raises `MissingResource`.
    """
    made = {"column": METEOR[similarity.meteor], "sentences": "punkt, untrained"}
    if similarity.meteor == "exact-stem":
        return Meteor(wordnet.NoSynonyms(), word_tokenizer(trained=False)), made
    trained = similarity.meteor == "wordnet"
    tokenize = word_tokenizer(trained=trained)
    folder = wordnet.find(similarity.wordnet_path)
    made["synonyms"] = f"WordNet {wordnet.identity(folder)}"
    if trained:
        made["sentences"] = "punkt_tab english"
    return Meteor(wordnet.load(folder), tokenize), made


def word_tokenizer(*, trained: bool) -> Callable[[str], list[str]]:
    """`nltk.word_tokenize`, with or without Punkt's trained data (`MissingResource`)."""
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer

    try:
        sentences = PunktTokenizer("english") if trained else PunktSentenceTokenizer()
    except LookupError as error:
        raise MissingResource(
            "similarity.meteor = wordnet needs NLTK's punkt_tab. Fetch it with `.venv/bin/python "
            "-m nltk.downloader punkt_tab`, or set similarity.meteor: wordnet-no-punkt, which "
            "gives the column meteor_no_punkt instead of meteor"
        ) from error
    whole, plain = NLTKWordTokenizer(), _PlainTokenizer()

    def tokenize(text: str) -> list[str]:
        return [
            token
            for part in sentences.tokenize(text)
            for token in (whole if _UNUSUAL(part) else plain).tokenize(part)
        ]

    return tokenize


_TRIGGERS = {
    # Quotes that open
    r"([«“‘„]|[`]+)": "`",
    r"^\"": '"',
    r"(``)": "`",
    r"([ \(\[{<])(\"|\'{2})": "\"'",
    r"(?i)(?<!\w)(\')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)": "'",
    # Punctuation
    r"""([^\.])(\.)([\]\)}>"\'»”’ ]*+)\s*$""": ".",
    r"([:,])([^\d])": ":,",
    r"([:,])$": ":,",
    r"\.{2,}": ".",
    r"[;@#$%&]": ";@#$%&",
    r"[\u2012-\u2015]": "",
    r"""([^\.])(\.)([\]\)}>"\']*)\s*$""": ".",
    r"[?!]": "?!",
    r"([^'])' ": "'",
    r"[*]": "*",
    r"[\]\[\(\)\{\}\<\>]": "[](){}<>",
    r"--": "-",
    # Quotes that close
    r"([»”’])": "",
    r"''": "'",
    r'"': '"',
    r"([^' ])('[sS]|'[mM]|'[dD]|') ": "'",
    r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ": "'",
}
"""NLTK's patterns, and the ASCII characters of which an ASCII text must hold one to match.

(White space is always tidied.)"""

_UNUSUAL = re.compile(r"[^\t-\r -~]").search
_QUOTES = "\"'`"
_ASCII = frozenset(map(chr, range(128)))


class _PlainTokenizer:
    """NLTK's word tokenizer for ASCII sentences without control characters, three times as fast.

    NLTK guards its patterns with a time limit, for which it needs the slower package `regex`, and
    tries all of them on every sentence. Here are the same substitutions in the same order, by the
    standard `re`, and only where a character that they need occurs. (Beyond, `re` and `regex`
    disagree on what a word or a space is.) A pattern that the table does not know is always tried.
    """

    def __init__(self) -> None:
        from nltk.tokenize.destructive import NLTKWordTokenizer as Words

        self._before = [
            self._rule(*rule)
            for rule in (
                *Words.STARTING_QUOTES,
                *Words.PUNCTUATION,
                Words.PARENS_BRACKETS,
                Words.DOUBLE_DASHES,
            )
        ]
        self._after = [self._rule(*rule) for rule in Words.ENDING_QUOTES]
        self._contractions = [
            pattern.sub for pattern in (*Words.CONTRACTIONS2, *Words.CONTRACTIONS3)
        ]
        # Whether any of them is in a sentence, asked at once.
        self._contracted = re.compile(
            "|".join(
                pattern.pattern.removeprefix("(?i)")
                for pattern in (*Words.CONTRACTIONS2, *Words.CONTRACTIONS3)
            ),
            re.IGNORECASE,
        ).search

    @staticmethod
    def _rule(pattern: Any, template: str) -> tuple[frozenset[str], Callable[[str], str]]:
        flags = re.IGNORECASE if pattern.flags & re.IGNORECASE else 0
        own = re.compile(pattern.pattern, flags)
        if pattern.pattern not in _TRIGGERS:
            return _ASCII, functools.partial(own.sub, template)
        return frozenset(_TRIGGERS[pattern.pattern]), _substitution(own, template)

    def tokenize(self, sentence: str) -> list[str]:
        held = set(sentence)
        # One kind of quote is rewritten as another.
        if not held.isdisjoint(_QUOTES):
            held.update(_QUOTES)
        for triggers, substitute in self._before:
            if not triggers.isdisjoint(held):
                sentence = substitute(sentence)
        sentence = f" {sentence} "
        for triggers, substitute in self._after:
            if not triggers.isdisjoint(held):
                sentence = substitute(sentence)
        if self._contracted(sentence):
            for substitute in self._contractions:
                sentence = substitute(r" \1 \2 ", sentence)
        return sentence.split()


def _substitution(pattern: re.Pattern[str], template: str) -> Callable[[str], str]:
    """`pattern.sub(template, text)`, twice as fast: `re` expands templates in Python.

    Every group of the pattern must take part in every match.
    """
    filled = re.sub(r"\\(?:g<(\d)>|(\d))", r"{0[\1\2]}", template)
    replacement = filled.format if filled != template else template
    return lambda text: pattern.sub(replacement, text)


class _Stemmer:
    """NLTK's Porter stemmer; most words recur, and stemming is most of METEOR's time."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = functools.lru_cache(maxsize=_REMEMBERED)(PorterStemmer().stem)


@functools.cache
def _tokenizer_13a() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


@functools.lru_cache(maxsize=_REMEMBERED)
def _tokens_13a(text: str) -> list[str]:
    # As sacrebleu does; otherwise a text that ends in a hyphen and a new line loses the hyphen.
    return _tokenizer_13a()(text.rstrip()).split()


@functools.cache
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(("rouge1", "rouge2", "rougeL"), use_stemmer=False)


# All of them


def scores(
    references: Sequence[str], hypotheses: Sequence[str], similarity: Similarity
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Every lexical metric of every pair.

    Returns column -> values, shape (n,), and what computed them. Metrics are in percent; the
    columns of `BLEU_STATISTICS` are counts. Raises `MissingResource` before anything is computed.
    """
    score_meteor, made_meteor = meteor(similarity)
    columns: dict[str, list[float]] = {
        name: [] for name in ("bleu4", METEOR[similarity.meteor], "rouge1", "rouge2", "rougeL")
    }
    counts = []
    known: dict[tuple[str, str], tuple[tuple[int, ...], tuple[float, ...]]] = {}
    pairs = zip(references, hypotheses, strict=True)
    for pair in tracked(pairs, "BLEU, METEOR, ROUGE", len(references), "pair"):
        if pair not in known:
            found = bleu_statistics(*pair)
            known[pair] = (
                found,
                (bleu(found, smoothing="none"), score_meteor(*pair), *rouge(*pair)),
            )
        found, values = known[pair]
        counts.append(found)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(100 * value)
    table = np.array(counts, dtype=np.float64).reshape(len(counts), len(BLEU_STATISTICS))
    return (
        {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
        | dict(zip(BLEU_STATISTICS, table.T, strict=True)),
        {
            "libraries": {
                name: importlib.metadata.version(name)
                for name in ("nltk", "rouge_score", "sacrebleu")
            },
            "corpus_bleu": {"signature": bleu_signature()},
            "meteor": made_meteor,
        },
    )


def corpus_bleu(statistics: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Corpus BLEU in percent of each row of summed statistics (column -> shape (n,))."""
    rows = np.stack([statistics[name] for name in BLEU_STATISTICS], axis=1)
    return np.array([100 * bleu(row.tolist(), smoothing="exp") for row in rows])
