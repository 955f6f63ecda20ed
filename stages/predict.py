"""Decode the six benchmarks with one variant's model, once.

    python -m stages.predict heima

Reads params.yaml, models/ and data/benchmarks/ (or params source.benchmarks); writes
predictions/heima/ and metrics/predict/heima.json (seconds a sample). What scores the answers is
`stages.score`, which never decodes again.
"""

import sys
from pathlib import Path

from eval import start


def main(variant: str) -> None:
    start.quiet()
    from eval.prediction import predict
    from heima import models

    predict(
        variant,
        Path("predictions") / variant,
        Path("metrics/predict") / f"{variant}.json",
        models=models.ROOT,
    )


if __name__ == "__main__":
    main(sys.argv[1])
