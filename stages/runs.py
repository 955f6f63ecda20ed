"""List the runs that dvc.yaml repeats a stage over: `python -m stages.runs`

DVC's matrix cannot look up what a name stands for (which checkpoint another one continues), so that
`runs.yaml` holds every checkpoint, interpreter and reconstruction once for each training seed, with
what its stage depends on; and every given adapter once. It follows from params.yaml alone, and lies
in git because DVC reads it before any stage runs. `python -m stages.repro`, `stages.profile` and
the stage `resolve` keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml

from heima import config
from heima.results.files import atomic
from stages import arguments

FILE = Path("runs.yaml")
_HEADER = "# Follows from params.yaml: `python -m stages.runs` writes it (see there).\n"


def runs(params: config.Params) -> dict[str, dict[str, dict[str, Any]]]:
    """Stage -> run -> the values of its item.

    `init`, `base`, `model` and `interpreter` name folders below `models/` and `interpreters/`.
    """
    inputs = get_args(config.InterpreterInput)
    return {
        "adopt": dict(_given(params)),
        "distill": {
            f"{name}-{seed}": {
                "checkpoint": name,
                "seed": seed,
                "data": one.trained_on,
                "init": params.trained(one.init, seed),
            }
            for name, one in params.checkpoints.items()
            if not isinstance(one, config.GivenCheckpoint)
            for seed in params.seeds
        },
        "interpret": {
            f"{name}-{source}-{seed}": {"interpreter": name, "input": source, "seed": seed}
            for name, one in params.interpreters.items()
            if one.adapter is None
            for source in inputs
            for seed in params.seeds
        },
        "reconstruct": {
            f"{name}-{seed}": {
                "name": name,
                "seed": seed,
                "section": one.section,
                "interpreter": one.interpreter,
            }
            for name, one in params.reconstructions.items()
            for seed in params.seeds
        },
        "audit": dict(_asked(params, params.audit.checkpoints)),
        "effects": {name: {} for name in params.audit.checkpoints},
        "examine": dict(_asked(params, params.examine.checkpoints)),
        # Named by who predicts after thinking tokens; one, or none.
        "theorem": {
            one.tokens.model: {part: predictor.model for part, predictor in one.parts.items()}
            for one in (params.audit.predictors,)
            if one
        },
        "truncate": {name: {} for name in params.examine.chains},
    }


def _asked(
    params: config.Params, checkpoints: Iterable[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each checkpoint once for each of its training seeds, with the folder of its weights."""
    for name in checkpoints:
        for seed in params.training_seeds(name):
            model = params.trained(name, seed)
            yield f"{name}-{seed}", {"checkpoint": name, "seed": seed, "model": model}


def _given(params: config.Params) -> Iterator[tuple[str, dict[str, Any]]]:
    """The folders that hold a given adapter. `key` is where its entry stands in the parameters."""
    for name, checkpoint in params.checkpoints.items():
        if isinstance(checkpoint, config.GivenCheckpoint):
            [seed] = params.training_seeds(name)
            folder = f"models/{params.trained(name, seed)}"
            yield (
                f"checkpoint-{name}-{seed}",
                {"folder": folder, "key": f"checkpoints.{name}", "base": "text-cot"},
            )
    for name, one in params.interpreters.items():
        if one.adapter is not None:
            for source in get_args(config.InterpreterInput):
                for seed in params.seeds:
                    yield (
                        f"interpreter-{name}-{source}-{seed}",
                        {
                            "folder": f"interpreters/{name}/{source}/{seed}",
                            "key": f"interpreters.{name}",
                            "base": "interpreter",
                        },
                    )


def write(params: config.Params) -> bool:
    """Bring `runs.yaml` up to date; whether it had to be changed."""
    text = _HEADER + yaml.safe_dump({"runs": runs(params)}, sort_keys=False)
    if FILE.exists() and FILE.read_text(encoding="utf-8") == text:
        return False
    with atomic(FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


def main() -> None:
    print(f"{FILE} {'is written anew' if write(config.load()) else 'fits params.yaml'}")


if __name__ == "__main__":
    arguments.parser_of(__doc__).parse_args()
    main()
