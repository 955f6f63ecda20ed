"""The benchmarks run, and what they compare agrees; nothing is said about speed here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_benchmark_of_similarity_runs_and_its_sides_agree():
    done = subprocess.run(
        [sys.executable, "-m", "timings.similarity", "--quick"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert set(result) == {
        *("benchmark", "baseline", "ratio", "ratio_official", "bertscore_over_forward"),
        *("peak_mb", "max_difference", "pairs", "official_slice", "meteor"),
    }
    assert result["benchmark"] == "similarity"
    assert result["baseline"] == "plain loop over the libraries"
    assert 0 <= result["max_difference"] <= 1e-9
    assert result["meteor"] in ("wordnet", "wordnet-no-punkt", "exact-stem")
    assert result["pairs"] > result["official_slice"] > 0
    assert any("plain loop over the libraries" in line for line in table)
    assert any("extrapolated from" in line and "official arrangement" in line for line in table)


@pytest.mark.slow
def test_the_benchmark_of_latency_runs_and_compares_every_case():
    done = subprocess.run(
        [sys.executable, "-m", "timings.latency", "--quick"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert (result["benchmark"], result["baseline"]) == ("latency", "text-cot")
    assert (result["size"], result["trained"], result["skipped"]) == ("toy", False, {})
    cases = {"text-cot-cut", "heima", "heima-forced-prefix", "answer-only"}
    assert set(result["ratios"]) == cases
    assert all(set(row) == {"1", "4"} for row in result["ratios"].values())
    assert result["ratio"] == result["ratios"]["heima"]["1"] > 0
    assert min(result["tflops"], result["gb_per_s"]) > 0
    for case in (*cases, "text-cot"):
        assert sum(line.split()[:1] == [case] for line in table) == 2


@pytest.mark.slow
def test_the_benchmark_of_prediction_runs_and_all_ways_answer_alike(tmp_path):
    """Without trained models; the process fails where a text differs."""
    done = subprocess.run(
        [sys.executable, "-m", "timings.predict", "--quick", "--models", str(tmp_path)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert set(result) == {
        *("benchmark", "baseline", "ratio", "ratios", "identical", "trained", "requests"),
        "baseline_requests",
    }
    assert (result["benchmark"], result["baseline"]) == ("predict", "batch-1 loop")
    assert result["identical"] is True
    assert result["trained"] is False
    assert result["requests"] > result["baseline_requests"] > 0
    assert any("untrained toy" in line for line in table)
    for row in ("batch-1 loop", "batch 1,", "batch 8,", "batch 256,", "static cache"):
        assert any(row in line for line in table), row


@pytest.mark.slow
def test_the_benchmark_of_rewriting_runs_and_its_sides_agree():
    """The process fails where a turn or a text differs."""
    done = subprocess.run(
        [sys.executable, "-m", "timings.rewrite", "--quick"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert set(result) == {
        *("benchmark", "baseline", "ratio", "ratio_cpu", "peak_mb", "baseline_peak_mb"),
        *("records", "turns", "kept", "header_ms", "decode_ms", "read_ms"),
    }
    assert (result["benchmark"], result["baseline"]) == ("rewrite", "official arrangement")
    assert result["turns"] > result["kept"] > result["records"] > 0
    assert any("kept by both sides with the same texts" in line for line in table)


@pytest.mark.slow
def test_the_benchmark_of_training_runs_and_exact_savings_leave_the_loss():
    done = subprocess.run(
        [sys.executable, "-m", "timings.train", "--quick"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert (result["benchmark"], result["baseline"]) == ("train", "plain Trainer")
    assert (result["size"], result["skipped"], result["peak_gb"]) == ("toy", {}, {})
    assert result["ratio"] == result["ratios"]["all exact savings"] > 0
    assert result["mfu"].keys() == result["ratios"].keys() and min(result["mfu"].values()) > 0
    assert result["loss_off_by"] < 1e-4 < result["real_tiles_loss_off_by"]
    assert result["ratio_state_feed"] > 0 and "states fed back" in result["ratios"]
    for row in result["ratios"]:
        assert any(line.startswith(row) for line in table), row


def test_the_benchmark_of_training_counts_attention_on_a_cpu():
    """As much as where the kernel is spelled out in products of matrices."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention
    from torch.utils.flop_counter import FlopCounterMode

    from timings.train import UNCOUNTED

    def counted(kernel) -> int:
        query, key, value = (
            torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7)
        )
        with (
            sdpa_kernel(kernel),
            FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter,
        ):
            scaled_dot_product_attention(query, key, value).sum().backward()
        return counter.get_total_flops()

    products = counted(SDPBackend.MATH)
    # The kernel does not keep the weights of attention: its way back computes them once more.
    assert counted(SDPBackend.FLASH_ATTENTION) == products + 2 * 2 * 3 * 5 * 7 * 8
