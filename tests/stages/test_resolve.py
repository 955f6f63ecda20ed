"""Code fingerprints: blind to comments, formatting and docstrings; sharp for code and imports."""

from __future__ import annotations

import grimp
import pytest

from stages import resolve
from tests.conftest import ROOT

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


def test_each_stage_depends_on_what_it_imports_and_nothing_else():
    graph = resolve.code_graph()
    prints = {stage: set(resolve.fingerprint(ROOT, stage, graph)) for stage in resolve.STAGES}
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
ROOMS = ["heima", *(f"heima.{name}" for name in HEIMA.split()), "eval", "reports", "stages"]
"""From the ground up: each may import those before it."""


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
    import yaml

    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert set(pipeline) == {"resolve", *resolve.STAGES}
    for name in resolve.STAGES:
        stage = pipeline[name].get("do", pipeline[name])
        assert f"fingerprints/{name}.json" in stage["deps"]
