"""Several thinking tokens a section, and a number that follows its length, from end to end.

The stages themselves run, on a toy model that has learnt nothing and a handful of turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from heima import config
from heima.cot import parsing
from heima.cot.rendering import render
from heima.cot.sections import COMPRESSIBLE, numbered, repeated
from heima.cot.thinking import Thinking
from heima.data.encoding import encode_turns, thinking_count
from heima.interpreting import states
from heima.results.cells import read_metrics
from heima.results.files import read_jsonl
from heima.vlm.generation import Decoder, Plan, Prompt
from stages import distill, interpret, reconstruct, resolve
from stages import states as states_stage
from tests.conftest import ROOT
from tests.fabricated import write_turns

VARIANTS = {"two": Thinking(tokens=2), "adaptive": Thinking(ratio=0.4)}
CONTROLS = ["own", "shuffled", "mean", "zero"]


@pytest.fixture(
    params=[
        # As many of each turn: what the other has of some.
        pytest.param(VARIANTS["two"], id="two", marks=pytest.mark.slow),
        pytest.param(VARIANTS["adaptive"], id="adaptive"),
    ]
)
def thinking(request):
    return request.param


@pytest.fixture
def turns(toy_turns):
    return toy_turns[::2]


def write(turns):
    """What is trained on is held out, too."""
    for split in ("train", "heldout"):
        write_turns(f"data/rewritten/{split}.parquet", turns)


@pytest.fixture
def workspace(
    tmp_path, monkeypatch, raw_params, toy_source, toy_vlm, toy_llm, toy_processor, turns, thinking
):
    """The working directory, with everything that `distill` and the stages behind it read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "rewritten").mkdir(parents=True)
    write(turns)
    (tmp_path / "data" / "source").symlink_to(toy_source)
    for name, model, processor in (
        ("text-cot", toy_vlm, toy_processor),
        ("interpreter", toy_llm, toy_processor.tokenizer),
    ):
        model.save_pretrained(tmp_path / "models" / name)
        processor.save_pretrained(tmp_path / "models" / name)
    schedule = {"batch_size": 12, "learning_rate": 1e-2, "warmup_steps": 1}
    raw_params["checkpoints"]["one-shot"].update(
        steps=2, matched=[], thinking=thinking.model_dump(exclude_none=True), **schedule
    )
    raw_params["states"].update(checkpoint="one-shot", batch_size=7)
    raw_params["interpret"].update(steps=80, **schedule)
    raw_params["reconstruct"].update(controls=CONTROLS, max_new_tokens=4)
    raw_params["similarity"]["judged"] = ["own"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw_params), encoding="utf-8")


@pytest.mark.usefixtures("workspace")
def test_sections_are_rebuilt_from_the_last_of_several_states(
    turns, toy_vocabulary, toy_llm, thinking
):
    """Once the real states are extracted, others take their place of which only each section's last
    tells anything: a reader that missed it could not tell sections apart."""
    resolve.write(config.load())
    distill.main("one-shot", 42)
    _, provenance = read_metrics("metrics/distill/one-shot/42.json")
    assert provenance["thinking"] == thinking.model_dump(exclude_none=True)

    states_stage.main(42)
    counts = [thinking_count(thinking, toy_vocabulary.length(turn.reasoning)) for turn in turns]
    for path in Path("states/42").iterdir():
        found = states.load(path, "reasoning", turns)
        assert found.counts.tolist() == counts
        assert found.values.shape == (sum(counts), toy_llm.config.hidden_size)
        telling = torch.ones_like(found.values)
        telling[found.counts.cumsum(0) - 1] = torch.randn(
            len(turns), toy_llm.config.hidden_size, generator=torch.Generator().manual_seed(0)
        )
        states.save(path, {"reasoning": states.SectionStates(telling, torch.tensor(counts))}, turns)

    # All ask the same now.
    write([replace(turn, question="what is at a1 ?") for turn in turns])
    interpret.main("reasoning", "own", 42)
    reconstruct.main("reasoning", 42)
    nll = dict.fromkeys(CONTROLS, 0.0)
    for row in read_jsonl("reconstructions/reasoning/42.jsonl"):
        nll[row["control"]] += row["nll"]
    assert nll["own"] < 0.7 * min(nll[control] for control in CONTROLS[1:]), nll


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("thinking", [VARIANTS["adaptive"]])
def test_two_processes_give_the_bytes_of_one(raw_params):
    """Of states and of sampled reconstructions; the stages start themselves twice."""
    raw_params["interpret"].update(steps=2)
    raw_params["reconstruct"].update(temperature=0.6, batch_size=5)

    def set_processes(count):
        raw_params["hardware"] = {"processes": count}
        Path("params.yaml").write_text(yaml.safe_dump(raw_params), encoding="utf-8")
        resolve.write(config.load())

    def written():
        files = [*Path("states/42").iterdir(), Path("reconstructions/reasoning/42.jsonl")]
        return {str(file): file.read_bytes() for file in files}

    set_processes(1)
    distill.main("one-shot", 42)
    states_stage.main(42)
    interpret.main("reasoning", "own", 42)
    reconstruct.main("reasoning", 42)
    one = written()
    assert len({row["text"] for row in read_jsonl("reconstructions/reasoning/42.jsonl")}) > 10

    set_processes(2)
    for command in (["stages.states", "42"], ["stages.reconstruct", "reasoning", "42"]):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=120,
        )
        assert f"{command[0]} on 2 processes" in done.stdout
    assert written() == one


def test_answers_are_counted_and_shown_token_by_token(turns, toy_vocabulary, thinking):
    """Whatever decodes them: here an engine that knows the true answers."""
    samples = encode_turns(turns, "p3", toy_vocabulary, max_length=512, thinking=thinking)
    answers = [one.encoded.input_ids[one.encoded.body :] for one in samples]

    class Engine:
        ends = frozenset([toy_vocabulary.tokenizer.eos_token_id])

        def __call__(self, prompts, ids, *, decoding, seed):
            return answers

    decoding = config.Decoding(temperature=0, top_k=1, max_new_tokens=99, batch_size=len(turns))
    prompts = [Prompt(turn.question, turn.image, None) for turn in turns]
    planned = Plan(prompts, [[1]] * len(turns), [range(len(turns))], decoding, 0)
    for turn, one in zip(turns, Decoder(Engine(), toy_vocabulary)(planned, 0), strict=True):
        if thinking.ratio is None:
            expected = numbered(thinking.tokens)
        else:
            lengths = {s: toy_vocabulary.length(turn.sections[s]) for s in COMPRESSIBLE}
            expected = repeated({s: max(1, int(0.4 * n)) for s, n in lengths.items()})
        answer = render(turn.sections, "p3", expected)
        assert "".join(one.text.split()) == "".join(answer.split())
        assert parsing.conclusion(one.text) == turn.conclusion
        assert one.counts.thinking == sum(map(len, expected.values()))
        assert one.counts.tag == 8
        conclusion = toy_vocabulary.length(turn.conclusion)
        assert one.counts.conclusion == conclusion
        assert one.counts.decoded == one.counts.thinking + 8 + conclusion + 1
