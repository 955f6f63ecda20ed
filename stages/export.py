"""Take a trained checkpoint away: a folder that transformers and peft load without this package.

    python -m stages.export recover FOLDER [--seed 42] [--merged]

Writes the adapter as a peft folder, or with --merged one model in safetensors; beside it the
processor, `thinking_tokens.json`, and a model card with what the result files say of it. No stage
of the pipeline: it reads `models/` and `metrics/` and changes nothing there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from heima import config
from heima.vlm import export, models
from reports.model_card import model_card
from stages import arguments


def main(checkpoint: str, folder: Path, seed: int, *, merged: bool) -> None:
    params = config.load_resolved()
    card = model_card(
        Path("."), params, checkpoint, seed, export.base_of(models.ROOT), merged=merged
    )
    try:
        export.export(models.ROOT, checkpoint, seed, params, folder, card, merged=merged)
    except (export.ExportError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"{folder}: {checkpoint}, training seed {seed}, {'merged' if merged else 'adapter'}")


if __name__ == "__main__":
    parser = arguments.parser_of(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--seed", help="training seed (the first of `seeds`)")
    parser.add_argument("--merged", action="store_true", help="one model, not an adapter")
    given = parser.parse_args()
    if given.seed is None:
        arguments.checked(parser, given, checkpoint=lambda params: params.checkpoints)
        given.seed = str(config.load_resolved().seeds[0])
    arguments.checked(
        parser,
        given,
        checkpoint=lambda params: params.checkpoints,
        seed=lambda params: params.seeds,
    )
    main(given.checkpoint, given.folder, int(given.seed), merged=given.merged)
