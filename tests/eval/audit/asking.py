"""Audits of untrained models: answers of plain words, and every measure of some turns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from eval.audit import items, measures
from heima.config import Decoding

GREEDY = Decoding(temperature=0, top_k=50, max_new_tokens=6, batch_size=4)


def let_it_speak(model, tokenizer):
    """Answers of plain words that end soon, and read the same when they are encoded again."""
    words = ("yes", "no", "red", "green", "blue", "yellow", "two", "three", "four", "A", "B", "C")
    plain = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    allowed = {ids[0] for ids in plain if len(ids) == 1}
    assert len(allowed) > 6
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[tokenizer.eos_token_id].mul_(4)
        for other in set(range(len(weight))) - allowed - {tokenizer.eos_token_id}:
            weight[other] = weight[tokenizer.eos_token_id] * 0.9


def batch_of(turns):
    def lent(same_gold):
        found = items.partners(turns, same_gold=same_gold, seed=3)
        there = found != items.NOBODY
        donors = np.where(there, found, np.arange(len(turns)))
        return [turns[donor] for donor in donors], there

    (same, lent_same), (other, lent_other) = lent(True), lent(False)
    return measures.Batch(turns, same, other, lent_same, lent_other, seed=0)


def measured(passes, turns, windows=2):
    moments = measures.Moments.of([measures.states(passes, turns)[0]])
    batch = batch_of(turns)
    return batch, measures.of_batch(passes, batch, moments, decoding=GREEDY, windows=windows)


def apart_as_together(of_batch, turns):
    """Ten turns have the values that six and four of them have, but for noise, which is drawn."""
    whole = batch_of(turns)

    def of(rows):
        batch = measures.Batch(
            *([part[row] for row in rows] for part in (whole.turns, whole.same, whole.other)),
            whole.lent_same[rows],
            whole.lent_other[rows],
            seed=0,
        )
        return of_batch(batch)

    together, halves = of([*range(10)]), [of([*range(6)]), of([*range(6, 10)])]
    for name, values in together.items():
        if not name.startswith("noise"):
            apart = np.concatenate([half[name] for half in halves])
            np.testing.assert_allclose(values, apart, atol=1e-5, err_msg=name)


def every_effect_is_nothing(found: Mapping[str, np.ndarray]) -> None:
    """What an audit must measure where nothing sees the thinking tokens."""
    for name in ("zero", "mean", "noise", "same", "other"):
        there = np.isfinite(found[f"{name}/nll"])
        assert there.any()
        np.testing.assert_array_equal(found[f"{name}/nll"][there], found["own/nll"][there])
        np.testing.assert_array_equal(found[f"{name}/right"][there], found["own/right"][there])
    there = np.isfinite(found["mediation/te"])
    assert (found["mediation/nie"][there] == 0).all()
    np.testing.assert_array_equal(found["mediation/nde"], found["mediation/te"])
    assert (abs(found["mediation/te"][there]) > 1e-3).any()
    assert (found["closed/thinking/all/nll"] == 0).all()
    followed = np.isfinite(found["other/followed"])
    np.testing.assert_array_equal(found["other/followed"][followed], found["other/alike"][followed])
