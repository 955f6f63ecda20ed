"""Parameters: the committed profiles are valid, wrong values are named with what is allowed."""

from __future__ import annotations

import re
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from heima import config
from heima.config import chains, profiles
from heima.cot.rendering import constant_prefix
from heima.cot.thinking import ONE_TOKEN, Thinking
from heima.data.encoding import thinking_count
from heima.toy.world import KINDS
from stages import profile, resolve, runs
from tests.conftest import ROOT
from tests.fabricated_sources import paper_yaml


def test_params_yaml_is_the_toy_profile():
    toy = (ROOT / "profiles" / "toy.yaml").read_text(encoding="utf-8")
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == toy


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_is_valid(path):
    assert config.load(path).profile == path.stem


def test_the_kinds_of_question_are_the_toy_worlds():
    assert get_args(config.QuestionKind) == KINDS


def edit(raw: dict, key: str, value) -> str:
    *parents, last = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
    if value is ...:
        del raw[last]
    else:
        raw[last] = value
    return last


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rewrite.heldout", 1.5, r"rewrite\.heldout = 1\.5: .*less than 1"),
        ("rewrite.split", "record", r"rewrite\.split = 'record': .*'image' or 'turn'"),
        ("rewrite.spacig", "any", r"rewrite\.spacig = 'any': unknown key"),
        ("rewrite.compat", "official", r"official needs split = turn, not image, image_place"),
        ("seed", ..., r"seed: missing"),
        ("checkpoints.p2.learning_rate", -1, r"p2\.learning_rate = -1: .*greater than 0"),
        ("checkpoints.p2.data", "p9", r"data = 'p9' is not one of \['answer-only', 'p1'"),
        ("checkpoints.p2.init", "p7", r"checkpoints\.p2\.init = 'p7' is not one of"),
        ("checkpoints.p1.init", "recover", r"circle"),
        ("checkpoints.p1.epochs", 1.0, r"exactly one of steps and epochs"),
        ("checkpoints.one-shot.steps", 7, r"checkpoints\.one-shot\.steps = 7 must be \d+"),
        ("checkpoints.p1.thinking", {"tokens": 33}, r"p1\.thinking\.tokens = 33: .*equal to 32"),
        ("checkpoints.p1.thinking", {"ratio": 1.0}, r"p1\.thinking\.ratio = 1\.0: .*less than 1"),
        ("checkpoints.p1.thinking", {"tokens": 2, "ratio": 0.5}, r"one of tokens and ratio"),
        ("checkpoints.answer-only.thinking", {"tokens": 2}, r"answer-only has no thinking tokens"),
        ("checkpoints.p2.thinking", {"ratio": 0.5},
         r"checkpoints\.p2\.thinking = \{ratio: 0\.5\} must be \{tokens: 1\}, that of p1"),
        ("renderings.p3", {"summary": "omit", "caption": "omit", "reasoning": "omit"},
         r"renderings\.p3: must have another name than text-cot, p1"),
        ("renderings.x", {"summary": "text", "caption": "omit", "reasoning": "omit",
                          "tags": "none"},
         r"renderings\.x: tags = 'none' with summary = 'text': nothing would tell the summary"),
        ("renderings.x", {"summary": "text", "caption": "latent", "reasoning": "omit"},
         r"renderings\.x\.caption = 'latent': .*'text', 'token', 'omit', 'filler' or 'short'"),
        ("renderings.x", {"summary": "text", "caption": "text"}, r"x\.reasoning: missing"),
        ("renderings.x", {"summary": "text", "caption": "text", "reasoning": "text",
                          "tags": "xml"}, r"x\.tags = 'xml': .*'text', 'token' or 'none'"),
        ("checkpoints.p1.feed", "embedding", r"p1\.feed = 'embedding': .*'token' or 'state'"),
        ("checkpoints.p2.feed", "state",
         r"checkpoints\.p2\.feed = 'state' must be 'token', that of p1 earlier in its chain"),
        ("checkpoints.p1.feed_scale", "match",
         r"feed_scale = 'match' must be 'none' with feed = 'token'"),
        ("checkpoints.answer-only.feed", "state",
         r"answer-only\.feed = 'state': the rendering answer-only has no thinking tokens"),
        ("checkpoints.answer-only.thought_loss", False,
         r"answer-only\.thought_loss = False: the rendering answer-only has no thinking"),
        ("checkpoints.p1.losses", {"align": 0}, r"losses\.align = 0: .*greater than 0"),
        ("checkpoints.p1.losses", {"aligned": 1}, r"losses\.aligned = 1: unknown key"),
        ("checkpoints.answer-only.losses", {"explain": 1.0},
         r"answer-only\.losses\.explain = 1\.0: the rendering answer-only has no thinking tokens"),
        ("training.micro_batch_size", 6,
         r"training: micro_batch_size = 6 must stand in `hardware`; `training` has group_by"),
        ("training.tile", "real", r"training\.tile = 'real': unknown key"),
        ("hardware.tiles", "real", r"hardware\.tiles = 'real': unknown key"),
        ("hardware.slurm", {"gpus": 8}, r"hardware\.slurm\.gpus = 8: unknown key"),
        ("hardware.slurm", {"gpus_per_node": 0}, r"gpus_per_node = 0: .*greater than 0"),
        ("hardware.slurm", {"nodes": True}, r"nodes = True must be no truth value"),
        # YAML's reading of 1:30:00 without quotation marks
        ("hardware.slurm", {"time": 5400}, r"slurm\.time = 5400: must be a text in quotation"),
        ("hardware.slurm", {"time": "2 days"}, r"slurm\.time = '2 days': .*pattern"),
        ("hardware.slurm", {"mem": 64}, r"slurm\.mem = 64: must be a text in quotation marks"),
        ("hardware.slurm", {"partition": "a b"}, r"slurm\.partition = 'a b': .*pattern"),
        ("hardware.slurm", {"requeues": -1}, r"requeues = -1: .*greater than or equal to 0"),
        ("states.checkpoint", "p8", r"states\.checkpoint = 'p8' is not one of"),
        ("variants.heima.model", "p8", r"variants\.heima\.model = 'p8' is not one of"),
        ("reconstruct.controls", ["zero"], r"controls = \['zero'\] must name `own`"),
        ("similarity.judged", ["own", "own"],
         r"judged = \['own', 'own'\] must name no control twice"),
        ("teach.llm.hidden_size", 32, r"llm\.hidden_size = 32 must equal vlm\.hidden_size"),
        ("teach.llm.steps", ..., r"teach\.llm.*\.steps: missing"),
        ("teach.vlm.steps", ..., r"teach\.vlm.*\.steps: missing"),
        ("judge.backend", "oracle", r"judge.*embedded-rules"),
        ("variants.heima", ..., r"variants must name `heima`"),
        ("interpreters.caption.sections", ["caption", "caption"],
         r"caption[^=]*: sections = \['caption', 'caption'\] must name no section twice"),
        ("reconstructions.caption.interpreter", "summary",
         r"caption\.interpreter = 'summary' is not one of \['caption', 'shared'\], the interp"),
        ("reconstructions.summary", ..., r"reconstructions must name 'summary'"),
        ("similarity.judged", ["zero"], r"judged must name `own`"),
        ("similarity.judged", ["own", "random"], r"similarity\.judged.*'shuffled'"),
        ("reconstruct.controls", ["own", "zero"], r"judged: mean, .* among .*\['own', 'zero'"),
        ("similarity.references", "raw", r"references = 'raw': .*'clean' or 'official'"),
        ("judge", {"backend": "openai", "base_url": "http://x", "model": "m", "budget_usd": 5},
         r"budget_usd = 5\.0 needs a price"),
        *(("judge", {"backend": "openai", "base_url": url, "model": "m"},
           r"judge[^=]*: base_url must be http\(s\)://host\[:port\]\[/path\] without user, pass")
          for url in ("https://me:hunter2@x/v1", "https://hunter2@x", "http://x/v1?key=hunter2",
                      "http://x/v1#hunter2", "http:///v1")),
        ("judge", {"backend": "openai", "base_url": "http://x", "model": "m",
                   "api_key_env": "sk-hunter2"},
         r"judge[^=]*: api_key_env must be the name of an environment variable, not the key"),
        ("judge", {"backend": "openai", "base_url": "http://x", "model": "m", "workers": 0},
         r"workers = 0: .*greater than or equal to 1"),
        ("states.checkpoint", "p1", r"states\.checkpoint = 'p1' is not one of \['one-shot'"),
        ("source.mix", {"guess": 1}, r"source.*mix\.guess.*'look-option'"),
        ("source.benchmark_sizes.ai2d", ..., r"source\.benchmark_sizes lacks ai2d"),
        ("source.benchmark_sizes.hallusionbench", 7, r"hallusionbench = 7 must be a multiple of 4"),
        ("source", {"kind": "folder", "path": "x", "benchmarks": {"ai2d": {"path": "y"}}},
         r"source\.benchmarks lacks hallusionbench, mathvista"),
        ("source", {"kind": "folder", "path": "x", "benchmarks": {
            name: {"path": "y"} for name in config.BENCHMARKS}},
         r"teach\.vlm\.kind = 'train' needs source\.kind = 'toy'"),
        ("source", {"kind": "folder", "path": "x", "benchmarks": {
            "ai2d": {"id": "a/b", "path": "y"}}},
         r"ai2d: give exactly one of path and id"),
        ("source", {"kind": "folder", "path": "x", "benchmarks": {
            "ai2d": {"id": "a/b", "revision": "main"}}},
         r"ai2d\.revision = 'main': .*40"),
        ("protocols.paper", {}, r"protocols\.paper.*'lmms' or 'vlmevalkit'"),
        ("protocols.lmms.seeds", [1, 2], r"seeds = \[1, 2\] must be one: at temperature 0"),
        ("protocols.vlmevalkit.seeds", [1, 1],
         r"protocols\.vlmevalkit: seeds = \[1, 1\] must name no seed twice"),
        ("seeds", [42, 43, 42], r"seeds = \[42, 43, 42\] must name no seed twice"),
        ("protocols.vlmevalkit.data", {"ai2d": "ai2d-mask"}, r"benchmark_sizes lacks ai2d-mask"),
        ("benchmarks", ["ai2d", "ai2d"],
         r"benchmarks = \['ai2d', 'ai2d'\] must name no benchmark twice"),
        ("benchmarks", ["mmmu"], r"benchmarks\.0 = 'mmmu': .*'mmstar'"),
        ("predict.engine", "vllm", r"engine = 'vllm' does not serve the family toy-mllama"),
        ("variants.heima.forced_prefix", "p2", r"forced_prefix = 'p2' is not one of \['p3'\]"),
        ("latency.cases.heima.variant", "hema", r"latency\.cases\.heima\.variant = 'hema' is not"),
        ("latency.cases.heima.budget", "x", r"cases\.heima\.budget = 'x' is not one of \['answer"),
        ("latency.batch_sizes", [1, 1],
         r"latency: batch_sizes = \[1, 1\] must name no size twice"),
        ("page.samples", 0, r"page\.samples = 0: .*greater than or equal to 1"),
        ("page.samples", 2000, r"page\.samples = 2000: .*less than or equal to 1000"),
        ("page.shown", 3, r"page\.shown = 3: unknown key"),
        ("latency.benchmark", "mmmu", r"latency\.benchmark = 'mmmu'"),
        ("latency.peaks", {"device": "x", "tflops": 0, "gb_per_s": 1},
         r"tflops = 0: .*greater than 0"),
        ("source.kind", "drawn", r"source.*'toy', 'folder', 'hub'"),
        ("source", {"kind": "hub", "id": "LLaVA-CoT-100k", "path": "x", "benchmarks": {}},
         r"id = 'LLaVA-CoT-100k'"),
        ("source", {"kind": "hub", "id": "a/b", "path": "data/./source/x", "benchmarks": {
            name: {"path": "y"} for name in config.BENCHMARKS}},
         r"path = 'data/\./source/x' must not lie in data/source: DVC deletes"),
        ("teach.llm", {"kind": "pretrained", "id": "a/b", "revision": "main"},
         r"revision = 'main': .*40"),
        ("teach.llm", {"kind": "pretrained", "id": "a/b", "path": "c"},
         r"give exactly one of path and id"),
        ("teach.llm", {"kind": "pretrained", "id": "a/b"},
         r"llm\.kind = 'pretrained' must be 'train' for the family toy-mllama"),
        ("family", "llava-cot-11b",
         r"vlm\.kind = 'train' must be 'pretrained' for the family llava-cot-11b"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(raw_params, key, value, message):
    edit(raw_params, key, value)
    with pytest.raises(config.ConfigError, match=message):
        config.parse(yaml.safe_dump(raw_params))


@pytest.mark.parametrize("thinking", [{"tokens": 4}, {"ratio": 0.3}])
def test_a_chain_has_one_number_of_thinking_tokens(raw_params, thinking):
    """Told of all its checkpoints, or of a chain that starts from one without thinking tokens."""
    checkpoints, variants = raw_params["checkpoints"], raw_params["variants"]
    for name in ("p1", "p2", "p3", "recover"):
        checkpoints[name]["thinking"] = thinking
    checkpoints["p3-one"] = {**checkpoints["one-shot"], "init": "answer-only", "matched": []}
    if "ratio" in thinking:
        with pytest.raises(config.ConfigError, match=r"forced_prefix: answers of recover do not"):
            config.parse(yaml.safe_dump(raw_params))
        del variants["heima-forced-prefix"], raw_params["latency"]["cases"]["heima-forced-prefix"]
        with pytest.raises(config.ConfigError, match=r"audit.checkpoints: 'recover' is not one of"):
            config.parse(yaml.safe_dump(raw_params))
        del raw_params["audit"]
    params = config.parse(yaml.safe_dump(raw_params))
    assert params.thinking("recover") == Thinking(**thinking)
    assert params.thinking("p3-one") == params.thinking("base") == ONE_TOKEN
    for name in ("p1", "p3"):
        checkpoints[name] = {**checkpoints[name], "thinking": {"tokens": 2}}
        with pytest.raises(config.ConfigError, match=r"must be .* earlier in its chain"):
            config.parse(yaml.safe_dump(raw_params))


def test_the_prefix_of_a_model_is_what_its_answers_begin_with(raw_params):
    raw_params["checkpoints"]["one-shot"]["thinking"] = {"tokens": 3}
    params = config.parse(yaml.safe_dump(raw_params))
    assert params.prefix("one-shot", None) == ""
    assert params.prefix("recover", "p3") == constant_prefix("p3")
    three = params.prefix("one-shot", "p3")
    assert three.count("<THINKING_OF_") == 9 and "_3></REASONING>" in three.replace(" ", "")


BARE = {"summary": "token", "caption": "filler", "reasoning": "omit", "tags": "none"}


def test_a_rendering_of_known_forms_needs_no_code(raw_params):
    """Its checkpoint, the prefix of its answers and what stages read follow from it."""
    raw_params["renderings"] = {"bare": BARE}
    raw_params["checkpoints"]["bare"] = {
        **raw_params["checkpoints"]["recover"], "data": "bare", "thinking": {"tokens": 1}
    }  # fmt: skip
    raw_params["variants"]["bare"] = {"model": "bare", "forced_prefix": "bare"}
    params = config.parse(yaml.safe_dump(raw_params))
    assert params.rendering("bare") == params.renderings["bare"] and params.controls
    assert params.prefix("bare", "bare") == "<THINKING_OF_SUMMARY><FILLER_OF_THINKING>"
    written = config.resolved(params)["derived"]
    assert written["models"]["bare"]["rendering"] == BARE and written["controls"]
    assert written["models"]["base"]["rendering"]["tags"] == "text"
    assert written["variants"]["bare"]["prefix"] == params.prefix("bare", "bare")
    assert config.parse(yaml.safe_dump(config.resolved(params))) == params


@pytest.mark.parametrize(
    ("forms", "thinking", "message"),
    [
        ({"tags": "token"}, {"tokens": 30}, r"x\.thinking\.tokens = 30 must be at most 29 where"),
        ({"caption": "omit", "summary": "omit"}, {"tokens": 2},
         r"x\.thinking = \{tokens: 2\}: the rendering bare has no thinking tokens"),
        ({"caption": "short"}, {"tokens": 2}, r"nothing would tell the caption from"),
    ],
)  # fmt: skip
def test_wrong_counts_of_a_rendering_are_named(raw_params, forms, thinking, message):
    raw_params["renderings"] = {"bare": {**BARE, **forms}}
    raw_params["checkpoints"]["x"] = {
        **raw_params["checkpoints"]["one-shot"], "data": "bare", "thinking": thinking
    }  # fmt: skip
    with pytest.raises(config.ConfigError, match=message):
        config.parse(yaml.safe_dump(raw_params))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("checkpoints.one-shot.thinking", {"ratio": 0.5},
         r"needs thinking\.tokens, not thinking = \{ratio: 0\.5\}: all rows"),
        ("distill.too_long", "cut", r"needs distill\.too_long = 'drop' or 'refuse', not 'cut'"),
        ("hardware.gradient_checkpointing", True,
         r"needs hardware\.gradient_checkpointing = false: .* drops the cache"),
        ("predict.engine", "vllm", r"needs predict\.engine = 'transformers', not 'vllm'"),
    ],
)  # fmt: skip
def test_what_states_fed_back_cannot_go_with_is_named(raw_params, key, value, message):
    raw_params["checkpoints"]["one-shot"]["feed"] = "state"
    params = config.parse(yaml.safe_dump(raw_params))
    assert params.feed("one-shot") == "none" and params.feed("recover") is None
    assert config.resolved(params)["derived"]["models"]["one-shot"]["feed"] == "none"
    edit(raw_params, key, value)
    with pytest.raises(
        config.ConfigError, match=rf"checkpoints\.one-shot\.feed = 'state' {message}"
    ):
        config.parse(yaml.safe_dump(raw_params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "toy-idefics3"}, "must be 'open' for the family toy-idefics3; .* toy-mllama,"),
        ({"checkpoints.planted.data": "p2"}, "needs a checkpoint that can be audited"),
        ({"checkpoints.planted.data": "answer-only"}, "needs a checkpoint that can be audited"),
        ({"checkpoints.planted.losses": {"explain": 1.0}}, "needs losses without align and"),
        ({"distill.too_long": "cut"}, r"needs distill\.too_long = 'drop' or 'refuse', not 'cut'"),
        ({"hardware.gradient_checkpointing": True}, r"needs hardware\.gradient_check.* = false"),
    ],
)  # fmt: skip
def test_what_closed_ways_of_attention_cannot_go_with_is_named(raw_params, changes, message):
    raw_params["checkpoints"]["planted"] = {**raw_params["checkpoints"]["p3"], "attention": "blind"}
    assert config.parse(yaml.safe_dump(raw_params)).checkpoints["planted"].attention == "blind"
    for key, value in changes.items():
        edit(raw_params, key, value)
    with pytest.raises(
        config.ConfigError, match=rf"checkpoints\.planted\.attention = 'blind' {message}"
    ):
        config.parse(yaml.safe_dump(raw_params))


@pytest.mark.parametrize(
    ("part", "name"), [("nothing", "recover"), ("tokens", "p2"), ("text", "p1"), ("tokens", "x")]
)
def test_a_predictor_must_answer_in_its_format(raw_params, part, name):
    named = {"nothing": "answer-only", "tokens": "one-shot"}
    raw_params["audit"] = {"predictors": named}
    params = config.parse(yaml.safe_dump(raw_params))
    assert params.audit.predictors.text == config.Predictor(model="text-cot")
    plain = config.resolved(config.load(ROOT / "params.yaml"))
    assert "predictors" not in plain["audit"] and "predictors" not in plain["derived"]
    raw_params["audit"] = {"predictors": {**named, part: name}}
    with pytest.raises(config.ConfigError, match=rf"predictors\.{part} = '{name}' is not one of"):
        config.parse(yaml.safe_dump(raw_params))


@pytest.fixture(scope="module")
def raw_methods():
    return yaml.safe_load(profiles.written_out(ROOT / "profiles" / "toy-methods.yaml"))


def test_every_row_with_columns_for_thoughts_is_audited(raw_methods):
    params = config.parse(yaml.safe_dump(raw_methods))
    lasts = {one.model for one in params.variants.values()}
    # The first phases are audited beside the others of the curriculum.
    assert set(params.audit.checkpoints) == lasts & set(chains.auditable(params)) - {"p1", "p2"}
    phases = config.load(ROOT / "profiles" / "toy-audit.yaml").audit.checkpoints
    assert {"p1", "p2", "p3", "recover", "one-shot"} <= set(phases)
    derived = config.resolved(params)["derived"]["audits"]
    assert derived["bare"]["prefix"] == derived["coconut"]["prefix"]
    assert derived["filler"]["prefix"].count("<FILLER_OF_THINKING>") == 3
    described = chains.examinable(params)
    assert {"recover", "filler", "tag-tokens"} <= set(described)
    assert not {"bare", "state", "coconut"} & set(described)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("state-2", "it writes the reasoning in words behind states that are fed back"),
        ("short", "it writes the summary in words, and has no thinking token before it"),
        ("back", "it writes the summary in words before a thinking token"),
        ("gap", "nothing stands for the caption in its answers"),
        ("icot", "nothing stands for the summary in its answers"),
        ("text-cot", "it writes the summary in words, and has no thinking token before it"),
        ("base", "no checkpoint has that name"),
        (
            "adaptive",
            "and audit.asks does not say which of ['answer-only', 'icot-1', 'icot-2', 'p3', ",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused_with_why(raw_methods, name, why):
    raw = {**raw_methods, "audit": {"checkpoints": [name]}}
    # From the last section to the first.
    back = {"summary": "text", "caption": "text", "reasoning": "token"}
    gap = {"summary": "text", "caption": "omit", "reasoning": "omit"}
    raw["renderings"] = {**raw["renderings"], "back": back, "gap": gap}
    for one in ("back", "gap"):
        trained = {one: {**raw["checkpoints"]["p1"], "data": one}}
        raw["checkpoints"] = {**raw["checkpoints"], **trained}
    with pytest.raises(config.ConfigError) as found:
        config.parse(yaml.safe_dump(raw))
    assert f"audit.checkpoints: '{name}' is not one of ['align', " in str(found.value)
    assert "have nothing but words behind them: " in str(found.value)
    assert why in str(found.value)


def test_a_mixture_is_audited_in_the_rendering_that_it_is_asked_for(raw_methods):
    params = config.parse(yaml.safe_dump(raw_methods))
    resolved = config.resolved(params)
    known = resolved["derived"]["audits"]
    assert known["adaptive"] == {**known["recover"], "word": raw_methods["control_words"]["p3"]}
    assert config.parse(yaml.safe_dump(resolved)) == params
    assert chains.audited_variants(params)["heima-adaptive-tokens-3"] == "adaptive"
    assert "heima-adaptive-0" not in chains.audited_variants(params), "it asks for another"
    assert len(runs.runs(params)["audit"]) == 3 * len(params.audit.checkpoints)
    # Who asks for nothing has no such key.
    assert "asks" not in config.resolved(config.load(ROOT / "params.yaml"))["audit"]


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ({"adaptive": "answer-only"}, "nothing stands for the summary in its answers"),
        ({"adaptive": "icot-1"}, "nothing stands for the summary in its answers"),
        ({"adaptive": "tokens-2"}, "nothing stands for the summary in its answers"),
        ({"adaptive": "text-cot"}, "it writes the summary in words, and has no thinking token"),
        (
            {"adaptive": "p2"},
            "audit.asks.adaptive: asks = 'p2' is not one of ['answer-only', 'icot-1'",
        ),
        ({"recover": "p3"}, "audit.asks.recover: asks = 'p3' must not be given with recover"),
        ({"another": "p3"}, "audit.asks: 'another' is not one of ['adaptive', 'align'"),
    ],
)
def test_what_an_audit_cannot_ask_for_is_refused(raw_methods, asks, said):
    raw = {**raw_methods, "audit": {"checkpoints": ["adaptive"], "asks": asks}}
    with pytest.raises(config.ConfigError) as found:
        config.parse(yaml.safe_dump(raw))
    assert said in str(found.value)


def test_an_answer_with_words_is_forced_as_far_as_it_is_constant(raw_methods):
    params = config.parse(yaml.safe_dump(raw_methods))
    known = config.resolved(params)["derived"]["audits"]
    whole = known["recover"]["prefix"]
    for name, begins in (("p1", "<CAPTION>"), ("p2", "<REASONING>"), ("filler-2", "<REASONING>")):
        prefix = known[name]["prefix"]
        if not name.startswith("filler"):
            assert prefix == whole[: whole.index(begins)]
        assert prefix.endswith("</CAPTION>\n\n" if begins == "<REASONING>" else "</SUMMARY>\n\n")
    assert known["filler-2"]["prefix"].count("<FILLER_OF_THINKING>") == 2
    assert not {"p1", "filler-2"} & set(chains.examinable(params))


@pytest.mark.parametrize("name", ["bare", "state"])
def test_what_has_no_tags_beside_its_thoughts_is_not_examined(raw_methods, name):
    raw = {**raw_methods, "examine": {"checkpoints": [name]}}
    with pytest.raises(config.ConfigError, match=rf"examine\.checkpoints: '{name}' is not one of"):
        config.parse(yaml.safe_dump(raw))


@pytest.mark.parametrize("name", ["filler", "state"])
def test_predictors_and_planted_controls_are_like_heima(raw_methods, name):
    named = {"nothing": "answer-only", "tokens": name}
    raw = {**raw_methods, "audit": {"predictors": named}}
    with pytest.raises(config.ConfigError, match=rf"predictors\.tokens = '{name}' is not one of"):
        config.parse(yaml.safe_dump(raw))
    planted = {**raw_methods["checkpoints"][name], "attention": "blind"}
    raw = {**raw_methods, "checkpoints": {**raw_methods["checkpoints"], "planted": planted}}
    with pytest.raises(config.ConfigError, match=r"planted\.attention = 'blind' needs a"):
        config.parse(yaml.safe_dump(raw))


@pytest.mark.parametrize("key", ["states.checkpoint", "variants.heima.model"])
def test_nothing_but_an_audit_reads_a_planted_control(raw_params, key):
    raw_params["checkpoints"]["planted"] = {
        **raw_params["checkpoints"]["p3"], "attention": "bottleneck"
    }  # fmt: skip
    edit(raw_params, key, "planted")
    with pytest.raises(config.ConfigError, match=rf"{key} = 'planted' must be .* not 'bottleneck'"):
        config.parse(yaml.safe_dump(raw_params))


def test_closed_ways_are_in_the_parameters_of_planted_controls_alone(raw_params):
    plain = config.resolved(config.parse(yaml.safe_dump(raw_params)))
    assert not any("attention" in one for one in plain["checkpoints"].values())
    raw_params["checkpoints"]["planted"] = {**raw_params["checkpoints"]["p3"], "attention": "blind"}
    planted = config.resolved(config.parse(yaml.safe_dump(raw_params)))
    assert planted["checkpoints"].pop("planted")["attention"] == "blind"
    assert planted["checkpoints"] == plain["checkpoints"]


def test_align_without_a_start_from_text_cot_is_refused(raw_params):
    """The text-CoT model below the adapter is the teacher."""
    raw_params["checkpoints"]["one-shot"].update(losses={"align": 1.0}, init="base")
    message = r"checkpoints\.one-shot\.init = 'base' must be .*text-cot.* losses\.align"
    with pytest.raises(config.ConfigError, match=message):
        config.parse(yaml.safe_dump(raw_params))


def test_explain_needs_as_many_states_of_a_section(raw_params):
    raw_params["checkpoints"]["one-shot"].update(losses={"explain": 0.5}, thinking={"ratio": 0.5})
    message = r"one-shot\.losses\.explain = 0\.5 needs thinking\.tokens, not thinking = \{ratio"
    with pytest.raises(config.ConfigError, match=message):
        config.parse(yaml.safe_dump(raw_params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants.cut.budget": 0}, r"cut\.budget = 0: .*greater than 0"),
        ({"variants.cut": {"model": "recover", "budget": 9, "forced_prefix": "p3"}},
         r"variants\.cut\.budget = 9 must have no forced_prefix, not 'p3'"),
        ({"variants.cut.model": "answer-only"}, r"cut\.budget = 9 needs a model whose answers"),
        ({"variants.cut.model": "base"}, r"cut\.budget = 9 needs a model whose answers have"),
        ({"checkpoints.one-shot.feed": "state", "variants.cut.model": "one-shot"},
         r"cut\.budget = 9 needs a model with feed = 'token', not one-shot with 'state'"),
        ({"latency.cases.cut": {"variant": "cut"}},
         r"latency\.cases\.cut\.variant = 'cut' must have no budget of its own, not 9"),
        ({"latency.cases.look": {"variant": "text-cot", "lookup": 0}}, r"lookup = 0: .*greater"),
        ({"latency.cases.look": {"variant": "text-cot", "lookup": 5}, "latency.batch_sizes": [8]},
         r"cases\.look\.lookup = 5 needs 1 among batch_sizes = \[8\]"),
        ({"checkpoints.one-shot.feed": "state",
          "latency.cases.look": {"variant": "heima-no-progressive", "lookup": 5}},
         r"latency\.cases\.look\.lookup = 5 needs a model with feed = 'token', not one-shot"),
    ],
)  # fmt: skip
def test_what_budgets_and_lookups_cannot_go_with_is_named(raw_params, changes, message):
    raw_params["variants"]["cut"] = {"model": "text-cot", "budget": 9}
    raw_params["latency"]["cases"]["looked-up"] = {"variant": "heima", "lookup": 5}
    config.parse(yaml.safe_dump(raw_params))
    for key, value in changes.items():
        edit(raw_params, key, value)
    with pytest.raises(config.ConfigError, match=message):
        config.parse(yaml.safe_dump(raw_params))


@given(st.integers(1, 4000), st.floats(0.001, 0.999))
def test_a_ratio_rounds_down_to_at_least_one(length, ratio):
    count = thinking_count(Thinking(ratio=ratio), length)
    assert 1 <= count <= length
    assert count == 1 or count <= ratio * length < count + 1


def test_all_faults_are_listed_at_once(raw_params):
    raw_params["seed"], raw_params["rewrite"]["heldout"] = -1, 2
    with pytest.raises(config.ConfigError, match="2 wrong values") as caught:
        config.parse(yaml.safe_dump(raw_params))
    assert "seed = -1" in str(caught.value) and "rewrite.heldout = 2" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_mapping(text):
    with pytest.raises(config.ConfigError, match=r"params\.yaml"):
        config.parse(text)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the committed params and profiles, as the working directory."""
    (tmp_path / "profiles").mkdir()
    for path in (ROOT / "profiles").glob("*.yaml"):
        (tmp_path / "profiles" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_switching_there_and_back_changes_nothing(checkout):
    before = (checkout / "params.yaml").read_bytes()
    lines = profile.switch("paper", force=False)
    assert any(line.startswith("~ family: toy-mllama -> llava-cot-11b") for line in lines)
    assert config.load().profile == "paper"
    profile.switch("toy", force=False)
    assert (checkout / "params.yaml").read_bytes() == before


def test_an_unknown_profile_lists_the_known(checkout):
    with pytest.raises(config.ConfigError, match=r"'tiny' is not one of \[.*'toy-llava-next'.*\]"):
        profile.switch("tiny", force=False)


def test_a_source_folder_that_lacks_its_files_is_named(checkout, monkeypatch):
    from stages import prepare

    (checkout / "params.yaml").write_text(paper_yaml("given", mmstar={"path": "given"}))
    resolve.write(config.load())
    # Benchmarks are looked at before: here nothing is wrong with them.
    monkeypatch.setattr("eval.benchmark_sources.provide", lambda params, folder: None)
    with pytest.raises(SystemExit, match=r"given lacks train\.jsonl and images\.zip"):
        prepare.main()
    assert not (checkout / "data" / "source").exists()


def test_changed_params_are_not_lost(checkout):
    mine = (checkout / "params.yaml").read_text().replace("seed: 42", "seed: 43")
    (checkout / "params.yaml").write_text(mine)
    with pytest.raises(config.ConfigError, match="--force"):
        profile.switch("paper", force=False)
    assert (checkout / "params.yaml").read_text() == mine
    assert "~ seed: 43 -> 42" in profile.switch("toy", force=True)
    assert (checkout / "params.yaml.orig").read_text() == mine


def test_dumped_parameters_are_valid_and_the_same(params):
    dumped = params.model_dump_json(by_alias=True)
    assert config.Params.model_validate_json(dumped) == params


def test_a_part_of_another_kind_is_named_with_its_key(params):
    assert config.expected(config.ToySource, params.source, "source") is params.source
    with pytest.raises(
        config.ConfigError, match="source must be a HubSource here, not a ToySource"
    ):
        config.expected(config.HubSource, params.source, "source")
    with pytest.raises(ValueError, match="id is not given"):
        config.given(None, "id")


def numeric_keys(value, path=()):
    """The place of every number in plain data."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from numeric_keys(one, (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from numeric_keys(one, (*path, number))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("written", ["yes", "off", ".inf", "-.inf", ".nan", "1" + 30 * "0", "1e30"])
@pytest.mark.parametrize("profile_name", ["toy", "paper"])
def test_no_key_takes_a_number_that_is_none(profile_name, written):
    """Every numeric key of a profile, one after the other, and the error names it."""
    raw = yaml.safe_load(config.written_out(ROOT / "profiles" / f"{profile_name}.yaml"))
    places = list(numeric_keys(raw))
    assert len(places) > 50
    for *parents, last in places:
        part = raw
        for parent in parents:
            part = part[parent]
        before, part[last] = part[last], yaml.safe_load(written)
        with pytest.raises(config.ConfigError) as refused:
            config.parse(yaml.safe_dump(raw))
        name = next(key for key in (last, *reversed(parents)) if isinstance(key, str))
        assert re.search(rf"\b{re.escape(name)}\b", str(refused.value)), (parents, last)
        part[last] = before
    config.parse(yaml.safe_dump(raw))


def test_flags_are_still_flags(raw_params):
    raw_params["training"]["group_by_length"] = raw_params["similarity"]["judge_image"] = True
    config.parse(yaml.safe_dump(raw_params))


@pytest.mark.parametrize("text", ["seed: " + "9" * 5000, "seed: [1", "seed: 2020-99-99", "\x00"])
def test_what_yaml_cannot_read_is_said_of_the_file(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(config.ConfigError, match=r"params\.yaml (is not YAML|has \d+ wrong)"):
        config.load(path)
