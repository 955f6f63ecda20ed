"""What states fed back, terms of the loss, budgets, audits and closed ways of attention can go with
in a chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from heima.config import families, mixtures
from heima.config.base import given
from heima.cot.rendering import Rendering, constant_prefix, render
from heima.cot.sections import SECTIONS, TAG_TOKENS, TAGS, numbered
from heima.cot.thinking import shown

if TYPE_CHECKING:
    from heima.config.params import Params


def check_budget(params: Params, name: str) -> None:
    """Raise `ValueError` where a variant's budget cannot be kept, naming what is allowed."""
    variant = params.variants[name]
    if variant.budget is None:
        return
    key = f"variants.{name}.budget = {variant.budget}"
    if variant.forced_prefix is not None:
        raise ValueError(f"{key} must have no forced_prefix, not {variant.forced_prefix!r}")
    rendering = params.rendering(variant.model, variant.asks)
    if rendering.tags == "none" or set(rendering.forms.values()) == {"omit"}:
        raise ValueError(
            f"{key} needs a model whose answers have sections and a tag that opens the conclusion, "
            f"not {variant.model}"
        )
    if params.feed(variant.model) is not None:
        raise ValueError(
            f"{key} needs a model with feed = 'token', not {variant.model} with 'state': a cut "
            "chain is read again as a prompt"
        )


def check_case(params: Params, name: str) -> None:
    """Raise `ValueError` where a case of `latency` cannot be measured, naming what is allowed."""
    case = params.latency.cases[name]
    variant = params.variants[case.variant]
    if variant.budget is not None:
        raise ValueError(
            f"latency.cases.{name}.variant = {case.variant!r} must have no budget of its own, not "
            f"{variant.budget}; the case's cuts to another one's tokens"
        )
    if case.lookup is not None and params.feed(variant.model) is not None:
        raise ValueError(
            f"latency.cases.{name}.lookup = {case.lookup} needs a model with feed = 'token', not "
            f"{variant.model} with 'state': a pass of several tokens has one state for all"
        )


_WORDS = ("text", "short")
"""The forms of sections in words."""


def auditable(params: Params) -> list[str]:
    """The checkpoints that can be audited: their answers (of a mixture those that `audit.asks` asks
    for) begin with thinking tokens or fillers for one section after the other, as many in all, and
    have words for the others."""
    return sorted(name for name in params.checkpoints if no_audit(params, name) is None)


def no_audit(params: Params, name: str) -> str | None:
    """Why a model cannot be audited; None: it can."""
    if name not in {"text-cot", *params.checkpoints}:
        return "no checkpoint has that name"
    asks = params.audit.asks.get(name)
    mixed = mixtures.mixture(params, name)
    if mixed is not None and asks not in mixed:
        return (
            "it is trained on a mixture of renderings, and audit.asks does not say which of "
            f"{list(mixed)} it is asked for"
        )
    rendering = params.rendering(name, asks)
    forms = rendering.forms
    words = [section for section, form in forms.items() if form in _WORDS]
    behind = list(forms.values())[list(forms).index(words[0]) :] if words else []
    if not {"token", "filler"}.isdisjoint(behind):
        return f"it writes the {words[0]} in words before a thinking token"
    if len(words) == len(forms):
        return f"it writes the {words[0]} in words, and has no thinking token before it"
    if words and params.feed(name) is not None:
        return f"it writes the {words[0]} in words behind states that are fed back"
    if left_out := [section for section, form in forms.items() if form == "omit"]:
        return f"nothing stands for the {left_out[0]} in its answers"
    if params.thinking(name).tokens is None:
        return f"thinking = {shown(params.thinking(name))} gives each answer another number of them"
    return None


def examinable(params: Params) -> list[str]:
    """The checkpoints whose states can be described beside those of their tags: of those that can
    be audited, the ones with tags and without words, that are fed tokens."""
    return [
        name
        for name in auditable(params)
        if audited_rendering(params, name).constant
        and audited_rendering(params, name).tags != "none"
        and params.feed(name) is None
    ]


def audited_rendering(params: Params, name: str) -> Rendering:
    """What the answers are that an audit of a checkpoint asks for."""
    return params.rendering(name, params.audit.asks.get(name))


def _like_heima(params: Params) -> list[str]:
    """The checkpoints with thinking tokens for every section, as many in all answers, between tags
    in words, which are fed tokens."""
    return [
        name
        for name in auditable(params)
        if name in mixtures.compressed(params)
        and params.rendering(name).tags == "text"
        and params.feed(name) is None
    ]


def audited_variants(params: Params) -> dict[str, str]:
    """Variant -> the audited checkpoint whose answers it asks for, as the audit does."""
    return {
        name: one.model
        for name, one in params.variants.items()
        if one.model in params.audit.checkpoints and one.asks == params.audit.asks.get(one.model)
    }


class Asking(NamedTuple):
    """How a model is asked: what each of its answers begins with, and the control word behind a
    question; None: it needs none."""

    model: str
    prefix: str
    word: str | None


def audited(params: Params, name: str) -> Asking:
    """How a checkpoint that can be audited is asked: its answers begin with all that stands before
    the first section in words."""
    rendering = audited_rendering(params, name)
    thinking = numbered(given(params.thinking(name).tokens, "thinking.tokens"))
    if rendering.constant:
        prefix = constant_prefix(rendering, thinking)
    else:
        blank = dict.fromkeys(SECTIONS, "")
        first = next(section for section, form in rendering.forms.items() if form in _WORDS)
        opening = (TAG_TOKENS if rendering.tags == "token" else TAGS)[first][0]
        answer = render(blank, rendering, thinking, short=blank)
        prefix = answer[: answer.index(opening)]
    return Asking(name, prefix, mixtures.word(params, name, params.audit.asks.get(name)))


def asking(params: Params) -> dict[str, Asking]:
    """How the predictors of Theorem 3.1 are asked, by what stands before the conclusion, where
    the parameters name them. Only thinking tokens are the same in all answers."""
    predictors = params.audit.predictors
    return {
        part: Asking(
            one.model,
            params.prefix(one.model, one.asks or params.checkpoints[one.model].trained_on)
            if part == "tokens"
            else "",
            mixtures.word(params, one.model, one.asks),
        )
        for part, one in (predictors.parts if predictors else {}).items()
    }


def predicting(params: Params) -> dict[str, Any]:
    """What a stage must know of predictors: nothing where the parameters name none."""
    found = {part: one._asdict() for part, one in asking(params).items()}
    return {"predictors": found} if found else {}


def check_predictors(params: Params) -> None:
    """Raise `ValueError` where the predictors of Theorem 3.1 do not answer as they must."""
    predictors = params.audit.predictors
    if predictors is None:
        return
    for part, one in predictors.parts.items():
        key, able = f"audit.predictors.{part}", _answering(params, part)
        if one.model not in able:
            raise ValueError(
                f"{key if one.asks is None else f'{key}.model'} = {one.model!r} is not one of "
                f"{sorted(able)}, the models that answer after {part}"
            )
        try:
            mixtures.word(params, one.model, one.asks)
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from error
        if one.asks is not None and one.asks not in able[one.model]:
            raise ValueError(
                f"{key}.asks = {one.asks!r} is not one of {able[one.model]}, the renderings of "
                f"{one.model} that answer after {part}"
            )


_FORMS = {"nothing": "omit", "tokens": "token", "text": "text"}
"""The form of all sections, by what stands before a conclusion."""


def _answering(params: Params, part: str) -> dict[str, list[str]]:
    """The models that answer after a part of `_FORMS`, and in which of their renderings.

    Thinking tokens are as many in all answers, and read as tokens.
    """
    found = {"nothing": {"base": ["answer-only"]}, "text": {"text-cot": ["text-cot"]}}.get(part, {})
    for name, checkpoint in params.checkpoints.items():
        varies = checkpoint.thinking.tokens is None or checkpoint.feed != "token"
        data = [checkpoint.data] if isinstance(checkpoint.data, str) else checkpoint.data
        fitting = [one for one in data if _whole(params.rendering(name, one), _FORMS[part])]
        if fitting and not (part == "tokens" and varies):
            found[name] = fitting
    return found


def _whole(rendering: Rendering, form: str) -> bool:
    """Whether all sections have this form, and tags in words."""
    return rendering.tags == "text" and set(rendering.forms.values()) == {form}


def check_attention(params: Params) -> None:
    """Raise `ValueError` where ways of attention are closed that cannot be, naming what is allowed.

    Such checkpoints are trained and audited, and nothing else: nothing decodes under their masks.
    """
    closed = {name: one for name, one in params.checkpoints.items() if one.attention != "open"}
    for name, one in closed.items():
        key = f"checkpoints.{name}.attention = {one.attention!r}"
        if not families.RECORDS[params.family].closes:
            able = [name for name, record in families.RECORDS.items() if record.closes]
            raise ValueError(
                f"{key} must be 'open' for the family {params.family}; ways of attention are "
                f"closed in {', '.join(able)}"
            )
        if name not in _like_heima(params):
            raise ValueError(
                f"{key} needs a checkpoint that can be audited, and has thinking tokens between "
                "tags in words, read as tokens; others must be 'open'"
            )
        if one.losses.any:
            raise ValueError(f"{key} needs losses without align and explain, or must be 'open'")
        if params.distill.too_long == "cut":
            raise ValueError(
                f"{key} needs distill.too_long = 'drop' or 'refuse', not 'cut': an answer that is "
                "cut may have lost its thinking tokens"
            )
        if params.hardware.gradient_checkpointing:
            raise ValueError(
                f"{key} needs hardware.gradient_checkpointing = false: layers that are computed "
                "again in the backward pass would see all"
            )
    readers = {
        "states.checkpoint": params.states.checkpoint,
        **{f"variants.{name}.model": one.model for name, one in params.variants.items()},
    }
    for key, model in readers.items():
        if model in closed:
            raise ValueError(
                f"{key} = {model!r} must be a checkpoint with attention = 'open', not "
                f"{closed[model].attention!r}: nothing but an audit reads a planted control"
            )


def check_audit(params: Params) -> None:
    """Raise `ValueError` where what is to be audited, or examined, cannot be, naming what is
    allowed."""
    for name, asks in params.audit.asks.items():
        if name not in params.checkpoints:
            raise ValueError(f"audit.asks: {name!r} is not one of {sorted(params.checkpoints)}")
        try:
            mixtures.word(params, name, asks)
        except ValueError as error:
            raise ValueError(f"audit.asks.{name}: {error}") from error
    able, described = auditable(params), examinable(params)
    for name in params.audit.checkpoints:
        if name not in able:
            raise ValueError(
                f"audit.checkpoints: {name!r} is not one of {able}, the checkpoints whose answers "
                "begin with thinking tokens or fillers, as many in all, and have nothing but words "
                f"behind them: {no_audit(params, name)}"
            )
    for name in params.examine.checkpoints:
        if name not in described:
            raise ValueError(
                f"examine.checkpoints: {name!r} is not one of {described}, the checkpoints that "
                "can be audited, have tags beside their thinking tokens and no section in words, "
                "and are fed tokens"
            )
    for key, named in (
        ("audit.checkpoints", params.audit.checkpoints),
        ("examine.checkpoints", params.examine.checkpoints),
        ("examine.chains", params.examine.chains),
    ):
        if len(set(named)) < len(named):
            raise ValueError(f"{key} = {list(named)} must name none twice")


def check(params: Params, name: str, chain: Sequence[str]) -> None:
    """Raise `ValueError` where a checkpoint cannot be trained as it says, naming what is allowed.

    `chain` are the checkpoints from the text-cot model to this one.
    """
    own = params.checkpoints[name]
    key = f"checkpoints.{name}.feed = 'state'"
    for earlier in chain[:-1]:
        other = params.checkpoints[earlier]
        if mixtures.thinks(params, name) and mixtures.thinks(params, earlier):
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
    if not mixtures.thinks(params, name):
        if own.losses.explain is not None:
            raise ValueError(
                f"checkpoints.{name}.losses.explain = {own.losses.explain}: the rendering "
                f"{own.trained_on} has no thinking tokens to explain"
            )
        if own.feed == "state" or not own.thought_loss:
            field = "feed = 'state'" if own.feed == "state" else "thought_loss = False"
            raise ValueError(
                f"checkpoints.{name}.{field}: the rendering {own.trained_on} has no thinking tokens"
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
