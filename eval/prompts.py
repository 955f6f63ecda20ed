"""Judge prompts, of lmms-eval 0.7.3's tasks and our own: recognised, taken apart, replies checked.

Four of lmms-eval's tasks ask a judge, and so do the protocol `vlmevalkit` (MM-Vet and
MathVista with the same prompts) and the similarity of reconstructions. Each has one fixed wording,
so a prompt tells by itself what is asked and what a usable reply looks like:

==============  ===================================  ======================================
kind            asks for                             a reply says
==============  ===================================  ======================================
mmvet           a grade of a prediction              a number from 0.0 to 1.0
mathvista       the final answer within a response   any text, or none
hallusionbench  whether two answers agree            correct, incorrect or unclear
mmbench         the option that an answer means      a letter A to E
choice          the option that an answer means      a letter, Z for none
yes_no          whether an answer means yes or no    Yes, No or Unknown
similarity      how similar two texts' meaning is    {"grade": 1} to {"grade": 5}
==============  ===================================  ======================================

Reading them here matters because the tasks themselves do not: what they cannot read becomes the
score 0 (mmvet), the verdict "unclear" (hallusionbench) or a random letter (mmbench) there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from eval.judge import replies, similarity
from eval.vlmevalkit import questions
from eval.vlmevalkit.matching import NONE


@dataclass(frozen=True)
class Question:
    """A judge prompt taken apart.

    `kind` is the benchmark whose task asks, or `similarity`; `question`, `reference` and `answer`
    are what is asked, what is right ("" where the judge is not told) and what the model said.
    """

    kind: str
    question: str
    reference: str
    answer: str


def recognise(prompt: str) -> Question | None:
    """The parts of a judge prompt, or None for a wording that none of the tasks uses."""
    for opening, take_apart in _KINDS.items():
        if prompt.startswith(opening):
            return take_apart(prompt)
    return None


def read(asked: Question, reply: str) -> str | None:
    """A reply in the form that the task reads, or None where it is not what was asked for.

    The tasks read a bare letter, word or number alone; a reply that means one is handed on as it.
    """
    return _READ[asked.kind](asked, reply)


def _mmvet(prompt: str) -> Question | None:
    # A table of examples, an empty line, then "question | ground truth | prediction |".
    _, found, row = prompt.partition("| 1.0\n\n")
    cells = row.split(" | ", 2)
    if not found or len(cells) != 3 or not cells[2].endswith(" |"):
        return None
    return Question("mmvet", cells[0], cells[1], cells[2].removesuffix(" |"))


def _mathvista(prompt: str) -> Question | None:
    # Examples, then "{query}\n\n{response}\n\nExtracted answer: "; a query has no empty line.
    _, found, rest = prompt.partition("Extracted answer: B\n\n")
    query, separated, response = rest.partition("\n\n")
    if not found or not separated or not response.rstrip().endswith("Extracted answer:"):
        return None
    answer = response.rstrip().removesuffix("Extracted answer:").strip()
    return Question("mathvista", query, "", answer)


def _hallusionbench(prompt: str) -> Question | None:
    found = re.fullmatch(
        r".*?\n\n Question:(.*?)\nReference answer: (.*?)\nPrediction answer:(.*)\nOutput:",
        prompt,
        flags=re.DOTALL,
    )
    return Question("hallusionbench", *found.groups()) if found else None


def _mmbench(prompt: str) -> Question | None:
    found = re.fullmatch(
        r".*?Example 3: \nQuestion: (.*?)\?\nOptions: (.*?)\nAnswer: (.*)\nYour output: ",
        prompt,
        flags=re.DOTALL,
    )
    # The options are the reference: which of them is right, the judge is not told.
    return Question("mmbench", *found.groups()) if found else None


def _similarity(prompt: str) -> Question | None:
    texts = similarity.compared(prompt)
    if texts is None:
        return None
    return Question("similarity", texts["question"], texts["original"], texts["reconstruction"])


def _choice(prompt: str) -> Question:
    fields = questions.parts(prompt)
    return Question("choice", fields["question"], fields["options"], fields["answer"])


def _yes_no(prompt: str) -> Question:
    fields = questions.parts(prompt)
    return Question("yes_no", fields["question"], "", fields["answer"])


def _read_choice(asked: Question, reply: str) -> str | None:
    """A letter of the options that the prompt lists, or the one for none of them."""
    listed = re.findall(r"^([A-Z])\. ", asked.reference, flags=re.MULTILINE)
    return replies.chosen(reply, (NONE, *listed))


def _read_similarity(_: Question, reply: str) -> str | None:
    try:
        return json.dumps({"grade": similarity.parse(reply)})
    except ValueError:
        return None


def _read_agreement(_: Question, reply: str) -> str | None:
    return reply.strip() if re.search("correct|unclear", reply.lower()) else None


_KINDS: dict[str, Callable[[str], Question | None]] = {
    "Compare the ground truth and prediction from AI models": _mmvet,
    "Please read the following example. Then extract the answer": _mathvista,
    "Imagine you are an intelligent teacher. Thoroughly read the question, ref": _hallusionbench,
    "You are an AI assistant who will help me to match an answer": _mmbench,
    similarity.INSTRUCTIONS: _similarity,
    questions.CHOICE: _choice,
    questions.YES_NO: _yes_no,
}

_READ: dict[str, Callable[[Question, str], str | None]] = {
    "similarity": _read_similarity,
    "choice": _read_choice,
    "yes_no": lambda _, reply: replies.said(reply),
    "mmvet": lambda _, reply: replies.grade(reply),
    # An answer may hold nothing to extract; the task then finds it wrong.
    "mathvista": lambda _, reply: reply.strip(),
    "hallusionbench": _read_agreement,
    "mmbench": lambda _, reply: replies.chosen(reply, "ABCDE"),
}

MAX_TOKENS = {
    "similarity": 32,
    "mmvet": 128,
    "mathvista": 256,
    # lmms-eval allows 16: a judge that adds a reason is cut off there, and its verdict lost.
    "hallusionbench": 128,
    "mmbench": 256,
    "choice": 256,
    "yes_no": 128,
}
"""How long a judge's reply to each kind may be; a longer one is no reply."""

CANARY = (
    "Imagine you are an intelligent teacher. Thoroughly read the question, reference answer and "
    "the prediction answer to ensure a clear understanding of the information provided. Assess the "
    "correctness of the predictions. \n\n Question:Is two more than one?\nReference answer: Yes."
    "\nPrediction answer:Yes.\nOutput:"
)
"""A short question of a known kind and answer (correct), asked before anything is scored."""
