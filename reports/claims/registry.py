"""The claims: each a statement, and a function from result files to a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from eval.audit import effects
from heima.config import ProtocolName
from heima.results import verdicts
from heima.results.scores import MEAN
from reports.claims.evidence import Evidence
from reports.claims.model import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Finding
from reports.claims.rules import (
    ONE_SEED,
    all_of,
    at_most,
    greater,
    not_testable,
    same,
    states_matter,
)

PAPERS_PROTOCOL: ProtocolName = "vlmevalkit"
OWN_PROTOCOL: ProtocolName = "lmms"

LEAST = 1.0
"""Points of accuracy below which a difference helps nobody (docs/verdicts.md)."""
MARGIN = 3.0
"""Points of accuracy within which it is kept (docs/verdicts.md)."""
LEAST_NATS = 0.05
"""Nats a text below which a state tells nothing (docs/verdicts.md)."""
LOST_BITS = 0.1
"""Bits a conclusion that thinking tokens may lose of the text's usable information
(docs/verdicts.md)."""
SECOND_FAMILY = "llava-next-vicuna-7b"

_DIRECTION = (
    "supported where every training seed, the interval and the t interval over seeds are above 0; "
    "not supported where all are below, or where the value is within {least} of 0 (equivalence at "
    "5 %)"
)


def _missing(what: str) -> Finding:
    return not_testable(f"{what} was not run here")


def _gain(variant: str, protocol: ProtocolName, benchmark: str = MEAN) -> Callable[..., Finding]:
    """Heima above a variant."""

    def find(evidence: Evidence) -> Finding:
        found = evidence.gain(variant, protocol, benchmark)
        return greater(*found, least=LEAST) if found else _missing(variant)

    return find


def _reported_gain(variant: str, benchmark: str = MEAN) -> Callable[[Evidence], float | None]:
    def value(evidence: Evidence) -> float | None:
        ours, theirs = (evidence.published(name, benchmark) for name in ("heima", variant))
        return None if ours is None or theirs is None else ours - theirs

    return value


def _keeps(evidence: Evidence) -> Finding:
    found = evidence.gain("text-cot", PAPERS_PROTOCOL)
    return greater(*found, bound=-MARGIN) if found else _missing("text-cot")


def _fourteen(evidence: Evidence) -> Finding:
    found = evidence.token_ratio("text-cot", PAPERS_PROTOCOL, "mmstar")
    return greater(*found, trained=False, bound=14.0) if found else _missing("text-cot on MMStar")


def _reported_fourteen(evidence: Evidence) -> float | None:
    tokens = [
        evidence.published(name, "MMStar", "generated_tokens") for name in ("text-cot", "heima")
    ]
    return tokens[0] / tokens[1] if tokens[0] and tokens[1] else None


def _fewer(evidence: Evidence) -> Finding:
    found = evidence.token_ratio("text-cot", PAPERS_PROTOCOL)
    return greater(*found, trained=False, bound=1.0) if found else _missing("text-cot")


def _faster(evidence: Evidence) -> Finding:
    found = evidence.speedup("heima", 1)
    if not found:
        return _missing("latency of heima and text-cot at batch 1")
    return greater(*found, trained=False, bound=1.0)


def _reconstructs(section: str) -> Callable[[Evidence], Finding]:
    """The own state tells of the section what neither another state nor the question does."""

    def find(evidence: Evidence) -> Finding:
        gains = [evidence.state_gain(section, one) for one in ("question-only", "shuffled")]
        if None in gains:
            return _missing("the control shuffled or question-only")
        return all_of([greater(*gain, least=LEAST_NATS) for gain in gains if gain])

    return find


def _is_read(section: str, control: str) -> Callable[[Evidence], Finding]:
    """The own state saves something against a control."""

    def find(evidence: Evidence) -> Finding:
        found = evidence.state_gain(section, control)
        return greater(*found, least=LEAST_NATS) if found else _missing(f"the control {control}")

    return find


def _own_is_better(evidence: Evidence) -> Finding:
    findings = []
    for section in evidence.results.params.sections:
        found = evidence.shared_minus_own(section)
        if found is None:
            return _missing("an interpreter of all sections")
        cell, source = found
        findings.append(greater(verdicts.negated(cell), source, least=LEAST))
    return all_of(findings)


def _reported_own_is_better(evidence: Evidence) -> float | None:
    rows = [r for r in evidence.results.published["interpreters"] if r["metric"] == "bleu4"]
    three, one = (
        {row["stage"]: float(row["value"]) for row in rows if row["interpreters"] == count}
        for count in ("3", "1")
    )
    return min((three[section] - one[section] for section in three), default=None)


def _no_more_is_better(series: str) -> Callable[[Evidence], Finding]:
    """Heima is not lower than any other point of a series by more than `LEAST`."""

    def find(evidence: Evidence) -> Finding:
        variants = evidence.series(series)
        if not variants:
            return _missing("any other point of this series")
        findings = []
        for variant in variants.values():
            found = evidence.gain(variant, PAPERS_PROTOCOL)
            findings.append(greater(*found, bound=-LEAST) if found else _missing(variant))
        return all_of(findings)

    return find


def _reported_series(series: str) -> Callable[[Evidence], float | None]:
    """Heima's mean minus the best other mean of the series, as published."""

    def value(evidence: Evidence) -> float | None:
        heima = evidence.published("heima", MEAN)
        others = {r: v for r, v in evidence.published_series(series).items() if r != "1"}
        return heima - max(others.values()) if others and heima is not None else None

    return value


def _second_family(evidence: Evidence) -> Finding:
    if evidence.results.params.published_family != SECOND_FAMILY:
        return not_testable("another family: `python -m stages.profile paper-llava-next`")
    return _gain("text-cot", PAPERS_PROTOCOL, "mmbench")(evidence)


def _reported_second_family(evidence: Evidence) -> float | None:
    ours, theirs = (
        evidence.published(name, "MMBench", family=SECOND_FAMILY) for name in ("heima", "text-cot")
    )
    return None if ours is None or theirs is None else ours - theirs


def _theorem(evidence: Evidence) -> Finding:
    found = evidence.theorem_gap()
    if found is None:
        return _missing("the measurement of usable information (audit.predictors)")
    finding = at_most(*found, bound=LOST_BITS)
    return replace(finding, why=f"{finding.why}; predicted by {evidence.predicting()}")


def _states_matter(variant: str) -> Callable[[Evidence], Finding]:
    """By the rule of audits, of the checkpoint behind a variant."""

    def find(evidence: Evidence) -> Finding:
        found = evidence.audit(variant)
        return states_matter(*found) if found else _missing(f"an audit of {variant}")

    return find


def _costs(evidence: Evidence) -> Finding:
    found = evidence.gain("text-cot", OWN_PROTOCOL)
    if not found:
        return _missing("text-cot")
    cell, source = found
    return greater(verdicts.negated(cell), source, least=LEAST)


def _prefix(evidence: Evidence) -> Finding:
    found = evidence.gain("heima-forced-prefix", OWN_PROTOCOL)
    return same(*found, margin=LEAST) if found else _missing("heima-forced-prefix")


def _at_chance(evidence: Evidence) -> Finding:
    """No variant with thinking tokens is above chance on MMBench."""
    params = evidence.results.params
    chance = evidence.chance(OWN_PROTOCOL, "mmbench")
    if chance is None:
        return _missing("MMBench")
    findings = []
    for name, variant in params.variants.items():
        counted = params.rendering(variant.model, variant.asks).counted
        cell = evidence.accuracy(name, OWN_PROTOCOL, "mmbench")
        if variant.model not in params.checkpoints or not counted or cell is None:
            continue
        source = f"metrics/score/{name}.json"
        if cell.sd is None:
            findings.append(Finding(UNDECIDED, ONE_SEED, cell, source))
        elif cell.low > chance:
            findings.append(Finding(NOT_SUPPORTED, f"{name} is above chance", cell, source))
        elif cell.high > chance + MARGIN:
            findings.append(Finding(UNDECIDED, f"{name} may be above chance", cell, source))
        else:
            findings.append(Finding(SUPPORTED, "none is above chance", cell, source))
    return all_of(findings) if findings else _missing("a compressed variant")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "fourteen-times-fewer-tokens",
        "Heima decodes up to 14 times fewer tokens than the text-CoT model (MMStar).",
        of="paper",
        where="main table, generated tokens",
        rule="supported where the ratio's interval is above 14, not supported where it is below; "
        "all decoded tokens count, tags included",
        unit="times",
        scale="paper",
        find=_fourteen,
        reported=_reported_fourteen,
    ),
    Claim(
        "fewer-tokens",
        "Heima decodes fewer tokens than the text-CoT model, mean of the benchmarks.",
        of="paper",
        where="abstract",
        rule="supported where the ratio's interval is above 1, not supported where it is below",
        unit="times",
        scale="any",
        find=_fewer,
    ),
    Claim(
        "faster",
        "An answer of Heima takes less time end to end than one of the text-CoT model (batch 1).",
        of="paper",
        where="abstract",
        rule="supported where the speed-up's interval is above 1, not supported where it is below",
        unit="times",
        scale="any",
        find=_faster,
    ),
    Claim(
        "keeps-accuracy",
        "Heima maintains the accuracy of the text-CoT model, mean of the benchmarks.",
        of="paper",
        where="abstract",
        rule=f"supported where all of the difference is above -{MARGIN:g} points, by every "
        "training seed and both intervals; not supported where all of it is below",
        unit="points",
        scale="any",
        find=_keeps,
        reported=_reported_gain("text-cot"),
    ),
    Claim(
        "surpasses-on-mmbench",
        "Heima surpasses the text-CoT model (LLaVA-CoT) on MMBench.",
        of="paper",
        where="main table",
        rule=_DIRECTION.format(least=f"{LEAST:g} point"),
        unit="points",
        scale="paper",
        find=_gain("text-cot", PAPERS_PROTOCOL, "mmbench"),
        reported=_reported_gain("text-cot", "MMBench"),
    ),
    Claim(
        "surpasses-on-ai2d",
        "Heima surpasses the text-CoT model (LLaVA-CoT) on AI2D.",
        of="paper",
        where="text; the cells of its main table say otherwise",
        rule=_DIRECTION.format(least=f"{LEAST:g} point"),
        unit="points",
        scale="paper",
        find=_gain("text-cot", PAPERS_PROTOCOL, "ai2d"),
        reported=_reported_gain("text-cot", "AI2D"),
    ),
    Claim(
        "progressive-helps",
        "Progressive compression is better than compressing all sections at once.",
        of="paper",
        where="ablation (1.7 points)",
        rule=_DIRECTION.format(least=f"{LEAST:g} point"),
        unit="points",
        scale="any",
        find=_gain("heima-no-progressive", PAPERS_PROTOCOL),
        reported=_reported_gain("heima-no-progressive"),
    ),
    Claim(
        "recovering-helps",
        "The recovering phase is better than stopping after the last compression.",
        of="paper",
        where="ablation (1.4 points in the text; its cells give 1.3)",
        rule=_DIRECTION.format(least=f"{LEAST:g} point"),
        unit="points",
        scale="any",
        find=_gain("heima-no-recover", PAPERS_PROTOCOL),
        reported=_reported_gain("heima-no-recover"),
    ),
    *(
        Claim(
            f"interpreter-reconstructs-{section}",
            f"The interpreter reconstructs the {section} from its thinking state, beyond what the "
            "question and another turn's state give.",
            of="paper",
            where="interpreters (no control was published)",
            rule="on the likelihood of the section against the question alone and against another "
            "turn's state, both: " + _DIRECTION.format(least=f"{LEAST_NATS:g} nats"),
            unit="nats a text",
            scale="any",
            find=_reconstructs(section),
        )
        for section in ("summary", "caption", "reasoning")
    ),
    Claim(
        "an-interpreter-each",
        "An interpreter for each section is better than one for all (BLEU-4, the least of the "
        "sections).",
        of="paper",
        where="interpreters, three against one",
        rule="for each section: " + _DIRECTION.format(least=f"{LEAST:g} point"),
        unit="points",
        scale="any",
        find=_own_is_better,
        reported=_reported_own_is_better,
    ),
    Claim(
        "one-token-is-enough",
        "More thinking tokens a section are no better than one.",
        of="paper",
        where="number of thinking tokens, 1 to 32",
        rule=f"supported where heima is not lower by more than {LEAST:g} point than any other "
        "number, by every training seed and both intervals; not supported where it is lower than "
        "one",
        unit="points",
        scale="any",
        find=_no_more_is_better("tokens_per_stage"),
        reported=_reported_series("tokens_per_stage"),
    ),
    Claim(
        "a-share-of-tokens-is-no-better",
        "Retaining a share of each section's tokens is no better than one token.",
        of="paper",
        where="retention ratio, .1 to .9",
        rule=f"supported where heima is not lower by more than {LEAST:g} point than any share, by "
        "every training seed and both intervals; not supported where it is lower than one",
        unit="points",
        scale="any",
        find=_no_more_is_better("retention_ratio"),
        reported=_reported_series("retention_ratio"),
    ),
    Claim(
        "second-family",
        "The method carries over to LLaVA-NeXT-Vicuna-7B: Heima surpasses its text-CoT model on "
        "MMBench.",
        of="paper",
        where="main table, second family",
        rule=_DIRECTION.format(least=f"{LEAST:g} point"),
        unit="points",
        scale="paper",
        find=_second_family,
        reported=_reported_second_family,
    ),
    Claim(
        "theorem-3.1",
        "Thinking tokens keep the usable information about the answer that the text has.",
        of="paper",
        where="Theorem 3.1",
        rule=f"supported where the text has less than {LOST_BITS:g} bits a conclusion more than "
        "the states of thinking tokens (one-sided at 5 %); not supported where all of that gap "
        "is above; of V-information: what trained predictors use, not what is there",
        unit="bits",
        scale="any",
        find=_theorem,
    ),
    *(
        Claim(
            f"thinking-states-matter{ending}",
            f"The thinking states of {variant} matter to the conclusion.",
            of="project",
            where="docs/audit.md",
            rule="supported where a donor's states of another conclusion cost accuracy, the donor "
            f"is followed, and more than {effects.SHARE:.0%} of the image's effect passes through "
            "the states, all at 5 % after Holm; not supported where no replacement moves accuracy "
            f"by {effects.MARGIN:g} points (equivalence at 5 %); the value is the accuracy lost",
            unit="points",
            scale="any",
            find=_states_matter(variant),
        )
        for variant, ending in (
            ("heima", ""),
            ("heima-no-recover", "-before-recovering"),
            ("heima-no-progressive", "-without-progress"),
        )
    ),
    Claim(
        "compressing-costs",
        "Compressing costs accuracy on the same questions, against the text-CoT model.",
        of="project",
        where="README",
        rule=_DIRECTION.format(least=f"{LEAST:g} point"),
        unit="points",
        scale="any",
        find=_costs,
    ),
    *(
        Claim(
            f"{section}-state-is-read",
            f"The interpreter of the {section} reads its thinking state: another turn's state is "
            "worse.",
            of="project",
            where="README",
            rule=_DIRECTION.format(least=f"{LEAST_NATS:g} nats"),
            unit="nats a text",
            scale="any",
            find=_is_read(section, "shuffled"),
        )
        for section in ("caption", "reasoning")
    ),
    *(
        Claim(
            f"{section}-state-tells-more-than-the-answer",
            f"The interpreter of the {section} reads more in its thinking state than the answer: a "
            "state of another image with the same conclusion is worse.",
            of="project",
            where="docs/audit.md",
            rule=_DIRECTION.format(least=f"{LEAST_NATS:g} nats"),
            unit="nats a text",
            scale="any",
            find=_is_read(section, "shuffled-same-gold"),
        )
        for section in ("caption", "reasoning")
    ),
    Claim(
        "better-than-bare-answers",
        "Heima is better than bare answers trained for as many updates, a control that the paper "
        "lacks.",
        of="project",
        where="README",
        rule=_DIRECTION.format(least=f"{LEAST:g} point"),
        unit="points",
        scale="any",
        find=_gain("answer-only", OWN_PROTOCOL),
    ),
    Claim(
        "forced-prefix-changes-nothing",
        "With the constant prefix in the prompt the answers are as good, and fewer tokens decoded.",
        of="project",
        where="docs/recipe.md",
        rule=f"supported where the difference lies inside ±{LEAST:g} point (equivalence at 5 %), "
        "not supported where all of it lies outside",
        unit="points",
        scale="any",
        find=_prefix,
    ),
    Claim(
        "compressed-is-at-chance-on-mmbench",
        "On MMBench, where every rotation must be right, each compressed variant is at chance.",
        of="project",
        where="README",
        rule=f"supported where no variant's interval reaches {MARGIN:g} points above chance, not "
        "supported where one lies above chance",
        unit="%",
        scale="toy",
        find=_at_chance,
    ),
)
"""Every claim, the paper's first."""
