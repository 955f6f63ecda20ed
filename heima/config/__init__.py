"""`params.yaml` as pydantic models: validated once, wrong values named with what is allowed.

`load("params.yaml")` returns a frozen `Params`. The first stage of the pipeline does it once and
writes `resolved.yaml` (`resolved`): every default and, under `derived`, every value that a rule in
this package makes of others. Stages load that, and DVC tracks it by sub-tree, so that no stage need
depend on the code here: what it changes, it changes there. The layout of the file is also the
granularity of re-runs: what two stages share stands above what one stage needs alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from heima.config.base import (
    PRETRAINED,
    Attention,
    BenchmarkName,
    ConfigError,
    Control,
    FeedScale,
    ImageDecoding,
    InterpreterInput,
    Name,
    ProtocolName,
    QuestionKind,
    Section,
    Seed,
    Tiles,
    TooLong,
    expected,
    given,
)
from heima.config.benchmarks import BENCHMARKS
from heima.config.data import (
    DatasetSource,
    FolderSource,
    GivenSource,
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
    LatencyCase,
    OpenAIJudge,
    Page,
    Peaks,
    Predict,
    Predictor,
    Predictors,
    Price,
    Protocol,
    Reconstruct,
    Similarity,
    Variant,
)
from heima.config.families import TOY_FAMILIES
from heima.config.params import Params
from heima.config.profiles import written_out
from heima.config.slurm import Slurm
from heima.config.training import (
    Checkpoint,
    Distill,
    GgufLlm,
    GivenAdapter,
    GivenCheckpoint,
    GrownVlm,
    Hardware,
    Interpret,
    Interpreter,
    Lora,
    Losses,
    NamedReconstruction,
    PretrainedLlm,
    PretrainedModel,
    PretrainedVlm,
    Schedule,
    States,
    Teach,
    ToyLlm,
    ToyVlm,
    Training,
)

RESOLVED = Path("resolved.yaml")
"""Every parameter that a stage reads, with its default (`load_resolved`)."""

__all__ = [
    "BENCHMARKS",
    "PRETRAINED",
    "RESOLVED",
    "TOY_FAMILIES",
    "Attention",
    "Audit",
    "BenchmarkName",
    "Checkpoint",
    "ConfigError",
    "Control",
    "DatasetSource",
    "Decoding",
    "Distill",
    "EmbeddedRules",
    "Examine",
    "FeedScale",
    "FolderSource",
    "GgufLlm",
    "GivenAdapter",
    "GivenCheckpoint",
    "GivenSource",
    "GrownVlm",
    "Hardware",
    "HubSource",
    "ImageDecoding",
    "Interpret",
    "Interpreter",
    "InterpreterInput",
    "Latency",
    "LatencyCase",
    "Lora",
    "Losses",
    "Name",
    "NamedReconstruction",
    "OpenAIJudge",
    "Page",
    "Params",
    "Peaks",
    "Predict",
    "Predictor",
    "Predictors",
    "PretrainedLlm",
    "PretrainedModel",
    "PretrainedVlm",
    "Price",
    "Protocol",
    "ProtocolName",
    "QuestionKind",
    "Reconstruct",
    "Rewrite",
    "Schedule",
    "Section",
    "Seed",
    "Similarity",
    "Slurm",
    "States",
    "Teach",
    "Tiles",
    "TooLong",
    "ToyLlm",
    "ToySource",
    "ToyVlm",
    "Training",
    "Variant",
    "expected",
    "given",
    "load",
    "load_resolved",
    "parse",
    "resolved",
]


def parse(text: str, name: str = "params.yaml") -> Params:
    """Validate the text of a parameter file.

    Raises `ConfigError` naming each key, its value and what is allowed there.
    """
    try:
        # libyaml's, where it is there: ten times as fast, and stages all begin with it.
        raw = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError) as error:
        # PyYAML leaves a date that is none, or a number of 5,000 digits, to Python.
        raise ConfigError(f"{name} is not YAML: {error}") from error
    return _validated(raw, name)


def _validated(raw: Any, name: str) -> Params:
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} must be a mapping, got {type(raw).__name__}")
    derived = raw.pop("derived", None)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(name, error)) from error
    if derived is not None and derived != params.derived():
        raise ConfigError(
            f"{name}: `derived` is not what this code makes of the parameters; "
            "`python -m stages.resolve` writes it"
        )
    return params


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate a parameter file or a profile (`ConfigError`, or `FileNotFoundError`)."""
    return parse(written_out(Path(path)), str(path))


def resolved(params: Params) -> dict[str, Any]:
    """All parameters with their defaults written out, and what follows from them as `derived`."""
    return {**params.model_dump(mode="json", by_alias=True), "derived": params.derived()}


def load_resolved() -> Params:
    """The parameters of a stage, from `resolved.yaml`.

    Raises `ConfigError` where the first stage has not written it, or other code than this has.
    """
    if not RESOLVED.exists():
        raise ConfigError(f"{RESOLVED} does not exist: `python -m stages.resolve` writes it")
    return load(RESOLVED)


def _explain(name: str, error: ValidationError) -> str:
    """One line a fault: key = value: what is allowed."""
    lines = []
    for fault in error.errors():
        # Kinds of one key's values, such as <given>, are no part of its name.
        parts = [part for part in map(str, fault["loc"]) if not part.startswith("<")]
        key = ".".join(parts) or "(whole file)"
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
