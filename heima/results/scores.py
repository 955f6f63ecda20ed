"""The names of a benchmark's cells, for what writes them and what reads them."""

from __future__ import annotations

from heima.config import Params, ProtocolName

COUNTS = ("decoded", "thinking", "tag", "conclusion")
"""The kinds of token that are counted: all that was decoded, and three disjoint parts of it."""

ACCURACY = "accuracy"
"""A task's own number in percent."""

CHANCE = "chance"
"""What guessing scores on a benchmark: the same for every variant, and not in its mean."""

MEAN = "mean"
"""The unweighted mean over the benchmarks."""

SCORE_METRICS = (ACCURACY, *(f"{count}_tokens" for count in COUNTS))


def score_group(protocol: str, benchmark: str) -> str:
    """The group of a benchmark's cells under a protocol.

    >>> score_group("lmms", "ai2d")
    'lmms/ai2d'
    """
    return f"{protocol}/{benchmark}"


def seed_metric(seed: int) -> str:
    """The accuracy of the run with one decoding seed.

    >>> seed_metric(42)
    'accuracy_seed_42'
    """
    return f"{ACCURACY}_seed_{seed}"


def seed_metrics(params: Params, protocol: ProtocolName) -> tuple[str, ...]:
    """The accuracies of the single runs, where a protocol decodes with several seeds."""
    seeds = params.protocols[protocol].seeds
    return tuple(map(seed_metric, seeds)) if len(seeds) > 1 else ()


def expected_cells(params: Params) -> dict[str, tuple[str, ...]]:
    """Group -> metrics of `metrics/score/<variant>.json`: neither more nor fewer."""
    cells = {}
    for protocol in params.protocols:
        metrics = (*SCORE_METRICS, *seed_metrics(params, protocol))
        for benchmark in params.benchmarks:
            cells[score_group(protocol, benchmark)] = (*metrics, CHANCE)
        cells[score_group(protocol, MEAN)] = metrics
    return cells
