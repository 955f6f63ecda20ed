"""The world's laws, checked against a recomputation that shares no code with it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from heima.toy.world import (
    CELLS,
    KINDS,
    OBJECTS,
    STYLES,
    ask,
    compose,
    draw_distinct_scene,
    draw_scene,
    points,
    render,
)

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty twenty-one twenty-two twenty-three "
    "twenty-four"
).split()
PRICE = {
    "nothing": 0,
    "red-circle": 1, "red-triangle": 1, "red-square": 2,
    "green-circle": 2, "green-triangle": 2, "green-square": 4,
    "blue-circle": 3, "blue-triangle": 3, "blue-square": 6,
    "yellow-circle": 4, "yellow-triangle": 4, "yellow-square": 8,
}  # fmt: skip


def cells_of(text: str) -> list[str]:
    """The cells that the English of a question names."""
    place = text.split(" of " if "total" in text else " at ")[-1].removesuffix("?")
    return re.split(", | and ", place)


def truth(grid: dict[str, str], text: str) -> str:
    cells = cells_of(text)
    if "total" in text:
        return str(sum(PRICE[grid[cell]] for cell in cells))
    return grid[cells[0]]


def naive_reasoning(grid: dict[str, str], asked) -> str:
    cells, value = cells_of(asked.text), truth(grid, asked.text)
    if "total" in asked.text:
        running, steps = 0, []
        for cell in cells:
            running += PRICE[grid[cell]]
            steps.append(f"{cell} {WORDS[PRICE[grid[cell]]]} total {WORDS[running]}")
        out = " , ".join(steps)
    else:
        out = f"{cells[0]} {grid[cells[0]]}"
    out += f" so {value}"
    if asked.text.startswith("Is it true that"):
        claim = asked.text.split()[4]
        out += f" claim {claim} {value} " + ("yes" if claim == value else "no")
    for letter, option in zip("ABCD", asked.options, strict=False):
        out += f" {letter} {option} {value} " + ("yes" if option == value else "no")
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_follows_from_the_picture(kind):
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = draw_scene(rng)
        grid = dict(zip(CELLS, scene.objects, strict=True))
        asked = ask(scene, kind, rng)
        value = truth(grid, asked.text)
        if asked.options:
            assert len(set(asked.options)) == 4
            expected = "ABCD"[asked.options.index(value)]
        elif kind.endswith("yes-no"):
            expected = "yes" if f"that {value} is" in asked.text else "no"
        else:
            expected = value
        assert asked.conclusion == expected
        assert asked.reasoning == naive_reasoning(grid, asked)
        named = cells_of(asked.text)
        read = dict(zip(asked.caption.split()[::2], asked.caption.split()[1::2], strict=True))
        assert read == grid and list(read)[: len(named)] == named
        assert asked.summary.split(" . ")[0].split()[-1 - len(asked.cells) : -1] == [*asked.cells]


def test_points_double_on_squares():
    assert {thing: points(thing) for thing in ("nothing", *OBJECTS)} == PRICE


@pytest.mark.parametrize("kind", KINDS)
def test_summary_is_a_function_of_the_question_and_caption_is_not(kind):
    rng = np.random.default_rng(2)
    scene = draw_scene(rng)
    first = ask(scene, kind, rng)
    for _ in range(20):
        other = draw_scene(rng)
        # Options must hold the true value, so what is asked about stays; all else changes.
        objects = tuple(
            old if cell in first.cells else new
            for cell, old, new in zip(CELLS, scene.objects, other.objects, strict=True)
        )
        again = compose(
            replace(other, objects=objects),
            kind,
            first.cells,
            style=first.style,
            options=first.options,
            claim=first.claim,
        )
        assert (again.prompt, again.summary) == (first.prompt, first.summary)
        assert again.caption != first.caption


def test_pixels_show_each_cell():
    """Each object leaves its colour inside its own 16 px cell and nowhere else."""
    ink = {"red": 0, "green": 1, "blue": 2}
    rng = np.random.default_rng(3)
    for _ in range(30):
        scene = draw_scene(rng)
        pixels = np.asarray(render(scene)).astype(int)
        assert pixels.shape == (48, 48, 3)
        for index, thing in enumerate(scene.objects):
            row, column = divmod(index, 3)
            cell = pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(-1, 3)
            painted = cell[(cell != 255).any(axis=1)]
            assert (len(painted) > 0) == (thing != "nothing")
            colour = thing.split("-")[0]
            if colour in ink:
                assert (painted.argmax(axis=1) == ink[colour]).all()


def test_scenes_hold_four_to_seven_objects_and_are_distinct():
    rng, seen = np.random.default_rng(4), set()
    keys = [draw_distinct_scene(rng, seen).key for _ in range(300)]
    assert len(set(keys)) == 300 == len(seen)
    assert {sum(t != "nothing" for t in key.split()) for key in keys} == {4, 5, 6, 7}


def test_yes_no_is_balanced_and_can_be_forced():
    rng = np.random.default_rng(5)
    drawn = [ask(draw_scene(rng), "sum-yes-no", rng).conclusion for _ in range(400)]
    assert 0.4 < drawn.count("yes") / 400 < 0.6
    forced = {ask(draw_scene(rng), "look-yes-no", rng, truth=True).conclusion for _ in range(20)}
    assert forced == {"yes"}


def test_errors_name_what_is_allowed():
    rng = np.random.default_rng(6)
    scene = draw_scene(rng)
    with pytest.raises(ValueError, match="kind='count' is unknown; allowed: look-option"):
        ask(scene, "count", rng)
    with pytest.raises(ValueError, match=r"style='mmvet' does not fit .*allowed: mathvista"):
        ask(scene, "sum-number", rng, style="mmvet")
    with pytest.raises(ValueError, match="lack the true value"):
        compose(scene, "sum-option", CELLS[:3], style="ai2d", options=("90", "91", "92", "93"))
    assert set(STYLES) == set(KINDS)
