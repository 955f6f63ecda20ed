"""Latency: parts that add up, the tokens of prediction, cases in turn, work by hand."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from eval import latency
from eval.timing import (
    BATCHES,
    Case,
    Measured,
    Question,
    Setup,
    Timing,
    Work,
    measure,
    median_decoded,
)
from heima.config import Decoding, Peaks
from heima.cot.rendering import constant_prefix
from heima.families.feeding import Feed
from heima.results.cells import read_metrics
from heima.results.files import read_jsonl
from heima.vlm.generation import Prompt, generate

PREFIX = constant_prefix("p3")


@pytest.fixture(scope="module")
def model(toy_processor):
    """An untrained toy model whose answers differ and end at different places."""
    from heima.toy.mllama import build_vlm

    model = build_vlm(toy_processor, seed=1).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 1, generator=generator)
        model.lm_head.weight[toy_processor.tokenizer.eos_token_id].mul_(6)
    return model


@pytest.fixture(scope="module")
def questions():
    rng = np.random.default_rng(5)
    return [
        Question(
            "what is at a1 " * (1 + i * 3 % 5),
            Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)),
        )
        for i in range(8)
    ]


@pytest.fixture(scope="module")
def setup(model, toy_processor, toy_vocabulary, questions):
    cases = {
        "text-cot": Case(model, 24),
        "heima-forced-prefix": Case(model, 23, prefix=PREFIX),
        "cut": Case(model, 3),
    }
    return Setup(cases, toy_processor, toy_vocabulary, questions)


@pytest.fixture(scope="module")
def short(setup):
    """The same cases, each cut after a few tokens."""
    limits = {"text-cot": 5, "heima-forced-prefix": 4, "cut": 3}
    cases = {name: replace(case, max_new_tokens=limits[name]) for name, case in setup.cases.items()}
    return replace(setup, cases=cases)


@pytest.fixture(scope="module")
def measured(setup):
    return measure(setup, batch_sizes=[1, 3, 8], rounds=1)


def predicted(setup, *, limit, prefix=""):
    """Tokens of each answer, as prediction counts them."""
    prompts = [
        Prompt(one.text, f"image {i}", lambda one=one: one.image)
        for i, one in enumerate(setup.questions)
    ]
    answers = generate(
        setup.cases["text-cot"].model,
        setup.processor,
        setup.vocabulary,
        prompts,
        decoding=Decoding(temperature=0, top_k=50, max_new_tokens=limit, batch_size=4),
        seed=1,
        prefix=prefix,
    )
    return [answer.counts.decoded for answer in answers]


def test_parts_add_up(measured):
    for timing in measured.timings:
        before = timing.preprocess_ms + timing.vision_ms + timing.prefill_ms
        assert min(timing.preprocess_ms, timing.vision_ms, timing.prefill_ms) > 0
        # Between them is only what `generate` prepares, and behind them the copy of the tokens.
        assert before <= timing.ttft_ms + 1e-6
        assert timing.ttft_ms + timing.decode_ms <= timing.e2e_ms + 1e-6
        if max(timing.decoded) == 1:
            assert (timing.tpot_ms, timing.decode_ms) == (None, 0)
        else:
            assert timing.tpot_ms * (max(timing.decoded) - 1) == pytest.approx(timing.decode_ms)


def test_the_tokens_are_those_of_prediction(setup, measured):
    full = predicted(setup, limit=24)
    assert len(set(full)) > 3, "answers must end at different places"
    expected = {
        "text-cot": full,
        "heima-forced-prefix": predicted(setup, limit=23, prefix=PREFIX),
        "cut": [min(3, n) for n in full],
    }
    for timing in measured.timings:
        rows = slice(timing.batch * timing.batch_size, (timing.batch + 1) * timing.batch_size)
        assert timing.decoded == expected[timing.case][rows], timing


def test_a_median_answer(setup):
    found = [median_decoded(setup, "text-cot", batch_size=size) for size in (1, 3, 8)]
    assert found == [statistics.median_high(predicted(setup, limit=24))] * 3


def test_cases_take_turns(short, monkeypatch):
    """Each batch of each round is timed once by every case, the first of them another each time."""
    called, by_limit = [], {case.max_new_tokens: name for name, case in short.cases.items()}
    model = short.cases["cut"].model
    run = model.generate

    def recording(**options):
        called.append((by_limit[options["max_new_tokens"]], len(options["input_ids"])))
        return run(**options)

    monkeypatch.setattr(model, "generate", recording)
    found = measure(short, batch_sizes=[4], rounds=2).timings
    names = list(short.cases)
    assert called[:3] == [(name, 4) for name in names], "warm-up comes first"
    order = [*names, *names[1:], names[0], *names[2:], *names[:2], *names]
    assert called[3:] == [(name, 4) for name in order]
    assert [timing.case for timing in found] == order
    turns = [(0, 0)] * 3 + [(0, 1)] * 3 + [(1, 0)] * 3 + [(1, 1)] * 3
    assert [(timing.round, timing.batch) for timing in found] == turns


def test_exact_answers_do_not_stop(setup, measured):
    """Also where the model wants to end earlier."""
    first = next(t for t in measured.timings if t.case == "text-cot" and t.batch_size == 8)
    assert min(first.decoded) < 12
    exact = replace(setup.cases["text-cot"], max_new_tokens=12, exact=True)
    [timing] = measure(replace(setup, cases={"text-cot": exact}), batch_sizes=[8], rounds=1).timings
    assert timing.decoded == [12] * 8


def test_what_is_looked_up_is_the_same_in_fewer_passes(setup, model):
    """At batch 1 alone, beside the other cases on the same questions."""
    cases = {"text-cot": setup.cases["text-cot"], "looked-up": Case(model, 24, lookup=6)}
    found = measure(replace(setup, cases=cases), batch_sizes=[1, 3], rounds=1)
    plain, looked = (
        [one for one in found.timings if one.case == case and one.batch_size == 1] for case in cases
    )
    assert [one.texts for one in plain] == [one.texts for one in looked]
    assert [one.decoded for one in plain] == [one.decoded for one in looked]
    assert len({one.texts for one in plain}) > 1
    for one in looked:
        assert 1 <= one.passes <= max(one.decoded)
    assert all(one.passes is None for one in plain)
    assert {key for key in found.work if key[0] == "looked-up"} == {("looked-up", 1)}
    row = latency.cells(found, PEAKS, seed=1)["looked-up/batch-1"]
    assert row["passes"].value <= row["longest_tokens"].value


def test_states_fed_back_are_timed_as_predicted(setup, model):
    """A forced beginning is written token by token, and is no part of the answer."""
    feed = Feed(frozenset(setup.vocabulary.thinking_ids.values()))
    cases = {"text-cot": Case(model, 12, prefix=PREFIX, feed=feed)}
    found = measure(replace(setup, cases=cases), batch_sizes=[4], rounds=1)
    prompts = [
        Prompt(one.text, f"image {i}", lambda one=one: one.image)
        for i, one in enumerate(setup.questions)
    ]
    answers = generate(
        *(model, setup.processor, setup.vocabulary, prompts),
        decoding=Decoding(temperature=0, top_k=50, max_new_tokens=12, batch_size=4),
        seed=1,
        prefix=PREFIX,
        feed=feed,
    )
    decoded = [count for one in found.timings for count in one.decoded]
    assert decoded == [answer.counts.decoded for answer in answers]


def test_what_does_not_fit_is_named(short, monkeypatch):
    model = short.cases["cut"].model
    run = model.generate

    def limited(**options):
        if len(options["input_ids"]) == 2 and options["max_new_tokens"] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        return run(**options)

    monkeypatch.setattr(model, "generate", limited)
    found = measure(short, batch_sizes=[1, 2, 4, 9], rounds=1)
    assert found.skipped == {
        2: "out of memory: CUDA out of memory. Tried to allocate 2 GiB.",
        9: "there are only 8 questions",
    }
    assert {timing.batch_size for timing in found.timings} == {1, 4}
    assert {size for _, size in found.work} == {1, 4}


def test_other_faults_are_not_hidden(setup, monkeypatch):
    def failing(**options):
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(setup.cases["cut"].model, "generate", failing)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        measure(setup, batch_sizes=[1], rounds=1)


# Work


def vision_flops(model, *, images):
    """By hand: patches, linear layers and attention of the toy's vision tower."""
    config = model.config.vision_config
    patches = (config.image_size // config.patch_size) ** 2
    # With the class token, padded to a multiple of 8 for attention.
    padded = -(-(patches + 1) // 8) * 8
    width, inner = config.hidden_size, config.intermediate_size
    linear = 4 * width * width + 2 * width * inner
    attention = 2 * padded * width
    layers = config.num_hidden_layers + config.num_global_layers
    # What is padding among the tiles comes from an outer product.
    mask = padded**2
    embedding = patches * config.num_channels * config.patch_size**2 * width
    projector = (patches + 1) * config.vision_output_dim * model.config.text_config.hidden_size
    return 2 * images * (mask + embedding + layers * padded * (linear + attention) + projector)


def test_flops_by_hand_and_linear_in_the_batch(setup):
    same = replace(
        setup,
        questions=[replace(one, text="what is at a1") for one in setup.questions],
        cases={"text-cot": replace(setup.cases["text-cot"], max_new_tokens=5, exact=True)},
    )
    work = measure(same, batch_sizes=[1, 3], rounds=1).work
    one, three = work["text-cot", 1], work["text-cot", 3]
    model = setup.cases["text-cot"].model
    assert one.vision_flops == vision_flops(model, images=1)
    for part in ("vision_flops", "prefill_flops", "decode_flops", "flops"):
        assert getattr(three, part) == 3 * getattr(one, part) > 0
    # The lm_head sees the last position alone; each step has one position a row.
    head = 2 * model.lm_head.weight.numel()
    assert one.decode_flops > 4 * head
    assert one.prefill_flops > head


def test_bytes_of_decoding_by_hand(setup):
    """Four steps: all weights but the embeddings, and a cache that grows by a token a step."""
    case = replace(setup.cases["text-cot"], max_new_tokens=5, exact=True)
    one = replace(setup, questions=setup.questions[:1], cases={"text-cot": case})
    work = measure(one, batch_sizes=[1], rounds=1).work["text-cot", 1]
    model, config = case.model, case.model.config
    language = sum(w.numel() for w in model.model.language_model.parameters())
    embeddings = model.model.language_model.embed_tokens.weight.numel()
    weights = language - embeddings + model.lm_head.weight.numel()
    prompt = len(setup.vocabulary.prompt_ids(setup.questions[0].text, "first"))
    crossing = len(config.text_config.cross_attention_layers)
    own = config.text_config.num_hidden_layers - crossing
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    lengths = sum(own * (prompt + step) + crossing * patches for step in range(1, 5))
    cached = 2 * config.text_config.hidden_size * lengths
    assert work.decode_bytes == 4 * (4 * weights + cached)


def test_the_papers_model_costs_what_its_recipe_says():
    """18.6 TFLOP an image of four tiles, on tensors without memory."""
    from heima.planning.architectures import on_meta
    from heima.planning.mllama import llama_3_2_11b_vision

    model = on_meta(llama_3_2_11b_vision())
    with torch.device("meta"):
        pixels = torch.zeros(1, 1, 4, 3, 560, 560, dtype=model.dtype)
        ratio, mask = torch.full((1, 1), 6), torch.ones(1, 1, 4, dtype=torch.long)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(10.67e9, rel=1e-3)
    with FlopCounterMode(display=False) as counter:
        model.model.vision_model(pixels, ratio, mask)
    assert counter.get_total_flops() / 1e12 == pytest.approx(18.6, abs=0.3)


# Cells


def timing(case, e2e, *, size=2, turn=0, batch=0, decoded=(3, 5), decode=40.0):
    later = max(decoded) - 1
    return Timing(
        case=case,
        batch_size=size,
        round=turn,
        batch=batch,
        decoded=list(decoded),
        passes=None,
        texts="",
        preprocess_ms=1.0,
        vision_ms=2.0,
        prefill_ms=3.0,
        ttft_ms=7.0,
        decode_ms=decode,
        tpot_ms=decode / later if later else None,
        e2e_ms=e2e,
    )


PEAKS = Peaks(device="none", tflops=2.0, gb_per_s=10.0)


def test_cells_are_medians_of_batches():
    times = {"text-cot": [100, 400, 200, 300, 1000], "heima": [50, 100, 100, 100, 100]}
    turns = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    found = Measured(
        [
            timing(case, e2e, turn=turn, batch=batch)
            for case, column in times.items()
            for e2e, (turn, batch) in zip(column, turns, strict=True)
        ],
        {(case, 2): Work(10**9, 2 * 10**9, 10**9, 10**8) for case in times},
    )
    cells = latency.cells(found, PEAKS, seed=1)
    assert set(cells) == {"text-cot/batch-2", "heima/batch-2", "heima-vs-text-cot/batch-2"}
    row = cells["text-cot/batch-2"]
    assert (row["e2e_ms"].value, row["e2e_ms"].n) == (300, 5)
    assert 100 <= row["e2e_ms"].low < 300 < row["e2e_ms"].high <= 1000
    assert row["e2e_p90_ms"].value == pytest.approx(np.percentile(times["text-cot"], 90))
    assert row["samples_per_s"].value == pytest.approx(2 / 0.3)
    assert row["tpot_ms"].value == 10
    # A token count belongs to a sample: both samples of both batches, once.
    assert (row["decoded_tokens"].value, row["decoded_tokens"].n) == (4, 4)
    assert row["longest_tokens"].value == 5
    assert row["gflop_per_sample"].value == 2
    # 4 GFLOP in 100, 200 and 1000 ms at 2 TFLOP/s; 0.1 GB in 40 ms at 10 GB/s.
    assert (row["flop_utilisation"].value, row["flop_utilisation"].n) == (pytest.approx(0.01), 3)
    assert row["bandwidth_utilisation"].value == pytest.approx(0.25)
    # Paired: 2, 4, 2, 3 and 10 times as fast.
    speedup = cells["heima-vs-text-cot/batch-2"]["speedup"]
    assert (speedup.value, speedup.n) == (3, 5)
    assert 2 <= speedup.low <= 3 <= speedup.high <= 10


def test_answers_of_one_token_have_no_later_ones():
    found = Measured(
        [timing("heima", 50, decoded=(1, 1), decode=0.0)], {("heima", 2): Work(1, 1, 0, 0)}
    )
    [(group, row)] = latency.cells(found, PEAKS, seed=1).items()
    assert group == "heima/batch-2"
    assert not {"tpot_ms", "tpot_p90_ms", "bandwidth_utilisation"} & set(row)
    assert row["e2e_ms"].low == row["e2e_ms"].value == row["e2e_ms"].high == 50


def test_the_stage(workspace, toy_vlm, toy_processor):
    """On 13 questions and untrained weights: what it writes, and a budget from a median."""
    from heima import config
    from stages import resolve
    from stages.latency import main

    for folder in (toy_vlm.save_pretrained, toy_processor.save_pretrained):
        folder(workspace / "models" / "text-cot")
    changed = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    changed["predict"]["max_new_tokens"] = 5
    for variant in changed["variants"].values():
        variant["model"] = "text-cot"
    changed["latency"] |= {"batch_sizes": [1, 4, 32], "rounds": 1}
    Path("params.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    resolve.write(config.load())
    main()
    cells, origin = read_metrics("metrics/latency.json")
    rows = read_jsonl("latency/samples.jsonl")
    cases = ["text-cot", "text-cot-cut", "heima", "heima-forced-prefix", "answer-only"]
    assert {row["case"] for row in rows} == set(cases)
    assert set(cells) == {f"{case}/batch-{size}" for case in cases for size in (1, 4)} | {
        f"{case}-vs-text-cot/batch-{size}" for case in cases[1:] for size in (1, 4)
    }
    for case in cases:
        for size, batches in ((1, BATCHES), (4, 3)):
            assert cells[f"{case}/batch-{size}"]["e2e_ms"].n == batches
            assert cells[f"{case}/batch-{size}"]["flop_utilisation"].value > 0
    assert origin["skipped"] == {"32": "there are only 13 questions"}
    assert origin["questions"] == 13
    assert origin["task"] == "mmstar"
    assert origin["limits"]["text-cot"] == 5
    assert origin["limits"]["text-cot-cut"] <= 5
    assert all(len(row["decoded"]) == row["batch_size"] for row in rows)
    assert all(
        max(row["decoded"]) <= origin["limits"]["text-cot-cut"]
        for row in rows
        if row["case"] == "text-cot-cut"
    )
    assert origin["peaks"]["source"] == "measured"
    assert min(origin["peaks"]["tflops"], origin["peaks"]["gb_per_s"]) > 0
    assert {"device", "threads", "dtype", "torch", "transformers", "data"} <= set(origin)
