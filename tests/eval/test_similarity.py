"""Cells of reconstructions: pairs, failures, references, the judge, the corpus, intervals."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from eval import bertscore, similarity
from eval.resources import MissingResource
from heima.config import Params
from heima.interpreting import wordings
from heima.results import machine
from heima.results.measures import BLEU_STATISTICS, judge_column, text_metrics

ROOT = Path(__file__).parents[2]
WORDS = "The red circle's value is 9, not 3.5; squares (blue) sum to twenty-one. So: B & C!".split()
TURNS = 12
GRADES = "embedded_rules_similarity"

Rows = list[dict[str, Any]]


def toy(params: Params, **changes) -> Params:
    """The toy profile with another `similarity`, and few draws."""
    changes = {"draws": 100, "judged": ("own", "shuffled", "zero"), **changes}
    similarity_ = params.similarity.model_copy(update=changes)
    return params.model_copy(update={"similarity": similarity_})


def make_rows(controls: Sequence[str], seed: int = 1) -> Rows:
    """Turns on an image each, in any order. Own states give back the section, but for turn 0,
    which is empty, and turn 1, of which half is left; zeros give an empty text to turn 2."""
    draw = random.Random(seed)
    found = []
    for number in range(TURNS):
        words = ["the", draw.choice(WORDS), "circle", str(number), "is", "red"]
        words += draw.choices(WORDS, k=6)
        texts = {"own": " ".join(words), "zero": "a blue square there"}
        if number < 2:
            texts["own"] = " ".join(words[:6]) if number else ""
        if number == 2:
            texts["zero"] = " \n"
        for control in controls:
            other = " ".join(draw.sample(words, k=8))
            found.append(
                {
                    "id": f"turn-{number}",
                    "kind": "look-free",
                    "image": f"image-{number}.png",
                    "control": control,
                    "reference": " ".join(words),
                    "text": texts.get(control, other),
                    "nll": (5.0 if control == "own" else 8.0) + number,
                    "n_tokens": 10 + number,
                    "finish": "stop",
                }
            )
    draw.shuffle(found)
    return found


def make_judgements(rows: Rows, controls: Sequence[str]) -> Rows:
    """Own gets 5, a control 2, an empty text 1 without a judge; turn 3 of zero has no grade, and
    neither has turn 4 of own."""
    found = []
    for row in rows:
        if row["control"] not in controls:
            continue
        judgement = {
            "id": row["id"],
            "control": row["control"],
            "grade": 5 if row["control"] == "own" else 2,
            "failure": None,
            "prompt": "similarity-1",
            "model": "embedded-rules",
            "system_fingerprint": "fp-1",
        }
        if not row["text"].strip():
            judgement |= {"grade": 1, "failure": "empty reconstruction", "model": None}
            judgement["system_fingerprint"] = None
        if (row["control"], row["id"]) in (("zero", "turn-3"), ("own", "turn-4")):
            judgement |= {"grade": None, "failure": "refused", "model": None}
            judgement["system_fingerprint"] = None
        found.append(judgement)
    return found


@pytest.fixture(scope="module")
def minilm(params):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield bertscore.bertscore(params.similarity)
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, minilm):
    """The model of every evaluation here, loaded once."""
    monkeypatch.setattr(similarity, "bertscore", lambda _: minilm)


@pytest.fixture
def evaluate(params):
    """Evaluate rows, and the judgements that belong to them, with changes to `similarity`."""

    def run(rows: Rows, judgements: Rows | None = None, **changes):
        mine = toy(params, **changes)
        if judgements is None:
            judgements = make_judgements(rows, mine.similarity.judged)
        return similarity.evaluate(
            {42: rows}, mine, section="reasoning", judgements={42: judgements}
        )

    return run


@pytest.fixture
def rows(params) -> Rows:
    return make_rows(params.reconstruct.controls)


def others(params: Params) -> list[str]:
    return [control for control in params.reconstruct.controls if control != "own"]


def of(columns: dict[str, list[Any]], name: str, control: str) -> np.ndarray:
    found = zip(columns["control"], columns[name], strict=True)
    return np.array([value for where, value in found if where == control], dtype=float)


# Pairs and failures


def test_own_is_paired_with_each_control(params, rows, evaluate):
    columns, cells, _ = evaluate(rows)
    assert set(cells) == {
        "own",
        *others(params),
        *(f"own-minus-{control}" for control in others(params)),
    }
    metrics = text_metrics(params.similarity)
    for control in others(params):
        for name in metrics:
            own, other = of(columns, name, "own"), of(columns, name, control)
            difference = cells[f"own-minus-{control}"][name]
            assert cells["own"][name].value == pytest.approx(own.mean())
            assert cells[control][name].value == pytest.approx(other.mean())
            assert difference.value == pytest.approx((own - other).mean())
            assert difference.low <= difference.value <= difference.high
            assert difference.n == TURNS
    assert all(cells["own-minus-zero"][name].value > 10 for name in metrics)


def test_columns_follow_the_controls_then_the_turns(params, rows, evaluate):
    columns, _, _ = evaluate(rows)
    turns = [row["id"] for row in rows if row["control"] == "own"]
    controls = params.reconstruct.controls
    assert columns["id"] == turns * len(controls)
    assert columns["control"] == [control for control in controls for _ in turns]
    given = {(row["id"], row["control"]): row for row in rows}
    for place, key in enumerate(zip(columns["id"], columns["control"], strict=True)):
        for name in ("kind", "image", "nll", "n_tokens"):
            assert columns[name][place] == given[key][name]
        assert columns["exact"][place] == 100.0 * (given[key]["text"] == given[key]["reference"])
    assert {*columns} == {
        *("training_seed", "id", "kind", "image", "control", "nll", "n_tokens", GRADES),
        *text_metrics(params.similarity),
        *BLEU_STATISTICS,
    }


def test_empty_reconstructions_count_0_stay_in_n_and_are_failures(params, rows, evaluate):
    columns, cells, _ = evaluate(rows)
    for name in text_metrics(params.similarity):
        by_turn = dict(zip(columns["id"], of(columns, name, "own"), strict=False))
        assert by_turn["turn-0"] == 0.0
        assert (cells["own"][name].n, cells["own"][name].n_failed) == (TURNS, 1)
        assert (cells["zero"][name].n, cells["zero"][name].n_failed) == (TURNS, 1)
        # Turn 0 is empty under own, turn 2 under zero.
        assert cells["own-minus-zero"][name].n_failed == 2
        assert cells["own-minus-mean"][name].n_failed == 1
    assert cells["own"]["exact"].value == pytest.approx(100 * (TURNS - 2) / TURNS)
    assert cells["own"]["corpus_bleu"].n_failed == 1
    assert cells["own-minus-zero"]["corpus_bleu"].n_failed == 2
    # A likelihood is of the reference, which needs no generated text.
    for group, name in (("own", "nll"), ("own", "nll_per_token"), ("own-minus-zero", "nll_gain")):
        assert (cells[group][name].n, cells[group][name].n_failed) == (TURNS, 0)


def test_likelihoods_are_of_a_text_of_a_token_and_gained(rows, evaluate):
    _, cells, _ = evaluate(rows)
    nll, tokens = 5 * TURNS + sum(range(TURNS)), 10 * TURNS + sum(range(TURNS))
    assert cells["own"]["nll"].value == pytest.approx(nll / TURNS)
    assert cells["own"]["nll_per_token"].value == pytest.approx(nll / tokens)
    gain = cells["own-minus-mean"]["nll_gain"]
    assert (gain.value, gain.low, gain.high) == (3.0, 3.0, 3.0)


def test_what_computed_a_metric_stands_beside_it(rows, evaluate):
    _, _, computed_with = evaluate(rows)
    assert computed_with["bertscore"]["sha256"] == bertscore.MINILM_SHA256
    assert computed_with["meteor"]["column"] == "meteor_exact_stem"
    assert "tok:13a" in computed_with["corpus_bleu"]["signature"]
    assert computed_with["references"] == "clean"
    assert json.loads(json.dumps(computed_with)) == computed_with


# References


def test_official_references_lower_what_equals_the_section_but_neither_exact_nor_likelihoods(
    params, rows, evaluate
):
    _, clean, _ = evaluate(rows)
    _, official, computed_with = evaluate(rows, references="official")
    assert computed_with["references"] == "official"
    for name in (*text_metrics(params.similarity), "corpus_bleu"):
        if name != "exact":
            assert official["own"][name].value < clean["own"][name].value - 1, name
    for group in clean:
        for name in ("exact", "nll", "nll_per_token", "nll_gain", GRADES):
            assert official[group].get(name) == clean[group].get(name)


def test_official_references_are_the_interpreters_own(params, rows, evaluate):
    """Turn and control: the same reference for every control of a turn."""
    own = [row for row in rows if row["control"] == "own"]
    tagged = wordings.official_references(
        "reasoning", [row["reference"] for row in own], seed=params.seed
    )
    by_turn = dict(zip([row["id"] for row in own], tagged, strict=True))
    wrapped = [row | {"reference": by_turn[row["id"]]} for row in rows]
    expected, _, _ = evaluate(wrapped)
    found, _, _ = evaluate(rows, references="official")
    for name in {*text_metrics(params.similarity), *BLEU_STATISTICS} - {"exact"}:
        assert found[name] == expected[name], name


# The corpus


@pytest.mark.parametrize("references", ["clean", "official"])
def test_corpus_bleu_is_sacrebleus_and_its_difference_that_of_both(
    params, rows, evaluate, references
):
    columns, cells, computed_with = evaluate(rows, references=references)
    own = [row for row in rows if row["control"] == "own"]
    truth = [row["reference"] for row in own]
    if references == "official":
        truth = wordings.official_references("reasoning", truth, seed=params.seed)
    expected = {}
    for control in params.reconstruct.controls:
        texts = {row["id"]: row["text"] for row in rows if row["control"] == control}
        metric = BLEU()
        score = metric.corpus_score([texts[row["id"]] for row in own], [truth])
        expected[control] = score.score
        assert computed_with["corpus_bleu"]["signature"] == str(metric.get_signature())
        cell = cells[control]["corpus_bleu"]
        assert cell.value == pytest.approx(expected[control], abs=1e-9)
        assert cell.low <= cell.value <= cell.high
        assert cell.n == TURNS
        lengths = of(columns, "bleu_hypothesis_length", control)
        assert lengths.sum() == score.sys_len
    for control in others(params):
        difference = cells[f"own-minus-{control}"]["corpus_bleu"]
        assert difference.value == pytest.approx(expected["own"] - expected[control], abs=1e-9)
    assert expected["own"] > expected["shuffled"] > expected["zero"]


# The judge


def test_grades_are_means_and_paired_over_the_turns_that_have_them(rows, evaluate):
    columns, cells, computed_with = evaluate(rows)
    # Turn 0 is empty (1), turn 4 has no grade, the others have 5.
    own = cells["own"][GRADES]
    assert own.value == pytest.approx((1 + 5 * (TURNS - 2)) / (TURNS - 1))
    assert (own.n, own.n_failed) == (TURNS - 1, 1)
    # Turn 2 is empty (1), turn 3 has no grade, the others have 2.
    zero = cells["zero"][GRADES]
    assert zero.value == pytest.approx((1 + 2 * (TURNS - 2)) / (TURNS - 1))
    assert (zero.n, zero.n_failed) == (TURNS - 1, 1)
    # Without turns 3 and 4: -1 for turn 0, 4 for turn 2, 3 for the others.
    difference = cells["own-minus-zero"][GRADES]
    assert difference.value == pytest.approx((-1 + 4 + 3 * (TURNS - 4)) / (TURNS - 2))
    assert (difference.n, difference.n_failed) == (TURNS - 2, 2)
    assert cells["own-minus-shuffled"][GRADES].n == TURNS - 1

    assert computed_with["judge"]["missing"] == [
        {"training_seed": 42, "id": row["id"], "control": row["control"], "reason": "refused"}
        for row in rows
        if (row["control"], row["id"]) in (("zero", "turn-3"), ("own", "turn-4"))
    ]
    assert computed_with["judge"]["answered"] == {"embedded-rules": 3 * TURNS - 4}
    assert computed_with["judge"]["system_fingerprints"] == ["fp-1"]
    assert computed_with["judge"]["prompt"] == ["similarity-1"]
    assert computed_with["judge"]["column"] == GRADES
    given = {
        (row["control"], row["id"]): row["grade"]
        for row in make_judgements(rows, ("own", "shuffled", "zero"))
    }
    keys = zip(columns["control"], columns["id"], strict=True)
    assert columns[GRADES] == [given.get(key) for key in keys]


def test_controls_that_are_not_judged_have_no_grade(params, rows, evaluate):
    _, cells, computed_with = evaluate(rows)
    for control in ("mean", "question-only"):
        assert GRADES not in cells[control]
        assert GRADES not in cells[f"own-minus-{control}"]
    columns, cells, computed_with = evaluate(rows, judged=())
    assert GRADES not in columns
    assert not any(GRADES in group for group in cells.values())
    assert "judge" not in computed_with


def test_grades_change_nothing_else(rows, evaluate):
    _, judged, _ = evaluate(rows)
    _, unjudged, _ = evaluate(rows, judged=())
    assert {
        group: {name: cell for name, cell in cells.items() if name != GRADES}
        for group, cells in judged.items()
    } == unjudged


# Rows that do not belong together


def first(rows: Rows, control: str) -> dict[str, Any]:
    return next(row for row in rows if row["control"] == control)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows.remove(first(rows, "mean")), "own and mean .*same turns; 1 .*turn-"),
        (lambda rows: rows.remove(first(rows, "own")), "must have the same turns; 1 .*turn-"),
        (lambda rows: rows.append(rows[0]), "turn-[0-9]+ has control .* twice"),
        (lambda rows: rows[0].update(control="filler"), "control 'filler', which .*own, shuffled"),
        (lambda rows: first(rows, "zero").update(reference="else"), "another reference under zero"),
        (lambda rows: first(rows, "zero").update(n_tokens=1), "another n_tokens under zero"),
        (lambda rows: rows.clear(), "no turn was reconstructed from its own state"),
    ],
)
def test_rows_that_do_not_fit_are_named(rows, evaluate, damage, message):
    damage(rows)
    with pytest.raises(similarity.InconsistentRows, match=message):
        evaluate(rows)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda found: found.remove(first(found, "zero")),
            "1 .* under zero were not judged, turn-",
        ),
        (lambda found: found.clear(), "12 .* under own were not judged.*dvc repro judge"),
        (
            lambda found: [r.update(grade=None) for r in found if r["control"] == "shuffled"],
            "no reconstruction under shuffled has a grade",
        ),
    ],
)
def test_turns_without_a_judgement_are_named(params, rows, evaluate, damage, message):
    found = make_judgements(rows, ("own", "shuffled", "zero"))
    damage(found)
    with pytest.raises(similarity.InconsistentRows, match=message):
        evaluate(rows, found)


def test_a_missing_resource_stops_before_anything_is_computed(
    rows, evaluate, monkeypatch, tmp_path
):
    monkeypatch.setattr(bertscore.BertScore, "f1", lambda *_: pytest.fail("it computed"))
    with pytest.raises(MissingResource, match="METEOR needs WordNet"):
        evaluate(rows, meteor="wordnet-no-punkt", wordnet_path=str(tmp_path))


# Intervals


def test_turns_on_one_image_add_no_certainty(rows, evaluate):
    """Every turn twice on its image: the intervals of one copy. On images of their own they would
    be narrower."""
    copies = [row | {"id": f"{row['id']}-again"} for row in rows]
    elsewhere = [row | {"image": f"other-{row['image']}"} for row in copies]
    judgements = make_judgements(rows, ("own", "shuffled", "zero"))
    judgements += [row | {"id": f"{row['id']}-again"} for row in judgements]
    _, single, _ = evaluate(rows)
    _, twice, _ = evaluate(rows + copies, judgements)
    _, apart, _ = evaluate(rows + elsewhere, judgements)
    narrower = 0
    for group, cells in single.items():
        for name, cell in cells.items():
            bounds = (cell.value, cell.low, cell.high)
            again = twice[group][name]
            assert again.n == 2 * cell.n
            if name == "corpus_bleu" and group != "own":
                # Where no 4-gram matches, the smoothed precision falls with the size of the corpus.
                continue
            assert (again.value, again.low, again.high) == pytest.approx(bounds, abs=1e-9), name
            free = apart[group][name]
            narrower += free.high - free.low < 0.95 * (cell.high - cell.low)
    assert narrower > 0.6 * sum(map(len, single.values()))


# The file


def test_training_seeds_are_averaged_and_keep_their_own_values(rows, params, evaluate):
    """Two seeds: the cell of each alone is what it has in both; differences are paired by seed."""
    mine = toy(params)
    controls = mine.similarity.judged
    worse = [{**row, "nll": row["nll"] + 1.0, "text": ""} for row in rows]
    both = {42: rows, 43: worse}
    columns, cells, made = similarity.evaluate(
        both,
        mine,
        section="reasoning",
        judgements={seed: make_judgements(found, controls) for seed, found in both.items()},
    )
    alone = {42: evaluate(rows)[1], 43: evaluate(worse)[1]}
    for group, row in cells.items():
        for name, cell in row.items():
            if name == judge_column(mine.judge):
                continue  # a turn without a grade of one seed counts for neither
            expected = {seed: found[group][name].value for seed, found in alone.items()}
            assert cell.seeds == pytest.approx(expected), (group, name)
            assert cell.value == pytest.approx(np.mean(list(expected.values())))
            assert cell.n == 2 * alone[42][group][name].n
            assert cell.low <= min(expected.values()) + 1e-9 or cell.sd == 0
    assert columns["training_seed"] == [42] * len(rows) + [43] * len(rows)
    assert {one["training_seed"] for one in made["judge"]["missing"]} == {42, 43}
    with pytest.raises(similarity.InconsistentRows, match="42 and 43 must have the same turns"):
        similarity.evaluate(
            {42: rows, 43: [row for row in worse if row["id"] != "turn-2"]},
            mine,
            section="reasoning",
            judgements={seed: make_judgements(found, controls) for seed, found in both.items()},
        )


WRITE = """
import sys
import pandas as pd
import torch
from eval import similarity
from heima import config
from tests.eval.test_similarity import make_judgements, make_rows, toy

torch.set_num_threads(1)
params = toy(config.load())
rows = make_rows(params.reconstruct.controls)
columns, cells, _ = similarity.evaluate(
    {42: rows},
    params,
    section="reasoning",
    judgements={42: make_judgements(rows, params.similarity.judged)},
)
pd.DataFrame(columns).to_parquet(sys.argv[1], index=False)
print(sorted((group, name, cell) for group, of in cells.items() for name, cell in of.items()))
"""


def test_results_are_the_same_bytes_under_another_hash_seed_and_number_of_threads(tmp_path):
    # The pins name a hash seed and one thread: with all of them, only one run had their kernels.
    unpinned = {name: value for name, value in os.environ.items() if name not in machine.PINS}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path / f"{seed}.parquet")],
            cwd=ROOT,
            env={**unpinned, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, threads in (("0", "1"), ("1", "2"))
    ]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    files = [(tmp_path / f"{seed}.parquet").read_bytes() for seed in "01"]
    first, second = (hashlib.sha256(file).hexdigest() for file in files)
    assert first == second
    assert printed[0] == printed[1] != ""
