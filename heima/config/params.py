"""All parameters together, and what they must be to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from heima.config import chains, families, mixtures
from heima.config.base import (
    PRETRAINED,
    BenchmarkName,
    Family,
    FeedScale,
    ImageDecoding,
    Model,
    Name,
    ProtocolName,
    Seed,
)
from heima.config.benchmarks import BENCHMARKS, parts
from heima.config.data import (
    FolderSource,
    HubSource,
    Rewrite,
    ToySource,
)
from heima.config.evaluation import (
    Audit,
    Decoding,
    EmbeddedRules,
    Examine,
    Latency,
    Leaks,
    OpenAIJudge,
    Page,
    Predict,
    Probe,
    Protocol,
    Reconstruct,
    Similarity,
    Variant,
)
from heima.config.training import (
    AnyCheckpoint,
    Checkpoint,
    Distill,
    GivenCheckpoint,
    Hardware,
    Interpret,
    Interpreter,
    NamedReconstruction,
    States,
    Teach,
    Training,
)
from heima.cot.rendering import RENDERINGS, Rendering, constant_prefix
from heima.cot.sections import COMPRESSIBLE, MOST_BESIDE_CONTROL, numbered
from heima.cot.thinking import ONE_TOKEN, Thinking, shown


class Params(Model):
    """Everything a reproduction is made from.

    `seed` is that of the data, of the models that `teach` makes (one each) and of resampling.
    `seeds` are the training seeds: each checkpoint and interpreter is trained once with each.
    `image_decoding` is that of training and of benchmarks: as a viewer shows images, or by Pillow's
    `convert("RGB")` alone (see `heima.data.pictures`).
    `renderings` are more than those of `cot.rendering.RENDERINGS`; `control_words` ask for one of
    them, where a checkpoint is trained on several.
    """

    profile: Name
    family: Family
    seed: Seed
    seeds: tuple[Seed, ...] = Field(min_length=1)
    precision: Literal["fp32", "bf16"]
    source: Annotated[ToySource | FolderSource | HubSource, Field(discriminator="kind")]
    image_decoding: ImageDecoding = "faithful"
    rewrite: Rewrite
    teach: Teach
    hardware: Hardware = Hardware()
    training: Training
    distill: Distill
    renderings: dict[Name, Rendering] = Field(default_factory=dict)
    control_words: dict[Name, str] = Field(default_factory=dict, exclude_if=lambda words: not words)
    checkpoints: dict[Name, AnyCheckpoint] = Field(min_length=1)
    states: States
    interpret: Interpret
    interpreters: dict[Name, Interpreter] = Field(min_length=1)
    reconstruct: Reconstruct
    reconstructions: dict[Name, NamedReconstruction] = Field(min_length=1)
    similarity: Similarity
    benchmarks: tuple[BenchmarkName, ...] = Field(min_length=1)
    protocols: dict[ProtocolName, Protocol] = Field(min_length=1)
    predict: Predict
    judge: Annotated[EmbeddedRules | OpenAIJudge, Field(discriminator="backend")]
    variants: dict[Name, Variant] = Field(min_length=1)
    latency: Latency
    page: Page = Page()
    audit: Audit = Audit()
    # Of a profile that examines nothing, no result says that it might have.
    examine: Examine = Field(default=Examine(), exclude_if=lambda one: one == Examine())
    probe: Probe = Probe()
    leaks: Leaks = Leaks()

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Params:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} must name no seed twice")
        return self

    @model_validator(mode="after")
    def _new_renderings(self) -> Params:
        for name in self.renderings:
            if name in RENDERINGS:
                raise ValueError(
                    f"renderings.{name}: must have another name than {', '.join(RENDERINGS)}, "
                    "which are there already"
                )
        mixtures.check_words(self)
        return self

    @model_validator(mode="after")
    def _names_resolve(self) -> Params:
        known = {"text-cot", *self.checkpoints}
        for name, checkpoint in self.checkpoints.items():
            if name in PRETRAINED:
                raise ValueError(f"checkpoints.{name}: {PRETRAINED} are names of pretrained models")
            if checkpoint.losses.align is not None and checkpoint.init in {"base", "interpreter"}:
                raise ValueError(
                    f"checkpoints.{name}.init = {checkpoint.init!r} must be text-cot, or a "
                    "checkpoint that starts from it, with losses.align: that model is the teacher"
                )
            if checkpoint.init not in known - {name}:
                raise ValueError(
                    f"checkpoints.{name}.init = {checkpoint.init!r} is not one of "
                    f"{sorted(known - {name})}"
                )
            if isinstance(checkpoint, Checkpoint):
                self._check_matched(name, checkpoint)
            mixtures.check(self, name)
        for name in self.checkpoints:
            self._check_thinking(name)
            chains.check(self, name, self._chain(name))
        chains.check_attention(self)
        chains.check_predictors(self)
        compressed = mixtures.compressed(self)
        if self.states.checkpoint not in compressed:
            raise ValueError(
                f"states.checkpoint = {self.states.checkpoint!r} is not one of {compressed}, the "
                "checkpoints that compress every section"
            )
        self._check_given()
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
            constant = sorted(key for key, one in mixtures.known(self).items() if one.constant)
            if variant.forced_prefix is not None and variant.forced_prefix not in constant:
                raise ValueError(
                    f"variants.{name}.forced_prefix = {variant.forced_prefix!r} is not one of "
                    f"{constant}, the renderings that begin every answer alike"
                )
            mixtures.check_variant(self, name)
            chains.check_budget(self, name)
            try:
                self.prefix(variant.model, variant.forced_prefix)
            except ValueError as error:
                raise ValueError(f"variants.{name}.forced_prefix: {error}") from error
        chains.check_audit(self)
        return self

    def _check_given(self) -> None:
        """What is not trained here exists once, whatever the training seeds."""
        read = self.checkpoints[self.states.checkpoint]
        given = {
            f"states.checkpoint = {self.states.checkpoint!r}": isinstance(read, GivenCheckpoint),
            **{
                f"interpreters.{name}": one.adapter is not None
                for name, one in self.interpreters.items()
            },
        }
        for key, is_given in given.items():
            if is_given and len(self.seeds) > 1:
                raise ValueError(
                    f"seeds = {list(self.seeds)} must name one seed: {key} is a given adapter, of "
                    "which there is one"
                )

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
        record = families.RECORDS[self.family]
        kinds = ("train", "train") if record.toy else record.kinds
        for name, part, kind in zip(
            ("vlm", "llm"), (self.teach.vlm, self.teach.llm), kinds, strict=True
        ):
            if part.kind != kind:
                raise ValueError(
                    f"teach.{name}.kind = {part.kind!r} must be {kind!r} for the family "
                    f"{self.family}: the models of {' and '.join(families.TOY_FAMILIES)} are "
                    "trained from scratch, those of smol are made of SmolLM2, all others are "
                    "pretrained"
                )
            if kind in ("train", "grow") and self.source.kind != "toy":
                raise ValueError(
                    f"teach.{name}.kind = {kind!r} needs source.kind = 'toy': only the toy world's "
                    "models are trained from scratch"
                )

    def _check_benchmarks(self) -> None:
        if len(set(self.benchmarks)) != len(self.benchmarks):
            raise ValueError(f"benchmarks = {list(self.benchmarks)} must name no benchmark twice")
        if self.predict.engine == "vllm" and not families.RECORDS[self.family].vllm:
            raise ValueError(
                f"predict.engine = 'vllm' does not serve the family {self.family}; it must be "
                "'transformers'"
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
            chains.check_case(self, name)

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
        parts = [getattr(self.checkpoints[other], length, None) for other in checkpoint.matched]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            raise ValueError(f"checkpoints.{name}.matched: all must be given in {length}")
        own, total = getattr(checkpoint, length), sum(known)
        if own != total:
            raise ValueError(
                f"checkpoints.{name}.{length} = {own} must be {total}, the {length} of "
                f"{' + '.join(checkpoint.matched)} together"
            )

    def _check_thinking(self, name: str) -> None:
        own = self.checkpoints[name]
        tokens = own.thinking.tokens
        if self.controls and tokens is not None and tokens > MOST_BESIDE_CONTROL:
            raise ValueError(
                f"checkpoints.{name}.thinking.tokens = {tokens} must be at most "
                f"{MOST_BESIDE_CONTROL} where a rendering has tags as tokens, or fillers: those "
                "stand on the ids of the other numbered ones"
            )
        for earlier in self._chain(name)[:-1]:
            other = self.checkpoints[earlier]
            counted = mixtures.counted(self, name) and mixtures.counted(self, earlier)
            if counted and own.thinking != other.thinking:
                raise ValueError(
                    f"checkpoints.{name}.thinking = {shown(own.thinking)} must be "
                    f"{shown(other.thinking)}, that of {earlier} earlier in its chain"
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
        """The seeds that a model was trained with: those of `teach` have the one of the data, and
        a given checkpoint, whose seed nobody says, counts as the first."""
        if model not in self.checkpoints:
            return (self.seed,)
        given = isinstance(self.checkpoints[model], GivenCheckpoint)
        return self.seeds[:1] if given else self.seeds

    def trained(self, model: str, seed: int) -> str:
        """Where below `models/` a model lies: a checkpoint has a folder for each training seed."""
        if model not in self.checkpoints:
            return model
        given = isinstance(self.checkpoints[model], GivenCheckpoint)
        return f"{model}/{self.seeds[0] if given else seed}"

    def thinking(self, model: str) -> Thinking:
        """How many thinking tokens a model writes for a section, if it writes any."""
        return self.checkpoints[model].thinking if model in self.checkpoints else ONE_TOKEN

    def feed(self, model: str) -> FeedScale | None:
        """How a model's states are scaled that it is fed; None: it is fed tokens."""
        checkpoint = self.checkpoints.get(model)
        return checkpoint.feed_scale if checkpoint and checkpoint.feed == "state" else None

    def rendering(self, model: str, asks: str | None = None) -> Rendering:
        """How a model's answers are rendered; those of `base` are the model's own, without any.

        Of several, all with the same tags, it is the one that a question `asks` for, or the first.
        """
        if model in self.checkpoints:
            data = self.checkpoints[model].data
            name = data if isinstance(data, str) else asks or next(iter(data))
            return mixtures.known(self)[name]
        return RENDERINGS["answer-only" if model == "base" else "text-cot"]

    @property
    def controls(self) -> bool:
        """Whether some checkpoint's answers have control tokens (`cot.sections`)."""
        return any(
            one.controls for name in self.checkpoints for one in mixtures.renderings(self, name)
        )

    def prefix(self, model: str, rendering: str | None) -> str:
        """What every answer of a model in `rendering` begins with, to be forced upon it; none: "".

        Raises `ValueError` where its answers do not all begin alike.
        """
        if rendering is None:
            return ""
        thinking = self.thinking(model)
        if thinking.tokens is None:
            raise ValueError(
                f"answers of {model} do not all begin alike: its thinking is {shown(thinking)}"
            )
        return constant_prefix(mixtures.known(self)[rendering], numbered(thinking.tokens))

    def data_name(self, protocol: str, benchmark: str) -> str:
        """The name of the data that a protocol reads for a benchmark."""
        protocols: Mapping[Any, Protocol] = self.protocols
        named: Mapping[Any, str] = protocols[protocol].data
        return named.get(benchmark, benchmark)

    def _with_data(self) -> set[str]:
        """The benchmarks whose data is drawn or given, asked or not."""
        source = self.source
        given = set(source.benchmark_sizes if source.kind == "toy" else source.benchmarks)
        return {
            benchmark
            for benchmark in BENCHMARKS
            if benchmark in given
            or any(self.data_name(protocol, benchmark) in given for protocol in self.protocols)
        }

    def readers(self, name: str) -> list[str]:
        """The benchmarks that read the data of a name under some protocol."""
        return [
            benchmark
            for benchmark in BENCHMARKS
            if any(self.data_name(protocol, benchmark) == name for protocol in self.protocols)
        ]

    def decoding(self, protocol: ProtocolName) -> Decoding:
        """How answers are decoded under a protocol."""
        rules = self.protocols[protocol]
        return Decoding(
            temperature=rules.temperature,
            top_k=rules.top_k,
            max_new_tokens=self.predict.max_new_tokens,
            batch_size=self.predict.batch_size,
        )

    def derived(self) -> dict[str, Any]:
        """What the rules of this package make of the parameters, as plain data.

        A stage that uses a rule depends on what it gives here, and so on no code of this package.
        """
        models = {*PRETRAINED, *self.checkpoints}
        return {
            "models": {
                model: {
                    "thinking": self.thinking(model).model_dump(exclude_none=True),
                    "rendering": self.rendering(model).model_dump(),
                    "feed": self.feed(model),
                    **mixtures.derived(self, model),
                }
                for model in sorted(models)
            },
            "controls": self.controls,
            "interpreters": {
                name: self.interpret.of(one).model_dump(mode="json")
                for name, one in self.interpreters.items()
            },
            "variants": {
                name: {"prefix": self.prefix(one.model, one.forced_prefix)}
                | ({"word": self.control_words[one.asks]} if one.asks else {})
                for name, one in self.variants.items()
            },
            "audits": {
                name: {"prefix": asking.prefix} | ({"word": asking.word} if asking.word else {})
                for name in chains.auditable(self)
                for asking in (chains.audited(self, name),)
            },
            **chains.predicting(self),
            "examine": self.examine.model_dump(mode="json"),
            "protocols": {
                name: {
                    "decoding": self.decoding(name).model_dump(mode="json"),
                    "data": {one: self.data_name(name, one) for one in self.benchmarks},
                }
                for name in self.protocols
            },
            "data": {
                name: self.readers(name)
                for name in ([] if self.source.kind == "toy" else self.source.benchmarks)
            },
            "sections": list(self.sections),
            "family": {"published": self.published_family},
            "benchmarks": parts(self._with_data()),
        }

    @property
    def published_family(self) -> str | None:
        """The family whose published values stand beside this one's; None: the paper has none."""
        return families.RECORDS[self.family].published

    @property
    def sections(self) -> tuple[str, ...]:
        """The sections that get a thinking token and an interpreter, in the order of the answer."""
        return COMPRESSIBLE
