"""The world's laws, checked against a recomputation that shares no code with it."""

import re
from collections import Counter

import numpy as np
import pytest

from heima.toy.world import (
    CELLS,
    KINDS,
    OBJECTS,
    STYLES,
    ask,
    claims,
    compose,
    draw_distinct_scene,
    draw_scene,
    orders,
    render,
)

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen"
).split()
PRICE = {"red": 1, "green": 2, "blue": 3, "yellow": 4}
WARM = ("red", "yellow")


def cells_of(text: str) -> list[str]:
    """The cells that the English of a question names."""
    return re.findall(r"\b[ab][12]\b", text)


def truth(grid: dict[str, str], text: str) -> str:
    colours = [grid[cell].split("-")[0] for cell in cells_of(text)]
    if "total" in text:
        return str(sum(PRICE[colour] for colour in colours))
    return colours[0]


def holds(option: str, value: str) -> bool:
    if "-" not in option:
        return option == value
    low, high = option.split("-")
    return int(low) <= int(value) <= int(high)


def verdict(text: str, value: str) -> str:
    """The answer to a yes/no question, by its English."""
    claim = text.removesuffix("?").split()[-1]
    if claim in ("warm", "cold"):
        return "yes" if (claim == "warm") == (value in WARM) else "no"
    assert f"more than {claim}?" in text
    return "yes" if int(value) > int(claim) else "no"


def naive_reasoning(grid: dict[str, str], asked) -> str:
    cells, value = cells_of(asked.text), truth(grid, asked.text)
    if "total" in asked.text:
        running, steps = 0, []
        for cell in cells:
            gain = PRICE[grid[cell].split("-")[0]]
            running += gain
            steps.append(f"{cell} {WORDS[gain]} total {WORDS[running]}")
        out = " , ".join(steps)
    else:
        out = f"{cells[0]} {grid[cells[0]]}"
    out += f" so {value}"
    if "total" in asked.text and asked.kind != "sum-number":
        out += "".join(f" {one}" for one in orders("sum-option")[0] if holds(one, value))
    for letter, option in zip("ABCD", asked.options, strict=False):
        out += f" {letter} {option}"
        if holds(option, value):
            break
    if asked.text.startswith("Is "):
        out += f" claim {asked.text.removesuffix('?').split()[-1]} {verdict(asked.text, value)}"
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
            [expected] = [
                letter
                for letter, option in zip("ABCD", asked.options, strict=True)
                if holds(option, value)
            ]
        elif kind.endswith("yes-no"):
            expected = verdict(asked.text, value)
        else:
            expected = value
        assert asked.conclusion == expected
        assert asked.reasoning == naive_reasoning(grid, asked)
        named = cells_of(asked.text)
        read = dict(zip(asked.caption.split()[::2], asked.caption.split()[1::2], strict=True))
        assert read == grid and list(read)[: len(named)] == named
        task = "add the points of" if "total" in asked.text else "look at"
        first = f" A {asked.options[0]}" if asked.options else ""
        assert asked.summary == f"{task} {' '.join(named)} .{first}"


@pytest.mark.parametrize("kind", KINDS)
def test_summary_is_a_function_of_the_question_and_caption_is_not(kind):
    rng = np.random.default_rng(2)
    first = ask(draw_scene(rng), kind, rng)
    captions = set()
    for _ in range(20):
        again = compose(
            draw_scene(rng),
            kind,
            first.cells,
            style=first.style,
            options=first.options,
            claim=first.claim,
        )
        assert (again.prompt, again.summary) == (first.prompt, first.summary)
        captions.add(again.caption)
    assert len(captions) > 15


@pytest.mark.parametrize("kind", ["look-option", "sum-option"])
def test_options_stand_in_one_order_which_is_rotated_where_mmbench_is_asked(kind):
    rng = np.random.default_rng(7)
    drawn = Counter()
    for style in ("mmstar", "ai2d", "mmbench", "paper-choice"):
        for _ in range(200):
            drawn[style, ask(draw_scene(rng), kind, rng, style=style).options] += 1
    first, *rotations = orders(kind)
    assert drawn["mmstar", first] == drawn["ai2d", first] == 200
    for options in (first, *rotations):
        assert 30 < drawn["mmbench", options] < 70
        assert 30 < drawn["paper-choice", options] < 70
    assert {options for _, options in drawn} == {first, *rotations}
    assert all(first[turn:] + first[:turn] in rotations for turn in (1, 2, 3))


def test_ranges_hold_each_total_once():
    totals = [
        total for name in orders("sum-option")[0] for total in range(17) if holds(name, str(total))
    ]
    assert totals == [*range(3, 17)]


def test_pixels_show_each_cell():
    """Each object leaves its colour inside its own 16 px cell."""
    ink = {"red": 0, "green": 1, "blue": 2}
    rng = np.random.default_rng(3)
    for _ in range(30):
        scene = draw_scene(rng)
        pixels = np.asarray(render(scene)).astype(int)
        assert pixels.shape == (32, 32, 3)
        for index, thing in enumerate(scene.objects):
            row, column = divmod(index, 2)
            cell = pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(-1, 3)
            painted = cell[(cell != 255).any(axis=1)]
            assert len(painted)
            colour = thing.split("-")[0]
            if colour in ink:
                assert (painted.argmax(axis=1) == ink[colour]).all()


def test_scenes_fill_every_cell_and_are_distinct():
    rng, seen = np.random.default_rng(4), set()
    keys = [draw_distinct_scene(rng, seen).key for _ in range(300)]
    assert len(set(keys)) == 300 == len(seen)
    assert {thing for key in keys for thing in key.split()} == set(OBJECTS)


@pytest.mark.parametrize("kind", ["look-yes-no", "sum-yes-no"])
def test_claims_hold_with_even_odds_where_the_value_allows_both(kind):
    rng = np.random.default_rng(5)
    answers = []
    for _ in range(1000):
        asked = ask(draw_scene(rng), kind, rng)
        assert asked.claim in claims(kind)
        possible = {
            verdict(asked.text.replace(f" {asked.claim}?", f" {claim}?"), asked.value)
            for claim in claims(kind)
        }
        if len(possible) == 2:
            answers.append(asked.conclusion)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_errors_name_what_is_allowed():
    rng = np.random.default_rng(6)
    scene = draw_scene(rng)
    with pytest.raises(ValueError, match="kind='count' is unknown; allowed: look-option"):
        ask(scene, "count", rng)
    with pytest.raises(ValueError, match=r"style='mmvet' does not fit .*allowed: mathvista"):
        ask(scene, "sum-number", rng, style="mmvet")
    with pytest.raises(ValueError, match="lack the true one"):
        compose(scene, "sum-option", CELLS[:3], style="ai2d", options=("3-6",) * 4)
    assert set(STYLES) == set(KINDS)
