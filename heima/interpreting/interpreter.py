"""Interpreters: text-only LLMs that read thinking states and write the section they stand for.

The prompt holds the question and the section's thinking tokens, no image. Each token's embedding is
replaced by its thinking state H, without a projection (paper, section 3.3; docs/recipe.md, section
3). So its number cannot matter: the prompt has the section's unnumbered token, as often as there
are states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from heima.config import Decoding, Hardware, InterpreterInput
from heima.data.encoding import pad, pad_text
from heima.data.tokens import Encoded, ImagePlace, Vocabulary
from heima.data.turns import Turn
from heima.families.registry import pretrained
from heima.interpreting.states import SectionStates
from heima.interpreting.wordings import PLAIN_WORDING, VARIED, Wordings, asking
from heima.training.loop import AnswerLoss
from heima.vlm.sampling import sampling


@dataclass(frozen=True)
class Reading:
    """An encoded interpreter sample with the states that stand in for its thinking tokens.

    `states` is (thinking tokens, hidden_size).
    """

    encoded: Encoded
    states: torch.Tensor

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def labelled(self) -> int:
        return self.encoded.labelled


def encode_readings(
    turns: Sequence[Turn],
    section: str,
    states: SectionStates,
    vocabulary: Vocabulary,
    *,
    source: InterpreterInput,
    wordings: Wordings,
    seed: int,
) -> list[Reading]:
    """Prompt, target and states of each turn.

    With `source="question-only"` the prompt has no thinking token, so nothing is replaced.
    """
    templates = [PLAIN_WORDING] if wordings == "plain" else VARIED
    drawn = np.random.default_rng(seed).integers(len(templates), size=len(turns))
    read = states.by_turn()
    chats: list[tuple[str, ImagePlace, str]] = []
    for turn, template, seen in zip(turns, drawn, read, strict=True):
        told = len(seen) if source == "own" else 0
        prompt = asking(templates[template], turn.question, section, told)
        chats.append((prompt, "none", turn.sections[section]))
    return [
        Reading(encoded, seen)
        for encoded, seen in zip(vocabulary.encode_all(chats), read, strict=True)
    ]


class ReadingCollator:
    """Batches of `Reading`s for a `StateReader`."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, readings: Sequence[Reading]) -> dict[str, torch.Tensor]:
        batch = pad_text([reading.encoded for reading in readings], self._pad_id)
        batch["states"] = _pad_states(readings)
        return batch


def _pad_states(readings: Sequence[Reading]) -> torch.Tensor:
    """(batch, most thinking tokens, hidden_size): zeros behind the last of a row, never read."""
    return pad_sequence([reading.states for reading in readings], batch_first=True)


class StateReader(nn.Module):
    """An LLM that reads states, given with each sample, in place of thinking tokens' embeddings.

    `token_ids` are the thinking tokens of the sections that it reads; a sample has those of at most
    one section.
    """

    token_ids: torch.Tensor

    def __init__(self, llm: PreTrainedModel, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.llm = llm
        # Not in the weights: an adapter is saved and loaded without it.
        self.register_buffer("token_ids", torch.tensor(list(token_ids)), persistent=False)

    def embed(self, input_ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """(batch, length) ids and (batch, most thinking tokens, hidden_size) states -> embeddings.

        Returns (batch, length, hidden_size): the k-th thinking token of a row is its k-th state.
        """
        embedded = self.llm.get_input_embeddings()(input_ids)
        here = torch.isin(input_ids, self.token_ids)
        rows = torch.arange(len(states), device=states.device).unsqueeze(1)
        order = (here.cumsum(dim=1) - 1).clamp(min=0)
        return torch.where(here.unsqueeze(-1), states.to(embedded.dtype)[rows, order], embedded)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """Last hidden states, (batch, length, hidden_size), after the final norm."""
        output = pretrained(self.llm).model(
            inputs_embeds=self.embed(input_ids, states),
            attention_mask=attention_mask,
            use_cache=False,
        )
        return output.last_hidden_state


@dataclass(frozen=True)
class Reconstruction:
    """What an interpreter wrote, and how likely it held the true text.

    `nll` sums over the `n_tokens` tokens of the true text and its end of turn, in nats.
    `finish` is "stop" where the text was ended, "length" where the limit cut it.
    """

    text: str
    nll: float
    n_tokens: int
    finish: Literal["stop", "length"]


@torch.inference_mode()
def reconstruct(
    reader: StateReader,
    readings: Sequence[Reading],
    vocabulary: Vocabulary,
    *,
    decoding: Decoding,
    seed: int,
) -> list[Reconstruction]:
    """Generate from each reading's prompt, and score its true text, in the given order.

    All readings are one batch. What is drawn depends on `seed` and on the batch alone.
    """
    reader.eval()
    torch.manual_seed(seed)
    tokenizer = vocabulary.tokenizer
    sums, counts = _nll(reader, readings, ReadingCollator(tokenizer.pad_token_id))
    # Generation continues the prompt, so it pads on the left.
    prompts = [one.encoded.input_ids[: one.encoded.body][::-1] for one in readings]
    ids = pad(prompts, tokenizer.pad_token_id).flip(1)
    mask = pad([[1] * len(prompt) for prompt in prompts], 0).flip(1)
    states = _pad_states(readings)
    place = next(reader.parameters()).device
    generated = reader.llm.generate(
        inputs_embeds=reader.embed(ids.to(place), states.to(place)),
        attention_mask=mask.to(place),
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling(decoding),
    )
    return [
        Reconstruction(
            vocabulary.decode(row),
            nll,
            count,
            "stop" if tokenizer.eos_token_id in row else "length",
        )
        for row, nll, count in zip(generated.tolist(), sums, counts, strict=True)
    ]


def _nll(
    reader: StateReader, readings: Sequence[Reading], collate: ReadingCollator
) -> tuple[list[float], list[int]]:
    """Each true text's (sum in nats, tokens): its own tokens and the end of turn, no header."""
    place = next(reader.parameters()).device
    batch = {key: value.to(place) for key, value in collate(readings).items()}
    labels = batch.pop("labels")
    for row, reading in enumerate(readings):
        labels[row, : reading.encoded.body] = -100
    sums, counts = AnswerLoss(reader, Hardware(), body=reader.forward)(labels=labels, **batch)
    return sums.tolist(), counts.tolist()
