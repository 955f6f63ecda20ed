"""What git holds of a run is the run, whether at the root or in a profile's own file."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from heima.config.profiles import written_out
from heima.results import recorded
from tests.conftest import ROOT
from tests.results.test_agreement import commit, of_profile, run, write

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars.filter(lambda one: one not in (float("inf"), -float("inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=12,
)
STAGES = tuple(run().outs)


@given(st.dictionaries(st.text(), values, max_size=5), st.integers(1, 80))
def test_a_layout_loses_nothing_and_follows_from_the_content(content, width):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "_WIDTH", width)
        text = recorded.laid_out(content)
        turned = recorded.laid_out(dict(reversed(content.items())))
    assert json.dumps(json.loads(text), sort_keys=True) == json.dumps(content, sort_keys=True)
    assert turned == text


def test_a_changed_number_is_one_changed_line(tmp_path):
    text = recorded.write(tmp_path, run()).read_text(encoding="utf-8").split("\n")
    other = run()
    other.metrics["metrics/distill/p3/43.json"]["cells"]["heldout"]["loss"]["value"] = 1 / 3
    again = recorded.write(tmp_path, other).read_text(encoding="utf-8").split("\n")
    [(before, after)] = [(a, b) for a, b in zip(text, again, strict=True) if a != b]
    assert str(1 / 3) in after and len(before) <= recorded._WIDTH


def test_the_root_and_a_file_hold_the_same_run(tmp_path):
    """Not a digit is lost on either way, and latency is on neither."""
    own, other = run(shift=1 / 3), of_profile("toy-more", shift=2 / 3)
    write(tmp_path / "one", other)
    write(tmp_path, own)
    (tmp_path / "metrics/latency.json").write_text('{"cells": {}}')
    for name in other.tables:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text((tmp_path / "one" / name).read_text())
        (tmp_path / name).with_name("latency.csv").write_text("origin\n")
    recorded.write(tmp_path, recorded.in_folder(tmp_path / "one", STAGES))
    commit(tmp_path)
    assert recorded.at_revision(tmp_path, "HEAD", "toy") == own
    assert recorded.at_revision(tmp_path, "HEAD", "toy-more") == other
    assert recorded.at_revision(tmp_path, "HEAD", "toy-more").where.endswith("more/record.json")
    assert recorded.in_root(tmp_path, "HEAD") == "toy"
    assert recorded.in_root(tmp_path / "metrics", "HEAD") is None, "no params.yaml is there"


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_parameters_of_every_profile_are_what_json_can_hold(path):
    params = yaml.safe_load(written_out(path))
    assert json.loads(recorded.laid_out(params)) == params


def test_what_no_stage_made_is_left_over_and_in_no_record(tmp_path):
    write(tmp_path, run())
    stages = [stage for stage in STAGES if stage != "distill@p3-43"]
    stale = tmp_path / "metrics/score/of-another-profile.json"
    stale.write_text("{}")
    found = recorded.in_folder(tmp_path, stages)
    assert found.left_over == ("dvc.lock: distill@p3-43", "metrics/score/of-another-profile.json")
    assert found.metrics == run().metrics and set(found.outs) == set(stages)
    many = replace(found, left_over=("a", "b", "c", "d", "e"))
    assert many.told_left_over == "a, b, c and 2 more"


@pytest.mark.parametrize("gone", ["dvc.lock", "params.yaml"])
def test_without_results_there_is_no_run(tmp_path, gone):
    write(tmp_path, run())
    (tmp_path / gone).unlink()
    with pytest.raises(recorded.RecordError, match=f"has no {gone}, so no results"):
        recorded.in_folder(tmp_path, STAGES)
    commit(tmp_path)
    with pytest.raises(recorded.RecordError, match="no recorded results of the profile toy: run"):
        recorded.at_revision(tmp_path, "HEAD", "toy")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda content: "{", "Expecting property name"),
        (lambda content: "[]", "the file: "),
        (lambda content: json.dumps(content | {"more": 1}), "more: "),
        (lambda content: json.dumps({"params": content["params"]}), "outs: "),
        (lambda content: json.dumps(content | {"outs": {"a": {"b": 1}}}), r"outs\.a\.b: "),
        (lambda content: json.dumps(content | {"metrics": {"a": 1}}), r"metrics\.a: "),
        (lambda content: json.dumps(content | {"params": {"profile": "one"}}), "the profile one,"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path, damage, named):
    path = recorded.write(tmp_path, of_profile("toy-more"))
    path.write_text(damage(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    commit(tmp_path)
    with pytest.raises(recorded.RecordError, match=named) as caught:
        recorded.at_revision(tmp_path, "HEAD", "toy-more")
    assert str(caught.value).startswith("HEAD:reports/toy-more/record.json is ")


def test_records_that_are_committed_can_be_read():
    names = subprocess.run(
        ["git", "ls-files", "reports/*/record.json"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for name in names:
        profile = name.split("/")[1]
        files = {name: (ROOT / name).read_bytes()}
        assert recorded._from_file(files, profile, name).profile == profile
