"""Untrained models that look at their image, on which planted controls are exact."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, ProcessorMixin

from heima.config import Params
from heima.data.images import ImageZip
from heima.data.tokens import Vocabulary
from heima.families.batches import Collator
from heima.families.registry import FAMILIES
from heima.toy.twins import TWINS
from heima.vlm import models
from heima.vlm.added_tokens import equip, fit

Parts = tuple[PreTrainedModel, ProcessorMixin, Vocabulary, Collator, ImageZip]


def parts(name: str, params: Params, source: Path) -> Parts:
    """A family's twin in float64, and what feeds it from a source's images."""
    twin, family = TWINS[name], FAMILIES[name]
    processor = twin.build_processor()
    equip(processor.tokenizer, family)
    model = twin.build_vlm(processor, seed=1, initializer_range=0.1).double().eval()
    for layer in family.language_model(model).layers:
        if hasattr(layer, "cross_attn"):
            # A new layer's gates are closed.
            torch.nn.init.constant_(layer.cross_attn_attn_gate, 1.0)
    fit(model, processor.tokenizer, family)
    vocabulary = models.vocabulary(processor.tokenizer, params.model_copy(update={"family": name}))
    images = ImageZip(source / "images.zip")
    return model, processor, vocabulary, Collator(family, processor, images), images
