"""The toy world: coloured shapes on a 2x2 grid, and the questions that benchmarks ask about it.

A scene is drawn from a numpy Generator, rendered to 32x32 px, and asked about in six kinds:

====================  ==========================================  ======================
kind                  question                                    prompt as in
====================  ==========================================  ======================
look-option           colour in a cell, four options              MMStar, MMBench or AI2D
sum-option            points of some cells, four ranges           MMStar, MMBench or AI2D
look-free             colour in a cell                            MM-Vet
sum-number            points of some cells                        MathVista
look-yes-no           is the colour in a cell warm (or cold)      HallusionBench
sum-yes-no            are some cells worth more than so many      HallusionBench
====================  ==========================================  ======================

Every answer comes as the four sections of LLaVA-CoT. The summary is a function of the question
alone, the caption and the reasoning depend on the image.

What a question asks for is chosen so that one forward pass of a tiny model can hold it: to find a
colour, to add a few points, and to choose by a small table. Options are colours or ranges of totals
in one order, which some prompts rotate, so that a letter follows from a value and from the option
at A; a claim is a property or a bound. (To look a letter up by its value among freely ordered
options is an induction, which no model of this size learnt: `docs/toy-world.md`.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": 1, "green": 2, "blue": 3, "yellow": 4}
"""Points of an object of each colour; its shape does not count."""
WARMTH = {"red": "warm", "green": "cold", "blue": "cold", "yellow": "warm"}
SHAPES = ("circle", "square", "triangle")
OBJECTS = tuple(f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES)
CELLS = ("a1", "b1", "a2", "b2")
"""Cell names in reading order: a letter is a column, a number a row."""

CELL_SIDE = 16
IMAGE_SIDE = 2 * CELL_SIDE
LETTERS = ("A", "B", "C", "D")
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen"
).split()
MAX_POINTS = len(NUMBER_WORDS) - 1

SUM_SIZES = (3, 4)
"""How many cells a total is asked of."""
RANGES = {"3-6": range(3, 7), "7-8": range(7, 9), "9-10": range(9, 11), "11-16": range(11, 17)}
"""The options for a total, in their order; drawn totals of three and of four reach each."""
BOUNDS = tuple(str(totals[-1]) for totals in RANGES.values())[:-1]
"""What a total may be claimed to be more than: where one range ends and the next begins."""

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
protocol `vlmevalkit` (choice: MMStar, MMBench and AI2D; plain: MM-Vet; the others ask as
lmms-eval)."""
STYLE_WEIGHTS = {"paper-choice": 3}
"""How often a kind's styles are drawn, if not equally: `vlmevalkit` asks three benchmarks alike."""

ROTATING = ("mmbench", "paper-choice")
"""The styles whose options may start with any of them, as MMBench asks each question four times."""

# What lmms-eval 0.7.3 puts around a question; tests/toy holds them against its doc_to_text.
DIRECTLY = "Answer with the option's letter from the given choices directly"
STEP_BY_STEP = (
    "First please perform reasoning, and think step by step to provide best answer to the "
    "following question:"
)
INTEGER = "Answer the question using a single integer number."
SEVERAL_OPTIONS = "There are several options:"
# What the protocol `vlmevalkit` puts around it; tests/toy holds them against its tasks, too.
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
        objects: four names in the order of `CELLS`, each of `OBJECTS`.
        places: four (x, y, radius) in pixels.
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
        cells: the cells asked about: one for a look, three or four for a sum.
        text: the bare question.
        options: colours or ranges in the order A..D, empty unless the kind offers options.
        claim: what a yes/no question asks about, a warmth or a bound; else None.
        value: what the scene shows: a colour, or points in digits.
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


def colour(thing: str) -> str:
    """The colour in an object's name."""
    return thing.partition("-")[0]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw an object into each cell, a little off its centre."""
    objects, places = [], []
    for index in range(len(CELLS)):
        row, column = divmod(index, 2)
        x, y = (int(v) for v in rng.integers(-1, 2, size=2))
        radius = int(rng.integers(4, 6))
        objects.append(OBJECTS[int(rng.integers(len(OBJECTS)))])
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
    """Paint a scene as an RGB image of 32x32 pixels."""
    image = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), _PAPER)
    pen = ImageDraw.Draw(image)
    for thing, (x, y, radius) in zip(scene.objects, scene.places, strict=True):
        ink, shape = thing.split("-")
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            pen.ellipse(box, fill=_INK[ink])
        elif shape == "square":
            pen.rectangle(box, fill=_INK[ink])
        else:
            corners = [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)]
            pen.polygon(corners, fill=_INK[ink])
    return image


def subject(cells: Sequence[str]) -> str:
    """What is asked about cells: the colour in one, the total of several."""
    if len(cells) == 1:
        return f"the colour at {cells[0]}"
    return f"the total of {', '.join(cells[:-1])} and {cells[-1]}"


def question_text(cells: Sequence[str], claim: str | None) -> str:
    """The bare question about cells, with the claim where it is to be answered by yes or no."""
    if claim is None:
        return f"What is {subject(cells)}?"
    if len(cells) == 1:
        return f"Is {subject(cells)} {claim}?"
    return f"Is {subject(cells)} more than {claim}?"


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


def places(kind: str) -> list[tuple[str, ...]]:
    """The cells that a question of a kind may ask about."""
    sizes = (1,) if kind.startswith("look") else SUM_SIZES
    return [cells for size in sizes for cells in itertools.combinations(CELLS, size)]


def claims(kind: str) -> tuple[str, ...]:
    """What a yes/no question of a kind may claim."""
    if kind.startswith("look"):
        return tuple(dict.fromkeys(WARMTH.values()))
    return BOUNDS


def orders(kind: str) -> list[tuple[str, ...]]:
    """The options of a kind in their one order, then its three rotations."""
    ring = (*COLOURS,) if kind.startswith("look") else (*RANGES,)
    return [ring[turn:] + ring[:turn] for turn in range(len(ring))]


def ask(scene: Scene, kind: str, rng: np.random.Generator, *, style: str | None = None) -> Question:
    """Draw one question of a kind about a scene.

    The options are rotated where MMBench may be asked: in its own style and in `paper-choice`.
    A claim holds or not with even odds, where the value
    allows both.

    Args:
        scene: what the image shows.
        kind: one of `KINDS`.
        rng: source of the cells, the order of the options and the claim.
        style: prompt format, one of `STYLES[kind]`; drawn if None.

    Raises:
        ValueError: if the kind is unknown or the style does not belong to it.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; allowed: {', '.join(KINDS)}")
    if style is None:
        weights = np.array([STYLE_WEIGHTS.get(one, 1) for one in STYLES[kind]])
        style = STYLES[kind][int(rng.choice(len(weights), p=weights / weights.sum()))]
    where = places(kind)
    cells = where[int(rng.integers(len(where)))]
    options: tuple[str, ...] = ()
    claim = None
    if kind.endswith("option"):
        rotated = style in ROTATING
        options = orders(kind)[int(rng.integers(len(LETTERS))) if rotated else 0]
    elif kind.endswith("yes-no"):
        claim = _claim(_value(scene, cells), kind, bool(rng.integers(2)), rng)
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
        ValueError: if the kind is unknown, the style does not belong to it, or no option holds the
            true value.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; allowed: {', '.join(KINDS)}")
    if style not in STYLES[kind]:
        allowed = ", ".join(STYLES[kind])
        raise ValueError(f"style={style!r} does not fit kind={kind!r}; allowed: {allowed}")
    value = _value(scene, cells)
    option = _option(value)
    if kind.endswith("option"):
        if option not in options:
            raise ValueError(f"options={tuple(options)!r} lack the true one, {option!r}")
        conclusion = LETTERS[list(options).index(option)]
    elif claim is not None:
        conclusion = "yes" if _holds(claim, value) else "no"
    else:
        conclusion = value
    text = question_text(cells, claim)
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
        summary=_summary(cells, options),
        caption=_caption(scene, cells),
        reasoning=_reasoning(scene, cells, options, claim, conclusion),
    )


def _value(scene: Scene, cells: Sequence[str]) -> str:
    colours = [colour(scene.at(cell)) for cell in cells]
    return colours[0] if len(cells) == 1 else str(sum(COLOURS[one] for one in colours))


def _option(value: str) -> str:
    """The option that holds a value: a colour itself, or the range of a total."""
    if value in COLOURS:
        return value
    return next(name for name, totals in RANGES.items() if int(value) in totals)


def _holds(claim: str, value: str) -> bool:
    return WARMTH[value] == claim if value in COLOURS else int(value) > int(claim)


def _claim(value: str, kind: str, truth: bool, rng: np.random.Generator) -> str:
    """A claim about a value that holds or not, as `truth` says; any if none does."""
    fitting = [one for one in claims(kind) if _holds(one, value) == truth] or claims(kind)
    return fitting[int(rng.integers(len(fitting)))]


def _summary(cells: Sequence[str], options: Sequence[str]) -> str:
    """What to do, and the option at A, from which the order of all follows."""
    task = "look at" if len(cells) == 1 else "add the points of"
    first = f" {LETTERS[0]} {options[0]}" if options else ""
    return f"{task} {' '.join(cells)} .{first}"


def _caption(scene: Scene, cells: Sequence[str]) -> str:
    """The whole grid, the cells that were asked about first.

    Four readings a scene teach a tiny model to look; and because the order depends on the question,
    it must look by a cell's name, not by its place in the text.
    """
    order = (*cells, *(cell for cell in CELLS if cell not in cells))
    return " ".join(f"{cell} {scene.at(cell)}" for cell in order)


def _reasoning(
    scene: Scene,
    cells: Sequence[str],
    options: Sequence[str],
    claim: str | None,
    conclusion: str,
) -> str:
    """Read or add up, then choose.

    Points and running totals are number words and the value is digits, so that a token tells what
    it stands for. A choice goes through the options up to the one that holds the value; a verdict
    stands behind the value and the claim.
    """
    value = _value(scene, cells)
    if len(cells) == 1:
        words = [f"{cells[0]} {scene.at(cells[0])} so {value}"]
    else:
        steps, total = [], 0
        for cell in cells:
            gain = COLOURS[colour(scene.at(cell))]
            total += gain
            steps.append(f"{cell} {NUMBER_WORDS[gain]} total {NUMBER_WORDS[total]}")
        words = [f"{' , '.join(steps)} so {value}"]
    if (options or claim) and len(cells) > 1:
        words.append(_option(value))
    if options:
        reached = LETTERS.index(conclusion) + 1
        words += [
            f"{letter} {one}" for letter, one in zip(LETTERS[:reached], options, strict=False)
        ]
    if claim is not None:
        words.append(f"claim {claim} {conclusion}")
    return " ".join(words)
