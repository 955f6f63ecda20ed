"""The measures of an audit, question by question (docs/audit.md).

`of_batch` knows nothing of other batches: processes share them, and a killed audit goes on from
those that are finished.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from eval.audit import answers
from eval.audit.passes import Passes, Scores, States, Within
from heima.config import Decoding, Params
from heima.data.turns import Turn, load_turns
from heima.families import registry
from heima.vlm import patching, processes


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of `States` over training turns, each part (k, hidden)."""

    mean: States
    deviation: States

    @classmethod
    def of(cls, batches: Sequence[States]) -> Moments:
        parts = [torch.cat(part).float() for part in zip(*batches, strict=True)]
        return cls([one.mean(dim=0) for one in parts], [one.std(dim=0) for one in parts])


@dataclass(frozen=True)
class Batch:
    """Turns, and for each a donor of the same and one of another conclusion, and the seed of noise.

    Where a turn has no donor, it stands in for it itself and `lent_*` is False.
    """

    turns: Sequence[Turn]
    same: Sequence[Turn]
    other: Sequence[Turn]
    lent_same: np.ndarray
    lent_other: np.ndarray
    seed: int


def states(
    passes: Passes, turns: Sequence[Turn], images: Sequence[str] | None = None
) -> tuple[States, Scores]:
    """The states of turns, and the scores of their gold conclusions in the same pass.

    With `images`, of the same questions about other images.
    """
    texts = [answers.continuation(turn.conclusion, passes.tags) for turn in turns]
    scores = passes.score(turns, texts, images=images, recorded=True)
    return scores.states, scores


def fitted(passes: Passes, params: Params) -> Moments:
    """Of the first `audit.fitted` training turns, each with its image first."""
    turns = load_turns("data/rewritten/train.parquet")[: params.audit.fitted]
    asked = [replace(turn, image_first=True) for turn in turns]
    parts = processes.batches(asked, params.audit.batch_size)
    return Moments.of([states(passes, part)[0] for part in parts])


def of_batch(
    passes: Passes, batch: Batch, moments: Moments, *, decoding: Decoding, windows: int
) -> dict[str, np.ndarray]:
    """Every measure of each turn: a column a measure, NaN where a turn has none.

    - `own/…`: `nll` of the gold conclusion and its end, whether it is `right`, i.e. greedy
      decoding gives it, and `written`: decoding ended, and one pass finds its answer greedy.
    - `<replacement>/…`: with other states, `nll`, `right`, and `changed`: greedy decoding gives
      another continuation than its own. Replacements are `zero`, `mean`, `noise`, `first` (where a
      turn has several thinking tokens), `same` and `other` (a donor's, by its gold conclusion).
    - `other/followed`: greedy decoding gives what the donor writes; `other/alike`: it does so of
      its own; `other/donor-written`: the donor's answer ended.
    - `mediation/te|nie|nde`: differences of `nll` (the donor's image, its states, or both).
    - `without/<parts>/right`: with slots, markers or both left out (without tags, slots alone can
      be); `first-<j>/right`, `/changed`: with the first j thinking tokens alone.
    - `closed/<what>/<window>/nll`: the rise of `nll` where the conclusion cannot see the thinking
      tokens or the image, in a window of layers.
    - `moved/image`, `moved/donor`: squared distance of the last states under another image, and
      from the donor's.
    """
    turns = batch.turns
    gold = [answers.continuation(turn.conclusion, passes.tags) for turn in turns]
    # Donors first: a question is then read once for all that follows.
    donors = {"same": states(passes, batch.same)[0], "other": states(passes, batch.other)[0]}
    lent = passes.continuations(batch.other, decoding=decoding)
    own_states, own = _scored(passes, turns, gold)
    written = passes.continuations(turns, decoding=decoding)
    said = [text if text is not None else gold[row] for row, text in enumerate(written)]
    ended = np.array([text is not None for text in written])
    back = own_states if passes.feed else None
    valid = _gives(passes, turns, said, ended, gold, own, states=back)
    columns: dict[str, np.ndarray] = {
        "own/nll": own.nll,
        "own/right": _shares(own.greedy),
        "own/written": _shares(valid),
    }

    scored: dict[str, Scores] = {}
    for name, (given, there) in replacements(passes, batch, moments, own_states, donors).items():
        scored[name] = passes.score(turns, gold, states=given)
        same = _gives(passes, turns, said, there & valid, gold, scored[name], states=given)
        columns[f"{name}/nll"] = where(there, scored[name].nll)
        columns[f"{name}/right"] = where(there, scored[name].greedy)
        columns[f"{name}/changed"] = where(there & valid, ~same)

    theirs = [text if text is not None else gold[row] for row, text in enumerate(lent)]
    both = batch.lent_other & valid & np.array([text is not None for text in lent])
    followed = _gives(passes, turns, theirs, both, gold, scored["other"], states=donors["other"])
    columns["other/followed"] = where(both, followed)
    columns["other/alike"] = where(
        both, [one == two for one, two in zip(said, theirs, strict=True)]
    )

    columns |= _mediation(passes, batch, gold, own, own_states)
    columns |= _parts(passes, turns, gold, said, valid)
    for name, within in closed(passes, windows).items():
        nll = passes.score(turns, gold, within=within, states=back).nll
        columns[f"{name}/nll"] = nll - own.nll
    last, donor = own_states[-1], donors["other"][-1]
    columns["moved/donor"] = where(batch.lent_other, squared(last, donor))
    return columns


def _scored(
    passes: Passes, turns: Sequence[Turn], gold: Sequence[str], images: Sequence[str] | None = None
) -> tuple[States, Scores]:
    """As `states`; where states are fed back, scored with one's own put back, as all that they are
    compared with: in one piece, whose rounding is not that of segments."""
    found, scores = states(passes, turns, images)
    if passes.feed:
        scores = passes.score(turns, gold, images=images, states=found)
    return found, scores


def _gives(
    passes: Passes,
    turns: Sequence[Turn],
    texts: Sequence[str],
    wanted: np.ndarray,
    known: Sequence[str],
    scores: Scores,
    *,
    prefix: str | None = None,
    states: States | None = None,
) -> np.ndarray:
    """Where greedy decoding gives the texts, of the turns that are `wanted`.

    Those that are `known` were scored under the same conditions and are not read again.
    """
    new = np.array([one != two for one, two in zip(texts, known, strict=True)])
    again = passes.score(turns, texts, prefix=prefix, states=states, of=wanted & new).greedy
    return np.where(new, again, scores.greedy) & wanted


def _mediation(
    passes: Passes, batch: Batch, gold: Sequence[str], own: Scores, own_states: States
) -> dict[str, np.ndarray]:
    """The same question about the donor's image: total, natural indirect and direct effects."""
    turns, images = batch.turns, [turn.image for turn in batch.other]
    other_states, shown = _scored(passes, turns, gold, images)
    total = shown.nll - own.nll
    indirect = passes.score(turns, gold, states=other_states).nll - own.nll
    direct = passes.score(turns, gold, images=images, states=own_states).nll
    moved = squared(own_states[-1], other_states[-1])
    return {
        name: where(batch.lent_other, values)
        for name, values in {
            "mediation/te": total,
            "mediation/nie": indirect,
            "mediation/nde": direct - own.nll,
            "moved/image": moved,
        }.items()
    }


def _parts(
    passes: Passes,
    turns: Sequence[Turn],
    gold: Sequence[str],
    said: Sequence[str],
    valid: np.ndarray,
) -> dict[str, np.ndarray]:
    """Answers whose beginning lacks parts: thinking tokens, their tags, or both.

    The tag that opens the conclusion is forced behind it.
    """
    slots, opening = answers.thinking_tokens(passes.prefix), answers.opening(passes.tags)
    gold = answers.behind_opening(gold, passes.tags)
    said = answers.behind_opening(said, passes.tags)
    found = {}
    kept = {"slots": answers.without_slots(passes.prefix)}
    if passes.tags != "none":
        kept |= {"markers": "".join(slots), "both": ""}
    for name, prefix in kept.items():
        found[f"without/{name}/right"] = _shares(
            passes.score(turns, gold, prefix=prefix + opening).greedy
        )
    for count in range(1, len(slots)):
        prefix = answers.first_slots(passes.prefix, count, passes.tags) + opening
        scores = passes.score(turns, gold, prefix=prefix)
        same = _gives(passes, turns, said, valid, gold, scores, prefix=prefix)
        found[f"first-{count}/right"] = _shares(scores.greedy)
        found[f"first-{count}/changed"] = where(valid, ~same)
    return found


def replacements(
    passes: Passes,
    batch: Batch,
    moments: Moments,
    own: States,
    donors: Mapping[str, States],
) -> dict[str, tuple[States, np.ndarray]]:
    """The states that replace a batch's `own`, by name, and which of its turns have them."""
    n = len(batch.turns)
    everybody = np.ones(n, dtype=bool)
    each = answers.tokens_of_a_section(passes.prefix, passes.tags)
    first = {"first": ([_first_of(part, each) for part in own], everybody)} if each > 1 else {}
    return {
        "zero": ([torch.zeros_like(part) for part in own], everybody),
        "mean": (_everywhere(moments.mean, n), everybody),
        "noise": (_noise(moments, n, batch.seed), everybody),
        **first,
        "same": (donors["same"], batch.lent_same),
        "other": (donors["other"], batch.lent_other),
    }


def closed(passes: Passes, windows: int) -> dict[str, Within]:
    """Where the conclusion does not see the thinking tokens, or the image, by the measure's name:
    in all layers, and in each of so many windows of them."""
    model = passes.model
    text = registry.of(model).language_model(model)

    def thinking(layers: range | None) -> Within:
        return lambda places: patching.closing(
            model, [patching.Closed(places.conclusion, places.thinking_mask, layers)]
        )

    def image(layers: range | None) -> Within:
        return lambda places: patching.blindfolded(model, places.conclusion, places.image, layers)

    return {
        f"closed/{name}/{window}": way(layers)
        for name, way in {"thinking": thinking, "image": image}.items()
        for window, layers in layer_windows(len(text.layers), windows).items()
    }


def layer_windows(layers: int, windows: int) -> Mapping[str, range | None]:
    """All layers, and so many windows of neighbouring ones.

    >>> layer_windows(5, 2)
    {'all': None, '0-1': range(0, 2), '2-4': range(2, 5)}
    """
    edges = [layers * part // windows for part in range(windows + 1)]
    return {
        "all": None,
        **{
            f"{first}-{end - 1}": range(first, end)
            for first, end in itertools.pairwise(edges)
            if windows > 1
        },
    }


def _everywhere(states: States, n: int) -> States:
    return [part.expand(n, *part.shape) for part in states]


def _noise(moments: Moments, n: int, seed: int) -> States:
    drawn = np.random.default_rng(seed)
    return [
        mean
        + deviation
        * torch.from_numpy(drawn.standard_normal((n, *mean.shape), dtype=np.float32)).to(mean)
        for mean, deviation in zip(moments.mean, moments.deviation, strict=True)
    ]


def _first_of(part: torch.Tensor, each: int) -> torch.Tensor:
    """Every state replaced by the first of its section's `each`."""
    return part[:, torch.arange(part.shape[1]) // each * each]


def squared(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    return (left.float() - right.float()).square().sum(dim=(1, 2)).numpy().astype(np.float64)


def _shares(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def where(there: np.ndarray, values: Any) -> np.ndarray:
    return np.where(there, _shares(values), np.nan)
