"""The toy world: coloured shapes on a 3x3 grid, and the questions that six benchmarks ask about it.

A scene is drawn from a numpy Generator, rendered to 48x48 px, and asked about in six kinds:

====================  ==========================================  ======================
kind                  question                                    prompt as in
====================  ==========================================  ======================
look-option           what is in a cell, four options             MMStar, MMBench or AI2D
sum-option            points of some cells, four options          MMStar, MMBench or AI2D
look-free             what is in a cell                           MM-Vet
sum-number            points of some cells                        MathVista
look-yes-no           is a certain object in a cell               HallusionBench
sum-yes-no            are some cells worth that many points       HallusionBench
====================  ==========================================  ======================

Every answer comes as the four sections of LLaVA-CoT. The summary is a function of the question
alone, the caption and the reasoning depend on the image. The wordings are chosen so that a tiny
transformer learns them within two minutes on a CPU: the caption reads the whole grid, intermediate
points are number *words* and final values *digits*, and the reasoning holds each candidate beside
the value, so that a verdict compares neighbours and `yes` marks the answer.
(Looking a value's letter up instead, by induction, was not learnt in the same time.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": 1, "green": 2, "blue": 3, "yellow": 4}
"""Points of a circle or a triangle of each colour; a square counts double."""
SHAPES = ("circle", "square", "triangle")
EMPTY = "nothing"
OBJECTS = tuple(f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES)
CELLS = tuple(f"{column}{row}" for row in "123" for column in "abc")
"""Cell names in reading order: a1 b1 c1, a2 b2 c2, a3 b3 c3 (a letter is a column)."""

IMAGE_SIDE = 48
CELL_SIDE = 16
LETTERS = ("A", "B", "C", "D")
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four"
).split()
MAX_POINTS = len(NUMBER_WORDS) - 1

KINDS = ("look-option", "sum-option", "look-free", "sum-number", "look-yes-no", "sum-yes-no")
OPTION_STYLES = ("mmstar", "mmbench", "ai2d", "paper-choice")
STYLES = {
    "look-option": OPTION_STYLES,
    "sum-option": OPTION_STYLES,
    "look-free": ("mmvet", "paper-plain"),
    "sum-number": ("mathvista",),
    "look-yes-no": ("hallusionbench",),
    "sum-yes-no": ("hallusionbench",),
}
"""The prompt formats that each kind of question may wear: a benchmark's in lmms-eval, or one of the
protocol `paper` (choice: MMStar, MMBench and AI2D; plain: MM-Vet; the others ask as lmms-eval)."""

# What lmms-eval 0.7.3 puts around a question; tests/toy holds them against its doc_to_text.
DIRECTLY = "Answer with the option's letter from the given choices directly"
STEP_BY_STEP = (
    "First please perform reasoning, and think step by step to provide best answer to the "
    "following question:"
)
INTEGER = "Answer the question using a single integer number."
SEVERAL_OPTIONS = "There are several options:"
# What the protocol `paper` puts around it; tests/toy holds them against its tasks, too.
QUESTION = "Question:"
SELECT = "Please select the correct answer from the options above."
PHRASES = (
    f"{DIRECTLY}.",
    DIRECTLY,
    STEP_BY_STEP,
    INTEGER,
    SEVERAL_OPTIONS,
    "Options:",
    QUESTION,
    SELECT,
)
"""Constant wordings of the prompts; the toy tokenizer gives each a token of its own."""

_INK = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 255),
    "yellow": (250, 204, 21),
}
_PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Scene:
    """Objects in the cells and where exactly they were drawn.

    Attributes:
        objects: nine names in the order of `CELLS`, each of `OBJECTS` or `EMPTY`.
        places: nine (x, y, radius) in pixels; ignored for an empty cell.
    """

    objects: tuple[str, ...]
    places: tuple[tuple[int, int, int], ...]

    @property
    def key(self) -> str:
        """What the scene shows, without the jitter: equal keys mean equal answers."""
        return " ".join(self.objects)

    def at(self, cell: str) -> str:
        """The object in a cell such as `b2`."""
        return self.objects[CELLS.index(cell)]


@dataclass(frozen=True)
class Question:
    """A question about one scene, as a prompt, as four sections, and as data.

    Attributes:
        kind: one of `KINDS`.
        style: the benchmark whose prompt format is worn, one of `STYLES[kind]`.
        cells: the cells asked about (one for a look, two or three for a sum).
        text: the bare question.
        options: four values in the order A..D, empty unless the kind offers options.
        claim: the value that a yes/no question asks about, else None.
        value: what the scene shows: an object, or points in digits.
        conclusion: the expected answer: a letter, yes or no, or `value`.
        prompt: the user's text as lmms-eval produces it.
        summary, caption, reasoning: the sections before the conclusion, words joined by blanks.
    """

    kind: str
    style: str
    cells: tuple[str, ...]
    text: str
    options: tuple[str, ...]
    claim: str | None
    value: str
    conclusion: str
    prompt: str
    summary: str
    caption: str
    reasoning: str


def points(thing: str) -> int:
    """Points of an object name; an empty cell counts 0."""
    if thing == EMPTY:
        return 0
    colour, shape = thing.split("-")
    return COLOURS[colour] * (2 if shape == "square" else 1)


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw four to seven objects into nine cells, each a little off its cell's centre."""
    filled = set(rng.choice(len(CELLS), size=int(rng.integers(4, 8)), replace=False).tolist())
    objects, places = [], []
    for index in range(len(CELLS)):
        row, column = divmod(index, 3)
        x, y = (int(v) for v in rng.integers(-1, 2, size=2))
        radius = int(rng.integers(4, 6))
        thing = OBJECTS[int(rng.integers(len(OBJECTS)))]
        objects.append(thing if index in filled else EMPTY)
        places.append((column * CELL_SIDE + 8 + x, row * CELL_SIDE + 8 + y, radius))
    return Scene(tuple(objects), tuple(places))


def draw_distinct_scene(rng: np.random.Generator, seen: set[str]) -> Scene:
    """Draw a scene whose key is not in `seen`, and add its key there."""
    while True:
        scene = draw_scene(rng)
        if scene.key not in seen:
            seen.add(scene.key)
            return scene


def render(scene: Scene) -> Image.Image:
    """Paint a scene as an RGB image of 48x48 pixels."""
    image = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), _PAPER)
    pen = ImageDraw.Draw(image)
    for thing, (x, y, radius) in zip(scene.objects, scene.places, strict=True):
        if thing == EMPTY:
            continue
        colour, shape = thing.split("-")
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            pen.ellipse(box, fill=_INK[colour])
        elif shape == "square":
            pen.rectangle(box, fill=_INK[colour])
        else:
            corners = [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)]
            pen.polygon(corners, fill=_INK[colour])
    return image


def question_text(kind: str, cells: Sequence[str], claim: str | None) -> str:
    """The bare question about cells, with the claimed value where the kind is yes/no."""
    if kind.startswith("look"):
        if claim is None:
            return f"What is at {cells[0]}?"
        return f"Is it true that {claim} is at {cells[0]}?"
    place = f"{', '.join(cells[:-1])} and {cells[-1]}"
    if claim is None:
        return f"What is the total of {place}?"
    return f"Is it true that {claim} is the total of {place}?"


def prompt_text(style: str, text: str, options: Sequence[str]) -> str:
    """The user's text for a bare question, exactly as a task builds it from a benchmark's row.

    Raises:
        ValueError: if the style is unknown.
    """
    dotted = "\n".join(
        f"{letter}. {value}" for letter, value in zip(LETTERS, options, strict=False)
    )
    if style == "mmstar":
        return f"{mmstar_question(text, options)}\n{DIRECTLY}"
    if style == "mmbench":
        return f"{text} {SEVERAL_OPTIONS}\n{dotted}\n\n{DIRECTLY}."
    if style == "ai2d":
        return f"{text}\n{dotted}\n{DIRECTLY}."
    if style == "mmvet":
        return f"{STEP_BY_STEP} \n\n{text}"
    if style == "mathvista":
        return f"{text}\n{INTEGER}"
    if style in ("hallusionbench", "paper-plain"):
        return text
    if style == "paper-choice":
        return f"{QUESTION} {text}\nOptions:\n{dotted}\n{SELECT} \n"
    allowed = sorted({style for styles in STYLES.values() for style in styles})
    raise ValueError(f"style={style!r} is unknown; allowed: {', '.join(allowed)}")


def mmstar_question(text: str, options: Sequence[str]) -> str:
    """The question column of MMStar, which holds the options too."""
    listed = ", ".join(f"{letter}: {value}" for letter, value in zip(LETTERS, options, strict=True))
    return f"{text}\nOptions: {listed}"


def ask(
    scene: Scene,
    kind: str,
    rng: np.random.Generator,
    *,
    style: str | None = None,
    truth: bool | None = None,
) -> Question:
    """Draw one question of a kind about a scene.

    Args:
        scene: what the image shows.
        kind: one of `KINDS`.
        rng: source of the cells, the wrong options and the claim.
        style: prompt format, one of `STYLES[kind]`; drawn if None.
        truth: for yes/no kinds, whether the claim is to hold; drawn evenly if None.

    Raises:
        ValueError: if the kind is unknown or the style does not belong to it.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; allowed: {', '.join(KINDS)}")
    if style is None:
        style = STYLES[kind][int(rng.integers(len(STYLES[kind])))]
    cells = _draw_cells(kind, rng)
    value = _value(scene, kind, cells)
    options: tuple[str, ...] = ()
    claim = None
    if kind.endswith("option"):
        values = [value, *_wrong(value, kind, len(LETTERS) - 1, rng)]
        options = tuple(values[int(i)] for i in rng.permutation(len(LETTERS)))
    elif kind.endswith("yes-no"):
        if truth is None:
            truth = bool(rng.integers(2))
        claim = value if truth else _wrong(value, kind, 1, rng)[0]
    return compose(scene, kind, cells, style=style, options=options, claim=claim)


def compose(
    scene: Scene,
    kind: str,
    cells: Sequence[str],
    *,
    style: str,
    options: Sequence[str] = (),
    claim: str | None = None,
) -> Question:
    """Word a fully determined question and its answer; `ask` draws the arguments.

    Raises:
        ValueError: if the kind is unknown, the style does not belong to it, or the true value is
            not among the options.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; allowed: {', '.join(KINDS)}")
    if style not in STYLES[kind]:
        allowed = ", ".join(STYLES[kind])
        raise ValueError(f"style={style!r} does not fit kind={kind!r}; allowed: {allowed}")
    value = _value(scene, kind, cells)
    if kind.endswith("option"):
        if value not in options:
            raise ValueError(f"options={tuple(options)!r} lack the true value {value!r}")
        conclusion = LETTERS[list(options).index(value)]
    elif kind.endswith("yes-no"):
        conclusion = "yes" if claim == value else "no"
    else:
        conclusion = value
    text = question_text(kind, cells, claim)
    return Question(
        kind=kind,
        style=style,
        cells=tuple(cells),
        text=text,
        options=tuple(options),
        claim=claim,
        value=value,
        conclusion=conclusion,
        prompt=prompt_text(style, text, options),
        summary=_summary(kind, cells),
        caption=_caption(scene, cells),
        reasoning=_reasoning(scene, kind, cells, value, options, claim),
    )


def _draw_cells(kind: str, rng: np.random.Generator) -> tuple[str, ...]:
    if kind.startswith("look"):
        return (CELLS[int(rng.integers(len(CELLS)))],)
    form = int(rng.integers(3))
    if form == 0:
        row = int(rng.integers(3))
        return CELLS[3 * row : 3 * row + 3]
    if form == 1:
        return CELLS[int(rng.integers(3)) :: 3]
    first, second = sorted(int(i) for i in rng.choice(len(CELLS), size=2, replace=False))
    return (CELLS[first], CELLS[second])


def _value(scene: Scene, kind: str, cells: Sequence[str]) -> str:
    if kind.startswith("look"):
        return scene.at(cells[0])
    return str(sum(points(scene.at(cell)) for cell in cells))


def _wrong(value: str, kind: str, count: int, rng: np.random.Generator) -> list[str]:
    """Distinct plausible values that are not the true one."""
    if kind.startswith("look"):
        pool = [thing for thing in (*OBJECTS, EMPTY) if thing != value]
    else:
        near = range(max(0, int(value) - 6), min(MAX_POINTS, int(value) + 6) + 1)
        pool = [str(number) for number in near if str(number) != value]
    return [pool[int(i)] for i in rng.choice(len(pool), size=count, replace=False)]


def _summary(kind: str, cells: Sequence[str]) -> str:
    task = "look at" if kind.startswith("look") else "add the points of"
    return f"i need to {task} {' '.join(cells)} ."


def _caption(scene: Scene, cells: Sequence[str]) -> str:
    """The whole grid, the cells that were asked about first.

    Nine readings a scene teach a tiny model to look, two do not; and because the order depends on
    the question, it must look by a cell's name, not by its place in the text.
    """
    order = (*cells, *(cell for cell in CELLS if cell not in cells))
    return " ".join(f"{cell} {scene.at(cell)}" for cell in order)


def _reasoning(
    scene: Scene,
    kind: str,
    cells: Sequence[str],
    value: str,
    options: Sequence[str],
    claim: str | None,
) -> str:
    """Read or add up, then hold each candidate against the value.

    Candidate and value stand side by side, so that the verdict compares neighbours.
    """
    if kind.startswith("look"):
        steps = [f"{cells[0]} {scene.at(cells[0])}"]
    else:
        steps, total = [], 0
        for cell in cells:
            gain = points(scene.at(cell))
            total += gain
            steps.append(f"{cell} {NUMBER_WORDS[gain]} total {NUMBER_WORDS[total]}")
    candidates = list(zip(LETTERS, options, strict=False))
    if claim is not None:
        candidates = [("claim", claim)]
    words = [" , ".join(steps), f"so {value}"]
    for name, candidate in candidates:
        words.append(f"{name} {candidate} {value} {'yes' if candidate == value else 'no'}")
    return " ".join(words)
