"""What a stage takes, and the parts that the estimates of several stages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from heima.config import OpenAIJudge, Params, Schedule, given
from heima.cot.rendering import Rendering
from heima.cot.thinking import Thinking
from heima.families.registry import FAMILIES
from heima.planning import flop_counts, memory
from heima.planning.architectures import Architecture, costs
from heima.planning.costs import Picture
from heima.planning.flop_counts import Flops
from heima.planning.machine import Levers, Machine
from heima.planning.workload import IMAGE, Workload

READING = 20
"""Tokens of an interpreter's prompt besides the question."""


@dataclass(frozen=True)
class Stage:
    """What one stage takes.

    `tokens` are the positions that go through a language model. `gpu_hours` are of one device;
    `gpus` of them share the work. `memory` is the peak of a device by part, in bytes; `disk` is
    what the stage writes, in bytes.
    """

    name: str
    samples: float = 0
    tokens: float = 0
    flops: float = 0
    gpu_hours: float = 0
    gpus: int = 0
    memory: Mapping[str, float] = field(default_factory=dict)
    disk: float = 0
    judge_calls: int = 0
    usd: float = 0
    note: str = ""

    @property
    def hours(self) -> float:
        return self.gpu_hours / self.gpus if self.gpus else 0.0


def total(stages: Sequence[Stage]) -> Stage:
    """All stages together; the memory is that of the one that needs most of it."""
    most = max(stages, key=lambda stage: sum(stage.memory.values()))
    return Stage(
        "total",
        flops=sum(stage.flops for stage in stages),
        gpu_hours=sum(stage.gpu_hours for stage in stages),
        memory=most.memory,
        disk=sum(stage.disk for stage in stages),
        judge_calls=sum(stage.judge_calls for stage in stages),
        usd=sum(stage.usd for stage in stages),
    )


class Parts:
    """A pipeline's parameters and work on a machine, and what its stages are summed up from."""

    def __init__(
        self,
        params: Params,
        architecture: Architecture,
        workload: Workload,
        machine: Machine,
        levers: Levers,
    ) -> None:
        self.params = params
        self.levers = levers
        self.workload = workload
        self.machine = machine
        self._vlm, self._llm = architecture.vlm, architecture.llm
        self._size = 2 if params.precision == "bf16" else 4
        self._rank = params.distill.lora.rank
        self._toy = params.source.kind == "toy"

    @property
    def processes(self) -> int:
        """On how many devices a stage runs that can use several, as `stages.launch` starts it."""
        hardware = self.params.hardware
        return hardware.nodes * hardware.processes if hardware.processes else self.machine.gpus

    # Images

    @cached_property
    def image(self) -> Picture:
        """The image that stands for all, as prediction and the states see it."""
        return costs(self._vlm).picture(self._vlm, *self._shape)

    @property
    def pixel_bytes(self) -> float:
        """An image as the processor makes it: all tiles, three colours, four bytes each."""
        return self.image.tiles * 3 * self._vlm.vision_config.image_size**2 * 4

    @property
    def _shape(self) -> tuple[int, int]:
        if self._toy:
            from heima.toy.world import IMAGE_SIDE

            return IMAGE_SIDE, IMAGE_SIDE
        return IMAGE

    @cached_property
    def _trained_image(self) -> Picture:
        padded = self.levers.tiles == "padded"
        return costs(self._vlm).picture(self._vlm, *self._shape, padded=padded)

    # One sample

    def _pass(
        self, text: float, *, logits: float, image: Picture, rank: int = 0, shared: float = 1
    ) -> Flops:
        """The VLM on one turn of `text` tokens; `shared` turns have one image encoded for them."""
        config = self._vlm.text_config
        seen = image.tokens if self._crosses else 0
        tokens = self._positions(text, image)
        reached = rank > 0 and (not self._crosses or self.levers.gradient_checkpointing)
        return costs(self._vlm).vision(self._vlm, image.tiles, rank=rank) * (
            1 / shared
        ) + flop_counts.language(
            config,
            tokens,
            pairs=tokens**2,
            logits=logits,
            seen=seen,
            rank=rank,
            reached=reached,
        )

    @property
    def _crosses(self) -> bool:
        """Whether images are looked at by cross-attention, not as tokens of the text."""
        return bool(FAMILIES[self.params.family].cross_attention_layers(self._vlm))

    def _positions(self, text: float, image: Picture) -> float:
        return text if self._crosses else text + image.tokens

    def _turn(self, rendering: Rendering, thinking: Thinking) -> float:
        """Text tokens of a turn in a rendering."""
        lengths = self.workload.lengths
        return lengths.prompt + lengths.answer(rendering, thinking)

    def _reading(self, source: str, section: float) -> float:
        """Tokens of an interpreter's sample, its end included."""
        return self.workload.lengths.prompt + READING + (source == "own") + section + 1

    @property
    def _mean_section(self) -> float:
        sections = self.params.sections
        return sum(self.workload.lengths.sections[one] for one in sections) / len(sections)

    # Training and weights

    def _samples(self, schedule: Schedule, turns: int) -> float:
        if schedule.steps is not None:
            return schedule.steps * schedule.batch_size
        return given(schedule.epochs, "epochs") * turns

    def _rows(self, batch_size: int) -> float:
        """Samples that a device computes at once."""
        share = max(1, batch_size // self.processes)
        micro = self.levers.micro_batch_size
        return min(share, micro) if micro else share

    @property
    def _shards(self) -> int:
        return self.processes if self.levers.sharded else 1

    def frozen_bytes(self, stage: str) -> float:
        """The weights that stay as they are in a stage that trains."""
        held = self._llm_weights if stage.startswith("interpret") else self._vlm_weights
        return held.frozen * self._size

    @cached_property
    def _vlm_weights(self) -> memory.Weights:
        targets = FAMILIES[self.params.family].vlm_lora
        return memory.weights(self._vlm, targets, self.params.distill.lora)

    @cached_property
    def _llm_weights(self) -> memory.Weights:
        targets = FAMILIES[self.params.family].llm_lora
        return memory.weights(self._llm, targets, self.params.interpret.lora)

    def _inference(self, rows: int, text: float) -> dict[str, float]:
        return memory.inference(
            self._vlm,
            self._vlm_weights,
            size=self._size,
            rows=rows,
            tokens=self._positions(text, self.image),
            image=self.image,
        )

    # Figures of a stage

    def _computed(self, name: str, *, flops: float, gpus: int, **rest: Any) -> Stage:
        return Stage(
            name, flops=flops, gpu_hours=self.machine.compute_hours(flops), gpus=gpus, **rest
        )

    def _answered(
        self, name: str, samples: float, batch_size: int, prompt: float, longest: float
    ) -> Stage:
        """Questions about an image each, of `prompt` text tokens, answered by the VLM."""
        return self._decoded(
            name,
            samples=samples,
            batch_size=batch_size,
            prompt=self._positions(prompt, self.image),
            longest=longest,
            once=self._pass(prompt, logits=1, image=self.image),
            image=self.image,
        )

    def _decoded(
        self,
        name: str,
        *,
        samples: float,
        batch_size: int,
        prompt: float,
        longest: float,
        once: Flops,
        image: Picture | None = None,
    ) -> Stage:
        """Prompts read at the cost `once` each, and answers decoded token by token.

        Without an image, the interpreter LLM decodes.
        """
        config, held = (
            (self._llm, self._llm_weights) if image is None else (self._vlm, self._vlm_weights)
        )
        text = getattr(config, "text_config", config)
        seen = image.tokens if image is not None and self._crosses else 0
        steps = max(0.0, longest - 1)
        each = flop_counts.decoding(text, steps, prompt=prompt, seen=seen).forward
        # A step reads the weights once for its batch, and every row's keys and values.
        read = held.language / batch_size + memory.cached(config, prompt + steps / 2, image)
        hours = self.machine.compute_hours(samples * once.forward) + max(
            self.machine.compute_hours(samples * each),
            self.machine.read_hours(samples * steps * read * self._size),
        )
        return Stage(
            name,
            samples=samples,
            tokens=samples * (prompt + longest),
            flops=samples * (once.forward + each),
            gpu_hours=hours,
        )

    def _price(self, prompt: float, reply: float, *, batch: bool = False) -> float:
        """Dollars for a judge's tokens; `batch`: of what may wait, if the judge is asked so."""
        judge = self.params.judge
        if not isinstance(judge, OpenAIJudge) or judge.price is None:
            return 0.0
        return judge.price.usd(prompt, reply, mode=judge.mode if batch else "direct")
