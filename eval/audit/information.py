"""What a simple reader finds of the answer in states: probes, selectivity, online code lengths.

A probe is L2 logistic regression on standardised states at one position, for one kind of question:
which conclusion is the gold one? It learns on half of the images and is asked about the others.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from heima.data.turns import Turn

BLOCKS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50, 100)
"""Percent of the questions up to which each block of the online code reaches (Voita and Titov,
2020, arXiv:2003.12298)."""

LEAST = 10
"""Questions that a conclusion must have, on average, for its kind to be probed."""

_STEPS = 200


@dataclass(frozen=True)
class Probe:
    """What a probe finds, question by question of those that it is asked about.

    `right`, and `control`: right where the labels were drawn at random for each question text
    (Hewitt and Liang, 2019, arXiv:1909.03368); (asked,) each, as `asked`, their indices. `bits`:
    the online code of all labels, a question; `uniform`: that of a code that knows the number of
    conclusions alone.
    """

    asked: np.ndarray
    right: np.ndarray
    control: np.ndarray
    bits: float
    uniform: float

    @property
    def selectivity(self) -> float:
        """The accuracy less that on random labels."""
        return float(self.right.mean() - self.control.mean())


def probeable(labels: Sequence[str]) -> bool:
    """Whether a kind of question with these conclusions has enough of each for a probe."""
    found = len(set(labels))
    return found > 1 and len(labels) >= LEAST * found


def probe(
    states: np.ndarray,
    labels: Sequence[str],
    texts: Sequence[str],
    images: Sequence[str],
    *,
    seed: int,
) -> Probe:
    """A probe of `states` (n, hidden) for the questions' conclusions `labels`.

    `texts` are the questions, `images` what they are about: none is on both sides.
    Raises `ValueError` where all labels are the same, or all questions are about one image.
    """
    rng = np.random.default_rng(seed)
    names, codes = np.unique(np.array(labels, dtype=object), return_inverse=True)
    order = _by_image(images, rng)
    pictures = np.array(images, dtype=object)
    half = {*dict.fromkeys(pictures[order[: len(order) // 2]])}
    learnt = np.array([image in half for image in images])
    if len(names) < 2 or learnt.all():
        raise ValueError("a probe needs two different labels and two images")
    drawn = _random_labels(codes, texts, rng)
    asked = np.flatnonzero(~learnt)
    right, control = (
        _read(states[learnt], given[learnt], states[asked], len(names)).argmax(axis=1)
        == given[asked]
        for given in (codes, drawn)
    )
    return Probe(
        asked,
        right.astype(np.float64),
        control.astype(np.float64),
        online_code(states[order], codes[order], len(names)) / len(codes),
        float(np.log2(len(names))),
    )


def by_kind(
    states: Mapping[str, np.ndarray], turns: Sequence[Turn], *, seed: int
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, str]]:
    """Kind of question -> position -> what a probe finds there of the turns' conclusions.

    And the kinds that are not `probeable`, with why. `states` are those of `recording.of_batch`;
    tokens beside thinking tokens are not probed.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for place, turn in enumerate(turns):
        members[turn.kind].append(place)
    found: dict[str, dict[str, dict[str, float]]] = {}
    left_out: dict[str, str] = {}
    for kind, places in sorted(members.items()):
        asked = [turns[place] for place in places]
        labels = [turn.conclusion for turn in asked]
        if not probeable(labels):
            left_out[kind] = f"{len(asked)} questions with {len(set(labels))} conclusions"
            continue
        found[kind] = {}
        for position, all_of in states.items():
            if position.startswith(("before-", "behind-")):
                continue
            read = probe(
                all_of[places],
                labels,
                [turn.question for turn in asked],
                [turn.image for turn in asked],
                seed=seed,
            )
            found[kind][position] = {
                "accuracy": float(read.right.mean()),
                "selectivity": read.selectivity,
                "bits": read.bits,
                "uniform bits": read.uniform,
                "asked": len(read.asked),
            }
    return found, left_out


def online_code(states: np.ndarray, codes: np.ndarray, classes: int) -> float:
    """The bits to send the labels `codes` (n,), each block by what the blocks before it taught.

    The first block is sent as if all `classes` were as likely.
    """
    n = len(codes)
    ends = sorted({min(n, max(1, round(n * percent / 100))) for percent in BLOCKS})
    bits = ends[0] * np.log2(classes)
    for known, end in itertools.pairwise(ends):
        likely = _read(states[:known], codes[:known], states[known:end], classes)
        bits -= np.log2(likely[np.arange(end - known), codes[known:end]]).sum()
    return float(bits)


def _read(states: np.ndarray, codes: np.ndarray, asked: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities (asked, classes) of a probe that has learnt from `states`.

    One more question, of all classes alike, counts among those that it has learnt from: so a class
    that it has not seen has a probability.
    """
    n, seen = len(codes), np.unique(codes)
    likely = np.zeros((len(asked), classes))
    if len(seen) == 1:
        likely[:, seen] = 1.0
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_STEPS))
        likely[:, seen] = model.fit(states, codes).predict_proba(asked)
    mixed: np.ndarray = (n * likely + 1 / classes) / (n + 1)
    return mixed


def _by_image(images: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """An order of the questions in which those about an image stand together."""
    names, codes = np.unique(np.array(images, dtype=object), return_inverse=True)
    return np.argsort(rng.permutation(len(names))[codes], kind="stable")


def _random_labels(codes: np.ndarray, texts: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """A label for each question text, drawn as often as labels occur."""
    names, which = np.unique(np.array(texts, dtype=object), return_inverse=True)
    drawn: np.ndarray = rng.choice(codes, size=len(names))[which]
    return drawn
