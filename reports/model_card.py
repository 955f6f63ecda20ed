"""The card of an exported checkpoint: what it is, how it was trained, and what was measured."""

from __future__ import annotations

from pathlib import Path

import yaml

from heima.config import Checkpoint, GivenCheckpoint, Params
from heima.data.licences import terms
from heima.results.cells import Cell, read_metrics
from heima.results.measures import judge_name

_LICENCE = "other"
"""Of the front matter: an adapter is bound by the terms of its base, and they differ."""


def model_card(
    root: Path,
    params: Params,
    checkpoint: str,
    seed: int,
    base: tuple[str, str | None] | None,
    *,
    merged: bool,
) -> str:
    """The card as Markdown; scores are those of the result files below `root`, and of this seed.

    `base` is the hub's id and commit of the model below the adapter; None: it is in the folder.
    """
    front = {
        "library_name": "transformers" if merged else "peft",
        "license": _LICENCE,
        "tags": ["heima", "hidden-thinking", params.profile],
        **({"base_model": base[0]} if base else {}),
    }
    below = f"`{base[0]}` at `{base[1] or 'the newest commit'}`" if base else "the model in `base/`"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {checkpoint}, training seed {seed} ({params.profile} profile, {params.family})",
        "A vision-language model that thinks in hidden states: each section of its chain of "
        "thought is one thinking token ([Heima](https://arxiv.org/abs/2501.19201)), by a rerun of "
        f"the paper's recipe. {'An adapter merged into' if merged else 'A LoRA adapter on'} "
        + ("text-CoT." if merged and not base else f"{below}."),
        "## Training\n\n" + "\n".join(_training(params, checkpoint)),
        "## Measured\n\n" + _measured(root, params, checkpoint, seed),
        "## Loading\n\n```python\n" + _loading(merged=merged, base=base) + "\n```",
        "`thinking_tokens.json` says on which token of the vocabulary each thinking token stands.",
    ]
    if notice := base and terms(base[0]):
        parts.append(f"## Terms of {base[0]}\n\n{notice}. A summary, no legal advice.")
    return "\n\n".join(parts) + "\n"


def _training(params: Params, checkpoint: str) -> list[str]:
    """A line for each checkpoint on the way, from text-CoT on."""
    chain: list[tuple[str, Checkpoint | GivenCheckpoint]] = []
    while checkpoint in params.checkpoints:
        one = params.checkpoints[checkpoint]
        chain.insert(0, (checkpoint, one))
        checkpoint = one.init
    lora = params.distill.lora
    return [
        f"LoRA of rank {lora.rank} (alpha {lora.alpha:g}, dropout {lora.dropout:g}), continued "
        "from phase to phase:",
        "",
        *(f"- {name}: {_trained(one)}" for name, one in chain),
    ]


def _trained(one: Checkpoint | GivenCheckpoint) -> str:
    if isinstance(one, GivenCheckpoint):
        place = one.adapter
        where = f"`{place.id or place.path}`{f', `{place.within}`' if place.within else ''}"
        return f"not trained here; the adapter of {where}"
    return (
        f"trained on `{one.trained_on}`, "
        + (f"{one.steps} updates" if one.steps else f"{one.epochs} epochs")
        + f" of {one.batch_size} samples, learning rate {one.learning_rate:g}"
    )


def _measured(root: Path, params: Params, checkpoint: str, seed: int) -> str:
    lines = ["| variant | data | n | failed | accuracy (%), this seed | all seeds, 95 % interval |"]
    lines.append("|---|---|---|---|---|---|")
    count = len(lines)
    for name, variant in params.variants.items():
        path = root / "metrics" / "score" / f"{name}.json"
        if variant.model != checkpoint or not path.exists():
            continue
        cells, origin = read_metrics(path)
        if origin["profile"] != params.profile:
            continue
        lines += [
            _line(name, group, row["accuracy"], seed)
            for group, row in cells.items()
            if "accuracy" in row
        ]
    if len(lines) == count:
        return "No result of this checkpoint lies in `metrics/score`."
    note = f"Judged by {judge_name(params.judge)}."
    if params.source.kind == "toy":
        note += " The toy's numbers say nothing about the paper's models."
    return "\n".join(lines) + f"\n\n{note}"


def _line(variant: str, group: str, cell: Cell, seed: int) -> str:
    own = f"{cell.seeds[seed]:.1f}" if seed in cell.seeds else f"{cell.value:.1f}"
    bounds = "" if cell.low is None else f" [{cell.low:.1f}, {cell.high:.1f}]"
    return (
        f"| {variant} | {group} | {cell.n} | {cell.n_failed} | {own} | {cell.value:.1f}{bounds} |"
    )


def _loading(*, merged: bool, base: tuple[str, str | None] | None) -> str:
    lines = ["from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    if merged:
        lines.append("model = AutoModelForImageTextToText.from_pretrained(FOLDER)")
    else:
        where = f'"{base[0]}", revision={base[1]!r}' if base else 'f"{FOLDER}/base"'
        lines.insert(0, "from peft import PeftModel")
        lines.append(f"model = AutoModelForImageTextToText.from_pretrained({where})")
        lines.append("model = PeftModel.from_pretrained(model, FOLDER)")
    lines.append("processor = AutoProcessor.from_pretrained(FOLDER)")
    return "\n".join(lines)
