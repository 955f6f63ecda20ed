"""`params.yaml` as pydantic models: validated once, wrong values named with what is allowed.

`load("params.yaml")` returns a frozen `Params`. DVC tracks the same file by sub-tree, so the
layout below is also the granularity of re-runs: what two stages share stands above what one
stage needs alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from heima.cot.rendering import RENDERINGS, constant_prefix, is_constant
from heima.cot.sections import COMPRESSIBLE, MAX_NUMBERED, numbered

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Section = Literal["summary", "caption", "reasoning"]
Control = Literal["own", "shuffled", "mean", "zero", "question-only"]
QuestionKind = Literal[
    "look-option", "sum-option", "look-free", "sum-number", "look-yes-no", "sum-yes-no"
]
InterpreterInput = Literal["own", "question-only"]
Benchmark = Literal["mmstar", "mmbench", "mmvet", "mathvista", "ai2d", "hallusionbench"]
ProtocolName = Literal["lmms", "vlmevalkit"]
Tiles = Literal["padded", "real"]

PRETRAINED = ("text-cot", "base", "interpreter")
"""The models that `teach` provides; checkpoints are adapters on `text-cot`."""

_REPOSITORY = r"^[\w.-]+/[\w.-]+$"
_COMMIT = r"^[0-9a-f]{40}$"
_WITHOUT_VLLM = ("toy-mllama", "llava-cot-11b")

TOY_FAMILIES = ("toy-mllama", "toy-llava-next")
"""The families whose models are trained here, from scratch; all others' are pretrained."""


class ConfigError(ValueError):
    """A parameter file that cannot be used; the message lists every wrong key."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToySource(_Model):
    """A procedurally drawn world in LLaVA-CoT's format (see `heima.toy`)."""

    kind: Literal["toy"]
    records: PositiveInt
    turns: PositiveInt
    mix: dict[QuestionKind, PositiveFloat] = Field(min_length=1)
    benchmark_sizes: dict[Benchmark, PositiveInt]

    @model_validator(mode="after")
    def _whole_sets(self) -> ToySource:
        size = self.benchmark_sizes.get("hallusionbench", 0)
        if size % 4:
            raise ValueError(
                f"benchmark_sizes.hallusionbench = {size} must be a multiple of 4: its sets are "
                "two questions about each of two figures"
            )
        return self


class _Place(_Model):
    """A repository of the hub (`id`, and `revision`, one of its commits), or a `path` instead."""

    path: str | None = Field(default=None, min_length=1)
    id: str | None = Field(default=None, pattern=_REPOSITORY)
    revision: str | None = Field(default=None, pattern=_COMMIT)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.id is None):
            raise ValueError("give exactly one of path and id")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision belongs to id: a path has none")
        return self


class DatasetSource(_Place):
    """Where a benchmark's data comes from: `path`, or `id` on the hub.

    `path` is a folder as `datasets.load_dataset` reads it, or a .tsv file of VLMEvalKit. `revision`
    is a commit of the hub's repository; without one, `prepare` takes the newest and writes down
    which it was.
    """


class _GivenSource(_Model):
    """A folder with LLaVA-CoT's `train.jsonl` and `images.zip`, and the benchmarks' data by name.

    A protocol reads the data named like the benchmark, or what its `data` names.
    """

    path: str = Field(min_length=1)
    benchmarks: dict[Name, DatasetSource] = Field(min_length=1)

    @model_validator(mode="after")
    def _outlives_a_stage(self) -> Self:
        for out in ("data/source", "data/benchmarks", "data/rewritten"):
            if Path(os.path.normpath(self.path)).is_relative_to(out):
                raise ValueError(
                    f"path = {self.path!r} must not lie in {out}: DVC deletes that folder before "
                    "the stage that writes it"
                )
        return self


class FolderSource(_GivenSource):
    """The data that lies in the folder `path`; nothing is written there."""

    kind: Literal["folder"]


class HubSource(_GivenSource):
    """A data set in LLaVA-CoT's form on the hub, which `prepare` downloads into the folder `path`.

    Without a `revision` it takes the newest commit and writes down which it was.
    """

    kind: Literal["hub"]
    id: str = Field(pattern=_REPOSITORY)
    revision: str | None = Field(default=None, pattern=_COMMIT)


class Rewrite(_Model):
    """How records become turns (paper, section 4; recipe: filters and split).

    `compat: official` keeps the turns that the official arrangement keeps, `corrected` those whose
    sections can be told apart by position (see `heima.data.rewriting`). `verify_images` says how
    far an image is looked at: decoded as a whole, its header, or only whether the zip has it.
    """

    compat: Literal["corrected", "official"]
    heldout: Annotated[float, Field(gt=0, lt=1)]
    split: Literal["image", "turn"]
    image_place: Literal["alternate", "first"]
    spacing: Literal["canonical", "any"]
    verify_images: Literal["decode", "header", "exists"]

    @model_validator(mode="after")
    def _official_choices(self) -> Rewrite:
        choices = {"split": "turn", "image_place": "alternate", "spacing": "canonical"}
        wrong = {key: getattr(self, key) for key in choices if getattr(self, key) != choices[key]}
        if self.compat == "official" and wrong:
            raise ValueError(
                "compat = official needs "
                + ", ".join(f"{key} = {choices[key]}, not {value}" for key, value in wrong.items())
            )
        return self


class Schedule(_Model):
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
    hidden_size: PositiveInt
    vision_steps: PositiveInt
    muon_learning_rate: PositiveFloat


class PretrainedModel(_Place):
    """A model of the hub by `id` and `revision`, or a folder, `path`, with a saved one.

    Without a `revision`, `teach` takes the newest commit and writes down which it was.
    """


class PretrainedVlm(_Model):
    kind: Literal["pretrained"]
    text_cot: PretrainedModel = Field(alias="text-cot")
    base: PretrainedModel


class ToyLlm(Schedule):
    """A tiny Llama trained from scratch on questions and section texts: the interpreters' start."""

    kind: Literal["train"]
    hidden_size: PositiveInt
    muon_learning_rate: PositiveFloat


class PretrainedLlm(PretrainedModel):
    kind: Literal["pretrained"]


class Teach(_Model):
    vlm: Annotated[ToyVlm | PretrainedVlm, Field(discriminator="kind")]
    llm: Annotated[ToyLlm | PretrainedLlm, Field(discriminator="kind")]

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


class Training(_Model):
    """How every training run computes; what it learns is its schedule's.

    Each saving can be turned off, for comparison; all but `tiles` are exact. What decides about
    batches or about what the model sees (`group_by_length`, `images_once`, `tiles`) makes another
    result; the rest changes no more than rounding, so that DVC does not watch it.

    - `micro_batch_size`: samples that a process computes at once; none: its whole share of a batch.
      Gradients of a batch add up over micro-batches and processes, whatever their number.
    - `gradient_checkpointing`: compute activations again in the backward pass (non-reentrant).
    - `group_by_length`: batches of samples of like length, for less padding.
    - `images_once`: the turns of an image stand in one batch, which encodes it once.
    - `labelled_only`: only positions with a label go through the lm_head, `logits_chunk` at once.
    - `tiles`: `padded` fills every image up to the model's number of tiles, as it was pretrained;
      `real` computes only the tiles that an image has, which changes what the model sees.
    - `workers`: processes that read images ahead; none: the training process itself.
    - `snapshot_steps`: updates between two snapshots of a run, from which a killed run goes on.
    """

    micro_batch_size: PositiveInt | None = None
    gradient_checkpointing: bool = False
    group_by_length: bool = True
    images_once: bool = True
    labelled_only: bool = True
    logits_chunk: PositiveInt = 1024
    tiles: Tiles = "padded"
    workers: Annotated[int, Field(ge=0)] = 0
    snapshot_steps: PositiveInt = 100


class Hardware(_Model):
    """On how many processes stages that can use several run; no result depends on it but rounding.

    - `processes`: one a GPU; none: as many as there are GPUs, and one without a GPU.
    - `accelerate`: the configuration that training is launched with (`accelerate launch`), such as
      `profiles/accelerate/fsdp2.yaml`; none: each process holds the whole model.
    """

    processes: PositiveInt | None = None
    accelerate: str | None = Field(default=None, min_length=1)


class Lora(_Model):
    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0, lt=1)]


class Distill(_Model):
    """What every checkpoint of the curriculum shares (recipe, section 2)."""

    lora: Lora
    max_length: PositiveInt


class Thinking(_Model):
    """How many thinking tokens stand for a section (recipe, section 1).

    `tokens`: so many, numbered; one has no number. `ratio`: that share of the section's own tokens,
    at least one. A ratio repeats the section's one token: numbers would run out of reserved ids.
    """

    tokens: Annotated[int, Field(ge=1, le=MAX_NUMBERED)] | None = None
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Thinking:
        if (self.tokens is None) == (self.ratio is None):
            raise ValueError("give exactly one of tokens and ratio")
        return self

    def count(self, length: int) -> int:
        """How many stand for a section of `length` tokens.

        >>> Thinking(ratio=0.5).count(9), Thinking(ratio=0.5).count(1), Thinking(tokens=4).count(9)
        (4, 1, 4)
        """
        return self.tokens if self.ratio is None else max(1, int(self.ratio * length))


ONE_TOKEN = Thinking(tokens=1)
"""The paper's method; everything else is an ablation."""


class Checkpoint(Schedule):
    """One adapter: rendered `data`, the model it starts from, its own fresh schedule.

    `thinking` is the same in all checkpoints of a chain that have thinking tokens. `matched` names
    checkpoints whose updates together must equal this one's, so that an ablation says in the
    parameters what it is compared with.
    """

    data: str
    init: Name
    thinking: Thinking = ONE_TOKEN
    matched: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _known_data(self) -> Checkpoint:
        if self.data not in RENDERINGS:
            raise ValueError(f"data = {self.data!r} is not one of {sorted(RENDERINGS)}")
        # The default may be written out: parameters that were dumped are valid.
        if self.thinking != ONE_TOKEN and not self.thinks:
            raise ValueError(f"thinking: the rendering {self.data} has no thinking tokens")
        return self

    @property
    def thinks(self) -> bool:
        """Whether its answers have thinking tokens."""
        return "token" in RENDERINGS[self.data].values()


class States(_Model):
    """Which thinking states the interpreters read: `predicting` at p-1, `at` at p."""

    checkpoint: Name
    position: Literal["predicting", "at"]
    batch_size: PositiveInt


class Interpret(Schedule):
    """Interpreter training, the same for every interpreter and every input (recipe, section 3).

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


class Interpreter(_Model):
    """One LoRA on the LLM, and the sections whose states it learns to read.

    `steps`: its updates for each section, in place of those of `interpret`.
    """

    sections: tuple[Section, ...] = Field(min_length=1)
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Interpreter:
        if len(set(self.sections)) != len(self.sections):
            raise ValueError("sections must name no section twice")
        return self


class NamedReconstruction(_Model):
    """A row of the interpreters' table: one section, rebuilt by one interpreter."""

    interpreter: Name
    section: Section


class Decoding(_Model):
    """`temperature` 0 is greedy; the paper samples at 0.6 with top-k 50."""

    temperature: Annotated[float, Field(ge=0)]
    top_k: PositiveInt
    max_new_tokens: PositiveInt
    batch_size: PositiveInt


class Reconstruct(Decoding):
    controls: tuple[Control, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _own_among_distinct(self) -> Reconstruct:
        if "own" not in self.controls or len(set(self.controls)) != len(self.controls):
            raise ValueError("controls must name `own` and no control twice")
        return self


class Similarity(_Model):
    """How a reconstruction is compared with its section.

    `bertscore` and `meteor` name the resource, and with it the column (`heima.results.measures`);
    a path says where that resource lies if not where its library keeps it. `references` are the
    sections alone (`clean`), or with an answer sentence and tags around them, which the
    predictions lack (`official`, as the paper's script has them). `judged` are the controls whose
    reconstructions the judge sees; none: no judge is asked. `judge_image` shows it the image, too.
    `draws` resamples stand behind the intervals of scores and similarity.
    """

    references: Literal["clean", "official"]
    bertscore: Literal["minilm-l6", "deberta-xlarge-mnli"]
    bertscore_path: str | None = None
    meteor: Literal["wordnet", "wordnet-no-punkt", "exact-stem"]
    wordnet_path: str | None = None
    judged: tuple[Control, ...]
    judge_image: bool
    draws: PositiveInt

    @model_validator(mode="after")
    def _own_among_judged(self) -> Similarity:
        if self.judged and "own" not in self.judged:
            raise ValueError("judged must name `own`, with which controls are compared, or nothing")
        if len(set(self.judged)) != len(self.judged):
            raise ValueError("judged must name no control twice")
        return self


class Protocol(_Model):
    """How answers are decoded under a protocol; its prompts and rules are code (`eval.tasks`).

    `temperature` 0 is greedy and has one seed; the paper samples at 0.6 with top-k 50. Each of
    `seeds` is a run over all benchmarks. `data` names other data than a benchmark's own.
    """

    temperature: Annotated[float, Field(ge=0)]
    top_k: PositiveInt
    seeds: tuple[Seed, ...] = Field(min_length=1)
    data: dict[Benchmark, Name] = {}

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Protocol:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must name no seed twice")
        if self.temperature == 0 and len(self.seeds) > 1:
            raise ValueError(
                f"seeds = {list(self.seeds)} must be one: at temperature 0 all give the same"
            )
        return self


class Predict(_Model):
    """What is the same for every variant and protocol: the engine and its limits."""

    engine: Literal["transformers", "vllm"] = "transformers"
    max_new_tokens: PositiveInt
    batch_size: PositiveInt


class Variant(_Model):
    """A row of the benchmarks' table.

    `forced_prefix` is a rendering whose sections are thinking tokens: that constant beginning of
    every answer is put into the prompt and not decoded (recipe, section 6). Under a ratio no two
    answers need begin alike.
    """

    model: Name
    forced_prefix: str | None = None

    @model_validator(mode="after")
    def _constant_prefix(self) -> Variant:
        constant = sorted(name for name in RENDERINGS if is_constant(name))
        if self.forced_prefix is not None and self.forced_prefix not in constant:
            raise ValueError(
                f"forced_prefix = {self.forced_prefix!r} is not one of {constant}, the renderings "
                "that begin every answer alike"
            )
        return self


class LatencyCase(_Model):
    """A line of the latency table: a variant, cut to the tokens of the case `budget` if named."""

    variant: Name
    budget: Name | None = None


class Peaks(_Model):
    """What a device can do at most, as its maker states it: 1e12 FLOP/s and 1e9 bytes/s."""

    device: str = Field(min_length=1)
    tflops: PositiveFloat
    gb_per_s: PositiveFloat


class Latency(_Model):
    """What the latency stage measures, `rounds` times with the cases interleaved.

    `peaks` are stated, or `measured`: a matrix product and a copy on the same device.
    """

    benchmark: Benchmark
    protocol: ProtocolName
    cases: dict[Name, LatencyCase] = Field(min_length=1)
    batch_sizes: tuple[PositiveInt, ...] = Field(min_length=1)
    rounds: PositiveInt
    peaks: Literal["measured"] | Peaks

    @model_validator(mode="after")
    def _budgets_resolve(self) -> Latency:
        whole = sorted(name for name, case in self.cases.items() if case.budget is None)
        for name, case in self.cases.items():
            if case.budget is not None and case.budget not in whole:
                raise ValueError(
                    f"cases.{name}.budget = {case.budget!r} is not one of {whole}, the cases "
                    "without a budget of their own"
                )
        if len(set(self.batch_sizes)) != len(self.batch_sizes):
            raise ValueError("batch_sizes must name no size twice")
        return self


class EmbeddedRules(_Model):
    """A judge without a language model, for the toy world; named in every result."""

    backend: Literal["embedded-rules"]


class Price(_Model):
    """US dollars for a million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class OpenAIJudge(_Model):
    """Any OpenAI-compatible server; the key is read from `api_key_env` when a stage runs.

    - `price`: what the server bills, for the estimate and the limit; none: it bills nothing.
    - `budget_usd`: what may be spent in all, over all stages and runs that share `cache`.
    - `mode`: `batch` asks through OpenAI's Batch API, at half the price and within a day; only
      the similarity of reconstructions can wait that long, benchmarks ask directly.
    - `workers`: requests at once; `timeout_seconds` and `max_retries` are those of one request.
    - `poll_seconds`: how often the state of a batch is asked for.
    - `max_missing`: the share of reconstructions that may stay without a grade; they are listed.
    - `cache`: every reply, once paid. It must lie where neither DVC nor `make clean` deletes it.
    """

    backend: Literal["openai"]
    base_url: str = Field(pattern=r"^https?://")
    model: str = Field(min_length=1)
    api_key_env: str = "OPENAI_API_KEY"
    price: Price | None = None
    budget_usd: PositiveFloat | None = None
    mode: Literal["direct", "batch"] = "direct"
    workers: Annotated[int, Field(ge=1, le=256)] = 32
    timeout_seconds: PositiveFloat = 60
    max_retries: Annotated[int, Field(ge=0, le=20)] = 5
    poll_seconds: PositiveFloat = 30
    max_missing: Annotated[float, Field(ge=0, lt=1)] = 0.01
    cache: str = Field(default=".cache/judge.sqlite", min_length=1)

    @model_validator(mode="after")
    def _limit_needs_a_price(self) -> OpenAIJudge:
        if self.budget_usd is not None and self.price is None:
            raise ValueError(
                f"budget_usd = {self.budget_usd} needs a price: without one nothing counts as spent"
            )
        return self


class Params(_Model):
    """Everything a reproduction is made from.

    `seed` is that of the data, of the models that `teach` makes (one each) and of resampling.
    `seeds` are the training seeds: each checkpoint and interpreter is trained once with each.
    """

    profile: Name
    family: Literal["toy-mllama", "toy-llava-next", "llava-cot-11b", "llava-next-vicuna-7b"]
    seed: Seed
    seeds: tuple[Seed, ...] = Field(min_length=1)
    precision: Literal["fp32", "bf16"]
    source: Annotated[ToySource | FolderSource | HubSource, Field(discriminator="kind")]
    rewrite: Rewrite
    teach: Teach
    hardware: Hardware = Hardware()
    training: Training
    distill: Distill
    checkpoints: dict[Name, Checkpoint] = Field(min_length=1)
    states: States
    interpret: Interpret
    interpreters: dict[Name, Interpreter] = Field(min_length=1)
    reconstruct: Reconstruct
    reconstructions: dict[Name, NamedReconstruction] = Field(min_length=1)
    similarity: Similarity
    benchmarks: tuple[Benchmark, ...] = Field(min_length=1)
    protocols: dict[ProtocolName, Protocol] = Field(min_length=1)
    predict: Predict
    judge: Annotated[EmbeddedRules | OpenAIJudge, Field(discriminator="backend")]
    variants: dict[Name, Variant] = Field(min_length=1)
    latency: Latency

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Params:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} must name no seed twice")
        return self

    @model_validator(mode="after")
    def _names_resolve(self) -> Params:
        known = {"text-cot", *self.checkpoints}
        for name, checkpoint in self.checkpoints.items():
            if name in PRETRAINED:
                raise ValueError(f"checkpoints.{name}: {PRETRAINED} are names of pretrained models")
            if checkpoint.init not in known - {name}:
                raise ValueError(
                    f"checkpoints.{name}.init = {checkpoint.init!r} is not one of "
                    f"{sorted(known - {name})}"
                )
            self._check_matched(name, checkpoint)
            self._check_thinking(name)
        compressed = sorted(
            name
            for name, checkpoint in self.checkpoints.items()
            if set(RENDERINGS[checkpoint.data].values()) == {"token"}
        )
        if self.states.checkpoint not in compressed:
            raise ValueError(
                f"states.checkpoint = {self.states.checkpoint!r} is not one of {compressed}, the "
                "checkpoints that compress every section"
            )
        if "heima" not in self.variants:
            raise ValueError("variants must name `heima`: ablations are compared with it")
        if self.training.tiles == "real" and "llava-next" in self.family:
            raise ValueError(
                f"training.tiles = 'real' must be 'padded' for the family {self.family}, whose "
                "images are never padded"
            )
        self._check_source()
        self._check_teach()
        self._check_reconstructions()
        self._check_benchmarks()
        for name, variant in self.variants.items():
            allowed = known | {"base"}
            if variant.model not in allowed:
                raise ValueError(
                    f"variants.{name}.model = {variant.model!r} is not one of {sorted(allowed)}"
                )
            try:
                self.prefix(variant.model, variant.forced_prefix)
            except ValueError as error:
                raise ValueError(f"variants.{name}.forced_prefix: {error}") from error
        return self

    def _check_source(self) -> None:
        named = {
            self.data_name(protocol, benchmark)
            for protocol in self.protocols
            for benchmark in self.benchmarks
        }
        if self.source.kind == "toy":
            given: set[str] = set(self.source.benchmark_sizes)
            key = "source.benchmark_sizes"
        else:
            given, key = set(self.source.benchmarks), "source.benchmarks"
        lacking = sorted(named - given)
        if lacking:
            raise ValueError(f"{key} lacks {', '.join(lacking)}")

    def _check_teach(self) -> None:
        kind = "train" if self.family in TOY_FAMILIES else "pretrained"
        for name, part in (("vlm", self.teach.vlm), ("llm", self.teach.llm)):
            if part.kind != kind:
                raise ValueError(
                    f"teach.{name}.kind = {part.kind!r} must be {kind!r} for the family "
                    f"{self.family}: the models of {' and '.join(TOY_FAMILIES)} are trained from "
                    "scratch, all others are pretrained"
                )
            if kind == "train" and self.source.kind != "toy":
                raise ValueError(
                    f"teach.{name}.kind = 'train' needs source.kind = 'toy': only the toy world's "
                    "models are trained from scratch"
                )

    def _check_benchmarks(self) -> None:
        if len(set(self.benchmarks)) != len(self.benchmarks):
            raise ValueError("benchmarks must name no benchmark twice")
        if self.predict.engine == "vllm" and self.family in _WITHOUT_VLLM:
            raise ValueError(
                f"predict.engine = 'vllm' does not serve the family {self.family} (vLLM dropped "
                "mllama); it must be 'transformers'"
            )
        if self.latency.benchmark not in self.benchmarks:
            raise ValueError(
                f"latency.benchmark = {self.latency.benchmark!r} is not one of "
                f"{list(self.benchmarks)}"
            )
        if self.latency.protocol not in self.protocols:
            raise ValueError(
                f"latency.protocol = {self.latency.protocol!r} is not one of "
                f"{sorted(self.protocols)}"
            )
        for name, case in self.latency.cases.items():
            if case.variant not in self.variants:
                raise ValueError(
                    f"latency.cases.{name}.variant = {case.variant!r} is not one of "
                    f"{sorted(self.variants)}"
                )

    def _check_reconstructions(self) -> None:
        for name, one in self.reconstructions.items():
            able = sorted(
                key for key, known in self.interpreters.items() if one.section in known.sections
            )
            if one.interpreter not in able:
                raise ValueError(
                    f"reconstructions.{name}.interpreter = {one.interpreter!r} is not one of "
                    f"{able}, the interpreters that read the {one.section}"
                )
        for section in self.sections:
            entry = self.reconstructions.get(section)
            if entry is None or entry.section != section:
                raise ValueError(
                    f"reconstructions must name {section!r}, of the section {section}: other "
                    "reconstructions of the section are compared with it"
                )
        unknown = sorted(set(self.similarity.judged) - set(self.reconstruct.controls))
        if unknown:
            raise ValueError(
                f"similarity.judged: {', '.join(unknown)} must be among reconstruct.controls = "
                f"{list(self.reconstruct.controls)}"
            )

    def _check_matched(self, name: str, checkpoint: Checkpoint) -> None:
        if not checkpoint.matched:
            return
        for other in checkpoint.matched:
            if other not in self.checkpoints:
                raise ValueError(
                    f"checkpoints.{name}.matched: {other!r} is not one of "
                    f"{sorted(self.checkpoints)}"
                )
        length = "steps" if checkpoint.steps is not None else "epochs"
        parts = [getattr(self.checkpoints[other], length) for other in checkpoint.matched]
        if None in parts:
            raise ValueError(f"checkpoints.{name}.matched: all must be given in {length}")
        own, total = getattr(checkpoint, length), sum(parts)
        if own != total:
            raise ValueError(
                f"checkpoints.{name}.{length} = {own} must be {total}, the {length} of "
                f"{' + '.join(checkpoint.matched)} together"
            )

    def _check_thinking(self, name: str) -> None:
        own = self.checkpoints[name]
        for earlier in self._chain(name)[:-1]:
            other = self.checkpoints[earlier]
            if own.thinks and other.thinks and own.thinking != other.thinking:
                raise ValueError(
                    f"checkpoints.{name}.thinking = {_shown(own.thinking)} must be "
                    f"{_shown(other.thinking)}, that of {earlier} earlier in its chain"
                )

    def _chain(self, name: str) -> list[str]:
        """The checkpoints from the text-cot model to `name`; raises on a circle."""
        chain = [name]
        while (init := self.checkpoints[chain[0]].init) != "text-cot":
            if init in chain:
                raise ValueError(f"checkpoints: {' <- '.join([init, *chain])} is a circle")
            if init not in self.checkpoints:
                raise ValueError(
                    f"checkpoints.{chain[0]}.init = {init!r} is not one of "
                    f"{sorted(self.checkpoints)} or text-cot"
                )
            chain.insert(0, init)
        return chain

    def training_seeds(self, model: str) -> tuple[int, ...]:
        """The seeds that a model was trained with: those of `teach` have the one of the data."""
        return self.seeds if model in self.checkpoints else (self.seed,)

    def trained(self, model: str, seed: int) -> str:
        """Where below `models/` a model lies: a checkpoint has a folder for each training seed."""
        return f"{model}/{seed}" if model in self.checkpoints else model

    def thinking(self, model: str) -> Thinking:
        """How many thinking tokens a model writes for a section, if it writes any."""
        return self.checkpoints[model].thinking if model in self.checkpoints else ONE_TOKEN

    def prefix(self, model: str, rendering: str | None) -> str:
        """What every answer of a model in `rendering` begins with, to be forced upon it; none: "".

        Raises `ValueError` where its answers do not all begin alike.
        """
        if rendering is None:
            return ""
        thinking = self.thinking(model)
        if thinking.tokens is None:
            raise ValueError(
                f"answers of {model} do not all begin alike: its thinking is {_shown(thinking)}"
            )
        return constant_prefix(rendering, numbered(thinking.tokens))

    def data_name(self, protocol: str, benchmark: str) -> str:
        """The name of the data that a protocol reads for a benchmark."""
        return self.protocols[protocol].data.get(benchmark, benchmark)

    def decoding(self, protocol: str) -> Decoding:
        """How answers are decoded under a protocol."""
        rules = self.protocols[protocol]
        return Decoding(
            temperature=rules.temperature,
            top_k=rules.top_k,
            max_new_tokens=self.predict.max_new_tokens,
            batch_size=self.predict.batch_size,
        )

    @property
    def sections(self) -> tuple[str, ...]:
        """The sections that get a thinking token and an interpreter, in the order of the answer."""
        return COMPRESSIBLE


def _shown(thinking: Thinking) -> str:
    """As in a parameter file.

    >>> _shown(Thinking(ratio=0.3))
    '{ratio: 0.3}'
    """
    [(key, value)] = thinking.model_dump(exclude_none=True).items()
    return f"{{{key}: {value}}}"


def parse(text: str, name: str = "params.yaml") -> Params:
    """Validate the text of a parameter file.

    Raises `ConfigError` naming each key, its value and what is allowed there.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} must be a mapping, got {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(name, error)) from error


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate a parameter file (`ConfigError`, or `FileNotFoundError`)."""
    return parse(Path(path).read_text(encoding="utf-8"), str(path))


def _explain(name: str, error: ValidationError) -> str:
    """One line a fault: key = value: what is allowed."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
        message = re.sub(r"^Value error, ", "", fault["msg"])
        shown = f"{key} = {fault['input']!r}" if not isinstance(fault["input"], dict) else key
        if fault["type"] == "extra_forbidden":
            message = "unknown key"
        elif fault["type"] == "missing":
            shown, message = key, "missing"
        lines.append(f"  {shown}: {message}")
    return f"{name} has {len(lines)} wrong value{'s' if len(lines) > 1 else ''}:\n" + "\n".join(
        lines
    )
