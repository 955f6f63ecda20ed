"""The measures of an audit where words stand between the thinking tokens and the conclusion.

As in the first phases of the curriculum: what states do, they may do through the words. So under
each condition all that follows the prefix is written anew, by greedy decoding, and the answer is
the conclusion of that. What is negative log-likelihood elsewhere is here that of the gold
conclusion behind the words that go with the condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.audit import answers, measures
from eval.audit.measures import Batch, Moments, squared, where
from eval.audit.passes import Passes, States
from heima.config import Decoding
from heima.data.turns import Turn


@dataclass(frozen=True)
class _Written:
    """What greedy decoding writes behind the prefix, of each turn.

    `texts` are whole, `words` what stands before the conclusions, `said` these with their tags;
    None, or empty, where the text does not end, or has no conclusion, as `there` says. `nll` is of
    the gold conclusions behind the words, and whether greedy decoding gives them there is `right`;
    NaN and False where there are none.
    """

    texts: Sequence[str | None]
    words: Sequence[str]
    said: Sequence[str | None]
    nll: np.ndarray
    right: np.ndarray

    @property
    def there(self) -> np.ndarray:
        return np.array([one is not None for one in self.said])

    def same(self, others: Sequence[str | None]) -> np.ndarray:
        """Whose conclusions are those."""
        return np.array(
            [one is not None and one == two for one, two in zip(self.said, others, strict=True)]
        )


@dataclass(frozen=True)
class _Asked:
    """Turns of a batch, and how they are answered."""

    passes: Passes
    turns: Sequence[Turn]
    decoding: Decoding

    def written(
        self,
        of: np.ndarray,
        *,
        images: Sequence[str] | None = None,
        states: States | None = None,
        guess: _Written | None = None,
    ) -> _Written:
        """Of some of the turns. What is guessed is decoded only where one pass does not find it
        to be what greedy decoding writes under these conditions."""
        texts: list[str | None] = [None] * len(self.turns)
        if guess is not None:
            guessed = [text or "" for text in guess.texts]
            found = self.passes.score(
                self.turns, guessed, images=images, states=states, of=of & guess.there
            ).greedy
            texts = [text if same else None for text, same in zip(guess.texts, found, strict=True)]
            of = of & ~found
        decoded = self.passes.continuations(
            self.turns, decoding=self.decoding, images=images, of=of, states=states
        )
        texts = [new if asked else old for new, old, asked in zip(decoded, texts, of, strict=True)]
        parts = [None if one is None else answers.split(one, self.passes.tags) for one in texts]
        words = [one[0] if one else "" for one in parts]
        scores = self.passes.score(
            self.turns,
            [answers.continuation(turn.conclusion, self.passes.tags) for turn in self.turns],
            words=words,
            images=images,
            states=states,
            of=np.array([one is not None for one in parts]),
        )
        said = [one[1] if one else None for one in parts]
        return _Written(texts, words, said, scores.nll, scores.greedy)


def of_batch(
    passes: Passes, batch: Batch, moments: Moments, *, decoding: Decoding, windows: int
) -> dict[str, np.ndarray]:
    """The columns of `measures.of_batch`, where they mean something: no parts are left out.

    An answer that does not end is not right, and another one than its own; its `nll` is NaN. The
    closed ways are those from the own words, too, which are forced.
    """
    turns, n = batch.turns, len(batch.turns)
    asked, lender = _Asked(passes, turns, decoding), _Asked(passes, batch.other, decoding)
    gold = [answers.continuation(turn.conclusion, passes.tags) for turn in turns]
    donors = {
        "same": measures.states(passes, batch.same)[0],
        "other": measures.states(passes, batch.other)[0],
    }
    lent = lender.written(batch.lent_other)
    own_states, _ = measures.states(passes, turns)
    own = asked.written(np.ones(n, dtype=bool))
    # Read again from its text, an answer may no longer be what was decoded.
    again = passes.score(turns, [text or "" for text in own.texts], of=own.there).greedy
    valid = own.there & again
    columns = {
        "own/nll": own.nll,
        "own/right": own.right.astype(np.float64),
        "own/written": valid.astype(np.float64),
    }
    replacing = measures.replacements(passes, batch, moments, own_states, donors)
    for name, (given, there) in replacing.items():
        found = asked.written(there, states=given, guess=own)
        columns[f"{name}/nll"] = where(there, found.nll)
        columns[f"{name}/right"] = where(there, found.right)
        columns[f"{name}/changed"] = where(there & valid, ~found.same(own.said))
        if name == "other":
            both = there & valid & lent.there
            columns["other/followed"] = where(both, found.same(lent.said))
            columns["other/alike"] = where(both, own.same(lent.said))
    images = [turn.image for turn in batch.other]
    there = batch.lent_other
    other_states, _ = measures.states(passes, turns, images)
    shown = asked.written(there, images=images)
    indirect = asked.written(there, states=other_states, guess=own)
    direct = asked.written(there, images=images, states=own_states, guess=shown)
    for name, nll in {"te": shown.nll, "nie": indirect.nll, "nde": direct.nll}.items():
        columns[f"mediation/{name}"] = where(there, nll - own.nll)
    columns["moved/image"] = where(there, squared(own_states[-1], other_states[-1]))
    for name, within in measures.closed(passes, windows).items():
        scores = passes.score(turns, gold, words=own.words, within=within, of=own.there)
        columns[f"{name}/nll"] = scores.nll - own.nll
    columns["moved/donor"] = where(there, squared(own_states[-1], donors["other"][-1]))
    return columns
