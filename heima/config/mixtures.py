"""Checkpoints that are trained on a mixture of renderings, and variants that ask for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heima.cot.rendering import RENDERINGS, Rendering
from heima.cot.thinking import ONE_TOKEN, shown

if TYPE_CHECKING:
    from heima.config.params import Params


def known(params: Params) -> dict[str, Rendering]:
    """Every rendering by its name."""
    return {**RENDERINGS, **params.renderings}


def mixture(params: Params, model: str) -> Mapping[str, float] | None:
    """The shares of the renderings that a checkpoint is trained on; None where it is one."""
    data = params.checkpoints[model].data if model in params.checkpoints else ""
    return None if isinstance(data, str) else data


def renderings(params: Params, model: str) -> list[Rendering]:
    """All renderings of a model's answers."""
    mixed = mixture(params, model)
    if mixed is None:
        return [params.rendering(model)]
    return [params.rendering(model, name) for name in mixed]


def thinks(params: Params, model: str) -> bool:
    """Whether some of a model's answers have thinking tokens or fillers."""
    return any(one.thinks for one in renderings(params, model))


def counted(params: Params, model: str) -> bool:
    """Whether `thinking` says how many tokens a section has in some of a model's answers."""
    return any(one.counted for one in renderings(params, model))


def compressed(params: Params) -> list[str]:
    """The checkpoints that compress every section of every answer."""
    return sorted(
        name
        for name in params.checkpoints
        if mixture(params, name) is None and set(params.rendering(name).forms.values()) == {"token"}
    )


def word(params: Params, model: str, asks: str | None) -> str | None:
    """The control word by which a model is asked for the rendering `asks`; None: it needs none.

    Raises `ValueError` where a checkpoint of one rendering is asked for another, or one of several
    for none of them.
    """
    mixed = mixture(params, model)
    if mixed is None:
        if asks is not None:
            some = [name for name in params.checkpoints if mixture(params, name) is not None]
            raise ValueError(
                f"asks = {asks!r} must not be given with {model}, which is trained on one "
                f"rendering; {', '.join(some) or 'no checkpoint'} is trained on a mixture"
            )
        return None
    if asks is None or asks not in mixed:
        raise ValueError(
            f"asks = {asks!r} is not one of {list(mixed)}, the renderings that {model} is trained "
            "on"
        )
    return params.control_words[asks]


def derived(params: Params, model: str) -> dict[str, Any]:
    """What a stage must know of a mixture: nothing where there is none."""
    mixed = mixture(params, model)
    if mixed is None:
        return {}
    return {
        "mixture": {
            name: {
                "share": share,
                "word": params.control_words[name],
                "rendering": params.rendering(model, name).model_dump(),
            }
            for name, share in mixed.items()
        }
    }


def check_words(params: Params) -> None:
    """Raise `ValueError` for control words that cannot be told apart, or are of no rendering."""
    seen: dict[str, str] = {}
    for name, text in params.control_words.items():
        key = f"control_words.{name} = {text!r}"
        if name not in known(params):
            raise ValueError(f"{key}: {name!r} is not one of {sorted(known(params))}")
        if not text or text != " ".join(text.split()):
            raise ValueError(f"{key} must be words on one line with one blank between them")
        if text in seen:
            raise ValueError(f"{key} must not be the word of {seen[text]}")
        seen[text] = name


def check(params: Params, name: str) -> None:
    """Raise `ValueError` where a checkpoint's data cannot be trained on, naming what is allowed."""
    checkpoint = params.checkpoints[name]
    key = f"checkpoints.{name}.data"
    mixed = mixture(params, name)
    every = known(params)
    for one in [checkpoint.data] if isinstance(checkpoint.data, str) else checkpoint.data:
        if one not in every:
            raise ValueError(f"{key} = {one!r} is not one of {sorted(every)}")
    # The default may be written out: parameters that were dumped are valid.
    if checkpoint.thinking != ONE_TOKEN and not counted(params, name):
        raise ValueError(
            f"checkpoints.{name}.thinking = {shown(checkpoint.thinking)}: the rendering "
            f"{checkpoint.trained_on} has no thinking tokens"
        )
    if mixed is None:
        return
    written = f"{key} = {dict(mixed)}"
    if len(mixed) < 2 or min(mixed.values()) <= 0 or not math.isclose(sum(mixed.values()), 1):
        raise ValueError(
            f"{written} must be the shares of two renderings or more, each above 0, that sum to 1, "
            f"not to {sum(mixed.values()):g}"
        )
    if lacking := [one for one in mixed if one not in params.control_words]:
        raise ValueError(f"control_words lacks {', '.join(lacking)}, which {key} mixes")
    if len(tags := sorted({one.tags for one in renderings(params, name)})) > 1:
        raise ValueError(f"{written} must be renderings with the same tags, not {tags}")
    if checkpoint.feed == "state":
        raise ValueError(
            f"checkpoints.{name}.feed = 'state' must be 'token' with a mixture as data: all rows "
            "of a batch must have as many thinking tokens"
        )
    if checkpoint.losses.explain is not None:
        raise ValueError(
            f"checkpoints.{name}.losses.explain = {checkpoint.losses.explain} must be left out "
            "with a mixture as data: all rows of a batch must have as many sections to explain"
        )


def check_variant(params: Params, name: str) -> None:
    """Raise `ValueError` where a variant cannot ask as it says, naming what is allowed."""
    variant = params.variants[name]
    try:
        word(params, variant.model, variant.asks)
    except ValueError as error:
        raise ValueError(f"variants.{name}.{error}") from error
    if variant.asks is not None and variant.forced_prefix not in (None, variant.asks):
        raise ValueError(
            f"variants.{name}.forced_prefix = {variant.forced_prefix!r} must be {variant.asks!r}, "
            "the rendering that is asked for"
        )
