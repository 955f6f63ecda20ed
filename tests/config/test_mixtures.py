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


FORMATS = {"nothing": "answer-only", "tokens": "p3", "text": "text-cot"}
PREDICTING = {
    "a mixture that is not asked": (
        {"tokens": "adaptive"},
        "audit.predictors.tokens.asks = None is not one of ['answer-only', 'icot-1', ",
    ),
    "a rendering that is not mixed": (
        {"tokens": {"model": "adaptive", "asks": "p2"}},
        "audit.predictors.tokens.asks = 'p2' is not one of ['answer-only', 'icot-1', ",
    ),
    "one of another format": (
        {"tokens": {"model": "adaptive", "asks": "text-cot"}},
        "audit.predictors.tokens.asks = 'text-cot' is not one of ['p3'], the renderings of "
        "adaptive that answer after tokens",
    ),
    "some sections as tokens": (
        {"tokens": {"model": "adaptive", "asks": "tokens-2"}},
        "audit.predictors.tokens.asks = 'tokens-2' is not one of ['p3']",
    ),
    "some sections in words": (
        {"text": {"model": "adaptive", "asks": "icot-1"}},
        "audit.predictors.text.asks = 'icot-1' is not one of ['text-cot']",
    ),
    "a checkpoint of one rendering that is asked": (
        {"nothing": {"model": "answer-only", "asks": "answer-only"}},
        "audit.predictors.nothing.asks = 'answer-only' must not be given with answer-only",
    ),
    "a model of another format, asked": (
        {"tokens": {"model": "answer-only", "asks": "p3"}},
        "audit.predictors.tokens.model = 'answer-only' is not one of ['adaptive', ",
    ),
    "a pretrained model that is asked": (
        {"text": {"model": "text-cot", "asks": "text-cot"}},
        "audit.predictors.text.asks = 'text-cot' must not be given with text-cot",
    ),
    "states fed back": ({"tokens": "state"}, "audit.predictors.tokens = 'state' is not one of"),
    "an unknown key": (
        {"text": {"model": "adaptive", "ask": "text-cot"}},
        "audit.predictors.text.ask",
    ),
    "no model": ({"text": {"asks": "text-cot"}}, "audit.predictors.text.model"),
    "no name": ({"text": 3}, "audit.predictors.text = 3"),
}


@pytest.mark.parametrize(("change", "said"), PREDICTING.values(), ids=PREDICTING)
def test_who_cannot_predict_is_refused_with_key_and_value(raw, change, said):
    asked = {part: {"model": "adaptive", "asks": name} for part, name in FORMATS.items()}
    raw["audit"] = {"predictors": {**asked, **change}}
    assert said in refused(raw)


def test_a_mixture_predicts_in_all_formats_with_a_word_for_each(raw):
    asked = {part: {"model": "adaptive", "asks": name} for part, name in FORMATS.items()}
    raw["audit"] = {"predictors": asked}
    params = config.parse(yaml.safe_dump(raw))
    assert params.audit.predictors.alone == "adaptive"
    resolved = config.resolved(params)
    assert config.parse(yaml.safe_dump(resolved)) == params
    known = resolved["derived"]["predictors"]
    assert {part: one["word"] for part, one in known.items()} == {
        part: raw["control_words"][name] for part, name in FORMATS.items()
    }
    # Thinking tokens alone are the same in all answers.
    assert known["tokens"]["prefix"] == resolved["derived"]["audits"]["one-shot"]["prefix"]
    assert known["nothing"]["prefix"] == known["text"]["prefix"] == ""
    folders = runs.runs(params)["theorem"]
    assert folders == {"adaptive": dict.fromkeys(FORMATS, "adaptive")}
    # A name alone is that of a model of one rendering; both ways may stand side by side.
    raw["audit"] = {"predictors": {**asked, "nothing": "answer-only"}}
    mixed = config.parse(yaml.safe_dump(raw))
    assert mixed.audit.predictors.alone is None
    assert config.resolved(mixed)["derived"]["predictors"]["nothing"]["word"] is None
    assert runs.runs(mixed)["theorem"]["adaptive"]["nothing"] == "answer-only"


def test_parameters_that_were_written_out_are_valid(raw):
    before = config.parse(yaml.safe_dump(raw))
    assert config.parse(yaml.safe_dump(config.resolved(before))) == before


def test_of_a_mixture_what_any_rendering_has_counts(raw):
    params = config.parse(yaml.safe_dump(raw))
    assert mixtures.thinks(params, "adaptive") and mixtures.counted(params, "adaptive")
    assert params.rendering("adaptive", "answer-only").forms["caption"] == "omit"
    assert mixtures.word(params, "adaptive", "tokens-2") == "thinking caption reasoning"
    assert mixtures.word(params, "recover", None) is None
