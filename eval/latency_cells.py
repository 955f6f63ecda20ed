"""What the table of latency says of timed batches; it needs no lmms-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.timing import Measured, Timing
from heima.config import Peaks
from heima.results.cells import Cell
from heima.results.statistics import DRAWS, drawn_cell

BASELINE = "text-cot"
"""The case that speed-ups are relative to."""


def cells(measured: Measured, peaks: Peaks, *, seed: int) -> dict[str, dict[str, Cell]]:
    """`{case}/batch-{size}` and `{case}-vs-text-cot/batch-{size}`: medians with 95 % intervals.

    A value is the median over all timed batches (`n`), or their 90th percentile where its name says
    so; its interval is a percentile bootstrap of that statistic over the batches. What the device
    reaches is held against `peaks`, on the batches whose work was counted: the first of each round.
    `speedup` is the baseline's end-to-end time over the case's, on the same batch and round; there
    is none where no case is named `text-cot`.
    """
    found: dict[str, dict[str, Cell]] = {}
    taken = {
        key: [t for t in measured.timings if (t.case, t.batch_size) == key] for key in measured.work
    }
    for (case, size), timings in taken.items():
        work = measured.work[case, size]
        counted = [timing for timing in timings if timing.batch == 0]
        columns: dict[str, list[Any]] = {
            "decoded_tokens": [n for t in timings if t.round == 0 for n in t.decoded],
            "longest_tokens": [max(timing.decoded) for timing in timings],
            # Fewer than tokens where several are looked up at once.
            "passes": [timing.passes for timing in timings],
            **{
                name: [getattr(timing, name) for timing in timings]
                for name in (
                    *("preprocess_ms", "vision_ms", "prefill_ms"),
                    *("ttft_ms", "decode_ms", "tpot_ms", "e2e_ms"),
                )
            },
            "samples_per_s": [1e3 * size / timing.e2e_ms for timing in timings],
            "gflop_per_sample": [work.flops / size / 1e9],
            "flop_utilisation": [
                work.flops / (1e9 * peaks.tflops * timing.e2e_ms) for timing in counted
            ],
            "bandwidth_utilisation": [
                work.decode_bytes / (1e6 * peaks.gb_per_s * timing.decode_ms)
                for timing in counted
                if timing.tpot_ms is not None
            ],
        }
        # Answers of one token have neither a time per later token nor a rate of reading.
        present = {
            name: [value for value in values if value is not None]
            for name, values in columns.items()
        }
        row = {name: _median(values, seed) for name, values in present.items() if values}
        for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
            if present[name]:
                row[f"{name.removesuffix('_ms')}_p90_ms"] = _percentile(90, present[name], seed)
        found[f"{case}/batch-{size}"] = row
        base = taken.get((BASELINE, size))
        if base is not None and case != BASELINE:
            found[f"{case}-vs-{BASELINE}/batch-{size}"] = {
                "speedup": _median(_ratios(base, timings), seed)
            }
    return found


def _ratios(base: Sequence[Timing], timings: Sequence[Timing]) -> list[float]:
    theirs = {(timing.round, timing.batch): timing.e2e_ms for timing in base}
    return [theirs[timing.round, timing.batch] / timing.e2e_ms for timing in timings]


def _median(values: ArrayLike, seed: int) -> Cell:
    return _percentile(50, values, seed)


def _percentile(percent: float, values: ArrayLike, seed: int) -> Cell:
    """A percentile of values, shape (n,), with the interval of its bootstrap."""
    column = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(column, (DRAWS, len(column)))
    return drawn_cell(
        np.percentile(column, percent), np.percentile(drawn, percent, axis=1), n=len(column)
    )
