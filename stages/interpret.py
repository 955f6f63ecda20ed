"""Train one interpreter: a LoRA adapter on the text-only LLM, for its sections and one input.

    python -m stages.interpret reasoning own 42
    python -m stages.interpret reasoning question-only 42   # the control, trained equally
    python -m stages.interpret shared own 42                # one for all sections

It reads the states of the checkpoint with the same training seed. Writes
`interpreters/<name>/<input>/<seed>/` (the adapter, `loss.jsonl`) and
`metrics/interpret/<name>/<input>/<seed>.json` (held-out loss per labelled token, in nats). It never
loads the VLM. Several GPUs and interruptions are as for `stages.distill`.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from heima import config
from heima.cot.sections import thinking_token
from heima.data.turns import load_turns
from heima.families.registry import FAMILIES
from heima.interpreting import interpreter, states
from heima.results.provenance import provenance
from heima.training import outcome, snapshots
from heima.training.loop import AnswerLoss
from heima.vlm import models
from stages import arguments, launch


def main(name: str, source: config.InterpreterInput, seed: int) -> None:
    # Model
    params = config.load_resolved()
    launch.on_all_devices(params, "stages.interpret", name, source, str(seed), shard=True)
    sections = params.interpreters[name].sections
    llm = models.load_llm(models.ROOT, params)
    targets = FAMILIES[params.family].llm_lora
    adapted = models.add_lora(llm, targets, params.interpret.lora, seed)
    tokenizer = models.load_tokenizer(models.ROOT, params)
    vocabulary = models.vocabulary(tokenizer, params)
    reader = interpreter.StateReader(
        adapted, [vocabulary.thinking_ids[thinking_token(section)] for section in sections]
    )
    answering = AnswerLoss(reader, params.hardware, body=reader.forward)

    # Data
    splits = {}
    for split in ("train", "heldout"):
        turns = load_turns(f"data/rewritten/{split}.parquet")
        splits[split] = [
            reading
            for section in sections
            for reading in interpreter.encode_readings(
                turns,
                section,
                states.load(Path(f"states/{seed}/{split}.safetensors"), section, turns),
                vocabulary,
                source=source,
                wordings=params.interpret.wordings,
                seed=seed,
            )
        ]

    # Training
    run = _snapshots(name, source, seed, params)
    found = outcome.train_adapter(
        answering,
        splits["train"],
        splits["heldout"],
        interpreter.ReadingCollator(tokenizer.pad_token_id),
        params.interpret.of(params.interpreters[name]),
        params,
        seed=seed,
        resume=run,
    )
    outcome.write_adapter(
        adapted,
        found,
        Path("interpreters") / name / source / str(seed),
        f"metrics/interpret/{name}/{source}/{seed}.json",
        params,
        seed=seed,
        origin=provenance(
            f"interpret@{name}-{source}-{seed}",
            params,
            training_seed=seed,
            **found.facts(adapted),
        ),
        resume=run,
    )


def _snapshots(name: str, source: str, seed: int, params: config.Params) -> snapshots.Resume:
    """The run's snapshots, in a folder named by all that it depends on."""
    inputs = [
        Path("data/rewritten/train.parquet"),
        Path(f"states/{seed}/train.safetensors"),
        models.ROOT / "interpreter",
    ]
    used = ("family", "precision", "training", "interpret", f"interpreters.{name}")
    return snapshots.of(f"interpret@{name}-{source}-{seed}", params, *used, inputs=inputs)


if __name__ == "__main__":
    name, source, seed = arguments.read(
        __doc__,
        # A given one is not trained: its stage is `adopt`.
        interpreter=lambda params: [
            name for name, one in params.interpreters.items() if one.adapter is None
        ],
        input=lambda params: get_args(config.InterpreterInput),
        seed=lambda params: params.seeds,
    )
    inputs: tuple[config.InterpreterInput, ...] = get_args(config.InterpreterInput)
    main(name, next(one for one in inputs if one == source), int(seed))
