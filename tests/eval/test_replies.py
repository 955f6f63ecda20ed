"""What a judge's reply says: one thing in whatever dress, and nothing where it could be two."""

from __future__ import annotations

import itertools

import pytest

from eval import prompts
from eval.judge import replies
from eval.vlmevalkit import questions

DRESSES = [
    "{}",
    " {}\n",
    "**{}**",
    "`{}`",
    '"{}"',
    "'{}'",
    "“{}”",
    "```\n{}\n```",
    "```text\n{}```",
    "_{}_",
    "| {} |",
    r"\boxed{{{}}}",
    r"$\boxed{{\text{{{}}}}}$",
    "***{}***",
    "{}.",
    "{}。",
]
LABELS = [
    "{}",
    "Answer: {}",
    "**Answer:** {}",
    "The answer is {}",
    "The final answer: {}",
    "answer = {}",
    "Your output: {}",
    "My answer is: {}",
    "It is {}",
]
DRESSED = [label.format(dress) for label, dress in itertools.product(LABELS, DRESSES)]


@pytest.mark.parametrize("form", DRESSED)
def test_dress_is_taken_off(form):
    for letter in "ABCDZ":
        assert replies.chosen(form.format(letter), "ABCDZ") == letter
    for word in ("Yes", "No", "Unknown"):
        assert replies.said(form.format(word)) == replies.said(form.format(word.lower())) == word
    for number in ("0", "0.0", "0.5", "1", "1.0", ".25"):
        assert replies.grade(form.format(number)) == number


@pytest.mark.parametrize(
    "reply",
    [
        "B)",
        "(B)",
        "B: leaf",
        "(B) leaf",
        "B. a leaf, not A",
        "**B. vitamin C**",
        "Option B",
        "Answer: Option B",
        "The answer means B.",
        "B - leaf",
        "B – leaf",
        "B, because it is a leaf",
        "B, because it is not a stem",
        "B\n\nThe answer says so.",
        "B because I see a leaf",
        "[B]",
        "I choose B",
        "As an AI I say B",
        "The letter is B",
        "It means B, a leaf",
        "B is meant",
    ],
)
def test_a_letter_with_its_reason(reply):
    assert replies.chosen(reply, "ABCZ") == "B"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "b",
        "AB",
        "B or C",
        "A or B",
        "A and B",
        "A-B",
        "A/B",
        "B, C",
        "B\nC",
        "Either A or B.",
        "B. or C",
        "A leaf",
        "A leaf, so B",
        "not B",
        "It is not B.",
        "It isn't B",
        "neither, so B",
        "anything but B is wrong, not this",
        "B or Z",
        "D",
        "E",
        "<html>",
        "none",
        "Answer:",
        "```\n```",
        "I think so",
        "B? A?",
        "BB",
        "B's",
        "The answer is B or C",
        "B rather than C",
    ],
)
def test_no_letter_is_guessed(reply):
    assert replies.chosen(reply, "ABCZ") is None


def test_the_article_and_the_pronoun_are_no_letters():
    assert replies.chosen("A is right", "ABZ") == replies.chosen("A, a stem", "ABZ") == "A"
    assert replies.chosen("I", "ABCDEFGHIZ") == replies.chosen("I, as I see it", "IZ") == "I"
    assert replies.chosen("I think it is B", "BIZ") == "B"
    assert replies.chosen("A man", "ABZ") is None


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        *((form, "Yes") for form in ("Yes it is", "Yes, it is", "YES!", "Yes - so", "yes\nSo")),
        *((form, "No") for form in ("No, it is shorter", "no.", "No\n\nIt does not", "No; not so")),
        *((form, "Unknown") for form in ("Unknown, nothing is said", "unknown")),
        *(
            (form, None)
            for form in (
                "",
                "Yes and no",
                "Yes or no",
                "No idea",
                "No answer is given",
                "Not sure",
                "Nothing",
                "Unknown: yes or no",
                "maybe",
                "I would not say yes",
                "Yesterday",
                "nope",
                "not unknown",
            )
        ),
    ],
)
def test_yes_and_no(reply, word):
    assert replies.said(reply) == word
    assert prompts.read(prompts.Question("yes_no", "?", "", ""), reply) == word


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("0.5\nbecause", "0.5"),
        ("0.5 because 1 of 2 is named", "0.5"),
        ("1.0.", "1.0"),
        ("Score: 1.0", "1.0"),
        ("| 1.0", "1.0"),
        ("```1.0```", "1.0"),
        ("0.5/1", "0.5"),
        ("0.5 / 1.0", "0.5"),
        ("0.5 out of 1", "0.5"),
        ("0.4, as it names one", "0.4"),
        *(
            (reply, None)
            for reply in (
                *("", "7", "10", "1.5", "-0.5", "1/10", "1 / 10", "1 out of 10", "1 of 2", "1%"),
                *("0,5", "0.5 or 1.0", "0.5 to 0.7", "0.5-0.7", "0.5 – 1", "0 and 1", "0.5/10"),
                *("1e-1", "01", "nan", "the whole", "Question 1: 0.5", "because\n0.5", "1.0.5"),
            )
        ),
    ],
)
def test_grades(reply, number):
    assert replies.grade(reply) == number
    assert prompts.read(prompts.Question("mmvet", "", "", ""), reply) == number


@pytest.mark.parametrize(
    ("reply", "letter"), [("**B**", "B"), ("Option Z", "Z"), ("C", None), ("B or A", None)]
)
def test_letters_are_those_that_the_prompt_lists(reply, letter):
    listed = questions.listed({"A": "stem", "B": "leaf"})
    assert prompts.read(prompts.Question("choice", "?", listed, ""), reply) == letter
