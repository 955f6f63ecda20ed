"""The benchmarks run, and what they compare agrees; nothing is said about speed here."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT


def test_the_benchmark_of_similarity_runs_and_its_sides_agree():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.similarity", "--quick"],
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
