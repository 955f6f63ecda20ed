"""Terms of a checkpoint's loss beside that of its tokens: what its states must be like.

- `align` (CODI's, Shen et al., 2025, arXiv:2502.21074): the hidden states of all layers at the
  token before the conclusion's first are to be those of the frozen text-CoT model there, which has
  read the sections' texts. Smooth L1, divided by the standard deviation of the teacher's state.
- `explain` (SIM-CoT's, Wei et al., 2025, arXiv:2509.20317): an auxiliary decoder, which is trained
  along and thrown away, must write each compressed section from the states of its thinking tokens.

Each gives a value a row. In the loss a row counts as often as it has labelled tokens, so that the
sum of a batch is the same however it is divided.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaConfig, LlamaModel

from heima.data.tokens import IGNORED
from heima.families import registry
from heima.families.batches import ALIGN, EXPLAIN
from heima.families.family import Body

Batch = Mapping[str, torch.Tensor]

EXPLAINER_LAYERS = 2


def smooth_l1(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far states are from a teacher's, a row: both are (layers, rows, hidden_size).

    The mean over layers of the mean smooth L1 over the width, each divided by the standard
    deviation of the teacher's state over its width: so no row depends on the others of its batch.
    """
    losses = nn.functional.smooth_l1_loss(found.float(), wanted.float(), reduction="none")
    return (losses.mean(dim=-1) / wanted.float().std(dim=-1)).mean(dim=0)


class Align(nn.Module):
    """`align` for a model with an adapter, whose own frozen weights are the teacher.

    `teach` gives last hidden states for the teacher's batch, without states fed back.
    Raises `ValueError` for a model without an adapter.
    """

    def __init__(self, model: nn.Module, teach: Body) -> None:
        super().__init__()
        self._adapters = [part for part in model.modules() if isinstance(part, LoraLayer)]
        if not self._adapters:
            raise ValueError(
                "losses.align needs an adapter on the text-CoT model, whose frozen weights teach; "
                "the model has none"
            )
        self._teach = teach
        self._seen: list[list[torch.Tensor]] | None = None
        language = registry.of(model).language_model(registry.pretrained(model))
        for number, layer in enumerate(language.layers):
            layer.register_forward_hook(self._recorder(number))
        self._count = len(language.layers)

    def _recorder(self, number: int) -> Callable[..., None]:
        def record(module: nn.Module, args: object, output: torch.Tensor) -> None:
            if self._seen is not None:
                self._seen[number].append(output)

        return record

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[list[torch.Tensor]]]:
        """Collects what each layer gives, in calls one after the other; a backward pass that
        computes layers again is no such call."""
        seen: list[list[torch.Tensor]] = [[] for _ in range(self._count)]
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    @torch.no_grad()
    def taught(self, batch: Batch, inputs: Batch) -> torch.Tensor:
        """The teacher's states, (layers, rows, hidden_size)."""
        own = {key.removeprefix(ALIGN): value for key, value in batch.items()}
        at = own.pop("teacher_at")
        own.pop("at")
        shared = {key: value for key, value in inputs.items() if key not in ("position_ids", *own)}
        for adapter in self._adapters:
            adapter._disable_adapters = True
        try:
            with self.recording() as seen:
                self._teach(**shared, **own)
        finally:
            for adapter in self._adapters:
                adapter._disable_adapters = False
        return picked(seen, at)

    def forward(
        self, seen: list[list[torch.Tensor]], wanted: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """The (rows,) values, by what the layers gave for the student's batch."""
        return smooth_l1(picked(seen, batch[f"{ALIGN}at"]), wanted)


def picked(seen: list[list[torch.Tensor]], at: torch.Tensor) -> torch.Tensor:
    """Of each layer's states, in segments, those in the columns `at` (rows,)."""
    rows = torch.arange(len(at), device=at.device)
    return torch.stack([torch.cat(parts, dim=1)[rows, at] for parts in seen])


class Explain(nn.Module):
    """`explain` for a VLM: a small Llama of its width, drawn by `seed`, reads a section's states
    and writes its text, with the VLM's frozen embeddings as its own on both sides.

    A state is the one at its thinking token, or, where it is `fed` back, the one that is fed.
    """

    def __init__(self, model: nn.Module, *, seed: int, fed: bool = False) -> None:
        super().__init__()
        self._offset = int(fed)
        base = registry.pretrained(model)
        config = base.config.get_text_config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            decoder = LlamaModel(
                LlamaConfig(
                    vocab_size=1,
                    bos_token_id=None,
                    eos_token_id=None,
                    hidden_size=config.hidden_size,
                    intermediate_size=config.intermediate_size,
                    num_hidden_layers=EXPLAINER_LAYERS,
                    num_attention_heads=config.num_attention_heads,
                    num_key_value_heads=config.num_attention_heads,
                    max_position_embeddings=config.max_position_embeddings,
                )
            )
        del decoder.embed_tokens
        self.decoder = decoder.to(base.device)
        self._table = [base.get_input_embeddings()]  # in a list: it is part of the VLM already

    def forward(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The (rows,) mean losses of a section's token, in nats, by the VLM's last states."""
        at, ids = batch[f"{EXPLAIN}at"] - self._offset, batch[f"{EXPLAIN}ids"]
        table = self._table[0]
        rows = torch.arange(len(at), device=at.device)[:, None, None]
        states = hidden[rows, at].flatten(0, 1)  # (rows * sections, thoughts, hidden_size)
        targets = ids.flatten(0, 1)
        words = table(targets[:, :-1].clamp(min=0))
        read = torch.cat([states, words.to(states.dtype)], dim=1).to(self.decoder.norm.weight.dtype)
        given = torch.cat([torch.ones_like(states[..., 0]), targets[:, :-1] != IGNORED], dim=1)
        out = self.decoder(inputs_embeds=read, attention_mask=given.long(), use_cache=False)
        written = out.last_hidden_state[:, states.shape[1] - 1 :]
        logits = nn.functional.linear(written, table.weight.to(written.dtype))
        losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
        per_row = losses.unflatten(0, at.shape[:2]).sum(dim=(1, 2))
        return per_row / (ids != IGNORED).sum(dim=(1, 2)).clamp(min=1)
