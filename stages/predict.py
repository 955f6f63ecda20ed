"""Decode the benchmarks with one variant's models, one a training seed, under every protocol.

    python -m stages.predict heima
    python -m stages.predict heima --fresh                # decode again what is known

Reads resolved.yaml, models/ and data/benchmarks/ (or params source.benchmarks); writes
predictions/heima/ and metrics/predict/heima.json (seconds a sample). What scores the answers is
`stages.score`, which never decodes again. On several GPUs it starts itself once on each, as
`hardware` says, and the processes share the batches.

Finished batches stay in .cache/predictions/, by all that they depend on (weights, prompts, images,
decoding, code, libraries): a killed run continues at the batch it had reached, and a run with one
more seed, of training or of decoding, decodes that seed. The code counts by
fingerprints/predict.json, as in `dvc repro`.
"""

import sys
from pathlib import Path

from eval import lmms_start
from stages import arguments


def main(variant: str, *, fresh: bool) -> None:
    lmms_start.quiet()
    from eval.benchmark_data import BenchmarkDataError
    from eval.prediction import predict
    from heima import config
    from heima.vlm import models
    from stages import launch

    params = config.load_resolved()
    again = ["--fresh"] if fresh else []
    if params.predict.engine == "transformers":
        launch.on_all_devices(params, "stages.predict", variant, *again)
    else:  # vLLM has one process
        launch.on_one_device(params, "stages.predict", variant, *again)
    try:
        predict(
            variant,
            Path("predictions") / variant,
            Path("metrics/predict") / f"{variant}.json",
            models=models.ROOT,
            params_file=str(config.RESOLVED),
            fresh=fresh,
        )
    except BenchmarkDataError as error:
        sys.exit(f"predict@{variant}: {error}")


if __name__ == "__main__":
    parser = arguments.parser_of(__doc__)
    parser.add_argument("variant")
    parser.add_argument("--fresh", action="store_true", help="forget the answers that are kept")
    given = parser.parse_args()
    (variant,) = arguments.checked(parser, given, variant=lambda params: params.variants)
    main(variant, fresh=given.fresh)
