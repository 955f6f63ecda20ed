"""A checkpoint trained on several renderings, and variants that ask for one: what is refused."""

from __future__ import annotations

import copy

import pytest
import yaml

from heima import config
from heima.config import mixtures
from heima.config.profiles import written_out
from stages import runs
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def whole():
    return yaml.safe_load(written_out(ROOT / "profiles" / "toy-methods.yaml"))


@pytest.fixture
def raw(whole):
    """The profile with all methods, as plain data that a test may change."""
    return copy.deepcopy(whole)


def refused(raw) -> str:
    with pytest.raises(config.ConfigError) as caught:
        config.parse(yaml.safe_dump(raw))
    return str(caught.value)


CASES = {
    "an unknown rendering": (
        lambda raw: raw["checkpoints"]["adaptive"].update(data={"p9": 0.5, "p3": 0.5}),
        "checkpoints.adaptive.data = 'p9' is not one of",
    ),
    "shares below one": (
        lambda raw: raw["checkpoints"]["adaptive"]["data"].update(p3=0.1),
        "that sum to 1, not to 0.9",
    ),
    "a share of nothing": (
        lambda raw: raw["checkpoints"]["adaptive"].update(data={"p3": 1.0, "text-cot": 0.0}),
        "each above 0",
    ),
    "one rendering alone": (
        lambda raw: raw["checkpoints"]["adaptive"].update(data={"p3": 1.0}),
        "must be the shares of two renderings or more",
    ),
    "a rendering without a word": (
        lambda raw: raw["control_words"].pop("p3"),
        "control_words lacks p3, which checkpoints.adaptive.data mixes",
    ),
    "one word for two": (
        lambda raw: raw["control_words"].update(p3="answer"),
        "must not be the word of",
    ),
    "a word of no rendering": (
        lambda raw: raw["control_words"].update(p7="seven"),
        "'p7' is not one of",
    ),
    "an empty word": (
        lambda raw: raw["control_words"].update(p3=" "),
        "control_words.p3 = ' ' must be words on one line",
    ),
    "other tags": (
        lambda raw: (
            raw["checkpoints"]["adaptive"].update(data={"p3": 0.5, "bare": 0.5}),
            raw["control_words"].update(bare="token"),
        ),
        "must be renderings with the same tags, not ['none', 'text']",
    ),
    "states fed back": (
        lambda raw: raw["checkpoints"]["adaptive"].update(feed="state"),
        "checkpoints.adaptive.feed = 'state' must be 'token' with a mixture",
    ),
    "sections to explain": (
        lambda raw: raw["checkpoints"]["adaptive"].update(losses={"explain": 0.5}),
        "checkpoints.adaptive.losses.explain = 0.5 must be left out",
    ),
    "a word for one rendering": (
        lambda raw: raw["variants"]["heima"].update(asks="p3"),
        "variants.heima.asks = 'p3' must not be given with recover",
    ),
    "no word for a mixture": (
        lambda raw: raw["variants"]["heima-adaptive-0"].pop("asks"),
        "variants.heima-adaptive-0.asks = None is not one of ['answer-only', ",
    ),
    "a rendering that is not mixed": (
        lambda raw: raw["variants"]["heima-adaptive-0"].update(asks="p2"),
        "variants.heima-adaptive-0.asks = 'p2' is not one of",
    ),
    "another one's prefix": (
        lambda raw: raw["variants"]["heima-adaptive-tokens-2"].update(forced_prefix="p3"),
        "variants.heima-adaptive-tokens-2.forced_prefix = 'p3' must be 'tokens-2'",
    ),
    "states to read of a mixture": (
        lambda raw: raw["states"].update(checkpoint="adaptive"),
        "states.checkpoint = 'adaptive' is not one of",
    ),
    "no rendering at all": (
        lambda raw: raw["checkpoints"]["adaptive"].update(data=3),
        "checkpoints.adaptive.data = 3: Input should be a valid string",
    ),
    "a share in words": (
        lambda raw: raw["checkpoints"]["adaptive"]["data"].update(p3="much"),
        "checkpoints.adaptive.data.p3 = 'much': Input should be a valid number",
    ),
}


@pytest.mark.parametrize(("change", "said"), CASES.values(), ids=CASES)
def test_what_cannot_be_asked_is_refused_with_key_and_value(raw, change, said):
    change(raw)
    assert said in refused(raw)


def test_a_stage_sees_shares_words_and_renderings_of_its_own_mixture_alone(raw, params):
    before = config.parse(yaml.safe_dump(raw))
    derived = config.resolved(before)["derived"]
    assert [name for name, one in derived["models"].items() if "mixture" in one] == ["adaptive"]
    mixed = derived["models"]["adaptive"]["mixture"]
    assert sum(one["share"] for one in mixed.values()) == pytest.approx(1)
    assert mixed["tokens-1"]["rendering"]["reasoning"] == "token"
    assert derived["variants"]["heima-adaptive-0"] == {"prefix": "", "word": "answer"}
    assert derived["variants"]["heima"] == {"prefix": ""}
    raw["control_words"]["p3"] = "thinking"
    after = config.resolved(config.parse(yaml.safe_dump(raw)))["derived"]
    changed = {
        name for name in derived["models"] if derived["models"][name] != after["models"][name]
    }
    assert changed == {"adaptive"}
    # A profile without mixtures has no trace of them.
    assert "control_words" not in config.resolved(params)
    assert not any("asks" in one for one in config.resolved(params)["variants"].values())
    # What DVC repeats its stages over holds words alone.
    data = runs.runs(before)["distill"]["adaptive-42"]["data"]
    assert data.startswith("0.2 answer-only + 0.1 icot-1")


def test_parameters_that_were_written_out_are_valid(raw):
    before = config.parse(yaml.safe_dump(raw))
    assert config.parse(yaml.safe_dump(config.resolved(before))) == before


def test_of_a_mixture_what_any_rendering_has_counts(raw):
    params = config.parse(yaml.safe_dump(raw))
    assert mixtures.thinks(params, "adaptive") and mixtures.counted(params, "adaptive")
    assert params.rendering("adaptive", "answer-only").forms["caption"] == "omit"
    assert mixtures.word(params, "adaptive", "tokens-2") == "thinking caption reasoning"
    assert mixtures.word(params, "recover", None) is None
