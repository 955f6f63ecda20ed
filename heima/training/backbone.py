"""The forward pass up to the last hidden states, with each image of a batch encoded once.

transformers wants an image a row of text. Here a batch holds its distinct images, and `image_rows`
says which of them a row looks at; the gradients of an image's rows add up on their way back into
it.

With `tiles="real"`, Mllama leaves padding tiles out: what the vision encoder would make of them is
taken to be 0. That is **not** the pretrained function: transformers hides padding only from
padding, so there real tiles attend to it; and tokens before the image attend to all tiles alike.

(`heima.families.images.spread` does the same for `generate`, which computes an image only once
anyway.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import LlavaNextForConditionalGeneration, MllamaForConditionalGeneration
from transformers.models.mllama.modeling_mllama import MllamaModel

from heima.config import Tiles
from heima.data.encoding import Sample
from heima.data.tokens import IGNORED
from heima.families.images import spread
from heima.training.loop import AnswerLoss, Body, Collate
from heima.vlm.models import pretrained


def body(model: nn.Module, *, tiles: Tiles = "padded") -> Body:
    """A VLM's last hidden states, (rows, length, hidden_size), after the final norm, as a function
    of a batch of `models.collator`'s, labels apart.

    A call may name `tiles`, too. Where gradients are computed, a call leaves hooks in an Mllama,
    which gradient checkpointing needs when it computes a layer again during the backward pass; the
    next call removes them, so that a model may have several bodies.
    """
    base = pretrained(model)
    return _BODIES[base.config.model_type](base, tiles)


class _LlavaNext:
    def __init__(self, model: LlavaNextForConditionalGeneration, tiles: Tiles) -> None:
        self._model = model.model

    def __call__(self, *, image_rows: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        with spread(self._model, image_rows.tolist()):
            return self._model(**inputs, use_cache=False).last_hidden_state


_HOOKS: WeakKeyDictionary[MllamaModel, list[RemovableHandle]] = WeakKeyDictionary()


class _Mllama:
    def __init__(self, model: MllamaForConditionalGeneration, tiles: Tiles) -> None:
        self._model = model.model
        self._tiles = tiles
        text = self._model.language_model
        self._projections = [
            projection
            for index in text.config.cross_attention_layers
            for projection in (
                text.layers[index].cross_attn.k_proj,
                text.layers[index].cross_attn.v_proj,
            )
        ]

    def _spread(self, rows: torch.Tensor) -> None:
        """Turn keys and values of each image into those of each row; their gradients add up."""
        self._release()
        _HOOKS[self._model] = [
            projection.register_forward_hook(lambda module, args, projected: projected[rows])
            for projection in self._projections
        ]

    def __call__(
        self,
        *,
        pixel_values: torch.Tensor,
        aspect_ratio_ids: torch.Tensor,
        aspect_ratio_mask: torch.Tensor,
        cross_attention_mask: torch.Tensor,
        num_tiles: torch.Tensor,
        image_rows: torch.Tensor,
        tiles: Tiles | None = None,
        **text: torch.Tensor,
    ) -> torch.Tensor:
        self._spread(image_rows)
        images = (pixel_values, aspect_ratio_ids, aspect_ratio_mask)
        if (tiles or self._tiles) == "padded":
            seen = self._encode(*images)
        else:
            seen = self._encode_real_tiles(*images, num_tiles)
        hidden = self._model(
            **text,
            # (images, tiles, patches, hidden) -> (images, tiles * patches, hidden)
            cross_attention_states=seen.flatten(1, 2),
            cross_attention_mask=cross_attention_mask,
            use_cache=False,
        ).last_hidden_state
        if not torch.is_grad_enabled():
            self._release()
        return hidden

    def _release(self) -> None:
        for hook in _HOOKS.pop(self._model, ()):
            hook.remove()

    def _encode(
        self, pixels: torch.Tensor, ratios: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Projected patches of each image, (images, tiles, patches, hidden)."""
        seen = self._model.vision_model(pixels, ratios, mask).last_hidden_state
        return self._model.multi_modal_projector(seen[:, 0])

    def _encode_real_tiles(
        self,
        pixels: torch.Tensor,
        ratios: torch.Tensor,
        mask: torch.Tensor,
        counts: torch.Tensor,
    ) -> torch.Tensor:
        """As `_encode`, with images of equal numbers of tiles encoded together."""
        vision, project = self._model.vision_model, self._model.multi_modal_projector
        parts: list[torch.Tensor | None] = [None] * len(pixels)
        for count in counts.unique().tolist():
            alike = (counts == count).nonzero(as_tuple=True)[0]
            with _FewerTiles(vision, count):
                seen = vision(pixels[alike, :, :count], ratios[alike], mask[alike, :, :count])
            projected = project(seen.last_hidden_state[:, 0])
            missing = vision.max_num_tiles - count
            filled = nn.functional.pad(projected, (0, 0, 0, 0, 0, missing))
            for place, image in zip(alike.tolist(), filled, strict=True):
                parts[place] = image
        return torch.stack(parts)


class _FewerTiles:
    """Within it, a vision model takes images of `count` tiles instead of its full number.

    Its tile and position embeddings are made for the full number: for them alone, tiles are filled
    up and cut off again.
    """

    def __init__(self, vision: nn.Module, count: int) -> None:
        self._embeddings = (
            vision.pre_tile_positional_embedding,
            vision.gated_positional_embedding,
            vision.post_tile_positional_embedding,
        )
        self._missing = vision.max_num_tiles - count
        self._count = count

    def __enter__(self) -> None:
        self._hooks = [
            hook
            for module in self._embeddings
            for hook in (
                module.register_forward_pre_hook(self._fill),
                module.register_forward_hook(self._cut),
            )
        ]

    def __exit__(self, *fault: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _fill(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, ratios = args
        return nn.functional.pad(hidden, (0, 0, 0, 0, 0, self._missing)), ratios

    def _cut(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        return output[:, : self._count]


_BODIES: dict[str, Callable[..., Body]] = {"mllama": _Mllama, "llava_next": _LlavaNext}


@torch.no_grad()
def tile_shift(
    model: AnswerLoss, samples: Sequence[Sample], collate: Collate, *, batch_size: int
) -> dict[str, float]:
    """How far `tiles: real` moves a model from what it computes with padded tiles.

    Over the samples' labelled positions: the mean and the largest absolute difference of a logit,
    and both mean losses (nats a token).
    """
    model.eval()
    place = next(model.parameters()).device
    losses: dict[Tiles, list[torch.Tensor]] = {"padded": [], "real": []}
    total, largest, count = 0.0, 0.0, 0
    for start in range(0, len(samples), batch_size):
        batch = {k: v.to(place) for k, v in collate(samples[start : start + batch_size]).items()}
        targets = batch.pop("labels")[:, 1:]
        here = targets != IGNORED
        logits = {}
        for tiles, found in losses.items():
            logits[tiles] = model(**batch, tiles=tiles)[:, :-1][here].float()
            found.append(functional.cross_entropy(logits[tiles], targets[here], reduction="none"))
        moved = (logits["real"] - logits["padded"]).abs()
        total, count = total + moved.sum().item(), count + moved.numel()
        largest = max(largest, moved.max().item())
    return {
        "logits_mean_abs": total / count,
        "logits_max_abs": largest,
        **{f"loss_{tiles}": torch.cat(found).mean().item() for tiles, found in losses.items()},
    }
