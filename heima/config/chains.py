"""What states fed back, and terms of the loss, can go with in a chain of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heima.cot.thinking import shown

if TYPE_CHECKING:
    from heima.config.params import Params


def check(params: Params, name: str, chain: Sequence[str]) -> None:
    """Raise `ValueError` where a checkpoint cannot be trained as it says, naming what is allowed.

    `chain` are the checkpoints from the text-cot model to this one.
    """
    own = params.checkpoints[name]
    key = f"checkpoints.{name}.feed = 'state'"
    for earlier in chain[:-1]:
        other = params.checkpoints[earlier]
        if params.rendering(name).thinks and params.rendering(earlier).thinks:
            for field in ("feed", "feed_scale"):
                if getattr(own, field) != getattr(other, field):
                    raise ValueError(
                        f"checkpoints.{name}.{field} = {getattr(own, field)!r} must be "
                        f"{getattr(other, field)!r}, that of {earlier} earlier in its chain"
                    )
    if own.losses.explain is not None and own.thinking.tokens is None:
        raise ValueError(
            f"checkpoints.{name}.losses.explain = {own.losses.explain} needs thinking.tokens, "
            f"not thinking = {shown(own.thinking)}: a batch has as many states of each section"
        )
    if not params.rendering(name).thinks:
        if own.losses.explain is not None:
            raise ValueError(
                f"checkpoints.{name}.losses.explain = {own.losses.explain}: the rendering "
                f"{own.data} has no thinking tokens to explain"
            )
        if own.feed == "state" or not own.thought_loss:
            field = "feed = 'state'" if own.feed == "state" else "thought_loss = False"
            raise ValueError(
                f"checkpoints.{name}.{field}: the rendering {own.data} has no thinking tokens"
            )
        return
    if own.feed == "token":
        return
    if own.thinking.tokens is None:
        raise ValueError(
            f"{key} needs thinking.tokens, not thinking = {shown(own.thinking)}: all rows of "
            "all processes must have as many thinking tokens"
        )
    if params.distill.too_long == "cut":
        raise ValueError(
            f"{key} needs distill.too_long = 'drop' or 'refuse', not 'cut': all rows of all "
            "processes must have as many thinking tokens, and a cut answer may have fewer"
        )
    if params.hardware.gradient_checkpointing:
        raise ValueError(
            f"{key} needs hardware.gradient_checkpointing = false: with it transformers drops "
            "the cache of keys and values, by which segments see what was before them"
        )
    if params.predict.engine == "vllm":
        raise ValueError(
            f"{key} needs predict.engine = 'transformers', not 'vllm', which feeds back tokens"
        )
