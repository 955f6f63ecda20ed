"""runs.yaml: what dvc.yaml repeats a stage over."""

from __future__ import annotations

import pytest
import yaml

from heima import config
from stages import resolve, runs
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
)
def test_runs_continue_what_was_trained_with_their_own_seed(profile):
    params = config.load(ROOT / "profiles" / f"{profile}.yaml")
    distill = runs.runs(params)["distill"]
    given = {name for name, one in params.checkpoints.items() if hasattr(one, "adapter")}
    assert len(distill) == len(params.checkpoints.keys() - given) * len(params.seeds)
    made = {f"{one['checkpoint']}/{one['seed']}" for one in distill.values()}
    for one in distill.values():
        checkpoint = params.checkpoints[one["checkpoint"]]
        if checkpoint.init == "text-cot":
            assert one["init"] == "text-cot"
        else:
            assert one["init"] == f"{checkpoint.init}/{one['seed']}" and one["init"] in made


def test_the_list_in_git_is_that_of_params():
    listed = yaml.safe_load((ROOT / "runs.yaml").read_text(encoding="utf-8"))
    assert listed == {"runs": runs.runs(config.load(ROOT / "params.yaml"))}


def test_a_list_that_does_not_fit_is_written_anew_and_said(tmp_path, monkeypatch, raw_params):
    raw_params["seeds"] = [7]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw_params), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"runs\.yaml did not list the runs.*`dvc repro` again"):
        resolve.main()
    assert "p1-7" in yaml.safe_load(runs.FILE.read_text(encoding="utf-8"))["runs"]["distill"]
    assert not runs.write(config.load())


def test_seeds_are_named_once(raw_params):
    raw_params["seeds"] = [42, 43, 42]
    with pytest.raises(config.ConfigError, match=r"seeds = \[42, 43, 42\] must name no seed twice"):
        config.parse(yaml.safe_dump(raw_params))
    raw_params["seeds"] = []
    with pytest.raises(config.ConfigError, match="seeds"):
        config.parse(yaml.safe_dump(raw_params))
