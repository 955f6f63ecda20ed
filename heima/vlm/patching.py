"""Reading and replacing the residual stream at columns of a text, and closing ways through it.

The residual stream at a column is what the embedding and every decoder layer of the language model
put out there. Whatever a later column knows of an earlier one has passed through it: replaced at
all depths, a column says what the donor's would have said. Relative positions are those of the
receiver.

Everything here is a context: hooks of PyTorch, which leave with it. Columns are counted from where
a pass begins, and in decoding the first pass is changed alone, which holds them; masks are of all
columns, and a pass that goes on from a cache has the last of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from heima.families import registry


def stream(model: PreTrainedModel) -> list[nn.Module]:
    """The modules whose outputs are the residual stream: the embedding, then each layer."""
    text = registry.of(model).language_model(model)
    return [text.get_input_embeddings(), *text.layers]


@contextlib.contextmanager
def recorded(model: PreTrainedModel, columns: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """The residual stream at `columns` of the pass within, as `patched` takes it.

    `columns` is (rows, k). The list that it gives has one tensor (rows, k, hidden_size) for the
    embedding and for each layer once the pass is done.
    """
    found: list[torch.Tensor] = []
    rows = torch.arange(len(columns))[:, None]

    def take(module: nn.Module, args: object, output: torch.Tensor) -> None:
        found.append(output[rows, columns].detach().clone())

    with _hooked(part.register_forward_hook(take) for part in stream(model)):
        yield found


@contextlib.contextmanager
def patched(
    model: PreTrainedModel, columns: torch.Tensor, states: Sequence[torch.Tensor]
) -> Iterator[None]:
    """While it is open, the stream at `columns` (rows, k) is `states`: embedding and each layer.

    Raises `ValueError` where there are not as many states as the stream has parts.
    """
    parts = stream(model)
    if len(states) != len(parts):
        raise ValueError(f"the stream has {len(parts)} parts, not {len(states)}")
    rows = torch.arange(len(columns))[:, None]
    last = int(columns.max())

    def put(depth: int) -> Callable[..., torch.Tensor | None]:
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor | None:
            if output.shape[1] <= last:
                return None
            changed = output.clone()
            changed[rows, columns] = states[depth].to(output)
            return changed

        return hook

    with _hooked(part.register_forward_hook(put(depth)) for depth, part in enumerate(parts)):
        yield


@dataclass(frozen=True)
class Closed:
    """A way of attention that is closed: columns `of` do not look at the columns `to`.

    Both are masks (rows, length). `layers` are those of the language model in which it is closed;
    None: all. A column always sees itself.
    """

    of: torch.Tensor
    to: torch.Tensor
    layers: range | None = None


@contextlib.contextmanager
def closing(model: PreTrainedModel, ways: Sequence[Closed]) -> Iterator[None]:
    """While it is open, these ways of the language model's self-attention are closed."""
    text = registry.of(model).language_model(model)

    def close(depth: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            hidden = args[0] if args else kwargs["hidden_states"]
            count = hidden.shape[1]
            closed = [way for way in ways if way.layers is None or depth in way.layers]
            if not closed:
                return None
            length = closed[0].to.shape[1]
            shut = torch.zeros(len(hidden), count, length, dtype=torch.bool)
            for way in closed:
                shut |= way.of[:, -count:, None] & way.to[:, None, :]
            shut &= ~torch.eye(length, dtype=torch.bool)[-count:]
            return args, {
                **kwargs,
                "attention_mask": _without(kwargs["attention_mask"], shut.to(hidden.device)),
            }

        return hook

    with _hooked(
        layer.self_attn.register_forward_pre_hook(close(depth), with_kwargs=True)
        for depth, layer in enumerate(text.layers)
        if hasattr(layer, "self_attn")
    ):
        yield


def _without(mask: torch.Tensor | None, shut: torch.Tensor) -> torch.Tensor:
    """A mask of attention, (rows, 1, columns, length), without what is shut, (rows, columns,
    length): `columns` are the last of all.

    None is transformers' mask of a batch without padding: what lies ahead alone is hidden.
    """
    if mask is None:
        count, length = shut.shape[1:]
        seen = torch.ones(count, length, dtype=torch.bool, device=shut.device)
        return (seen.tril(length - count) & ~shut)[:, None]
    if mask.dtype == torch.bool:
        return mask & ~shut[:, None]
    return mask.masked_fill(shut[:, None], torch.finfo(mask.dtype).min)


@contextlib.contextmanager
def blindfolded(
    model: PreTrainedModel,
    columns: torch.Tensor,
    image: torch.Tensor,
    layers: range | None = None,
) -> Iterator[None]:
    """While it is open, `columns` get nothing from the image in these layers (None: all).

    Both masks are (rows, length); `image` are the columns of image tokens. Where layers of
    cross-attention look at the image, their output is 0 there: under a mask that hides all of it
    they would attend to everything alike.
    """
    family = registry.of(model)
    text = family.language_model(model)
    crossing = set(family.cross_attention_layers(model.config))

    def silence(
        module: nn.Module, args: object, output: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        hidden, *others = output
        here = columns[:, -hidden.shape[1] :, None].to(hidden.device)
        return hidden.masked_fill(here, 0), *others

    with (
        _hooked(
            text.layers[depth].cross_attn.register_forward_hook(silence)
            for depth in sorted(crossing)
            if layers is None or depth in layers
        ),
        closing(model, [] if crossing else [Closed(columns, image, layers)]),
    ):
        yield


@contextlib.contextmanager
def _hooked(hooks: Iterator[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        yield
