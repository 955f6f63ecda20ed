"""Answers in plain English say what the toy's own words say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from heima.cot import parsing
from heima.toy.english import PLACES, in_english
from heima.toy.source import answer_text
from heima.toy.world import CELLS, COLOURS, KINDS, LETTERS, WARMTH, ask, colour, draw_scene

POINTS = {"red": 1, "green": 2, "blue": 3, "yellow": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_every_sentence_is_true_of_its_scene(kind):
    rng = np.random.default_rng(0)
    for _ in range(60):
        scene = draw_scene(rng)
        asked = ask(scene, kind, rng)
        said = in_english(asked, scene)
        assert (said.prompt, said.conclusion) == (asked.prompt, asked.conclusion)
        assert re.findall(r"\b[ab][12]\b", said.summary) == list(asked.cells)
        # The caption names each cell's object and place once, those asked about first.
        seen = re.findall(r"an? (\w+ \w+) at the (\w+ \w+) \(([ab][12])\)", said.caption)
        assert sorted(cell for _, _, cell in seen) == sorted(CELLS)
        assert [cell for _, _, cell in seen][: len(asked.cells)] == list(asked.cells)
        for thing, place, cell in seen:
            assert scene.at(cell) == thing.replace(" ", "-") and PLACES[cell] == place
        steps = re.findall(r"(\w\d) is (\w+) and counts (\d), which makes (\d+)", said.reasoning)
        total = 0
        for cell, name, points, sofar in steps:
            assert name == colour(scene.at(cell)) and int(points) == POINTS[name] == COLOURS[name]
            total += int(points)
            assert total == int(sofar)
        if kind.startswith("sum"):
            assert [cell for cell, *_ in steps] == list(asked.cells)
            assert f"So the total is {total}." in said.reasoning and str(total) == asked.value
        else:
            assert f"so the colour is {asked.value}." in said.reasoning
        if asked.options:
            assert said.reasoning.endswith(f"That is option {asked.conclusion}.")
            held = asked.options[LETTERS.index(asked.conclusion)]
            assert held in said.reasoning
        elif asked.claim is not None:
            assert said.reasoning.endswith(f"so the answer is {asked.conclusion}.")
            if kind.startswith("look"):
                assert f"is {WARMTH[asked.value]}, so" in said.reasoning
            else:
                more = "more than" if asked.conclusion == "yes" else "not more than"
                assert f"{total} is {more} {asked.claim}," in said.reasoning


def test_sections_are_found_again_as_they_were_written():
    rng = np.random.default_rng(1)
    for kind in KINDS:
        scene = draw_scene(rng)
        said = in_english(ask(scene, kind, rng), scene)
        found = parsing.parse(answer_text(said))
        for section in ("summary", "caption", "reasoning", "conclusion"):
            assert found[section] == getattr(said, section)
