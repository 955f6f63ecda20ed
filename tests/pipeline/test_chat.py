"""The demo reads what the pipeline reads, and says in a sentence what it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from heima import chat, config
from heima.cot.rendering import render
from heima.data.images import ImageZip
from heima.data.turns import load_turns
from heima.results.files import read_jsonl
from heima.vlm import models


@pytest.fixture
def there(reproduction, monkeypatch):
    """The current folder is that of a finished small reproduction, whose parameters these are."""
    monkeypatch.chdir(reproduction.root)
    return config.load_resolved()


def test_its_readings_are_the_reconstructions_of_the_pipeline(there):
    """Of a held-out turn with the answer that the states were extracted from."""
    seed = there.seeds[0]
    turn = load_turns("data/rewritten/heldout.parquet")[0]
    image = ImageZip("data/source/images.zip").read(turn.image)
    name = there.trained(there.states.checkpoint, seed)
    model, processor = models.load_vlm(models.ROOT, name, there)
    vocabulary = models.vocabulary(processor.tokenizer, there)
    text = render(turn.sections, "p3")
    found = chat.readings(model, processor, vocabulary, image, turn.question, text, there, seed)
    own = {one.section: one.own for one in found}
    assert own.keys() == {"reasoning"}, "of the sections with an interpreter of their own"
    rows = read_jsonl(f"reconstructions/reasoning/{seed}.jsonl")
    [expected] = [r["text"] for r in rows if r["id"] == turn.id and r["control"] == "own"]
    assert own["reasoning"] == expected


def ask(*arguments):
    command = [sys.executable, "-m", "heima.chat", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_exported_folder_answers_as_the_pipelines_checkpoint(there, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    question = "What is at a1?"
    export = [sys.executable, "-m", "stages.export", "recover", str(tmp_path / "out"), "--merged"]
    subprocess.run(export, check=True, capture_output=True)
    ours = ask(tmp_path / "red.png", question, "--max-new-tokens", 12)
    theirs = ask(
        tmp_path / "red.png", question, "--exported", tmp_path / "out", "--max-new-tokens", 12
    )
    assert theirs.returncode == 0, theirs.stderr
    assert theirs.stdout.strip() and ours.stdout.startswith(theirs.stdout.strip())


@pytest.mark.parametrize(
    ("image", "question", "more", "told"),
    [
        ("none.png", "What?", (), "none.png cannot be read as an image: "),
        ("params.yaml", "What?", (), "params.yaml cannot be read as an image: "),
        ("red.png", "  ", (), "the question is empty"),
        ("red.png", "What?", ("--checkpoint", "p9"), "checkpoint 'p9' is not one of text-cot, "),
        ("red.png", "What?", ("--exported", "models/base"), "was not written by stages.export"),
    ],
)
def test_what_it_cannot_answer_is_a_sentence(
    there, tmp_path, monkeypatch, capsys, image, question, more, told
):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    path = tmp_path / image if image == "red.png" else image
    monkeypatch.setattr(sys, "argv", ["chat", str(path), question, *more])
    with pytest.raises(SystemExit, match=r"^error: ") as ended:
        chat.main()
    assert told in str(ended.value)
