"""Score one variant's saved predictions of the benchmarks.

    python -m stages.score heima

Reads resolved.yaml, predictions/heima/ and the benchmarks' data; writes scores/heima.jsonl (each
sample), metrics/score/heima.json (the table's cells) and reports/toy/summary/heima.json (what
`dvc metrics show` lists). The judge of params is asked through a gateway on a free loopback port. A
judge that does not answer ends the stage before anything is scored; one that leaves requests
unanswered ends it with their samples named and nothing written. What was answered stays in
judge.cache, so the stage started again asks only for the rest.
"""

import sys
from pathlib import Path

from eval import lmms_start
from stages import arguments


def main(variant: str) -> None:
    lmms_start.quiet()
    from eval.benchmark_data import BenchmarkDataError
    from eval.gateway import Gateway, JudgeError
    from heima import config
    from reports import folder
    from reports.summaries import summarise_scores

    params = config.load_resolved()
    metrics_file = Path("metrics/score") / f"{variant}.json"
    try:
        with Gateway(params.judge) as gateway:
            gateway.probe()
            gateway.route_lmms_eval()
            # lmms-eval's judged tasks read where the judge is when they are imported.
            from eval.scoring import score

            score(
                variant,
                Path("scores") / f"{variant}.jsonl",
                metrics_file,
                predictions=Path("predictions") / variant,
                gateway=gateway,
                params_file=str(config.RESOLVED),
            )
    except JudgeError as error:
        known = ""
        if params.judge.backend == "openai":
            known = f"\n{params.judge.cache} keeps what was answered: only the rest is asked again."
        sys.exit(f"score@{variant}: {error}{known}")
    except BenchmarkDataError as error:
        sys.exit(f"score@{variant}: {error}")
    summarise_scores(metrics_file, folder(params.profile) / "summary" / f"{variant}.json", params)


if __name__ == "__main__":
    (variant,) = arguments.read(__doc__, variant=lambda params: params.variants)
    main(variant)
