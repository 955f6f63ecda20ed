"""A linear probe: which words of a section can be read off its thinking state, and no more.

One L2-regularised logistic regression a word says whether the section has it. The words are the
section's commonest, without those that nearly all texts or hardly any have, and without function
words: in the toy world colours, shapes, points and options. What an interpreter writes is asked for
the same words, so both are measured alike. As a control the probe is trained on the words of other
turns of the kind (Hewitt & Liang 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heima.interpreting.states import SectionStates

STRENGTH = 1.0
"""The inverse of the regularisation (`C`) on standardised states; never tuned."""
FEW_DIMENSIONS = 512
"""Up to so many Newton's method is the quicker way to the one optimum."""
RAREST, COMMONEST = 0.02, 0.9
"""The shares of texts that a word must be in."""
NUMBERS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve fifteen twenty forty "
    "fifty sixty hundred first no".split()
)
"""Function words to a search engine, content to a question."""
_WORD = r"(?u)[^\W_][\w'-]*"


class Words:
    """The at most `most` commonest content words of `texts`, by frequency.

    Raises `ValueError` where none is left.
    """

    def __init__(self, texts: Sequence[str], most: int) -> None:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

        self._counts = CountVectorizer(
            binary=True,
            token_pattern=_WORD,
            stop_words=sorted(ENGLISH_STOP_WORDS - NUMBERS),
            min_df=RAREST,
            max_df=COMMONEST,
            max_features=most,
        )
        self._counts.fit(texts)

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self._counts.get_feature_names_out()]

    def there(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which text has which word, (texts, words)."""
        found: NDArray[np.bool_] = self._counts.transform(texts).toarray() > 0
        return found


def vectors(states: SectionStates) -> NDArray[np.float64]:
    """(turns, hidden_size): the mean of each turn's states, of which the paper has one."""
    return np.stack([one.double().mean(dim=0).numpy() for one in states.by_turn()])


def read(
    states: NDArray[np.float64], words: NDArray[np.bool_], unseen: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which words the texts of unseen states have, (unseen, words), by a probe of each word.

    `states` is (turns, hidden_size), `words` (turns, words): each column has both values.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(states)
    known, asked = scale.transform(states), scale.transform(unseen)
    solver = "newton-cholesky" if states.shape[1] <= FEW_DIMENSIONS else "lbfgs"
    return np.stack(
        [
            LogisticRegression(C=STRENGTH, solver=solver, max_iter=1000)
            .fit(known, column)
            .predict(asked)
            for column in words.T
        ],
        axis=1,
    )
