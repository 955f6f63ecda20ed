"""A profile is a parameter file, or what is other than in its base."""

from __future__ import annotations

import pytest
import yaml

from heima import config
from heima.config.profiles import written_out
from tests.conftest import ROOT

BASE = """\
# The base.
seed: 1  # of the data
teach:
  llm: {id: a/b, revision: c}
controls: [own, zero]
"""

LLM = {"id": "a/b", "revision": "c"}


def write(folder, **profiles):
    for name, text in profiles.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("seed: 2", {"seed": 2}),
        ("teach: {llm: {id: null, path: d}}", {"teach": {"llm": {"revision": "c", "path": "d"}}}),
        ("controls: [own]", {"controls": ["own"]}),
        ("teach: {vlm: {steps: 3}}", {"teach": {"llm": LLM, "vlm": {"steps": 3}}}),
        ("seed: null", {}),
    ],
)  # fmt: skip
def test_a_profile_changes_its_base(tmp_path, own, expected):
    write(tmp_path, base=BASE, own=f"# My own.\nbase: base\n{own}\n")
    text = written_out(tmp_path / "own.yaml")
    whole = yaml.safe_load(BASE)
    if own == "seed: null":
        del whole["seed"]
    assert yaml.safe_load(text) == whole | expected
    assert text.startswith("# My own.\n") and "# The base." not in text


def test_comments_of_the_base_stay(tmp_path):
    write(tmp_path, base=BASE, own="base: base\ncontrols: [own]\n")
    assert "# of the data" in written_out(tmp_path / "own.yaml")


def test_a_base_may_have_a_base(tmp_path):
    write(tmp_path, base=BASE, one="base: base\nseed: 2\n", two="base: one\ncontrols: [own]\n")
    whole = yaml.safe_load(BASE) | {"seed": 2, "controls": ["own"]}
    assert yaml.safe_load(written_out(tmp_path / "two.yaml")) == whole


def test_a_base_is_there_and_no_circle(tmp_path):
    write(tmp_path, one="base: two\n", two="base: three\n", own="base: own\n")
    with pytest.raises(config.ConfigError, match=r"base: there is no .*three\.yaml"):
        written_out(tmp_path / "one.yaml")
    write(tmp_path, three="base: one\n")
    with pytest.raises(config.ConfigError, match="base: one -> two -> three -> one is a circle"):
        written_out(tmp_path / "one.yaml")
    with pytest.raises(config.ConfigError, match="own -> own is a circle"):
        written_out(tmp_path / "own.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_is_valid_and_named_like_its_file(path):
    assert config.load(path).profile == path.stem
    assert config.parse(written_out(path)) == config.load(path)
