"""What the similarity metrics cost: `python -m timings.similarity`

Times `eval.lexical` and `eval.bertscore` on texts of the length of LLaVA-CoT's sections (about 60
words), on one thread of the CPU, against

- the baseline, a plain loop over the libraries: for each pair nltk's `sentence_bleu` over
  sacrebleu's 13a tokens, nltk's `single_meteor_score` with the same synonyms, and `rouge_score`;
- the official arrangement, one call for each sample and metric as through HF `evaluate`: ROUGE of
  four types through a bootstrap, METEOR, and BLEU by its counts. It is measured on few pairs and
  extrapolated; the round trip through Arrow that `evaluate` adds is left out, in its favour;
- the forward pass of BERTScore's model alone, on the very batches that `BertScore.f1` makes.

Loading WordNet and models is in no time, and every timing starts with empty caches. Times are CPU
seconds, and a ratio is the median over slices that are timed in turn, for the machine may be busy.
Hardly a reference occurs twice here; a run of the pipeline has each once for every control, which
the memory of tokens turns into more speed.

It fails where a value differs from the baseline's or the official one by more than 1e-9 of a
percent, or where BERTScore's memory grows with the number of pairs. The last line is a JSON object:

- `ratio`: the plain loop's time over ours; above 1 we are faster;
- `ratio_official`: the official arrangement's time over ours;
- `bertscore_over_forward`: the time of `BertScore.f1` over that of its forward passes;
- `peak_mb`: the peak of a process that runs all pairs, and BERTScore on its slice;
- `max_difference`: the largest difference of any value, in percent;
- `pairs`, `official_slice`: how many pairs were timed;
- `meteor`: the variant of METEOR (`eval.lexical.meteor`), by what this machine has.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import logging
import random
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pydoc_data.topics import topics
from typing import Any, Literal
from unittest import mock

import numpy as np

from eval import lexical, wordnet
from eval.bertscore import bertscore
from eval.resources import MissingResource
from heima.config import Similarity
from heima.results.measures import METEOR

SEED = 0
SLICES = 3
TOLERANCE = 1e-9
KEPT_MB = 1
"""What BERTScore may keep of a chunk; its embeddings take 40."""

TARGETS = {
    "ratio": ">= 1.7",
    "ratio_official": ">= 15",
    "bertscore_over_forward": "<= 1.1",
    "peak_mb": "< 2048",
}

Pair = tuple[str, str]
Row = tuple[float, ...]


def make_pairs(n: int) -> list[Pair]:
    """References of whole sentences from Python's manual, and hypotheses made from them by
    dropping, replacing and shifting words."""
    draw = random.Random(SEED)
    sentences = [
        words
        for topic in topics.values()
        if topic.isascii()
        for sentence in re.split(r"(?<=[.?!:])\s+", " ".join(topic.split()))
        if 6 <= len(words := sentence.split()) <= 30 and _is_prose(words)
    ]
    vocabulary = sorted({word for words in sentences for word in words})
    pairs = []
    for _ in range(n):
        reference: list[str] = []
        wanted = draw.randint(40, 65)
        while len(reference) < wanted:
            reference += draw.choice(sentences)
        hypothesis = [
            draw.choice(vocabulary) if draw.random() < 0.1 else word
            for word in reference
            if draw.random() > 0.1
        ]
        for _ in range(draw.randint(0, 3)):
            start, to = draw.randrange(len(hypothesis)), draw.randrange(len(hypothesis))
            moved = hypothesis[start : start + 5]
            del hypothesis[start : start + 5]
            hypothesis[to:to] = moved
        pairs.append((" ".join(reference), " ".join(hypothesis)))
    return pairs


def _is_prose(words: Sequence[str]) -> bool:
    plain = sum(
        re.fullmatch(r"[\"'(]?[A-Za-z'-]+[\"').,;:?!]*", word) is not None for word in words
    )
    return plain >= 0.8 * len(words)


class Resources:
    """METEOR's variant by what this machine has, its synonyms, loaded, and its words."""

    def __init__(self) -> None:
        self.meteor: Literal["wordnet", "wordnet-no-punkt", "exact-stem"] = "exact-stem"
        self.synonyms: Any = wordnet.NoSynonyms()
        self.words = _words(False)
        try:
            folder = wordnet.find(None)
        except MissingResource:
            return
        with warnings.catch_warnings(action="ignore"):
            # What remembers each word holds what does not.
            self.synonyms = wordnet.load(folder).source
        self.meteor = "wordnet-no-punkt"
        try:
            self.words = _words(True)
        except LookupError:
            return
        self.meteor = "wordnet"

    def parameters(self) -> Similarity:
        return Similarity(
            references="clean",
            bertscore="minilm-l6",
            meteor=self.meteor,
            judged=(),
            judge_image=False,
            draws=1,
        )

    def forget(self) -> None:
        """Empty every cache that one side fills and another could profit from."""
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
        from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

        for cached in (
            lexical._tokens_13a,
            Tokenizer13a.__call__,
            TokenizerRegexp.__call__,
        ):
            cached.cache_clear()
        if self.meteor != "exact-stem":
            self.synonyms._synset_offset_cache.clear()


def _words(trained: bool) -> Callable[[str], list[str]]:
    """NLTK's words of a text, by its own calls."""
    import nltk
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    if trained:
        nltk.word_tokenize("Is its data there?")
        return nltk.word_tokenize
    sentences, words = PunktSentenceTokenizer(), NLTKWordTokenizer()
    return lambda text: [w for part in sentences.tokenize(text) for w in words.tokenize(part)]


# The sides: pairs -> (bleu4, meteor, rouge1, rouge2, rougeL) of each in percent


def ours(pairs: Sequence[Pair], resources: Resources) -> list[Row]:
    similarity = resources.parameters()
    loaded = wordnet.RememberedSynonyms(resources.synonyms)
    with mock.patch.object(wordnet, "load", return_value=loaded):
        references, hypotheses = zip(*pairs, strict=True)
        columns, _ = lexical.scores(references, hypotheses, similarity)
    names = ("bleu4", METEOR[similarity.meteor], "rouge1", "rouge2", "rougeL")
    return list(zip(*(columns[name].tolist() for name in names), strict=True))


def plain_loop(pairs: Sequence[Pair], resources: Resources) -> list[Row]:
    from nltk.translate.bleu_score import sentence_bleu
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    types = ("rouge1", "rouge2", "rougeL")
    tokenize, scorer = Tokenizer13a(), RougeScorer(types, use_stemmer=False)
    rows = []
    for reference, hypothesis in pairs:
        bleu = sentence_bleu([tokenize(reference).split()], tokenize(hypothesis).split())
        meteor = single_meteor_score(
            resources.words(reference), resources.words(hypothesis), wordnet=resources.synonyms
        )
        rouge = scorer.score(reference, hypothesis)
        # Without a common 4-gram nltk's BLEU is about 1e-78.
        bleu = bleu if bleu > TOLERANCE else 0.0
        rows.append(_percent(bleu, meteor, *(rouge[name].fmeasure for name in types)))
    return rows


def official(pairs: Sequence[Pair], resources: Resources) -> list[Row]:
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import BootstrapAggregator
    from sacrebleu.metrics.bleu import BLEU

    types = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    rows = []
    for reference, hypothesis in pairs:
        bleu = BLEU(smooth_method="none").sentence_score(hypothesis, [reference]).score / 100
        meteor = single_meteor_score(
            resources.words(reference), resources.words(hypothesis), wordnet=resources.synonyms
        )
        aggregator = BootstrapAggregator()
        aggregator.add_scores(RougeScorer(types, use_stemmer=False).score(reference, hypothesis))
        rouge = aggregator.aggregate()
        rows.append(_percent(bleu, meteor, *(rouge[name].mid.fmeasure for name in types[:3])))
    return rows


def _percent(*values: float) -> Row:
    return tuple(100 * value for value in values)


# Measuring


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def slices(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def time_lexical(
    pairs: Sequence[Pair], of_official: int, resources: Resources
) -> tuple[dict[str, float], dict[str, float], float]:
    """Each side's seconds a pair, its ratio to ours, and the largest difference between values."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "official": []}
    differences = []
    size = -(-len(pairs) // SLICES)
    # Which side comes first alternates, so that a machine that slows down favours none.
    for number, part in enumerate(slices(pairs, size)):
        few = part[: of_official // SLICES]
        sides = [("ours", ours, part), ("plain", plain_loop, part), ("official", official, few)]
        found = {}
        for name, side, texts in sides if number % 2 else sides[::-1]:
            resources.forget()
            took, found[name] = timed(functools.partial(side, texts, resources))
            seconds[name].append(took / len(texts))
        for name in ("plain", "official"):
            gaps = np.subtract(found["ours"][: len(found[name])], found[name])
            differences.append(np.abs(gaps).max())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: float(np.median(np.divide(seconds[name], seconds["ours"])))
        for name in ("plain", "official")
    }
    # numpy's maximum, unlike Python's, is not a number where a difference is none.
    return medians, ratios, float(np.max(differences))


def time_bertscore(pairs: Sequence[Pair], parameters: Similarity) -> dict[str, float]:
    """Seconds a pair of `BertScore.f1` and of its model's forward passes, and their ratio."""
    import torch

    torch.set_num_threads(1)
    bert, _ = bertscore(parameters)
    batches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(batches: Sequence[Any]) -> None:
        with torch.no_grad():
            for arguments, named in batches:
                bert.model(*arguments, **named)

    seconds: dict[str, list[float]] = {"f1": [], "forward": []}
    for part in slices(pairs, 64):
        texts = tuple(zip(*part, strict=True))
        batches.clear()
        hook = bert.model.register_forward_pre_hook(
            lambda _, arguments, named: batches.append((arguments, named)), with_kwargs=True
        )
        # This pass also warms up.
        bert.f1(*texts)
        hook.remove()
        sides: list[tuple[str, Callable[[], Any]]] = [
            ("f1", functools.partial(bert.f1, *texts)),
            ("forward", functools.partial(forward, batches)),
        ]
        for side in (*sides, *sides[::-1]):
            seconds[side[0]].append(timed(side[1])[0] / len(part))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = np.divide(seconds["f1"], seconds["forward"])
    return {**medians, "ratio": float(np.median(ratios))}


def measure_memory(pairs: Sequence[Pair], of_bert: int) -> dict[str, float]:
    """The peak of this process in MB, and what BERTScore keeps of a chunk when the next begins.

    What is kept is counted in tensors: the peak itself varies by more than a chunk between runs.
    """
    import torch

    torch.set_num_threads(1)
    resources = Resources()
    bert, _ = bertscore(resources.parameters())
    match, held = bert._match, []

    def counting(chunk: Sequence[Pair]) -> list[float]:
        held.append(_tensors_mb())
        return match(chunk)

    with mock.patch.object(bert, "_match", counting):
        bert.f1(*zip(*pairs[:of_bert], strict=True))
    held.append(_tensors_mb())
    ours(pairs, resources)
    return {"peak_mb": _peak_mb(), "kept_mb": float(np.diff(held).max())}


def _tensors_mb() -> float:
    import torch

    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    # Many tensors may look at one storage.
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
    return sum(storage.nbytes() for storage in storages.values()) / 1e6


def _peak_mb() -> float:
    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# Printing


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12_900)
    parser.add_argument("--official", type=int, default=60, help="pairs of the official slice")
    parser.add_argument("--bert", type=int, default=300, help="pairs of BERTScore's slice")
    parser.add_argument(
        "--quick", action="store_true", help="few pairs: does it run, do they agree"
    )
    parser.add_argument("--memory", action="store_true", help="only the memory of this process")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.official, options.bert = 30, 3, 4

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # It recommends another kind of sentence BLEU, at every call.
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    pairs = make_pairs(options.pairs)
    if options.memory:
        print(json.dumps(measure_memory(pairs, options.bert)))
        return

    resources = Resources()
    seconds, ratios, difference = time_lexical(pairs, options.official, resources)
    bert = time_bertscore(pairs[: options.bert], resources.parameters())
    command = [sys.executable, "-m", "timings.similarity", "--memory"]
    command += ["--pairs", str(options.pairs), "--bert", str(options.bert)]
    memory = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    result = {
        "benchmark": "similarity",
        "baseline": "plain loop over the libraries",
        "ratio": round(ratios["plain"], 3),
        "ratio_official": round(ratios["official"], 1),
        "bertscore_over_forward": round(bert["ratio"], 3),
        "peak_mb": round(memory["peak_mb"]),
        "max_difference": difference,
        "pairs": len(pairs),
        "official_slice": options.official // SLICES * SLICES,
        "meteor": resources.meteor,
    }
    print(report(result, seconds, bert, memory, pairs, options.bert))
    print(json.dumps(result))
    if not difference <= TOLERANCE:
        raise SystemExit(f"values differ by {difference:g} of a percent")
    if memory["kept_mb"] > KEPT_MB:
        raise SystemExit(f"BERTScore keeps {memory['kept_mb']:.0f} MB of each chunk")


def report(
    result: dict[str, Any],
    seconds: dict[str, float],
    bert: dict[str, float],
    memory: dict[str, float],
    pairs: Sequence[Pair],
    of_bert: int,
) -> str:
    n, words = len(pairs), sum(len(reference.split()) for reference, _ in pairs) / len(pairs)

    def row(name: str, per_pair: float, count: int, key: str | None = None) -> list[str]:
        shown = [f"{1000 * per_pair:.3f}", f"{per_pair * count:.1f}"]
        return [name, *shown, *([f"{result[key]:g}", TARGETS[key]] if key else ["", ""])]

    rows = [
        ["", "ms a pair", "seconds", "ratio", "target"],
        row("BLEU, METEOR, ROUGE: eval.lexical", seconds["ours"], n),
        row("  plain loop over the libraries", seconds["plain"], n, "ratio"),
        row(
            f"  official arrangement, extrapolated from {result['official_slice']} pairs",
            seconds["official"],
            n,
            "ratio_official",
        ),
        row(f"BertScore.f1, {of_bert} pairs", bert["f1"], of_bert),
        row("  its forward passes alone", bert["forward"], of_bert, "bertscore_over_forward"),
        ["peak memory in MB", "", "", f"{result['peak_mb']}", TARGETS["peak_mb"]],
        ["  kept of each chunk of BERTScore", "", "", f"{memory['kept_mb']:.1f}", f"<= {KEPT_MB}"],
    ]
    return "\n".join(
        [
            f"{n} pairs of {words:.0f} words, METEOR: {result['meteor']}. CPU seconds on one "
            "thread, medians of slices.",
            "Loading WordNet and models is in no time. HF evaluate's round trip through Arrow is "
            "left out of",
            "the official arrangement, in its favour.",
            "",
            table(rows),
            "",
            f"All values agree to {result['max_difference']:.1g} of a percent.",
        ]
    )


if __name__ == "__main__":
    main()
