"""States along a forced answer, for what is only described of them (docs/audit.md).

Positions are the last token of the prompt (`prompt`), for each thinking token the token before it
(`before-1`), itself (`thinking-1`) and the token behind it (`behind-1`), the first and the last
ones in tags, and the last token of the tag that opens the conclusion (`conclusion`), whose state
predicts the conclusion's first token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from eval.audit import answers
from eval.audit.passes import Passes, Places
from heima.data.turns import Turn
from heima.families import registry
from heima.vlm import patching

States = Mapping[str, np.ndarray]
"""Position -> last hidden states, after the final norm, (turns, hidden_size) in float32."""


def of_batch(
    passes: Passes, turns: Sequence[Turn], images: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The states of turns; with `images`, of the same questions about other images."""
    found: dict[str, np.ndarray] = {}
    text = registry.of(passes.model).language_model(passes.model)

    @contextlib.contextmanager
    def within(places: Places) -> Iterator[None]:
        # The columns of the answer; its own end stands behind the opening tag.
        answer = places.start + torch.arange(places.image.shape[1] - places.start)
        last = (places.conclusion * torch.arange(places.image.shape[1])).max(dim=1).values - 1
        columns = {}
        for number, own in enumerate(places.thinking.T, 1):
            columns[f"before-{number}"] = own - 1
            columns[f"thinking-{number}"] = own
            columns[f"behind-{number}"] = own + 1
        columns["conclusion"] = last
        wanted = torch.stack(list(columns.values()), dim=1)
        if not torch.isin(wanted, answer).all():
            raise ValueError("a thinking token must have a tag before and behind it in its answer")
        with patching.recorded(passes.model, wanted - places.start) as taken:
            yield
        states = text.norm(taken[-1]).float().cpu().numpy()
        found.update({name: states[:, place] for place, name in enumerate(columns)})

    shown = images or [turn.image for turn in turns]
    asked = passes.prompt_states(turns, shown).float().cpu().numpy()
    opening = answers.opening(passes.tags)
    passes.score(turns, [opening] * len(turns), images=shown, within=within)
    return {"prompt": asked, **found}
