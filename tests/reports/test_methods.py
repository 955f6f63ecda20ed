"""The table of methods: sums along chains, paired differences, what is asked for and not there."""

from __future__ import annotations

import itertools
import random
import re
import shutil

import pytest

from heima.config.profiles import written_out
from heima.results import verdicts
from heima.results.cells import read_metrics, write_metrics
from reports import tables
from reports.figures import style
from reports.figures.methods import on_frontier
from reports.tables import audit, methods
from reports.tables.ablation import DIFFERENCES
from reports.tables.rivals import RIVALS
from reports.tables.writing import comma_separated
from tests import fabricated
from tests.reports.test_latex import ARTICLE, compiled, faults


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Invented results of the profile with all methods, and its tables."""
    folder = tmp_path_factory.mktemp("methods")
    text = written_out(fabricated.ROOT / "profiles" / "toy-methods.yaml")
    params = fabricated.write(folder, questions=4, params_text=text)
    results = tables.read(folder, params)
    return results, tables.of_results(results)


def panel(built: dict[str, tables.Table], title: str, table: str = "methods") -> tables.Panel:
    [found] = [p for block in built[table].blocks for p in block.panels if p.title == title]
    return found


def test_training_is_summed_along_the_chain(root, params, built):
    cells, _ = read_metrics(root / "metrics/flops.json")
    shown = panel(built, methods.METHODS)
    unit = next(column for column in shown.digits if column.endswith("FLOP"))
    chains = {
        "heima": ("p1", "p2", "p3", "recover"),
        "heima-no-recover": ("p1", "p2", "p3"),
        "answer-only": ("answer-only",),
        "text-cot": (),
    }
    for variant, chain in chains.items():
        updates = sum(cells[name]["updates"].value for name in chain)
        flops = sum(cells[name]["flops"].value for name in chain)
        assert shown.entries[variant, "updates"].value == updates
        assert shown.entries[variant, unit].value == pytest.approx(flops / methods._UNITS[unit])
    assert isinstance(shown.entries["base", "updates"], tables.Label), "it has no chain"


def test_a_given_checkpoint_has_no_updates(tmp_path):
    text = written_out(fabricated.ROOT / "profiles" / "paper-official.yaml")
    params = fabricated.write(tmp_path, questions=4, params_text=text)
    shown = panel(tables.build(tmp_path, params), methods.METHODS)
    assert shown.entries["heima", "updates"].text == "given"


def test_differences_are_those_of_the_ablation(results, built):
    """Against heima, both tables must say the same of the same questions."""
    params = results.params
    found = methods.differences(params, "lmms", results.samples, ("heima",))
    theirs = built["ablation"].blocks[0]
    [other] = [p for p in theirs.panels if p.title == DIFFERENCES]
    for variant in other.rows:
        ours, there = found[variant, "heima"], other.entries[variant, "mean"]
        assert (ours.value, ours.low, ours.high, ours.n, ours.n_failed) == pytest.approx(
            (there.value, there.low, there.high, there.n, there.n_failed)
        )


def test_p_is_adjusted_over_all_differences_of_the_table(many):
    _, built = many
    panels = [p for p in built["methods"].blocks[0].panels if p.title.startswith("Mean score")]
    assert len(panels) == 4, "two protocols, text-cot and answer-only"
    raw, adjusted = [], []
    for one in panels:
        for row in one.rows:
            entry = one.entries[row, "difference"]
            if entry.sd is None:
                assert one.entries[row, "p"].text == one.entries[row, "p (Holm)"].text == "one seed"
                continue
            raw.append(entry.cell().p)
            adjusted.append(one.entries[row, "p (Holm)"].text)
    assert adjusted == [methods.probability(p) for p in verdicts.holm(raw)]


def test_every_method_that_is_asked_for_has_a_row_or_a_reason(many, built):
    results, whole = many
    title = "Methods that the paper names, or that are asked for"
    for found, here in ((built, 5), (whole, len(RIVALS) - 3)):
        shown = panel(found, title)
        texts = {row: shown.entries[row, column].text for row, column in shown.entries}
        assert texts.keys() == RIVALS.keys() and all(texts.values())
        assert sum(not text.startswith("none") for text in texts.values()) == here
    known = {*results.params.variants, *results.params.latency.cases}
    for rival in RIVALS.values():
        assert set(rival.found(results.params)) <= known


def test_each_method_of_the_profile_is_some_rival(many):
    results, _ = many
    found = {row for rival in RIVALS.values() for row in rival.found(results.params)}
    assert set(results.params.variants) - found == {"base", "heima-p1", "heima-p2"}


def test_looked_up_answers_have_times_and_passes_at_batch_1_alone(many):
    _, built = many
    shown = panel(built, methods.METHODS)
    times = [column for column in shown.digits if column.startswith("ms")]
    for row in ("text-cot-lookup", "heima-lookup"):
        assert isinstance(shown.entries[row, times[0]], tables.Entry)
        assert shown.entries[row, times[1]].text == "–"
    small = panel(built, "Batch 1: latency", "latency")
    assert isinstance(small.entries["heima-lookup", "passes"], tables.Entry)
    assert small.entries["heima", "passes"].text == "–"
    assert "passes" not in panel(built, "Batch 8: latency", "latency").digits


def test_accuracy_after_each_phase(many, root, params):
    results, built = many
    shown = panel(built, "Accuracy (%) after each phase, protocol lmms")
    cells, _ = read_metrics(results.root / "metrics/score/heima-no-recover.json")
    assert shown.entries["heima", "phase 3"].value == cells["lmms/mean"]["accuracy"].value
    assert shown.entries["heima-bare", "phase 2"] == shown.entries["heima", "phase 2"]
    assert shown.entries["heima-bare", "phase 3"].text == "–"
    assert "heima-no-recover" not in shown.rows, "it is a phase of heima"


def test_every_audited_row_has_a_verdict_by_the_name_of_its_variant(many):
    """In the order of the profile, and in figures told apart by colour and mark."""
    results, made = many
    rows = panel(made, audit.VERDICTS, "audit")
    assert rows.rows == results.params.audit.checkpoints and len(rows.rows) == 13
    named = ("recover", "bare", "coconut", "adaptive")
    assert [rows.entries[row, audit.VARIANT].text for row in named] == [
        "heima",
        "heima-bare",
        "coconut",
        "heima-adaptive-tokens-3",
    ]
    assert "asked by its word: adaptive for p3. " in made["audit"].blocks[0].caption
    assert "Without tags (bare, coconut) the last thinking" in made["audit"].blocks[0].caption
    looks = zip(style.colours(rows.rows).values(), style.marks(rows.rows).values(), strict=True)
    assert len(set(looks)) == len(rows.rows)
    for render in (tables.markdown, tables.latex, tables.comma_separated):
        assert "heima-tag-tokens" in render(made["audit"])


def test_all_methods_fit_on_their_pages(many, tmp_path):
    results, built = many
    files = {"methods-full.tex": tables.latex(built["methods"])}
    files |= {
        name: text
        for name, text in tables.compact_files(built, results.params).items()
        if name.startswith("methods") and not name.endswith("-column.tex")
    }
    assert len(files) == 2
    assert faults(compiled(tmp_path, files, ARTICLE)) == []


def test_counts_that_are_missing_or_left_over_are_refused(root, params, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / "metrics/flops.json"
    cells, origin = read_metrics(path)
    write_metrics(
        path, {**{k: v for k, v in cells.items() if k != "p2"}, "old": cells["p2"]}, origin
    )
    with pytest.raises(tables.TableError) as caught:
        tables.build(copy, params)
    assert "metrics/flops.json has no cells of p2" in str(caught.value)
    assert "metrics/flops.json has the left-over cells of old" in str(caught.value)
    path.unlink()
    with pytest.raises(tables.TableError, match=r"flops\.json is missing: run `dvc repro flops`"):
        tables.build(copy, params)


def test_every_cell_names_its_file(built):
    lines = comma_separated(built["methods"]).splitlines()[1:]
    pattern = r"(metrics/\S+\.json|params\.yaml|scores/\S+\.jsonl - scores/\S+\.jsonl)$"
    assert lines and all(re.search(pattern, line) for line in lines)


def test_the_frontier_is_what_nothing_beats():
    draw = random.Random(3)
    for _ in range(50):
        points = {
            name: (float(draw.randint(0, 6)), float(draw.randint(0, 6))) for name in "abcdefgh"
        }
        found = on_frontier(points)
        corners = {points[name] for name in found}
        beaten = {
            one
            for (one, (cost, score)), (c, s) in itertools.product(points.items(), points.values())
            if c <= cost and s >= score and (c, s) != (cost, score)
        }
        assert corners == {points[name] for name in points.keys() - beaten}
        assert len(corners) == len(found)
