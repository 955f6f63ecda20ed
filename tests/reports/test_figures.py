"""Figures: the same bytes every time, without a date; and each point where its number is."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from heima import config
from reports import figures
from reports.figures import interpreters, latency, scores, series, style, training
from reports.tables import TableError
from reports.tables.model import Entry
from stages import figures as stage
from stages import resolve, tables


@pytest.fixture(scope="module")
def inputs(finished, finished_params):
    return figures.Inputs(finished, finished_params)


def test_every_figure_is_written_twice_the_same(inputs, finished, tmp_path, monkeypatch):
    """In a process that has drawn others before, too: ids do not count on."""
    there = finished / "reports" / "toy" / "figures"
    names = sorted(path.name for path in there.iterdir())
    assert names == sorted(f"{name}.{end}" for name in figures.FIGURES for end in style.SUFFIXES)
    for name, drawing in figures.FIGURES.items():
        with style.applied(), monkeypatch.context() as patch:
            if name != "answer-lengths":  # A PDF embeds its fonts, which takes half a second.
                patch.setattr(style, "SUFFIXES", ("svg",))
            style.write(drawing.draw(inputs), tmp_path, name)
    again = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(again) == len(figures.FIGURES) + 1
    assert again == {name: (there / name).read_bytes() for name in again}
    for name in names:
        text = (there / name).read_bytes()
        assert b"CreationDate" not in text and b"<dc:date>" not in text, name


def test_svg_holds_its_words_as_text_and_nothing_from_elsewhere(finished, finished_params):
    folder = finished / "reports" / "toy" / "figures"
    for name in figures.FIGURES:
        root = ET.parse(folder / f"{name}.svg").getroot()
        words = {"".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")}
        assert len(words) > 5, name
        links = re.findall(r'(?:href|src)="([^"]*)"', (folder / f"{name}.svg").read_text("utf-8"))
        assert all(link.startswith("#") for link in links), name
    text = (folder / "accuracy-by-tokens.svg").read_text("utf-8")
    assert all(f">{variant}<" in text for variant in finished_params.variants)


def test_every_entry_tells_its_reader_what_it_is():
    for drawing in figures.FIGURES.values():
        assert drawing.title and drawing.caption.endswith(".")
        assert drawing.table is None or drawing.table in tables.NAMES
        assert drawing.draw.__doc__


def test_points_lie_where_their_numbers_are(inputs, finished_params):
    with style.applied():
        drawn = scores.accuracy_by_tokens(inputs)
        axes = drawn.axes[0]
        found = {
            container.get_label(): container.lines[0].get_xydata()[0]
            for container in axes.containers
        }
    assert found.keys() == finished_params.variants.keys()
    for variant, (x, y) in found.items():
        entries = inputs.entries(variant, "lmms/mean")
        assert x == pytest.approx(entries["decoded_tokens"].value)
        assert y == pytest.approx(entries["accuracy"].value)


def test_phases_of_latency_are_stacked(inputs, finished_params):
    with style.applied():
        bars = latency.latency_by_phase(inputs).axes[0].patches
    cells = inputs.latency[0]["text-cot/batch-1"]
    begin = 0.0
    for phase, bar in zip(latency.PHASES, bars, strict=False):
        assert (bar.get_x(), bar.get_width()) == pytest.approx((begin, cells[f"{phase}_ms"].value))
        begin += bar.get_width()


def test_bars_of_an_interval_never_point_inwards():
    """A percentile interval need not hold the mean."""
    assert style.error(Entry(2.0, "f", 1.0, 4.0)) == [[1.0], [2.0]]
    assert style.error(Entry(5.0, "f", 1.0, 4.0)) == [[4.0], [0.0]]
    assert style.error(Entry(0.0, "f", 1.0, 4.0)) == [[0.0], [4.0]]
    assert style.error(Entry(2.0, "f")) == [[0.0], [0.0]]


def test_points_of_a_curve_are_means_of_all_updates():
    rows = [{"step": step, "loss": float(step % 7)} for step in range(1, 101)]
    x, y = training.binned(rows, points=10)
    assert len(x) == len(y) == 10 and list(x) == sorted(x)
    assert y.mean() == pytest.approx(np.mean([row["loss"] for row in rows]))
    assert [list(part) for part in training.binned(rows[:3], points=10)] == [[1, 2, 3], [1, 2, 3]]


def test_the_plane_of_states_is_that_of_most_variance():
    random = np.random.default_rng(1)
    states = random.normal(size=(50, 6)) * [9, 5, 1, 1, 0.1, 0.1] + 3
    places, shares = interpreters.principal(states)
    values = np.sort(np.linalg.eigvalsh(np.cov(states.T)))[::-1]
    assert shares == pytest.approx(values / values.sum())
    assert np.var(places, axis=0, ddof=1) == pytest.approx(values[:2])
    turned = interpreters.principal(-states)[0]
    assert np.abs(turned) == pytest.approx(np.abs(places)), "a plane has no front"
    constant, none = interpreters.principal(np.ones((4, 3)))
    assert not constant.any() and not none.any()


@pytest.mark.parametrize(
    ("name", "lost", "named"),
    [
        ("loss-by-phase", "models/p1/42/loss.jsonl", "models/p1/42/loss.jsonl is missing"),
        ("state-geometry", "states/43/heldout.safetensors", "run `dvc repro states@43`"),
        ("answer-lengths", "scores/base.jsonl", "run `dvc repro score@base`"),
    ],
)
def test_what_a_figure_lacks_is_named(damaged, finished_params, name, lost, named):
    (damaged / lost).unlink()
    with style.applied(), pytest.raises(figures.FigureError, match=re.escape(named)):
        figures.FIGURES[name].draw(figures.Inputs(damaged, finished_params))


def test_a_run_without_a_loss_is_named(damaged, finished_params):
    (damaged / "interpreters/shared/own/44/loss.jsonl").write_text("", encoding="utf-8")
    with style.applied(), pytest.raises(figures.FigureError, match=r"shared/own/44/.* has no rows"):
        training.loss_by_phase(figures.Inputs(damaged, finished_params))


def test_figures_stay_where_new_ones_cannot_be_drawn(damaged, monkeypatch):
    monkeypatch.chdir(damaged)
    resolve.write(config.load())
    (damaged / "metrics/score/heima.json").unlink()
    before = (damaged / "reports/toy/figures/loss-by-phase.svg").read_bytes()
    with pytest.raises(SystemExit, match=r"no figure was written:\nmetrics/score/heima\.json is"):
        stage.main()
    assert (damaged / "reports/toy/figures/loss-by-phase.svg").read_bytes() == before


def test_states_of_other_turns_are_refused(damaged, finished_params):
    (damaged / "states/42/heldout.safetensors").unlink()
    import torch
    from safetensors.torch import save_file

    states = {section: torch.zeros(3, 8) for section in finished_params.sections}
    counts = {f"{section}.counts": torch.ones(3) for section in finished_params.sections}
    save_file(states | counts, damaged / "states/42/heldout.safetensors")
    with style.applied(), pytest.raises(figures.FigureError, match="has 3 turns, data/rewritten"):
        interpreters.state_geometry(figures.Inputs(damaged, finished_params))


def test_a_profile_without_a_judge_of_reconstructions_has_no_grades(damaged, finished_params):
    """Its files have no grades then, and its figure one line of panels."""
    unjudged = finished_params.model_copy(
        update={"similarity": finished_params.similarity.model_copy(update={"judged": ()})}
    )
    with pytest.raises(TableError, match="left-over cell"):
        _ = figures.Inputs(damaged, unjudged).similarities


def test_the_series_has_a_row_for_each_run_and_one_for_the_paper(beside):
    """Points and bars are those of the tables; the paper's are apart and say so."""
    inputs = figures.Inputs(beside.root, beside.params)
    with style.applied():
        drawn = series.thinking_series(inputs)
    grid = [drawn.axes[place : place + 2] for place in range(0, len(drawn.axes), 2)]
    titles = [line[0].get_title(loc="left") for line in grid]
    assert titles == [
        "toy-thinking profile (toy: not comparable)",
        "paper (llava-cot-11b, VLMEvalKit protocol, not comparable)",
    ]
    block = inputs.tables["tokens_per_stage"].blocks[0]
    points = grid[0][0].containers[0].lines[0].get_xydata()
    wanted = [(float(row), block.panels[0].entries[row, "mean"].value) for row in ("1", "4")]
    assert points.tolist() == [pytest.approx(point) for point in wanted]
    assert len(grid[1][0].containers[0].lines[0].get_xydata()) == 6
    assert len(grid[1][1].containers[0].lines[0].get_xydata()) == 9


def test_the_series_without_ours_is_the_paper_s_alone(inputs):
    with style.applied():
        drawn = series.thinking_series(inputs)
    assert len(drawn.axes) == 2


def test_metrics_of_interpreters_are_bars_beside_the_paper_s(inputs, finished_params):
    with style.applied():
        drawn = interpreters.interpreter_metrics(inputs)
    ours, theirs = drawn.axes[:3], drawn.axes[3:6]
    cells, _ = inputs.similarities["caption"]
    heights = [bar.get_height() for bar in ours[1].patches]
    for metric in ("bleu4", "rougeL"):
        for control in ("own", "shuffled", "question-only"):
            assert cells[control][metric].value in heights
    grade = cells["own"]["embedded_rules_similarity"].value
    assert any(height == pytest.approx(25 * (grade - 1)) for height in heights), (
        "1 to 5 as 0 to 100"
    )
    [published] = [bar.get_height() for bar in theirs[1].patches if bar.get_height() == 71.4]
    assert (
        published and theirs[0].get_title(loc="left") == "the paper's (toy above: not comparable)"
    )
    assert ours[0].get_ylabel() == f"{finished_params.profile} profile (%)"
