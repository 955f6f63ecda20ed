"""What a linear probe reads from thinking states, beside what interpreters write of them.

    python -m stages.probe

Trains one probe for each section, training seed and word on the states of training turns, and asks
it and every interpreter which words a held-out section has. Writes `metrics/probe.json`: macro-F1
over words, for each reconstruction.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval import probe as scoring
from heima import config
from heima.data.turns import Turn, load_turns
from heima.interpreting import controls, probe, states
from heima.results.cells import write_metrics
from heima.results.files import read_jsonl
from heima.results.provenance import provenance
from stages import arguments


class _Probed(NamedTuple):
    words: probe.Words
    said: dict[str, dict[int, np.ndarray]]


def main() -> None:
    params = config.load_resolved()
    train, heldout = (
        load_turns(f"data/rewritten/{split}.parquet") for split in ("train", "heldout")
    )
    fitted = np.sort(
        np.random.default_rng(params.seed).permutation(len(train))[: params.probe.fitted]
    )
    probed: dict[str, _Probed] = {}
    cells = {}
    for name, one in params.reconstructions.items():
        section = one.section
        if section not in probed:
            probed[section] = _probed(params, section, train, heldout, fitted)
        words, said = probed[section]
        written = {
            seed: read_jsonl(f"reconstructions/{name}/{seed}.jsonl") for seed in params.seeds
        }
        read: dict[str, dict[int, np.ndarray]] = {
            control: {
                seed: words.there([row["text"] for row in rows if row["control"] == control])
                for seed, rows in written.items()
            }
            for control in scoring.controls(params)
        }
        cells[name] = scoring.evaluate(
            {**said, **read},
            words.there([turn.sections[section] for turn in heldout]),
            [turn.image for turn in heldout],
            params,
        )
        shown = "  ".join(f"{way} {cell.value:.1f}" for way, cell in cells[name].items())
        print(f"{name}: macro-F1 of {len(words.names)} words: {shown}")
    write_metrics(
        Path("metrics/probe.json"),
        cells,
        provenance(
            "probe",
            params,
            training_seeds=list(params.seeds),
            fitted=len(fitted),
            words={section: found.words.names for section, found in probed.items()},
        ),
    )


def _probed(
    params: config.Params,
    section: str,
    train: list[Turn],
    heldout: list[Turn],
    fitted: np.ndarray,
) -> _Probed:
    """What the probes of a section say of held-out turns, trained on its words and on others'."""
    known = [train[place] for place in fitted]
    texts = [turn.sections[section] for turn in known]
    words = probe.Words(texts, params.probe.words)
    own = words.there(texts)
    other = own[controls.shuffle_within([turn.kind for turn in known], seed=params.seed)]
    said: dict[str, dict[int, np.ndarray]] = {scoring.PROBE: {}, scoring.SHUFFLED_LABELS: {}}
    for seed in params.seeds:
        seen, unseen = (
            probe.vectors(states.load(Path(f"states/{seed}/{split}.safetensors"), section, turns))
            for split, turns in (("train", train), ("heldout", heldout))
        )
        for way, labels in ((scoring.PROBE, own), (scoring.SHUFFLED_LABELS, other)):
            said[way][seed] = probe.read(seen[fitted], labels, unseen)
    return _Probed(words, said)


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
