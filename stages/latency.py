"""Time the cases of params.latency on a benchmark's first questions.

    python -m stages.latency

Reads resolved.yaml, models/ and data/benchmarks/ (or params source.benchmarks); writes
latency/samples.jsonl (every batch that was timed) and metrics/latency.json (the table's cells, the
device and its peaks, and which batch sizes were left out). Times belong to the machine: a run on
another one gives other numbers.
"""

import sys
from pathlib import Path

from eval import lmms_start
from stages import arguments


def main() -> None:
    lmms_start.quiet()
    from eval.benchmark_data import BenchmarkDataError
    from eval.latency import latency
    from heima import config
    from heima.vlm import models
    from stages import launch

    launch.on_one_device(config.load_resolved(), "stages.latency")
    try:
        latency(
            Path("latency/samples.jsonl"),
            Path("metrics/latency.json"),
            models=models.ROOT,
            params_file=str(config.RESOLVED),
        )
    except BenchmarkDataError as error:
        sys.exit(f"latency: {error}")


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
