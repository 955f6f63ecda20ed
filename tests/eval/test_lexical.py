"""Every metric of words is its library's own value, though computed another way."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence

import nltk
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk import redos
from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktSentenceTokenizer
from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from eval import lexical, wordnet
from eval.resources import MissingResource
from heima.config import Similarity
from heima.results.measures import BLEU_STATISTICS

WORDS = "The red circle's value is 9, not 3.5; squares (blue) sum to twenty-one. So: B & C!".split()
OTHERS = ["Circles", "circling", "disk", "ring", "<skipped>", "&amp;", "-\n", "\n", "1,000.5", "…"]
ROUGE = ("rouge1", "rouge2", "rougeL")

laws = settings(max_examples=80, deadline=None, derandomize=True)
texts = st.lists(st.sampled_from([*WORDS, *WORDS, *OTHERS]), max_size=25).map(" ".join)
pairs_of_texts = st.tuples(texts, st.one_of(texts, st.text(max_size=30)))


def parameters(**changes) -> Similarity:
    values = {"references": "clean", "bertscore": "minilm-l6", "meteor": "exact-stem"}
    values |= {"judged": (), "judge_image": False, "draws": 10}
    return Similarity(**values | changes)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices([*WORDS, *WORDS, *OTHERS], k=draw.randint(1, 30)))

    found = []
    for _ in range(80):
        reference = text()
        shortened = " ".join(word for word in reference.split(" ") if draw.random() < 0.8)
        found.append((reference, draw.choice([reference, shortened, shortened, text()])))
    return [*found, ("a red circle", ""), ("a red circle", "  \n"), ("…", "…"), ("red", "red")]


# BLEU


def nltk_bleu(reference: str, hypothesis: str) -> float:
    tokenize = Tokenizer13a()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # sacrebleu leaves white space at the end out before it tokenizes.
        value = sentence_bleu(
            [tokenize(reference.rstrip()).split()], tokenize(hypothesis.rstrip()).split()
        )
    # Where an order has no match nltk takes the smallest float instead of 0.
    return value if value > 1e-9 else 0.0


@laws
@given(pairs_of_texts)
@example(("the sum of the red-\n", "the sum of the red-\n"))
def test_sentence_bleu_is_that_of_nltk_and_of_sacrebleu(pair):
    reference, hypothesis = pair
    value = lexical.bleu(lexical.bleu_statistics(reference, hypothesis), smoothing="none")
    assert value == pytest.approx(nltk_bleu(reference, hypothesis), abs=1e-9)
    other = BLEU(smooth_method="none").sentence_score(hypothesis, [reference])
    assert value == pytest.approx(other.score / 100, abs=1e-9)


def test_equal_texts_have_a_sentence_bleu_of_one_from_four_words_on(pairs):
    text = "the red circle counts two"
    for words, expected in ((3, 0.0), (4, 1.0), (5, 1.0)):
        cut = " ".join(text.split()[:words])
        statistics = lexical.bleu_statistics(cut, cut)
        assert lexical.bleu(statistics, smoothing="none") == pytest.approx(expected)


@laws
@given(st.lists(pairs_of_texts, min_size=1, max_size=6))
@example([("the sum of the red -\n", "the sum of the red"), ("nine", "")])
def test_corpus_bleu_of_summed_statistics_is_sacrebleus_under_its_signature(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    metric = BLEU()
    naive = metric.corpus_score(hypotheses, [references]).score
    counts = np.array([lexical.bleu_statistics(*pair) for pair in pairs])
    sums = counts.sum(axis=0)
    assert 100 * lexical.bleu(sums, smoothing="exp") == pytest.approx(naive, abs=1e-9)
    columns = dict(zip(BLEU_STATISTICS, counts.T[:, None].sum(axis=2).astype(float), strict=True))
    assert lexical.corpus_bleu(columns) == pytest.approx([naive], abs=1e-9)
    assert lexical.bleu_signature() == str(metric.get_signature())


# ROUGE


@laws
@given(pairs_of_texts)
def test_rouge_is_that_of_rouge_score(pair):
    naive = RougeScorer(ROUGE, use_stemmer=False).score(*pair)
    expected = [naive[name].fmeasure for name in ROUGE]
    assert lexical.rouge(*pair) == pytest.approx(expected, abs=1e-9)


def test_exact_looks_at_the_text_but_for_white_space_around_it():
    assert lexical.exact(" two circles\n", "two circles") == 1.0
    assert lexical.exact("two circles", "two  circles") == 0.0
    assert lexical.exact("two circles", "Two circles") == 0.0


# Words

PIECES = [
    *"cannot gonna gotta gimme lemme wanna d'ye more'n 'tis 'twas don't can't it's we'll".split(),
    *"CANNOT D'YE More'N 'Tis DON'T WE'LL I'm you'd they've they're dogs' 'n n't".split(),
    *"`` '' -- --- ... .. $ % & @ # * ; : , . ? ! - _ / \\ + = ~ ^ |".split(),
    *"' \" ` ( ) [ ] { } < > 3.5 1,000 12:30 e.g. U.S. Mr. x.y red a A s".split(),
    *(" ", " ", " ", "  ", "\n", "\t", "\r", "\v", "\f"),
]
UNUSUAL = [*"\0\x1b\x1c\x1d\x1e\x1f\x7f\x85\xa0éßſKİ٣日“”‘’‚„«»‹›–—―…\u200b\u2028\u3000😀".strip()]

plain_texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
any_texts = st.lists(
    st.one_of(st.sampled_from(PIECES), st.sampled_from(UNUSUAL), st.characters()), max_size=14
).map("".join)


def nltk_words(text: str) -> list[str]:
    words = NLTKWordTokenizer()
    return [
        token
        for sentence in PunktSentenceTokenizer().tokenize(text)
        for token in words.tokenize(sentence)
    ]


@pytest.fixture(scope="module")
def tokenize():
    return lexical.word_tokenizer(trained=False)


@pytest.fixture(scope="module")
def plain():
    return lexical._PlainTokenizer()


@settings(laws, max_examples=300)
@given(text=any_texts)
def test_words_are_those_of_nltk_in_any_text(tokenize, text):
    assert tokenize(text) == nltk_words(text)


@settings(laws, max_examples=300)
@given(text=plain_texts)
def test_the_fast_tokenizer_is_nltks_in_ascii_texts(plain, text):
    assert plain.tokenize(text) == NLTKWordTokenizer().tokenize(text)


@laws
@given(any_texts)
def test_13a_tokens_are_those_of_sacrebleu(text):
    assert lexical._tokens_13a(text) == Tokenizer13a()(text.rstrip()).split()


def test_the_fast_tokenizer_knows_every_pattern_of_nltk_but_white_space():
    words = NLTKWordTokenizer
    rules = [*words.STARTING_QUOTES, *words.PUNCTUATION, *words.ENDING_QUOTES]
    rules += [words.PARENS_BRACKETS, words.DOUBLE_DASHES]
    assert {pattern.pattern for pattern, _ in rules} - {r"\s+"} == set(lexical._TRIGGERS)


def test_a_pattern_that_nltk_adds_is_obeyed(monkeypatch):
    added = (redos.compile(r"q"), r" q ")
    monkeypatch.setattr(NLTKWordTokenizer, "PUNCTUATION", [*NLTKWordTokenizer.PUNCTUATION, added])
    assert lexical._PlainTokenizer().tokenize("a squid") == ["a", "s", "q", "uid"]


def test_trained_sentences_without_their_data_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(MissingResource, match=r"nltk\.downloader punkt_tab.*wordnet-no-punkt"):
        lexical.word_tokenizer(trained=True)
    with pytest.raises(MissingResource, match=r"nltk\.downloader punkt_tab.*meteor_no_punkt"):
        lexical.meteor(parameters(meteor="wordnet"))


# METEOR


class Lemma:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


class Synset:
    def __init__(self, *names: str) -> None:
        self._lemmas = [Lemma(name) for name in names]

    def lemmas(self) -> list[Lemma]:
        return self._lemmas


class Thesaurus:
    """Stands in for WordNet; NLTK looks stems up, and these words are their own."""

    SYNSETS = (
        Synset("disk", "disc", "ring", "flat_circle"),
        Synset("ring", "circl", "Ring"),
        Synset("red", "blue", "9"),
        Synset("sum_up", "not"),
    )

    def synsets(self, word: str) -> Sequence[Synset]:
        return [
            synset for synset in self.SYNSETS if word in [lemma.name() for lemma in synset.lemmas()]
        ]


THESAURUS = Thesaurus()


@pytest.mark.parametrize(
    "synonyms",
    [THESAURUS, wordnet.RememberedSynonyms(THESAURUS), wordnet.NoSynonyms()],
    ids=["asked each time", "remembered", "none"],
)
def test_meteor_is_nltks_with_the_same_synonyms_and_words(synonyms, tokenize):
    naive_synonyms = THESAURUS if not isinstance(synonyms, wordnet.NoSynonyms) else synonyms
    meteor = lexical.Meteor(synonyms, tokenize)

    @laws
    @given(pairs_of_texts)
    def check(pair):
        reference, hypothesis = map(nltk_words, pair)
        naive = single_meteor_score(reference, hypothesis, wordnet=naive_synonyms)
        assert meteor(*pair) == pytest.approx(naive, abs=1e-9)

    check()


def test_remembered_synonyms_ask_for_a_word_once():
    asked = []

    class Counting(Thesaurus):
        def synsets(self, word):
            asked.append(word)
            return super().synsets(word)

    remembered = wordnet.RememberedSynonyms(Counting())
    for _ in range(3):
        names = [synset.lemmas()[0].name() for synset in remembered.synsets("ring")]
        # A lemma of several words is none of METEOR's, and a word is no synonym of itself.
        assert names == ["Ring", "circl", "disc", "disk"]
    assert asked == ["ring"]


def test_without_wordnet_stems_match_and_synonyms_do_not(tokenize):
    meteor, made = lexical.meteor(parameters())
    assert made["column"] == "meteor_exact_stem"
    assert meteor("two circles", "two circle") == meteor("two circles", "two circles") > 0.9
    assert meteor("a disk", "a ring") < lexical.Meteor(THESAURUS, tokenize)("a disk", "a ring")


# All of them


def test_scores_are_those_of_the_libraries_in_percent(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    columns, computed_with = lexical.scores(references, hypotheses, parameters())
    rouge = [RougeScorer(ROUGE, use_stemmer=False).score(*pair) for pair in pairs]
    naive = {
        "bleu4": [nltk_bleu(*pair) for pair in pairs],
        "meteor_exact_stem": [
            single_meteor_score(*map(nltk_words, pair), wordnet=wordnet.NoSynonyms())
            for pair in pairs
        ],
        **{name: [one[name].fmeasure for one in rouge] for name in ROUGE},
    }
    assert set(columns) == {*naive, *BLEU_STATISTICS}
    for name, values in naive.items():
        assert 0 < np.mean(values) < 1
        np.testing.assert_allclose(columns[name], 100 * np.array(values), rtol=0, atol=1e-9)
    corpus = BLEU().corpus_score(hypotheses, [references])
    summed = {name: columns[name].sum(keepdims=True) for name in BLEU_STATISTICS}
    assert lexical.corpus_bleu(summed) == pytest.approx([corpus.score], abs=1e-9)
    assert computed_with["libraries"]["nltk"] == nltk.__version__
    assert computed_with["corpus_bleu"]["signature"] == lexical.bleu_signature()
    assert computed_with["meteor"]["column"] == "meteor_exact_stem"


@pytest.mark.parametrize("hypothesis", ["", " ", "\n\t ", "\u2028"])
def test_an_empty_hypothesis_is_0_in_every_metric(hypothesis):
    columns, _ = lexical.scores(["a red circle"], [hypothesis], parameters())
    for name in ("bleu4", "meteor_exact_stem", *ROUGE):
        assert columns[name].tolist() == [0.0]
    lengths = [columns[name].tolist() for name in BLEU_STATISTICS[:2]]
    assert lengths == [[0.0], [3.0]]
