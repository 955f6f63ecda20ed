"""Take a trained checkpoint away: a folder that transformers and peft load without this package.

    python -m stages.export recover FOLDER [--seed 42] [--merged] [--interpreters]
                                           [--push OWNER/NAME [--public]]

Writes the adapter as a peft folder, or with --merged one model in safetensors; beside it the
processor, `thinking_tokens.json`, and a model card with what the result files say of it; with
--interpreters what reads its thinking tokens, for `heima.chat --exported`. --push
sends the folder to the hub with the token HF_TOKEN, into a repository that its owner alone sees
unless --public says otherwise. No stage of the pipeline: it reads `models/` and `metrics/` and
changes nothing there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from heima import config
from heima.data.hub import HubError, push
from heima.data.licences import terms
from heima.interpreting import readers
from heima.vlm import export, models
from reports.model_card import model_card
from stages import arguments


def main(
    checkpoint: str,
    folder: Path,
    seed: int,
    *,
    merged: bool,
    interpreters: bool = False,
    repository: str | None = None,
    public: bool = False,
) -> None:
    params = config.load_resolved()
    if interpreters and checkpoint != params.states.checkpoint:
        sys.exit(f"error: the interpreters read {params.states.checkpoint}, not {checkpoint}")
    base = export.base_of(models.ROOT)
    card = model_card(Path("."), params, checkpoint, seed, base, merged=merged)
    try:
        read_by = readers.of_pipeline(params, seed) if interpreters else None
        if read_by is not None and not read_by.adapters:
            sys.exit("error: no interpreter is trained: `dvc repro interpret` trains them")
        export.export(models.ROOT, checkpoint, seed, params, folder, card, merged=merged)
        if read_by is not None:
            readers.save(read_by, folder)
    except (export.ExportError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    what = f"{checkpoint}, training seed {seed}, {'merged' if merged else 'adapter'}"
    print(f"{folder}: {what}")
    if repository is None:
        return
    if base and (licence := terms(base[0])):
        print(f"{base[0]}: {licence}")
    try:
        print(push(folder, repository, public=public, message=what))
    except HubError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    parser = arguments.parser_of(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--seed", help="training seed (the first of `seeds`)")
    parser.add_argument("--merged", action="store_true", help="one model, not an adapter")
    parser.add_argument(
        "--interpreters", action="store_true", help="what reads its thinking tokens, too"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="send it to this repository, too")
    parser.add_argument("--public", action="store_true", help="everybody may see that repository")
    given = parser.parse_args()
    if given.public and given.push is None:
        parser.error("--public says who sees the repository of --push: name that")
    if given.seed is None:
        arguments.checked(parser, given, checkpoint=lambda params: params.checkpoints)
        given.seed = str(config.load_resolved().seeds[0])
    arguments.checked(
        parser,
        given,
        checkpoint=lambda params: params.checkpoints,
        seed=lambda params: params.seeds,
    )
    main(
        given.checkpoint,
        given.folder,
        int(given.seed),
        merged=given.merged,
        interpreters=given.interpreters,
        repository=given.push,
        public=given.public,
    )
