"""Thinking states: what the VLM knows where it writes a thinking token.

One teacher-forced pass over the fully compressed answers gives all states of a turn; they equal
those of generation, because every answer has the same thinking tokens. They are extracted once and
stored, so that interpreters never load the VLM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from heima.batching import Sample
from heima.corpus import Turn

Position = Literal["predicting", "at"]


@torch.inference_mode()
def extract(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    collate: Callable[[Sequence[Sample]], dict[str, torch.Tensor]],
    thinking_ids: Mapping[str, int],
    *,
    position: Position,
    batch_size: int,
) -> dict[str, torch.Tensor]:
    """The last hidden states (after the final norm) of each section's thinking token.

    `position` is `at` for the token's own place p (the paper's text) or `predicting` for p-1, the
    state that predicts it (the official code). Returns section -> (samples, hidden_size) in the
    order of `samples`. Raises `ValueError` where a sample has not exactly one of each token.
    """
    offset = {"at": 0, "predicting": 1}[position]
    found: dict[str, list[torch.Tensor]] = {section: [] for section in thinking_ids}
    for start in range(0, len(samples), batch_size):
        batch = collate(samples[start : start + batch_size])
        del batch["labels"]
        batch = {key: value.to(model.device) for key, value in batch.items()}
        hidden = model.model(**batch, use_cache=False).last_hidden_state
        for section, token in thinking_ids.items():
            hits = batch["input_ids"] == token
            if not bool((hits.sum(dim=1) == 1).all()):
                row = start + int((hits.sum(dim=1) != 1).nonzero()[0])
                raise ValueError(f"sample {row} has not exactly one thinking token of {section}")
            places = hits.int().argmax(dim=1) - offset
            rows = torch.arange(len(places), device=hidden.device)
            found[section].append(hidden[rows, places].cpu())
    return {section: torch.cat(parts) for section, parts in found.items()}


def _fingerprint(turns: Sequence[Turn]) -> str:
    return hashlib.sha256("\n".join(turn.id for turn in turns).encode()).hexdigest()


def save(path: Path, states: Mapping[str, torch.Tensor], turns: Sequence[Turn]) -> None:
    """Save states with a fingerprint of the turns they belong to, in the same order."""
    tensors = {section: state.contiguous() for section, state in states.items()}
    save_file(tensors, path, metadata={"turns": _fingerprint(turns)})


def load(path: Path, section: str, turns: Sequence[Turn]) -> torch.Tensor:
    """One section's states, (turns, hidden_size), as fp32.

    Raises `ValueError` where the file was made from other turns or another order.
    """
    with safe_open(path, framework="pt") as file:
        if file.metadata()["turns"] != _fingerprint(turns):
            raise ValueError(f"{path} was extracted from other turns; run `dvc repro states`")
        return file.get_tensor(section).float()
