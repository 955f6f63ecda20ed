"""What the training of a checkpoint computes: FLOPs of a sample, and of what comes before."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from heima.config import Checkpoint
from heima.config.mixtures import mixture
from heima.cot.rendering import RENDERINGS, Rendering
from heima.cot.thinking import ONE_TOKEN
from heima.planning import flop_counts
from heima.planning.flop_counts import Flops
from heima.planning.parts import Parts
from heima.training.terms import EXPLAINER_LAYERS

FROM_SCRATCH = 3
"""Passes of an update of a model that trains as a whole: forward, and twice that backward."""


@dataclass(frozen=True)
class Training:
    """Of a sample: its tokens of `text`, those `labelled`, the FLOPs of `one` pass of the model,
    and those of more `terms` of the loss; `before` is what is computed once, for all turns.
    """

    text: float
    labelled: float
    one: Flops
    terms: float
    before: float

    def sample(self, *, checkpointing: bool) -> float:
        """FLOPs that an update takes for a sample."""
        return self.one.total(checkpointing=checkpointing) + self.terms


class Trainings(Parts):
    """`Parts` that know what a checkpoint trains on, with what terms of the loss."""

    def training(self, name: str, checkpoint: Checkpoint) -> Training:
        """What the training of a checkpoint computes. States that are fed back go by segments,
        which take the FLOPs of one pass (`heima.families.feeding`)."""
        mixed = mixture(self.params, name)
        shares: list[tuple[str | None, float]] = [*mixed.items()] if mixed else [(None, 1.0)]
        terms = self._taught_states() if checkpoint.losses.align else 0.0
        before = 0.0
        text, one = 0.0, Flops()
        for asks, share in shares:
            rendering = self.params.rendering(name, asks)
            tokens = self._turn(rendering, checkpoint.thinking)
            text += share * tokens
            one += self._trained_pass(tokens) * share
            before = max(before, self._surprisals(rendering))
            if checkpoint.losses.explain:
                terms += share * self._explained(rendering, checkpoint)
        return Training(text, text - self.workload.lengths.prompt, one, terms, before)

    def _trained_pass(self, text: float) -> Flops:
        """The VLM with its adapter on a turn of so many tokens."""
        image = self._trained_image
        labelled = text - self.workload.lengths.prompt
        logits = labelled if self.levers.labelled_only else self._positions(text, image)
        return self._pass(text, logits=logits, image=image, rank=self._rank, shared=self.shared)

    @property
    def shared(self) -> float:
        """Turns of a batch that have one image encoded for them."""
        return self.workload.turns_an_image if self.levers.images_once else 1

    def _surprisals(self, rendering: Rendering) -> float:
        """FLOPs of text-CoT's own pass over all turns, by which texts are made short."""
        if "short" not in rendering.forms.values():
            return 0
        text = self._turn(RENDERINGS["text-cot"], ONE_TOKEN)
        logits = text - self.workload.lengths.prompt
        one = self._pass(text, logits=logits, image=self.image, shared=self.shared)
        return self.workload.turns * one.forward

    def _taught_states(self) -> float:
        """FLOPs of `align`: the frozen text-CoT reads a turn up to its conclusion."""
        lengths = self.workload.lengths
        text = self._turn(RENDERINGS["text-cot"], ONE_TOKEN) - lengths.sections["conclusion"]
        return self._pass(text, logits=0, image=self._trained_image, shared=self.shared).forward

    def _explained(self, rendering: Rendering, checkpoint: Checkpoint) -> float:
        """FLOPs of `explain`: a decoder of two layers, trained as a whole, writes each section that
        tokens stand for; of the VLM's embeddings, which score its words, nothing is trained."""
        config = copy.copy(self._vlm.text_config)
        config.num_hidden_layers = EXPLAINER_LAYERS
        config.num_key_value_heads = config.num_attention_heads
        config.cross_attention_layers = []
        found = 0.0
        for section, form in rendering.forms.items():
            if form in ("token", "filler"):
                states = self.workload.lengths.body(section, form, checkpoint.thinking)
                words = self.workload.lengths.sections[section]
                read = states + words
                layers = flop_counts.language(config, read, pairs=read**2, logits=0)
                head = flop_counts.linear(
                    words + 1, config.hidden_size, config.vocab_size, reached=True
                )
                found += FROM_SCRATCH * layers.forward + head.total(checkpointing=False)
        return found
