"""Rebuild one section of every held-out turn from its thinking state, and from the controls.

    python -m stages.reconstruct reasoning 42       # an entry of `reconstructions` in params.yaml
    python -m stages.reconstruct shared-reasoning 42

The states and the interpreters are those of the training seed; which sample's state a control gives
another one is the same for all seeds. Writes `reconstructions/<name>/<seed>.jsonl`: one row a turn
and control with the turn's question and image, the true text, the reconstruction, and the true
text's negative log-likelihood; under `shuffled-same-gold` also whether another turn of the kind has
the same conclusion.

On several GPUs it starts itself once on each, as `hardware` says, and the processes share the
batches. Finished batches stay in `.cache/batches/` until the result is written: a killed run goes
on from them, on any number of processes, and ends with the same bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from heima import config
from heima.cot.sections import thinking_token
from heima.data.tokens import Vocabulary
from heima.data.turns import Turn, load_turns
from heima.interpreting import controls, interpreter, states
from heima.results.files import write_jsonl
from heima.training import snapshots
from heima.vlm import kept_batches, models, processes
from stages import arguments, launch

Job = tuple[config.InterpreterInput, int, Sequence[interpreter.Reading]]
"""Which interpreter reads a batch, the batch's number among those of its control, and the batch."""


def main(name: str, seed: int) -> None:
    params = config.load_resolved()
    launch.on_all_devices(params, "stages.reconstruct", name, str(seed))
    section = params.reconstructions[name].section
    options = params.reconstruct
    vocabulary = models.vocabulary(models.load_tokenizer(models.ROOT, params), params)
    turns = load_turns("data/rewritten/heldout.parquet")
    jobs = _jobs(params, section, seed, turns, vocabulary)
    kept = kept_batches.KeptBatches(_kept(name, seed, params))
    with processes.joined() as shared:
        complete = kept_batches.compute(
            len(jobs),
            kept,
            shared,
            lambda numbers: _written(
                [jobs[one] for one in numbers], params, name, seed, vocabulary
            ),
            title=f"reconstruct@{name}-{seed}",
        )
    if not complete:
        return
    written = [row for number in range(len(jobs)) for row in json.loads(kept.get(number))]
    _, found = controls.same_gold(turns, seed=params.seed)
    partners = dict(zip((turn.id for turn in turns), found.tolist(), strict=True))
    rows = [
        {
            "id": turn.id,
            "kind": turn.kind,
            "image": turn.image,
            "question": turn.question,
            "control": control,
            "reference": turn.sections[section],
            **one,
            **({"same_gold": partners[turn.id]} if control == "shuffled-same-gold" else {}),
        }
        for (control, turn), one in zip(
            itertools.product(options.controls, turns), written, strict=True
        )
    ]
    write_jsonl(f"reconstructions/{name}/{seed}.jsonl", rows)
    kept.discard()


def _jobs(
    params: config.Params,
    section: str,
    seed: int,
    turns: Sequence[Turn],
    vocabulary: Vocabulary,
) -> list[Job]:
    """All batches, control by control."""
    own = states.load(Path(f"states/{seed}/heldout.safetensors"), section, turns)
    train_turns = load_turns("data/rewritten/train.parquet")
    train = controls.Moments.of(
        states.load(Path(f"states/{seed}/train.safetensors"), section, train_turns)
    )
    jobs: list[Job] = []
    for control in params.reconstruct.controls:
        source: config.InterpreterInput = "question-only" if control == "question-only" else "own"
        readings = interpreter.encode_readings(
            turns,
            section,
            controls.control_states(control, own, turns=turns, train=train, seed=params.seed),
            vocabulary,
            source=source,
            wordings=params.interpret.wordings,
            seed=params.seed,
        )
        batches = processes.batches(readings, params.reconstruct.batch_size)
        jobs += [(source, number, batch) for number, batch in enumerate(batches)]
    return jobs


def _written(
    jobs: Sequence[Job], params: config.Params, name: str, seed: int, vocabulary: Vocabulary
) -> Iterator[bytes]:
    """What is written of each batch, as a list of JSON."""
    named = params.reconstructions[name]
    token = vocabulary.thinking_ids[thinking_token(named.section)]
    readers = {}
    for source in dict.fromkeys(source for source, _, _ in jobs):
        llm = models.load_llm(models.ROOT, params)
        folder = Path("interpreters") / named.interpreter / source / str(seed)
        given = params.interpreters[named.interpreter].adapter is not None
        stage = "adopt@interpreter-" if given else "interpret@"
        again = f"dvc repro {stage}{named.interpreter}-{source}-{seed}"
        merged = models.load_adapter(llm, folder, again=again).merge_and_unload()
        readers[source] = interpreter.StateReader(merged.to(models.device()), [token])
    for source, number, batch in jobs:
        found = interpreter.reconstruct(
            readers[source],
            batch,
            vocabulary,
            decoding=params.reconstruct,
            # The same draws for every control.
            seed=processes.batch_seed(params.seed, number),
        )
        rows = [asdict(one) for one in found]
        yield json.dumps(rows, ensure_ascii=False, allow_nan=False).encode()


def _kept(name: str, seed: int, params: config.Params) -> Path:
    """Where finished batches are: a folder named by all that they depend on."""
    interpreter_ = params.reconstructions[name].interpreter
    inputs = [
        *(Path(f"data/rewritten/{split}.parquet") for split in ("train", "heldout")),
        *(Path(f"states/{seed}/{split}.safetensors") for split in ("train", "heldout")),
        models.ROOT / "interpreter",
        *(Path(f"interpreters/{interpreter_}/{one}/{seed}") for one in ("own", "question-only")),
    ]
    used = ("seed", "family", "precision", "reconstruct", "interpret", f"reconstructions.{name}")
    key = snapshots.key(f"reconstruct@{name}-{seed}", params, *used, inputs=inputs)
    return kept_batches.ROOT / f"{key}-{models.fingerprint()}"


if __name__ == "__main__":
    name, seed = arguments.read(
        __doc__,
        reconstruction=lambda params: params.reconstructions,
        seed=lambda params: params.seeds,
    )
    main(name, int(seed))
