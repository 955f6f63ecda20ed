"""Rebuild one section of every held-out turn from its thinking state, and from the controls.

    python -m stages.reconstruct reasoning 42       # an entry of `reconstructions` in params.yaml
    python -m stages.reconstruct shared-reasoning 42

The states and the interpreters are those of the training seed; which sample's state a control gives
another one is the same for all seeds. Writes `reconstructions/<name>/<seed>.jsonl`: one row a turn
and control with the turn's question and image, the true text, the reconstruction, and the true
text's negative log-likelihood.

On several GPUs it starts itself once on each, as `hardware` says, and the processes share the
batches.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path

from peft import PeftModel

from heima import config
from heima.cot.sections import thinking_token
from heima.data.turns import load_turns
from heima.interpreting import controls, interpreter, states
from heima.results.files import write_jsonl
from heima.vlm import models, processes
from stages import arguments, launch


def main(name: str, seed: int) -> None:
    params = config.load_resolved()
    launch.on_all_devices(params, "stages.reconstruct", name, str(seed))
    named = params.reconstructions[name]
    section = named.section
    options = params.reconstruct
    vocabulary = models.vocabulary(models.load_tokenizer(models.ROOT, params), params)
    turns = load_turns("data/rewritten/heldout.parquet")
    train_turns = load_turns("data/rewritten/train.parquet")
    own = states.load(Path(f"states/{seed}/heldout.safetensors"), section, turns)
    train_mean = controls.mean_states(
        states.load(Path(f"states/{seed}/train.safetensors"), section, train_turns)
    )
    kinds = [turn.kind for turn in turns]
    readers = {}
    for seen in {"question-only" if c == "question-only" else "own" for c in options.controls}:
        llm = models.load_llm(models.ROOT, params)
        folder = f"interpreters/{named.interpreter}/{seen}/{seed}"
        adapted = PeftModel.from_pretrained(llm, folder)
        merged = adapted.merge_and_unload().to(models.device())
        token = vocabulary.thinking_ids[thinking_token(section)]
        readers[seen] = interpreter.StateReader(merged, [token])
    work = []
    for control in options.controls:
        source: config.InterpreterInput = "question-only" if control == "question-only" else "own"
        readings = interpreter.encode_readings(
            turns,
            section,
            controls.control_states(
                control, own, kinds=kinds, train_mean=train_mean, seed=params.seed
            ),
            vocabulary,
            source=source,
            wordings=params.interpret.wordings,
            seed=params.seed,
        )
        batches = processes.batches(readings, options.batch_size)
        work += [(readers[source], number, batch) for number, batch in enumerate(batches)]
    with processes.joined() as shared:
        written = shared.gathered(
            [
                interpreter.reconstruct(
                    reader,
                    batch,
                    vocabulary,
                    decoding=options,
                    # The same draws for every control.
                    seed=processes.batch_seed(params.seed, number),
                )
                for reader, number, batch in shared.share(work)
            ]
        )
    if written is None:
        return
    rows = [
        {
            "id": turn.id,
            "kind": turn.kind,
            "image": turn.image,
            "question": turn.question,
            "control": control,
            "reference": turn.sections[section],
            **asdict(one),
        }
        for (control, turn), one in zip(
            itertools.product(options.controls, turns),
            itertools.chain.from_iterable(written),
            strict=True,
        )
    ]
    write_jsonl(f"reconstructions/{name}/{seed}.jsonl", rows)


if __name__ == "__main__":
    name, seed = arguments.read(
        __doc__,
        reconstruction=lambda params: params.reconstructions,
        seed=lambda params: params.seeds,
    )
    main(name, int(seed))
