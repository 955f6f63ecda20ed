"""A batch of a rehearsal's folders, its loss and its gradients: for tests and for a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import ProcessorMixin

from heima import config
from heima.config import Hardware, Params
from heima.data.encoding import Sample, encode_turns
from heima.data.images import ImageZip
from heima.data.rewriting import rewrite
from heima.data.turns import Turn, load_turns
from heima.families.registry import FAMILIES
from heima.training.backbone import body
from heima.training.loop import AnswerLoss
from heima.vlm import models

PROFILES = {"llava-cot-11b": "rehearsal", "llava-next-vicuna-7b": "rehearsal-llava-next"}
SEED = 0


@dataclass(frozen=True)
class Rehearsed:
    """A narrow model with an adapter, and the turns that it is shown.

    The adapter is away from where it starts (a new one changes nothing, and half of its weights
    have no gradient).
    """

    model: Any
    processor: ProcessorMixin
    samples: Sequence[Sample]
    turns: Sequence[Turn]
    images: ImageZip
    params: Params

    def collate(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        return models.collator(self.processor, self.images, self.params)(samples)


def parameters(family: str, precision: str, profiles: Path = Path("profiles")) -> Params:
    """The family's rehearsal in a precision, `fp32` or `bf16`."""
    params = config.load(profiles / f"{PROFILES[family]}.yaml")
    return params.model_copy(update={"precision": precision})


def prepare(made: Path, family: str, params: Params, device: torch.device) -> Rehearsed:
    """Load what `timings.rehearsal.make.write` wrote to `made`, by the stages' own ways."""
    root = made / family
    model, processor = models.load_vlm(root, "text-cot", params)
    adapted = models.add_lora(
        model.to(device), FAMILIES[family].vlm_lora, params.distill.lora, SEED
    )
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                drawn = torch.randn(weight.shape, generator=generator) / 50
                weight.copy_(drawn.to(weight.dtype))
    with tempfile.TemporaryDirectory() as scratch:
        rewrite(made / "source", Path(scratch), params.rewrite, seed=params.seed)
        turns = load_turns(Path(scratch) / "train.parquet")
    samples = encode_turns(
        turns,
        "p3",
        models.vocabulary(processor.tokenizer, params),
        max_length=params.distill.max_length,
    )
    images = ImageZip(made / "source" / "images.zip")
    return Rehearsed(adapted, processor, samples, turns, images, params)


def of_distinct_images(rehearsed: Rehearsed, images: int) -> list[int]:
    """Places of turns about so many images, with the second turn of one that has two."""
    seen: dict[str, int] = {}
    for sample in rehearsed.samples:
        seen[sample.image] = seen.get(sample.image, 0) + 1
    # An image with several turns first: its encoding serves both.
    names = sorted(seen, key=lambda name: (-seen[name], name))[:images]
    places = [
        next(n for n, one in enumerate(rehearsed.samples) if one.image == name) for name in names
    ]
    if seen[names[0]] > 1:
        places.append(places[0] + 1)
    return places


def loss_and_gradients(
    rehearsed: Rehearsed, places: Sequence[int], hardware: Hardware | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss a labelled token of those samples as one batch, and the adapter's gradients."""
    model = rehearsed.model
    answering = AnswerLoss(model, hardware or Hardware(), body=body(model))
    samples = [rehearsed.samples[place] for place in places]
    batch = {key: value.to(model.device) for key, value in rehearsed.collate(samples).items()}
    model.zero_grad(set_to_none=True)
    loss = answering(**batch, num_items_in_batch=sum(one.labelled for one in samples))
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those of the weights that train, by name, on the CPU in fp32."""
    return {
        name: weight.grad.detach().float().cpu().clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of two gradients, over the largest number in either.

    Raises `ValueError` where they are not of the same weights.
    """
    if one.keys() != other.keys():
        raise ValueError(f"gradients of other weights: {sorted(one.keys() ^ other.keys())}")
    scale = max(max(part.abs().max().item() for part in those.values()) for those in (one, other))
    return max((one[name] - other[name]).abs().max().item() for name in one) / scale
