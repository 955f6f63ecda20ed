"""Parameters of what is measured: reconstructions, benchmarks, the judge and latency."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from heima.config.base import (
    BenchmarkName,
    Control,
    Model,
    Name,
    ProtocolName,
    Seed,
)


class Decoding(Model):
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
            raise ValueError(
                f"controls = {list(self.controls)} must name `own` and no control twice"
            )
        return self


class Similarity(Model):
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
            raise ValueError(f"judged = {list(self.judged)} must name no control twice")
        return self


class Protocol(Model):
    """How answers are decoded under a protocol; its prompts and rules are code (`eval.tasks`).

    `temperature` 0 is greedy and has one seed; the paper samples at 0.6 with top-k 50. Each of
    `seeds` is a run over all benchmarks. `data` names other data than a benchmark's own.
    """

    temperature: Annotated[float, Field(ge=0)]
    top_k: PositiveInt
    seeds: tuple[Seed, ...] = Field(min_length=1)
    data: dict[BenchmarkName, Name] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Protocol:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} must name no seed twice")
        if self.temperature == 0 and len(self.seeds) > 1:
            raise ValueError(
                f"seeds = {list(self.seeds)} must be one: at temperature 0 all give the same"
            )
        return self


class Predict(Model):
    """What is the same for every variant and protocol: the engine and its limits."""

    engine: Literal["transformers", "vllm"] = "transformers"
    max_new_tokens: PositiveInt
    batch_size: PositiveInt


class Variant(Model):
    """A row of the benchmarks' table.

    `forced_prefix` is a rendering whose sections are tokens and no words: that constant beginning
    of every answer is put into the prompt and not decoded (docs/recipe.md, section 6). Under a
    ratio no two answers need begin alike.

    `budget`: the tokens that an answer may have before its conclusion; where that has not begun by
    then it is forced, so that a cut chain has an accuracy (`heima.vlm.budgets`).

    `asks`: the rendering that questions ask for by its control word, of a checkpoint that is
    trained on several.
    """

    model: Name
    forced_prefix: str | None = None
    budget: PositiveInt | None = None
    # Of a variant that asks for none, no stage depends on what it has not.
    asks: str | None = Field(default=None, exclude_if=lambda asks: asks is None)


class LatencyCase(Model):
    """A line of the latency table: a variant, cut to the tokens of the case `budget` if named.

    `lookup`: as many tokens are looked up a pass in what stands before (`heima.vlm.lookup`); the
    answers are the same. Such a case is measured at batch 1 alone.
    """

    variant: Name
    budget: Name | None = None
    lookup: PositiveInt | None = None


class Peaks(Model):
    """What a device can do at most, as its maker states it: 1e12 FLOP/s and 1e9 bytes/s."""

    device: str = Field(min_length=1)
    tflops: PositiveFloat
    gb_per_s: PositiveFloat


class Latency(Model):
    """What the latency stage measures, `rounds` times with the cases interleaved.

    `peaks` are stated, or `measured`: a matrix product and a copy on the same device.
    """

    benchmark: BenchmarkName
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
        looking = [name for name, case in self.cases.items() if case.lookup is not None]
        if looking and 1 not in self.batch_sizes:
            raise ValueError(
                f"cases.{looking[0]}.lookup = {self.cases[looking[0]].lookup} needs 1 among "
                f"batch_sizes = {list(self.batch_sizes)}: it decodes one answer at a time"
            )
        if len(set(self.batch_sizes)) != len(self.batch_sizes):
            raise ValueError(f"batch_sizes = {list(self.batch_sizes)} must name no size twice")
        return self


class Page(Model):
    """What the page of results holds: `samples` questions of each benchmark at most, and as many
    held-out turns. The page has to be sent and opened, so its size is limited (`reports.page`).
    """

    samples: Annotated[int, Field(ge=1, le=1000)] = 20


class Predictor(Model):
    """A model that predicts conclusions; `asks`: the rendering that questions ask for by its
    control word, of a checkpoint that is trained on several."""

    model: Name
    # Of a checkpoint of one rendering, no stage depends on what it is not asked for.
    asks: str | None = Field(default=None, exclude_if=lambda asks: asks is None)


def _named(given: Any) -> Any:
    """A name alone is that of a model of one rendering."""
    return {"model": given} if isinstance(given, str) else given


AnyPredictor = Annotated[Predictor, BeforeValidator(_named)]


class Predictors(Model):
    """Who predicts conclusions in the measurement of Theorem 3.1 (`eval.audit.theorem`).

    `nothing` answers without a chain, `tokens` after thinking tokens, `text` after the text: one
    checkpoint of a mixture, asked for each format, or checkpoints that were each trained on one.
    """

    nothing: AnyPredictor
    tokens: AnyPredictor
    text: AnyPredictor = Predictor(model="text-cot")

    @property
    def parts(self) -> dict[str, Predictor]:
        """By what stands before the conclusion."""
        return {"nothing": self.nothing, "tokens": self.tokens, "text": self.text}

    @property
    def alone(self) -> str | None:
        """The one model that predicts in all formats; None: there are several."""
        models = {one.model for one in self.parts.values()}
        return self.tokens.model if len(models) == 1 else None


class Audit(Model):
    """Whether conclusions depend on thinking states (docs/audit.md).

    `checkpoints` are audited, with all their training seeds; one of a mixture answers in the
    rendering that it `asks` for. `items` questions are asked, in the toy world about scenes that
    nothing else shows, elsewhere held-out turns (all, where there are fewer). The states of
    `fitted` training turns give those that replace others by their mean and as noise; `windows`
    divide the layers in which ways of attention are closed. A conclusion of more than
    `max_new_tokens` counts as not ended.
    """

    checkpoints: tuple[Name, ...] = ()
    items: Annotated[int, Field(ge=2)] = 3000
    fitted: Annotated[int, Field(ge=2)] = 512
    windows: PositiveInt = 2
    max_new_tokens: PositiveInt = 16
    batch_size: PositiveInt = 128
    asks: dict[Name, Name] = Field(default_factory=dict, exclude_if=lambda asked: not asked)
    # Without them nothing is measured of the theorem, and no stage depends on them.
    predictors: Predictors | None = Field(default=None, exclude_if=lambda one: one is None)

    @property
    def decoding(self) -> Decoding:
        """Greedy, as every measure takes an answer to be."""
        return Decoding(
            temperature=0.0,
            top_k=1,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )


class Examine(Model):
    """What stands beside audits (docs/audit.md), on the questions that `audit` says.

    The states of `checkpoints` are described, with all their training seeds: their geometry, and
    what simple readers find there. The chains that `chains` write are cut, made wrong and filled.
    """

    checkpoints: tuple[Name, ...] = ()
    chains: tuple[Literal["text-cot"], ...] = ()


class Probe(Model):
    """A linear probe for each of the `words` commonest content words of a section, trained on the
    states of `fitted` training turns (all, where there are fewer)."""

    words: Annotated[int, Field(ge=1)] = 40
    fitted: Annotated[int, Field(ge=10)] = 4000


class Leaks(Model):
    """When an image counts as near another one (`heima.data.duplicates`): by at most `hamming`
    differing bits of 64, and thumbnails whose colours differ by at most `difference` of 255.
    """

    hamming: Annotated[int, Field(ge=0, le=64)] = 8
    difference: Annotated[float, Field(ge=0, le=255)] = 6.0


class EmbeddedRules(Model):
    """A judge without a language model, for the toy world; named in every result."""

    backend: Literal["embedded-rules"]


BATCH_SHARE = 0.5
"""What a request through OpenAI's Batch API costs of its price."""


class Price(Model):
    """US dollars for a million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]

    def usd(self, prompt: float, reply: float, *, mode: str) -> float:
        """The dollars that so many tokens cost, asked `direct` or in a `batch`."""
        share = BATCH_SHARE if mode == "batch" else 1.0
        return share * (prompt * self.input + reply * self.output) / 1e6


class OpenAIJudge(Model):
    """Any OpenAI-compatible server; the key is read from `api_key_env` when a stage runs.

    - `price`: what the server bills, for the estimate and the limit; none: it bills nothing.
    - `budget_usd`: what may be spent in all, over all stages and runs that share `cache`.
    - `mode`: `batch` asks through OpenAI's Batch API, at half the price and within a day; only
      the similarity of reconstructions can wait that long, benchmarks ask directly.
    - `workers`: requests at once; `timeout_seconds` and `max_retries` are those of one request.
    - `poll_seconds`: how often the state of a batch is asked for.
    - `max_missing`: the share of reconstructions, and of a benchmark's answers, that may stay
      without a grade because the judge refuses them (a content filter) or says nothing usable. They
      are listed; an answer counts as wrong in the value and as right in the upper bound.
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
    max_missing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    cache: str = Field(default=".cache/judge.sqlite", min_length=1)

    @model_validator(mode="after")
    def _no_secret_in_parameters(self) -> OpenAIJudge:
        # Parameters end in dvc.lock, provenance and error messages; so no value is shown here.
        parts = urlsplit(self.base_url)
        if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "base_url must be http(s)://host[:port][/path] without user, password, query or "
                "fragment: export the judge's key, and name the variable in api_key_env"
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError(
                "api_key_env must be the name of an environment variable, not the key itself"
            )
        return self

    @model_validator(mode="after")
    def _limit_needs_a_price(self) -> OpenAIJudge:
        if self.budget_usd is not None and self.price is None:
            raise ValueError(
                f"budget_usd = {self.budget_usd} needs a price: without one nothing counts as spent"
            )
        return self
