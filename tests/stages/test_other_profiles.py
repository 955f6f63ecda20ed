"""What another profile has left in `metrics/` goes where git has it, and is named where not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from heima import config
from stages import other_profiles, profile, resolve, runs
from tests.conftest import ROOT

OTHERS = "metrics/score/theirs.json", "metrics/distill/theirs/42.json"
OWN = "metrics/distill/p1/7.json"
"""Of a training seed that is not named: in nobody's way."""


def git(*words: str) -> None:
    author = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *author, *words], check=True, capture_output=True)


def put(path: str, of: str | None) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"provenance": {"profile": of}} if of else {}))


def here() -> set[str]:
    return {path.as_posix() for path in Path("metrics").rglob("*") if path.is_file()}


def written() -> set[Path]:
    """What the stages write: a metric that the other profile has, too, and one of their own."""
    return {Path("metrics/latency.json"), Path("metrics/score/heima.json")}


@pytest.fixture
def params(tmp_path, monkeypatch) -> config.Params:
    """Of the toy, in a repository whose HEAD has another profile's results."""
    monkeypatch.chdir(tmp_path)
    for path in (*OTHERS, "metrics/latency.json"):
        put(path, "other")
    put(OWN, "toy")
    put("metrics/score/heima.json", "toy")
    git("init", "--quiet")
    git("add", "metrics")
    git("commit", "-qm", "results")
    return _toy()


def test_what_git_has_is_removed_and_can_be_brought_back(params):
    before = here()
    said = other_profiles.clear(params, written)
    assert before - here() == set(OTHERS) and "2 of other" in said
    assert not Path("metrics/distill/theirs").exists(), "no empty folder stays"
    assert other_profiles.left_over(params, written) == []
    assert other_profiles.clear(params, written) == ""
    git("checkout", "HEAD", "--", "metrics")
    assert here() == before


def changed(path: Path) -> None:
    path.write_text('{"provenance": {"profile": "other", "seed": 2}}')


def staged(path: Path) -> None:
    changed(path)
    git("add", str(path))


def hidden(path: Path) -> None:
    git("update-index", "--assume-unchanged", str(path))
    changed(path)


def gone_from_head(path: Path) -> None:
    git("rm", "--quiet", "--cached", str(path))
    git("commit", "-qm", "gone")


def linked(path: Path) -> None:
    target = path.rename(path.with_suffix(".kept"))
    path.symlink_to(target.name)


def no_git(path: Path) -> None:
    shutil.rmtree(".git")


@pytest.mark.parametrize("how", [changed, staged, hidden, gone_from_head, linked, no_git])
@pytest.mark.parametrize("path", OTHERS)
def test_what_git_does_not_have_stays_and_is_named(params, how, path):
    how(Path(path))
    other_profiles.clear(params, written)
    assert Path(path).exists()
    left = other_profiles.left_over(params, written)
    assert path in {one.path.as_posix() for one in left if not one.committed}
    said = other_profiles.refusal(left, params)
    assert path in said and "python -m stages.other_profiles --force" in said


def test_results_of_this_profile_and_files_of_nobody_are_removed_by_hand_alone(params, capsys):
    """A variant that is no longer named, and what was cut short."""
    put("metrics/score/former.json", "toy")
    Path("metrics/score/half.json").write_text("{")
    git("add", "metrics")
    git("commit", "-qm", "more")
    other_profiles.clear(params, written)
    left = {one.path.stem: one for one in other_profiles.left_over(params, written)}
    assert {name: one.profile for name, one in left.items()} == {"former": "toy", "half": None}
    assert all(one.committed for one in left.values())
    assert "(1 of no profile, 1 of toy)" in other_profiles.refusal(list(left.values()), params)


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """The pipeline and the toy's results, as a clone has them."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    profile.switch("toy", force=False)
    toy = config.load()
    for stage, folder in (("variants", "score"), ("reconstructions", "similarity")):
        for name in getattr(toy, stage):
            put(f"metrics/{folder}/{name}.json", "toy")
    for name in runs.runs(toy)["distill"]:
        checkpoint, _, seed = name.rpartition("-")
        put(f"metrics/distill/{checkpoint}/{seed}.json", "toy")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "-qm", "the toy")
    return tmp_path


def test_resolve_says_it_before_anything_is_computed(clone):
    """For a profile with fewer variants and seeds: which files, and the command; that works."""
    before = here()
    profile.switch("smol-few", force=False)
    assert here() == before, "a switch alone, for a plan, takes nothing"
    with pytest.raises(SystemExit) as refused:
        resolve.main()
    assert "`python -m stages.other_profiles` removes them" in str(refused.value)
    assert "of toy" in str(refused.value) and not Path("resolved.yaml").exists()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.other_profiles"]
    assert not subprocess.run(command, env=environment).returncode
    few = config.load()
    assert here() == {
        *(f"metrics/score/{name}.json" for name in few.variants if name in _toy().variants),
        *(f"metrics/similarity/{name}.json" for name in ("summary", "caption", "reasoning")),
        *(f"metrics/distill/{name}/42.json" for name in ("p1", "p2", "p3", "recover")),
    }
    profile.switch("toy", force=False)
    git("checkout", "HEAD", "--", "metrics")
    assert here() == before and other_profiles.left_over(config.load()) == []


def _toy() -> config.Params:
    return config.load(ROOT / "profiles" / "toy.yaml")
