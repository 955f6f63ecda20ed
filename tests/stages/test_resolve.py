"""Code fingerprints: blind to comments, formatting and docstrings; sharp for code and imports."""

from __future__ import annotations

import ast
import dataclasses
import re

import grimp
import pytest
import yaml

from heima import config
from stages import resolve
from tests.conftest import ROOT

STAGES = resolve.names(ROOT / "dvc.yaml")
CODE = '''
"""A module."""

import math

LIMIT = 3
"""How far."""


class Thing:
    """A thing."""

    def area(self, r):
        """In square metres."""
        return math.pi * r**2
'''


@pytest.mark.parametrize(
    "edited",
    [
        CODE + "# The end.\n",
        CODE.replace('"""A thing."""', '"""Another text."""'),
        CODE.replace('"""How far."""\n', ""),
        CODE.replace('        """In square metres."""\n', ""),
        CODE.replace("math.pi * r**2", "(math.pi\n            * r ** 2)  # pi r squared"),
    ],
)
def test_prose_and_layout_do_not_count(edited):
    assert edited != CODE
    assert resolve.syntax_hash(edited) == resolve.syntax_hash(CODE)


@pytest.mark.parametrize(
    "edited",
    [
        CODE.replace("r**2", "r**3"),
        CODE.replace("LIMIT = 3", "LIMIT = 4"),
        CODE.replace("LIMIT = 3", 'LIMIT = "3"'),
        CODE.replace("area", "volume"),
    ],
)
def test_code_counts(edited):
    assert resolve.syntax_hash(edited) != resolve.syntax_hash(CODE)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("raise E('a')", "raise E(f'b {x}')", True),
        ("raise E(f'missing_{x}', 'a')", "raise E(f'missing_{x}', 'b')", True),
        ("raise E(f'missing_{x}', 'a')", "raise E(f'lacks_{x}', 'a')", False),
        ("raise E('broken', 'a')", "raise E('spoilt', 'a')", False),
        ("raise E('a', code=1)", "raise E('a', code=2)", False),
        ("raise E(1)", "raise E(2)", False),
        ("raise E('a')", "raise F('a')", False),
    ],
)
def test_of_an_error_only_the_message_does_not_count(before, after, same):
    assert (resolve.syntax_hash(before) == resolve.syntax_hash(after)) is same


def test_each_stage_depends_on_what_it_imports_and_nothing_else():
    graph = resolve.code_graph()
    prints = {stage: set(resolve.fingerprint(ROOT, stage, graph)) for stage in STAGES}
    assert all(f"stages.{stage}" in modules for stage, modules in prints.items())
    assert (
        "heima.training.loop" in prints["distill"]
        and "heima.training.loop" not in prints["rewrite"]
    )
    assert "heima.toy.world" in prints["prepare"] and "heima.toy.world" not in prints["distill"]
    assert not any(module.startswith("eval") for module in prints["distill"])
    assert {"heima.vlm.generation", "eval.decoding"} <= prints["predict"]
    assert "eval.chat_models" in prints["score"] and "heima.vlm.models" not in prints["score"]
    assert all({"stages", "heima"} <= modules for modules in prints.values())


LONG: dict[str, str] = {}
"""Modules of more than 500 lines, and why."""


def room(module: str) -> str:
    """A room of heima, or another package."""
    depth = 2 if module.startswith("heima.") else 1
    return ".".join(module.split(".")[:depth])


HEIMA = "cot config results data families vlm training interpreting toy planning"
ROOMS = ["heima", *(f"heima.{name}" for name in f"{HEIMA} chat cli".split())]
ROOMS += ["eval", "reports", "stages"]
"""From the ground up: each may import those before it. `chat` and `cli` are commands."""


def test_imports_point_one_way():
    """stages -> reports -> eval -> heima, and one room of heima after the other."""
    graph = grimp.build_graph(*resolve.PACKAGES, cache_dir=None)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            assert ROOMS.index(room(imported)) <= ROOMS.index(room(module)), (module, imported)


def test_no_module_is_long_without_a_reason():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for package in resolve.PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name for name, length in lengths.items() if length > 500} <= set(LONG)


def test_every_stage_of_the_pipeline_has_its_fingerprint():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in STAGES:
        assert (ROOT / "stages" / f"{name}.py").exists()
        stage = pipeline[name].get("do", pipeline[name])
        assert f"fingerprints/{name}.json" in stage["deps"]
    written = [out for out in pipeline["resolve"]["outs"] if isinstance(out, str)]
    assert written == [f"fingerprints/{name}.json" for name in STAGES]


TABLES = {"tables", "figures", "page"}
MODELS = {"teach", "distill", "states", "interpret", "reconstruct"}
BESIDE = {"examine", "theorem", "truncate"}
LOADING = MODELS | {"adopt", "predict", "latency", "audit", *BESIDE}
CHANGES = {
    # words
    "an error's": ("heima/training/loop.py", "the loss is not finite", "a loss is odd", set()),
    "a docstring's": ("heima/cot/parsing.py", '"""Sections', '"""All sections', set()),
    "a licence's": ("heima/data/licences.py", "terms restrict", "terms limit", set()),
    "a claim": ("reports/claims/registry.py", None, "X = 1", {"tables"}),
    "a rule of verdicts": (
        "heima/results/verdicts.py",
        "LEVEL = 0.05",
        "LEVEL = 0.1",
        {*TABLES, "effects"},
    ),
    "a caption's": ("reports/tables/captions.py", "in brackets", "in square ones", TABLES),
    # what only says, checks, plans or fetches
    "a fact of a benchmark": ("heima/config/benchmarks.py", '"MMStar"', '"MM-Star"', set()),
    "a new control's name": ("heima/config/base.py", '"noise"', '"noise", "other"', set()),
    "a plan's": ("heima/planning/estimate.py", "160e9", "170e9", set()),
    "a command line's": ("stages/arguments.py", "parser.exit(2", "parser.exit(3", set()),
    "how a cluster is asked": ("stages/slurm.py", "_ENDING = 15.0", "_ENDING = 25.0", set()),
    "what a cluster is asked": ("heima/config/slurm.py", "le=100", "le=200", set()),
    "a download's": ("heima/data/hub.py", "_TIMEOUT = 60", "_TIMEOUT = 90", set()),
    # what decides
    "a count of FLOPs": ("heima/planning/flop_counts.py", None, "X = 1", {"flops"}),
    "a control": (
        "heima/interpreting/controls.py",
        "correction=0",
        "correction=1",
        {"reconstruct", "probe"},
    ),
    "a filter": ("heima/data/arrangements.py", None, "X = 1", {"rewrite"}),
    "the toy's optimiser": ("heima/toy/optim.py", None, "X = 1", {"teach"}),
    "the order of batches": ("heima/training/batch_order.py", None, "X = 1", {*MODELS, "probe"}),
    "a collator": ("heima/families/mllama.py", None, "X = 1", {*LOADING, "probe", "flops"}),
    "how given adapters are read": ("heima/vlm/given_adapter.py", None, "X = 1", {"adopt"}),
    "how SmolLM2 is built upon": ("heima/toy/smol.py", None, "X = 1", {"teach", "flops"}),
    "the world in English": (
        "heima/toy/english.py",
        None,
        "X = 1",
        {"prepare", "teach", "audit", "flops", *BESIDE},
    ),
    "torchtune's names": ("heima/vlm/torchtune.py", None, "X = 1", {"adopt"}),
    "decoding": ("heima/vlm/generation.py", None, "X = 1", {"predict"}),
    "a metric": ("eval/lexical.py", None, "X = 1", {"similarity"}),
    "a rule of scoring": ("eval/vlmevalkit/scoring.py", None, "X = 1", {"score"}),
    "what makes images near": ("heima/data/duplicates.py", "SIDE = 32", "SIDE = 64", {"leaks"}),
    "a probe": ("heima/interpreting/probe.py", "STRENGTH = 1.0", "STRENGTH = 2.0", {"probe"}),
    "words of a probe": ("eval/probe.py", None, "X = 1", {"probe", *TABLES}),
    "a measure of audits": ("eval/audit/measures.py", None, "X = 1", {"audit", "theorem"}),
    "an effect of audits": ("eval/audit/effects.py", None, "X = 1", {"effects", "tables"}),
    "a timing": ("eval/timing.py", None, "X = 1", {"latency"}),
    "the judge's client": ("eval/judge/client.py", None, "X = 1", {"judge", "score"}),
    "a figure": ("reports/figures/scores.py", None, "X = 1", {"figures", "page"}),
    "the page": ("reports/page/findings.py", None, "X = 1", {"page"}),
    "the mirror": ("reports/tracking/mirror.py", None, "X = 1", {"track"}),
    "live curves": ("reports/tracking/live.py", None, "X = 1", set()),
}
"""Change -> a module, the words replaced in it (none: a line is added), and what runs again."""


@pytest.fixture(scope="module")
def prints():
    graph = resolve.code_graph()
    return {stage: resolve.fingerprint(ROOT, stage, graph) for stage in STAGES}


@pytest.mark.parametrize(("file", "old", "new", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_re_runs_what_it_is_about(prints, file, old, new, expected):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert old is None or old in text
    edited = f"{text}\n{new}\n" if old is None else text.replace(old, new)
    module = file.removesuffix(".py").replace("/", ".")
    stale = {
        stage
        for stage, hashes in prints.items()
        if module in hashes and hashes[module] != resolve.syntax_hash(edited)
    }
    print(f"{file}: {', '.join(sorted(stale)) or 'nothing'}")
    assert stale == expected


def test_what_tasks_name_in_yaml_is_in_the_fingerprint_of_scoring(prints):
    """lmms-eval imports it, which no import graph shows."""
    text = (ROOT / "eval" / "tasks" / "vlmevalkit.yaml").read_text(encoding="utf-8")
    assert re.findall(r"!function (\S+)\.\w+", text) == ["eval.vlmevalkit.lmms"]
    assert all("eval/tasks/vlmevalkit.yaml" in prints[name] for name in resolve.NAMED_IN_YAML)
    assert {"eval.vlmevalkit.lmms", "eval.vlmevalkit.scoring"} <= set(prints["score"])
    assert "eval.vlmevalkit.asking" in prints["predict"]


def test_the_page_draws_the_pipeline_and_depends_on_it(prints, tmp_path):
    """DVC lets no stage depend on dvc.yaml itself; its comments do not count."""
    assert [stage for stage in STAGES if "dvc.yaml" in prints[stage]] == ["page"]
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    graph = grimp.ImportGraph()
    for package in resolve.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "stages" / "page.py").touch()
    graph.add_module("stages.page")
    found = []
    for edited in (text, f"# A comment.\n{text}", text.replace("  track:", "  mirror:")):
        (tmp_path / "dvc.yaml").write_text(edited, encoding="utf-8")
        found.append(resolve.fingerprint(tmp_path, "page", graph)["dvc.yaml"])
    assert found[0] == found[1] == prints["page"]["dvc.yaml"] != found[2]


def test_rules_of_the_parameters_are_written_out(params):
    """What a stage may ask of `Params` beyond what was given stands in resolved.yaml."""
    written = config.resolved(params)["derived"]
    named = {"thinking": "models", "prefix": "variants", "decoding": "protocols"}
    named |= {"rendering": "models", "feed": "models", "controls": "controls"}
    named |= {"data_name": "protocols", "sections": "sections", "published_family": "family"}
    named["readers"] = "data"
    paths = {"trained", "training_seeds", "derived"}  # they follow from names and `seeds`
    rules = {
        name
        for name, value in vars(config.Params).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    } - {"model_config", "model_post_init"}
    assert rules == named.keys() | paths
    others = {"interpreters", "benchmarks", "audits", "examine"}
    assert set(named.values()) | others == written.keys()


def pipeline_params() -> dict[str, set[str]]:
    """Stage -> the sub-trees of resolved.yaml that it depends on."""
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages = {name: pipeline[name].get("do", pipeline[name]) for name in STAGES}
    return {
        name: {key for one in stage.get("params", ()) for key in one["resolved.yaml"]}
        for name, stage in stages.items()
    }


def test_a_stage_depends_on_the_parts_of_benchmarks_that_it_reads(prints, params):
    """Their facts are in no fingerprint: what a stage reads of them stands in resolved.yaml."""
    parts = config.resolved(params)["derived"]["benchmarks"].keys()
    for stage, tracked in pipeline_params().items():
        modules = [name for name in prints[stage] if not name.endswith(".yaml")]
        texts = [resolve.module_path(ROOT, name).read_text("utf-8") for name in modules]
        read = {
            node.attr
            for text in texts
            if "BENCHMARKS" in text
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute)
        }
        known = {f"derived.benchmarks.{part}" for part in parts}
        assert tracked & known == {f"derived.benchmarks.{part}" for part in read & parts}, stage


ASKED = {"predict", "score", "latency"}
FACT_CHANGES = {
    "the paper's name of it": ({"published": "MM-Star"}, TABLES),
    "its rows, for plans": ({"rows": 1400}, set()),
    "its judge, for plans": ({"judged": ("lmms",), "judge_tokens": 100}, set()),
    "its task": ({"task": "mmstar_cn"}, {*ASKED, "tables"}),
    "its chance level": ({"scoring": {"option_count": 5}}, {"score", "leaks"}),
    "its title": (
        {"dataset": {"title": "MM-Star"}},
        {"prepare", "leaks", *ASKED, *TABLES},
    ),
    "its strata": ({"scoring": {"stratum": None}}, {"score", "leaks"}),
    "its unit": ({"dataset": {"rotation": 10}}, {*ASKED, "prepare", "leaks", "page"}),
    "its split": ({"dataset": {"split": "test"}}, {*ASKED, "prepare", "leaks", "page"}),
}
"""Change of a fact of MMStar -> the new facts, and what runs again at once: nothing that trains."""


@pytest.mark.parametrize(("facts", "expected"), FACT_CHANGES.values(), ids=FACT_CHANGES)
def test_a_fact_of_a_benchmark_re_runs_what_reads_it(params, monkeypatch, facts, expected):
    before = config.resolved(params)["derived"]["benchmarks"]
    mmstar = config.BENCHMARKS["mmstar"]
    changed = {
        name: dataclasses.replace(getattr(mmstar, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in facts.items()
    }
    monkeypatch.setitem(config.BENCHMARKS, "mmstar", dataclasses.replace(mmstar, **changed))
    after = config.resolved(params)["derived"]["benchmarks"]
    stale = {f"derived.benchmarks.{part}" for part in before if before[part] != after[part]}
    assert {name for name, tracked in pipeline_params().items() if tracked & stale} == expected
