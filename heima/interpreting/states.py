"""Thinking states: what the VLM knows where it writes its thinking tokens.

One teacher-forced pass over the fully compressed answers gives all states of a turn. They equal
those of generation, because every answer has the same thinking tokens; under a ratio their number
is that of the true sections. States are extracted once and stored, so that interpreters never load
the VLM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from safetensors.torch import save_file
from transformers import PreTrainedModel

from heima.cot.sections import numbered
from heima.cot.thinking import Thinking
from heima.data.tokens import Vocabulary
from heima.data.turns import Turn
from heima.families.feeding import Feed
from heima.training.backbone import body

Position = Literal["predicting", "at"]


@dataclass(frozen=True)
class SectionStates:
    """The thinking states of one section, turn after turn.

    `values` is (all states, hidden_size), `counts` (turns,): how many of them each turn has.
    """

    values: torch.Tensor
    counts: torch.Tensor

    def __len__(self) -> int:
        return len(self.counts)

    def by_turn(self) -> tuple[torch.Tensor, ...]:
        """Each turn's states, (count, hidden_size), as views."""
        return self.values.split(self.counts.tolist())


def join(batches: Sequence[Mapping[str, SectionStates]]) -> dict[str, SectionStates]:
    """The states of all batches, one after the other, by section."""
    return {
        section: SectionStates(
            torch.cat([batch[section].values for batch in batches]),
            torch.cat([batch[section].counts for batch in batches]),
        )
        for section in batches[0]
    }


@torch.inference_mode()
def extract(
    model: PreTrainedModel,
    batch: Mapping[str, torch.Tensor],
    vocabulary: Vocabulary,
    thinking: Thinking,
    *,
    position: Position,
    feed: Feed | None = None,
) -> dict[str, SectionStates]:
    """The last hidden states (after the final norm) of each section's thinking tokens.

    `batch` is one of `models.collator`'s. `position` is `at` for a token's own place p (the paper's
    text) or `predicting` for p-1, the state that predicts it (the official code). Returns
    section -> states, in the order of the rows and of the tokens in each (`join` puts batches
    together). `feed`: the model's states are fed back. Raises `ValueError` where a row has not the
    tokens that `thinking` asks for.
    """
    offset = {"at": 0, "predicting": 1}[position]
    places = {
        section: _places(
            batch["input_ids"],
            section,
            [vocabulary.thinking_ids[token] for token in tokens],
            thinking,
        )
        for section, tokens in numbered(thinking.tokens or 1).items()
    }
    inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
    hidden = body(model, feed=feed)(**inputs)
    found = {}
    for section, here in places.items():
        rows, columns = here.nonzero(as_tuple=True)
        values = hidden[rows.to(hidden.device), (columns - offset).to(hidden.device)]
        found[section] = SectionStates(values.cpu(), here.sum(dim=1))
    return found


def _places(
    input_ids: torch.Tensor, section: str, tokens: list[int], thinking: Thinking
) -> torch.Tensor:
    """Where a section's thinking tokens stand, (batch, length)."""
    here = torch.isin(input_ids, torch.tensor(tokens))
    for row, (ids, mask) in enumerate(zip(input_ids, here, strict=True)):
        shown = ids[mask].tolist()
        if shown != (tokens if thinking.ratio is None else tokens * max(1, len(shown))):
            raise ValueError(
                f"row {row} has {len(shown)} thinking tokens of the {section}, not "
                + ("at least one" if thinking.ratio else f"its {len(tokens)}, each once, in order")
            )
    return here


def _fingerprint(turns: Sequence[Turn]) -> str:
    return hashlib.sha256("\n".join(turn.id for turn in turns).encode()).hexdigest()


def packed(states: Mapping[str, SectionStates]) -> bytes:
    """States as safetensors, named as in the files of `save`."""
    return serialize(_tensors(states))


def unpacked(content: bytes) -> dict[str, SectionStates]:
    """What `packed` was given."""
    tensors = deserialize(content)
    return {
        name: SectionStates(values, tensors[f"{name}.counts"])
        for name, values in tensors.items()
        if not name.endswith(".counts")
    }


def _tensors(states: Mapping[str, SectionStates]) -> dict[str, torch.Tensor]:
    tensors = {}
    for section, one in states.items():
        tensors[section] = one.values.contiguous()
        tensors[f"{section}.counts"] = one.counts.to(torch.int32)
    return tensors


def save(path: Path, states: Mapping[str, SectionStates], turns: Sequence[Turn]) -> None:
    """Save states with a fingerprint of the turns they belong to, in the same order.

    The file has two tensors a section: `<section>`, (all states, hidden_size), and
    `<section>.counts`, (turns,).
    """
    save_file(_tensors(states), path, metadata={"turns": _fingerprint(turns)})


def load(path: Path, section: str, turns: Sequence[Turn]) -> SectionStates:
    """One section's states, in the type that they were saved in; read from the file as needed.

    Raises `ValueError` where the file was made from other turns or another order.
    """
    with safe_open(path, framework="pt") as file:
        if file.metadata()["turns"] != _fingerprint(turns):
            raise ValueError(f"{path} was extracted from other turns; run `dvc repro states`")
        return SectionStates(file.get_tensor(section), file.get_tensor(f"{section}.counts"))
