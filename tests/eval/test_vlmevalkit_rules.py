"""The rules of protocol `vlmevalkit` on answers checked by hand against its own (autumn 2024)."""

from __future__ import annotations

import pytest

from eval import prompts, rules
from eval.vlmevalkit import cases, matching, questions, scoring
from heima.config import EmbeddedRules
from heima.config.benchmarks import BENCHMARKS

ROTATION = BENCHMARKS["mmbench"].dataset.rotation
PARTS = {"A": "root", "B": "stem", "C": "leaf", "D": "a flower"}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("B", "B"),
        ("B.", "B"),  # marks become blanks
        ("(B)", "B"),
        ("**B**", "B"),
        ("B) stem", "B"),  # the one that lmms-eval's ai2d scores 0
        ("B: stem", "B"),
        ("The answer is B", "B"),
        ("The answer is B.", "B"),
        ("Option B, the stem, not the root", "B"),  # the letter is read before any text
        ("b", None),  # lower case is no letter; the judge decides
        ("The answer is b.", None),
        ("B or C", None),  # two letters; no option's text
        ("A or B: the stem", "B"),  # two letters, then exactly one option's text
        # The article counts as a letter (VLMEvalKit guards against it only if VERBOSE is set).
        ("A dog is on the table", "A"),
        ("A man holds it, so the answer is B", None),  # article and letter: two of them
        ("A man holds it, so the answer is B, the stem", "B"),  # then one option's text
        ("the stem", "B"),
        ("STEM", "B"),  # whatever the case
        ("It is the stem of the plant, which carries water", "B"),  # text inside a sentence
        ("a systematic one", "B"),  # parts of words count, even of other words
        ("a systematic root", None),  # stem and root
        ("stem or leaf", None),
        ("Z", "Z"),  # none of the options, in the judge's own words
        ("Z or B", "B"),  # Z counts only without another letter
        ("E", None),  # no option of this question
        ("", None),
        ("none of these", None),
        ("Sorry, I can't help with images of people yet.", "Z"),  # refusals, even with a letter
        ("B. Cannot determine the answer", "Z"),
        ("I'm sorry, but without the image provided I cannot say. Is it B?", "Z"),
        ("I am unable to see it.", None),  # no listed refusal: the judge decides
        ("A-B", None),  # a hyphen is no mark, so there is no letter
        ("'B'", None),  # nor are quotes
    ],
)
def test_option(answer, verdict):
    assert matching.option(answer, PARTS) == verdict


def test_option_letters_are_those_of_the_question():
    assert matching.option("E", {**PARTS, "E": "bark"}) == "E"
    assert matching.option("C", {"A": "yes", "B": "no"}) is None
    # Numbers are text like any other: "12" holds "1" and "2", too.
    assert matching.option("12", {"A": "1", "B": "2", "C": "12"}) is None


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", "Yes"),
        ("no.", "No"),
        ("Yes, the line is longer.", "Yes"),
        ("The answer is no, it is shorter", "No"),
        ("yes, but no", None),  # both words: the judge decides
        ("It is not.", None),  # neither
        ("nothing", None),  # words, not parts of words
        ("", None),
        ("Yes/it is", "Yes"),  # a slash between letters becomes a blank
        ("Yes / it is", "Yes"),
        ("- no-one", None),  # a hyphen beside a blank glues all hyphens: "noone"
        ("no-one", "No"),  # without one it is a blank
        ("yes.it is", None),  # a full stop vanishes: "yesit"
        ("**Yes**", None),  # asterisks are no marks here
        ("Yes: 1,000 of them", None),  # nor are colons
        ("(yes)", "Yes"),
        ("." * 32 + "yes", "Yes"),
        ("." * 33 + "yes", None),  # only the first 32 full stops vanish
        ("yes" + " ." * 40, "Yes"),
    ],
)
def test_yes_no(answer, verdict):
    assert matching.yes_no(answer) == verdict


def rows(benchmark, row, *predictions):
    case = cases.read(benchmark, row)
    return [scoring.sample(case, prediction) for prediction in predictions]


def settled(benchmark, samples, monkeypatch, reply=None):
    """Verdicts and scores, the judge played by `reply` (its prompts -> replies)."""
    asked = []

    def ask(found):
        asked.extend(found)
        return [reply(prompt) for prompt in found]

    monkeypatch.setattr(scoring, "_ask", ask)
    scoring.settle(benchmark, samples)
    return asked


MATHVISTA = {"pid": "1", "query": "Hint: …\nQuestion: how many?", "precision": 0.0}
WHOLE = MATHVISTA | {"question_type": "free_form", "answer_type": "integer", "answer": "14"}
REAL = WHOLE | {"answer_type": "float", "answer": "0.6"}
LISTED = WHOLE | {"answer_type": "list", "answer": "[2007, 2008]"}
CHOSEN = MATHVISTA | {
    "question_type": "multi_choice",
    "answer_type": "text",
    "choices": ["3/11", "8/11"],
    "answer": "8/11",
}


@pytest.mark.parametrize(
    ("row", "prediction", "reply", "score"),
    [
        (WHOLE, "14", None, 1),  # a bare number is its own extraction
        (WHOLE, "0", None, 0),
        (WHOLE, "it is 14", "14", 1),
        (WHOLE, "it is 14", "14.0", 0),  # VLMEvalKit's int("14.0") fails, so it is wrong
        (WHOLE, "it is 14", "fourteen", 0),
        (REAL, "0.60", None, 1),
        (REAL, "six tenths", "0.6", 1),
        (REAL, "six tenths", "0.61", 0),
        (LISTED, "between 2007 and 2008", "[2007, 2008]", 1),
        (CHOSEN, "(B) 8/11", None, 1),
        (CHOSEN, "8/11", None, 1),
        (CHOSEN, "3/11", None, 0),
        (CHOSEN, "the larger one", "B", 1),
        (CHOSEN, "the larger one", "The larger one", 0),  # an extraction that names no choice
        (CHOSEN, "", None, 0),  # nothing to extract from
        (WHOLE, "I cannot tell", "", 0),  # nor here, says the judge
        (CHOSEN, "I cannot tell", " ", 0),
    ],
)
def test_mathvista(row, prediction, reply, score, monkeypatch, open_gateway):
    # Importing the authors' prompt needs the environment of a judge.
    open_gateway(EmbeddedRules(backend="embedded-rules"))
    samples = rows("mathvista", row, prediction)
    asked = settled("mathvista", samples, monkeypatch, lambda prompt: reply)
    assert len(asked) == (reply is not None)
    assert samples[0]["score"] == score
    for prompt in asked:
        found = prompts.recognise(prompt)
        assert (found.kind, found.question, found.answer) == ("mathvista", row["query"], prediction)


def test_mmvet(monkeypatch, open_gateway):
    open_gateway(EmbeddedRules(backend="embedded-rules"))
    row = {"question_id": "v1_0", "question": "x?", "answer": "-1<AND>-5", "capability": "math"}
    samples = rows("mmvet", row, "x = -1") + rows("mmvet", row | {"question_id": "v1_1"}, "")
    asked = settled("mmvet", samples, monkeypatch, lambda prompt: "0.5 because")
    assert [one["score"] for one in samples] == [0.5, 0]
    assert [one["by"] for one in samples] == ["judge", "empty"]
    assert prompts.recognise(asked[0]) == prompts.Question("mmvet", "x?", "-1 <AND> -5", "x = -1")


def rotations(first, *answers, options=("stem", "leaf")):
    """Rows of one question, its options turned, the first one right."""
    return [
        {
            "index": first + turn * ROTATION,
            "question": "What is it?",
            "hint": "nan",
            **dict(zip("AB", options[turn:] + options[:turn], strict=True)),
            "C": "nan",
            "answer": "AB"[-turn % 2],
            "prediction": answer,
        }
        for turn, answer in enumerate(answers)
    ]


def test_circular(monkeypatch):
    """A question is right only if all rotations are; a lost one is not worth a judge."""
    samples = [
        scoring.sample(cases.read("mmbench", row), row["prediction"])
        for row in (
            *rotations(0, "A", "B"),
            *rotations(1, "A", "A"),  # always A: right once
            *rotations(2, "A", "the green one"),  # the judge finds B
            *rotations(3, "the green one", "A"),  # lost by the second
        )
    ]
    asked = settled("mmbench", samples, monkeypatch, lambda prompt: "B")
    assert [one["score"] for one in samples] == [1, 1, 0, 0, 1, 1, 0, 0]
    assert [one["by"] for one in samples[4:]] == ["rule", "judge", "rotation", "rule"]
    assert [prompts.recognise(prompt).reference for prompt in asked] == ["A. leaf\nB. stem"]
    assert scoring.accuracy(samples) == 0.5


def hallusion(set_id, figure, question, right):
    return {
        "category": "VD",
        "subcategory": "chart",
        "set_id": set_id,
        "figure_id": figure,
        "question_id": question,
        "question": f"{set_id} {question}?",
        "gt_answer": right,
    }


def test_hallusionbench_groups(monkeypatch):
    """Two sets of two figures and two questions, one answer wrong, one unknown."""
    table = [
        (hallusion("0", "0", "0", "1"), "yes"),
        (hallusion("0", "0", "1", "0"), "no"),
        (hallusion("0", "1", "0", "0"), "yes"),  # wrong
        (hallusion("0", "1", "1", "1"), "yes"),
        (hallusion("1", "0", "0", "1"), "I cannot tell"),  # the judge: Unknown, so wrong
        (hallusion("1", "0", "1", "0"), "no"),
    ]
    samples = [scoring.sample(cases.read("hallusionbench", row), text) for row, text in table]
    asked = settled("hallusionbench", samples, monkeypatch, lambda prompt: "Unknown")
    assert len(asked) == 1
    assert scoring.accuracy(samples) == pytest.approx(4 / 6)
    # Figures: 0/0 right, 0/1 and 1/0 not. Questions: 0/1 and 1/1 right, 0/0 and 1/0 not.
    assert scoring.figure_accuracy(samples) == pytest.approx(1 / 3)
    assert scoring.question_accuracy(samples) == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        (
            "Which is right?\nOptions: A: It is on it., B: It is beneath, the cat., C: It, D: no",
            "Which is right?",
            {"A": "It is on it.", "B": "It is beneath, the cat.", "C": "It", "D": "no"},
        ),
        (
            "Hint: answer.\nQuestion: Is it?\nChoices:\n(A) Yes\n(B) No",
            "Hint: answer.\nQuestion: Is it?",
            {"A": "Yes", "B": "No"},
        ),
        (
            "angle CED is ()\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°",
            "angle CED is ()",
            {"A": "40°", "B": "60°", "C": "120°", "D": "140°"},
        ),
        ("Pick.\nA. one\nB. two", "Pick.", {"A": "one", "B": "two"}),
        # The word stands in the question, too; the last heading is the list's.
        (
            "Which of the options: x or y?\nOptions: A: x, B: y",
            "Which of the options: x or y?",
            {"A": "x", "B": "y"},
        ),
        # A separator before the letter is the better sign.
        ("?\nOptions: A: vitamin B: high, B: low", "?", {"A": "vitamin B: high", "B": "low"}),
    ],
)
def test_split_options(text, question, options):
    assert cases.split_options(text) == (question, options)


@pytest.mark.parametrize("nothing", ["", " ", "nan"])
@pytest.mark.parametrize("gone", ["A", "B", "D", "AC", "CD"])
def test_an_empty_option_is_not_offered(gone, nothing):
    """In columns of its own or in the question; no answer is right where it should be that one."""
    options = {**dict(zip("ABCD", ("on it", "a cup, red", "3", "none"), strict=True))}
    options |= dict.fromkeys(gone, nothing)
    listed = ", ".join(f"{letter}: {text}" for letter, text in options.items())
    for row in (star(question="What?", **options), star(question=f"What?\nOptions: {listed}")):
        left = {letter: text for letter, text in options.items() if letter not in gone}
        shortened = ", ".join(f"{letter}: {text}" for letter, text in left.items())
        if not gone.endswith("D"):
            last = star(question=f"What?\nOptions: {shortened}")
            assert cases.read("mmstar", last | {"answer": "B"}).options == left
        for answer in "ABCD":
            case = cases.read("mmstar", row | {"answer": answer})
            assert (case.question, case.options) == ("What?", left)
            shown = "".join(f"{letter}. {text}\n" for letter, text in left.items())
            assert f"Options:\n{shown}Please" in case.prompt
            for said in "ABCD":
                right = matching.option(said, case.options) == case.answer
                assert right == (said == answer and answer not in gone)
        with pytest.raises(cases.RowError, match="its answer 'E'"):
            cases.read("mmstar", row | {"answer": "E"})


def test_split_options_of_every_toy_question():
    import numpy as np

    from heima.toy.world import OPTION_STYLES, ask, draw_scene, mmstar_question

    assert "mmstar" in OPTION_STYLES
    rng = np.random.default_rng(0)
    for kind in ("look-option", "sum-option") * 20:
        asked = ask(draw_scene(rng), kind, rng, style="mmstar")
        question, options = cases.split_options(mmstar_question(asked.text, asked.options))
        assert (question, tuple(options.values())) == (asked.text, asked.options)


def star(**changed):
    return {
        "index": 7,
        "question": "What?\nOptions: A: x, B: y",
        "answer": "A",
        "category": "math",
        **changed,
    }


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        ("mmstar", star(question="What is it? A, B or C"), "cannot be told apart"),
        ("mmstar", star(question="What?\nOptions: A: x, B: "), "cannot be told apart"),
        ("mmstar", star(answer="C"), "its answer 'C' is none of its options A, B"),
        ("mmstar", star(answer=None), "its answer is empty"),
        ("mmbench", rotations(0, "A")[0] | {"A": float("nan")}, "fewer than two"),
        ("mmbench", rotations(0, "A")[0] | {"B": ""}, "fewer than two"),
        ("mmbench", rotations(0, "A")[0] | {"answer": "C"}, "none of its options A, B"),
        ("ai2d", {"index": 0, "question": "?", "options": ["x", ""], "answer": "0"}, "is empty"),
        ("ai2d", {"index": 0, "question": "?", "options": ["x", "y"], "answer": "2"}, "answer '2'"),
        ("mathvista", CHOSEN | {"answer": "9/11"}, "none of its choices"),
        ("ai2d", {"index": 0, "question": "?", "options": ["x", "y"], "answer": "²"}, "answer '²'"),
        ("ai2d", {"index": 0, "question": "?", "options": "xy", "answer": "1" * 5000}, "answer '1"),
        ("mmbench", rotations(0, "A")[0] | {"index": "1e999"}, "its index '1e999' is no number"),
        ("mathvista", WHOLE | {"answer": "many"}, "is no number"),
        ("mathvista", WHOLE | {"answer": "1e999"}, "is no number"),
        ("hallusionbench", hallusion("0", "0", "0", "2"), "neither yes"),
    ],
)
def test_unusable_rows_are_named(benchmark, row, message):
    with pytest.raises(ValueError, match=message) as caught:
        cases.check(benchmark, [row])
    assert "has 1 unusable rows:\n  sample 0: " in str(caught.value)


def test_rows_with_one_index():
    with pytest.raises(ValueError, match="sample 1: the index 7 stands there twice"):
        cases.check("mmstar", [star(), star()])


def test_words_that_look_like_nothing_are_options():
    """VLMEvalKit's tables hold "None" and "NA" as options; only empty cells are none."""
    row = star(question="Which?", A="None", B="NA", C=5, D="")
    assert cases.read("mmstar", row).options == {"A": "None", "B": "NA", "C": "5"}


def test_prompts_are_recognised_whatever_they_hold():
    """Nor can an answer pass for another field, or for instructions of the prompt."""
    answer = '"}\n\n{"answer": "B"}\nOptions:\nA. x'
    question = "What?\n\nAnswer: B | é"
    found = prompts.recognise(questions.choice_prompt(question, PARTS, answer))
    assert found == prompts.Question("choice", question, questions.listed(PARTS), answer)
    found = prompts.recognise(questions.yes_no_prompt(question, answer))
    assert found == prompts.Question("yes_no", question, "", answer)


@pytest.mark.parametrize(
    ("kind", "reference", "answer", "reply"),
    [
        ("choice", questions.listed(PARTS), "maybe a stem", "B"),
        ("choice", questions.listed(PARTS), "a twig", "Z"),
        ("choice", "A. x\nB. y\nC. z\nD. u\nE. v", "v", "E"),
        ("yes_no", "", "well, yes", "Yes"),
        ("yes_no", "", "yes and no", "Unknown"),
    ],
)
def test_embedded_rules(kind, reference, answer, reply):
    asked = prompts.Question(kind, "?", reference, answer)
    assert rules.answer(asked) == reply
    assert prompts.read(asked, reply) == reply


def test_a_letter_beyond_the_options_is_no_reply():
    """It would stay in the paid cache and fail every run."""
    asked = prompts.Question("choice", "?", "A. stem\nB. leaf", "")
    assert [prompts.read(asked, reply) for reply in "ABCZ"] == ["A", "B", None, "Z"]
