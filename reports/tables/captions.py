"""The wording of the captions: what a table's numbers are, and what they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from heima.config import OpenAIJudge, Params, ProtocolName, chains
from heima.results.measures import judge_name
from reports.tables.kept import Kept
from reports.tables.model import Block
from reports.tables.reading import REFERENCE


def about(params: Params) -> str:
    """What every caption of ours says first."""
    seeds = "training seed" if len(params.seeds) == 1 else "training seeds"
    return (
        f"{params.profile} profile, family {params.family}, seed {params.seed}, "
        f"{seeds} {', '.join(map(str, params.seeds))}"
    )


_INTERVAL = "95 % percentile bootstrap intervals in brackets"


def _spread(params: Params) -> str:
    """What the intervals of a caption are over, and what of chance they leave out."""
    if len(params.seeds) == 1:
        return (
            f"{_INTERVAL}, over questions alone: of one training seed nothing is concluded about a "
            "method"
        )
    return (
        f"means over {len(params.seeds)} training seeds, after ± the standard deviation between "
        f"them; {_INTERVAL}, training seeds and questions resampled. All seeds share the data and "
        "one text-CoT model, base and LLM, whose own spread is not in there (a value without ± has "
        "one model)"
    )


_DECODED = (
    "Decoded tokens are all generated tokens of an answer: thinking tokens, tags and the end of "
    "turn included"
)

_RULES = {
    "lmms": "protocol lmms, lmms-eval's own prompts and rules",
    "vlmevalkit": "protocol vlmevalkit, VLMEvalKit's prompts and rules",
}


def _decoding(params: Params, protocol: ProtocolName) -> str:
    """How the answers of a protocol were decoded, for a caption."""
    rules = params.protocols[protocol]
    if rules.temperature == 0:
        return "greedy decoding"
    seeds = ", ".join(map(str, rules.seeds))
    return (
        f"sampled decoding (temperature {rules.temperature:g}, top-k {rules.top_k}, decoding seeds "
        f"{seeds}; n counts every answer, answers to one question are resampled together)"
    )


def benchmarks(params: Params, protocol: ProtocolName) -> str:
    return (
        f"Accuracy in percent ({_RULES[protocol]}; judged by {judge_name(params.judge)}), and "
        f"decoded tokens per answer; {_decoding(params, protocol)}; {_spread(params)}; "
        f"questions on one image resampled together. {_DECODED}; a forced prefix stands in "
        "the prompt and is not decoded. A failed answer has no conclusion; it stays in n, "
        "scored on its whole text and with its real length."
        + (
            " Up to "
            f"{params.judge.max_missing:.2%} of a benchmark's answers may be ungraded: they count "
            "as wrong in the value and as right in the interval's upper bound."
            if isinstance(params.judge, OpenAIJudge) and params.judge.max_missing
            else ""
        )
        + " Chance is what guessing scores."
    )


def ablation(params: Params, protocol: ProtocolName) -> str:
    return (
        "All variants start from the same text-CoT model; updates and learning rates are "
        f"those of the checkpoints on the way, in their order. Differences to {REFERENCE} are "
        "paired on the same questions and training seed, in points of their mean score; "
        f"{_spread(params)}; questions on one image resampled together. {_VERDICTS} "
        f"Under {_RULES[protocol]}; {_decoding(params, protocol)}. "
        f"{_DECODED}. Judged by {judge_name(params.judge)}."
    )


def methods(params: Params) -> str:
    """The caption of what each method scores, decodes and takes."""
    asked = "; ".join(
        f"{_RULES[protocol]}, {_decoding(params, protocol)}" for protocol in params.protocols
    )
    return (
        f"Accuracy in percent and decoded tokens per answer, means of the benchmarks ({asked}; "
        f"judged by {judge_name(params.judge)}); {_spread(params)}; questions on one image "
        f"resampled together. {_DECODED}. Updates and FLOPs are of all checkpoints that lead from "
        "the text-CoT model to the method, forward and backward, counted by their configurations "
        "and the mean tokens of a turn; what a term of the loss or shortening texts takes is among "
        "them. Milliseconds are of a batch end to end, of the case of latency that asks the method "
        "as it is. A method with prompt lookup writes what the one without it writes. Differences "
        "are paired on the same questions and training seed, in points of the mean score; p is of "
        "a t test on the training seeds' differences, and after Holm over all differences of this "
        "table."
    )


_VERDICTS = (
    "A difference is called higher or lower where all training seeds give it that sign and neither "
    "its interval nor the t interval over seeds has another; else it is undecided. Beside a "
    "verdict stands p (t test on the training seeds' differences,"
    " not corrected for the number of comparisons)."
)


def _without_tags(params: Params) -> str:
    """What is other where an audited checkpoint writes no tags; nothing where each does."""
    bare = [name for name in params.audit.checkpoints if params.rendering(name).tags == "none"]
    if not bare:
        return ""
    return (
        f"Without tags ({', '.join(bare)}) the last thinking token predicts the conclusion: it "
        "counts as what opens it, and those before it are replaced. "
    )


def _asked_for(params: Params) -> str:
    """Which of its renderings an audited checkpoint of a mixture answers in; nothing without."""
    asked = {name: params.audit.asks.get(name) for name in params.audit.checkpoints}
    named = [f"{name} for {asks}" for name, asks in asked.items() if asks]
    return f"Of a mixture of renderings, asked by its word: {', '.join(named)}. " if named else ""


def _with_words(params: Params) -> str:
    """What is other where words stand before the conclusion; nothing where none do."""
    worded = [
        name
        for name in params.audit.checkpoints
        if not chains.audited_rendering(params, name).constant
    ]
    if not worded:
        return ""
    return (
        f"Where words follow the thinking tokens ({', '.join(worded)}) they are decoded anew under "
        "each condition, and accuracy and answers are those of the conclusion behind them; closed: "
        "of the own words, too; no part is left out. "
    )


def audit(params: Params) -> str:
    """Without the numbers that `Params` says, which stand in the table."""
    return (
        "What becomes of conclusions where thinking states are replaced (zero, mean, noise, first: "
        "zeros, the mean of training turns, noise of their mean and variance, the first of a "
        "section's; same, other: those of a donor, another turn of the kind with the same or "
        "another conclusion), where parts of the forced prefix are left out (without, first), and "
        "where the conclusion does not see the thinking tokens or the image in some layers "
        "(closed). Accuracy is that of greedy decoding after the constant prefix. Follows the "
        "donor: answers that become the donor's, less those that are its anyway. Zeros decide "
        "nothing. Supported: other costs accuracy, the donor is followed, and more than 5 % of the "
        "image's effect passes through the states, all at 5 % after Holm; not supported: no "
        "replacement moves accuracy by 2 points (equivalence at 5 %); else undecided. Power: the "
        "probability that so many questions show that, where a tenth of the answers differ and "
        f"none is lost. {_without_tags(params)}{_asked_for(params)}{_with_words(params)}"
        "What the effects of planted checkpoints must be is known (docs/audit.md). "
        f"{_spread(params)}; questions on one image resampled together."
    )


NO_THEOREM = (
    "Theorem 3.1 is not measured here: audit.predictors in params.yaml names nobody who predicts "
    "conclusions."
)

NOT_EXAMINED = "No checkpoint is examined: examine in params.yaml names none."

STATES = (
    "Descriptive: no verdict looks at it. States are last hidden states after the final norm; "
    "before, behind: the tokens beside a thinking token; conclusion: where the first token of the "
    "conclusion is predicted. Cosine: of pairs of questions of a kind, centred: without the mean "
    "of all. Participation ratio: about how many dimensions states use. Sensitivity: how far a "
    "donor's image moves a state, by how far two questions' lie apart. Selectivity: the accuracy "
    "of a logistic regression on the states less that on labels drawn at random for each question "
    "text. Online code: the bits that send a conclusion, learning as it goes; uniform: what the "
    "number of conclusions alone gives. Means over training seeds, without intervals. Chains: what "
    "text-CoT wrote is forced upon it in part (kept, percent of its tokens), with a wrong fact, or "
    "as filler of equal length; percent of the questions whose chain ended, 95 % intervals over "
    "questions, questions on one image resampled together. Area over the curve: 1 - the mean "
    "share of answers that stay, over the parts that are not all of the chain."
)

NO_AUDIT = "No checkpoint is audited: audit.checkpoints in params.yaml names none."


def interpreters(params: Params, made: Mapping[str, Any], alone: int) -> str:
    """`made` is the provenance of the first reconstruction's metrics; `alone` counts the turns that
    no other one of their kind has the conclusion of."""
    official = params.similarity.references == "official"
    return (
        "Held-out sections rebuilt from their own thinking "
        f"state ({params.states.position}, checkpoint {params.states.checkpoint}) and from "
        "controls, by an interpreter for each section and by others. Text metrics in percent, "
        "means over samples, an empty reconstruction counts 0; ROUGE knows a to z and digits "
        "only, so it is 0 for texts in other scripts; corpus_bleu is of all samples "
        f"together; {_spread(params)}; turns on one image resampled together. nll_per_token is "
        "the section's negative log-likelihood in nats a token; nll_gain is NLL(control) - "
        "NLL(own) in nats a text. Differences are paired on the same turns. References are the "
        + (
            "sections in an answer sentence with tags, which predictions lack (exact: without)."
            if official
            else "sections alone."
        )
        + _controls(params, alone)
        + " Words: which of the section's commonest content words a linear probe of the own state "
        "(L2-regularised logistic regression, one a word) says are there; the same trained on the "
        "words of other turns of the kind (probe_shuffled_labels); and which of them an "
        "interpreter writes."
        + _given(params)
        + f" {_resources(params, made)} A metric named after a resource "
        "(meteor_exact_stem: no WordNet; bertscore_minilm_l6: MiniLM-L6) is not the paper's "
        "metric."
    )


def _controls(params: Params, alone: int) -> str:
    """What the controls are that a name does not tell."""
    words = {
        "shuffled": "shuffled: the state of another turn of the kind",
        "shuffled-same-gold": "shuffled-same-gold: of another one of the kind about another image "
        "with the same conclusion"
        + (f" (without one for {alone} turns, which get any of the kind)" if alone else ""),
        "mean": "mean: of the training states",
        "noise": "noise: drawn with mean and variance of the training states in each dimension, "
        "as long as the own state",
    }
    told = "; ".join(words[one] for one in params.reconstruct.controls if one in words)
    return f" Controls: {told}." if told else ""


def _given(params: Params) -> str:
    """Of interpreters that were not trained here."""
    used = {one.interpreter for one in params.reconstructions.values()}
    given = [name for name in used if params.interpreters[name].adapter is not None]
    if not given:
        return ""
    return (
        f" Not trained here: {', '.join(sorted(given))}. No such interpreter was trained without "
        "states: under question-only the same one is asked, without a place for a state."
    )


def _resources(params: Params, made: Mapping[str, Any]) -> str:
    """What the metrics were computed with, from the provenance of the first reconstruction."""
    bert, meteor = made["bertscore"], made["meteor"]
    parts = [
        f"corpus_bleu: {made['corpus_bleu']['signature']}",
        f"{meteor['column']}: NLTK {made['libraries']['nltk']}, {meteor['sentences']}",
        f"{bert['column']}: {bert['model']}, layer {bert['layers']}, {bert['tokenizer']}",
    ]
    if params.similarity.judged:
        judge = made["judge"]
        parts.append(
            f"{judge['column']}: grades from 1 to 5 by {judge_name(params.judge)}, prompt "
            f"{', '.join(judge['prompt'])}, 1 for an empty reconstruction, "
            f"{len(judge['missing'])} missing"
        )
    return "; ".join(parts) + "."


def latency(params: Params, provenance: Mapping[str, Any]) -> str:
    peaks = provenance["peaks"]
    left_out = "; ".join(
        f"batch {size}: {reason}" for size, reason in provenance["skipped"].items()
    )
    cut = "; ".join(
        f"{name} stops after {provenance['limits'][name]} tokens, the median of {case.budget}"
        for name, case in params.latency.cases.items()
        if case.budget is not None
    )
    return (
        "Models of the first training seed. "
        f"On {provenance['device']} (threads: {provenance['threads']}, {provenance['dtype']}, "
        f"torch {provenance['torch']}): medians over batches in milliseconds, cases in turn on "
        "the same batches of "
        f"{params.latency.benchmark} ({params.latency.protocol}), greedy; 95 % bootstrap "
        "intervals of the median. ttft: to the first token, preprocessing and vision included; "
        "tpot: each further token; e2e: the whole batch; p90: 90th percentile. Utilisation is "
        f"against {peaks['tflops']:.3g} TFLOP/s and {peaks['gb_per_s']:.4g} GB/s "
        f"({peaks['source']} for {peaks['device']}); bandwidth while decoding: weights and "
        "cache read once a step."
        + (f" {cut}." if cut else "")
        + (f" Left out: {left_out}." if left_out else "")
    )


SERIES = {
    "tokens_per_stage": "Thinking tokens a section",
    "retention_ratio": "Share of a section's tokens that are retained as thinking tokens",
}
"""The titles of the tables of a series."""


def series(params: Params, protocol: ProtocolName, rows: Mapping[str, str]) -> str:
    variants = ", ".join(f"{row}: {variant}" for row, variant in rows.items())
    return (
        f"Accuracy in percent and decoded tokens per answer ({_RULES[protocol]}; judged by "
        f"{judge_name(params.judge)}) of {variants}; {_decoding(params, protocol)}; "
        f"{_spread(params)}; questions on one image resampled together. {_DECODED}."
    )


def leaks(params: Params, unreadable: int) -> str:
    near = params.leaks
    return (
        "Of each set's questions, how many an earlier set has: with the image in the same file; of "
        "the same pixels in another file; near (a perceptual hash of 64 bits that differs in at "
        f"most {near.hamming}, and thumbnails whose colours differ by at most {near.difference:g} "
        "of 255 in the mean); with the same words, case, punctuation and options aside; with image "
        "and words of one question. Words alone are no leak: some are asked of every image. Images "
        f"that could not be read: {unreadable or 'none'}."
    )


def without_leaks(params: Params, protocol: ProtocolName, leaked: Mapping[str, int]) -> str:
    if not leaked:
        return (
            "No benchmark has an image that training turns have, so there is nothing to leave out."
        )
    counts = ", ".join(f"{name} {count}" for name, count in leaked.items())
    return (
        "Accuracy in percent on all questions, and without those whose image training turns have, "
        "as the same file, of the same pixels or near (rows left out, where there are any: "
        f"{counts}); {_RULES[protocol]}; {_spread(params)}; questions on one image resampled "
        "together."
    )


def kept_block(block: Block, kept: Kept) -> Block:
    """A block of another profile, which says so."""
    size = "" if kept.scale == "paper" else f"; {kept.scale}: not comparable with the paper's"
    return replace(
        block,
        title=f"{block.title}, kept",
        caption=f"Results of the profile {kept.profile}, made by the code of commit {kept.commit}"
        f"{size}. {block.caption}",
    )


def samples(params: Params, turns: int) -> str:
    return (
        f"Turns taken evenly by their place among the {turns} held-out ones; texts of training "
        f"seed {params.seeds[0]}, checkpoint {params.states.checkpoint}, cut where they are long. "
        "What is written from another turn's state or from the question alone is not read from the "
        "turn's own. The page of results has more, with images and grades."
    )


def families(params: Params, protocol: ProtocolName, kept: Sequence[Kept]) -> str:
    others = "; ".join(
        f"{one.family} (profile {one.profile}, training seeds {', '.join(map(str, one.seeds))}, "
        f"judge {one.judge}, commit {one.commit})"
        for one in kept
    )
    return (
        f"Accuracy in percent and decoded tokens per answer ({_RULES[protocol]}) of "
        f"{params.family} (profile {params.profile}, training seeds "
        f"{', '.join(map(str, params.seeds))}, judge {judge_name(params.judge)}), and, as kept of "
        f"other runs, of {others}. {_INTERVAL}: over training seeds and questions, over questions "
        f"alone where there is one seed. {_DECODED}. Nothing is tested between families: their "
        "models differ in more than their kind."
    )


def family_states(params: Params) -> str:
    """The caption of what interpreters read, family by family."""
    return (
        "What the own thinking state saves against each control, in nats a text, on held-out "
        f"turns (position {params.states.position}); {_INTERVAL}."
    )


def reported(params: Params, kept: Sequence[Kept], *, comparable: bool) -> str:
    """The caption of the table that lays the paper's cells beside ours."""
    others = "".join(
        f" What this profile has not of the series is of {one.profile} (commit {one.commit})."
        for one in kept
    )
    if not comparable:
        return (
            f"Each value of the paper beside the one of the profile {params.profile}, whose "
            "models, data and benchmarks are its own: the two are not comparable, no difference is "
            f"computed and nothing is concluded.{others}"
        )
    return (
        "Each value of the paper beside ours under the protocol vlmevalkit, and ours minus the "
        "paper's; intervals are ours alone, since the paper published none. Verdicts by "
        "docs/verdicts.md: reproduced where the difference lies inside the bounds (two one-sided "
        "tests), higher or lower where it is not 0, each after Holm over all cells that can be "
        f"tested; else undecided. A trained model of one training seed has no verdict.{others}"
    )


PUBLISHED_SERIES = (
    "Accuracy in percent. Other models, data, prompts and judges than ours. No intervals, n or "
    "tokens were published."
)
NOTHING_PUBLISHED = "The paper published nothing about this family."
ONE_FAMILY = (
    "One family was run here. Another one's results stand here once they are kept: "
    "`python -m stages.keep` where it was run."
)
PUBLISHED_BENCHMARKS = (
    "Other models, data, prompts and judges than ours; its generated tokens leave out "
    "parts of the released format that ours count. No intervals or n were published."
)
PUBLISHED_ABLATION = (
    "It states no updates for the run without progressive distillation, and has no "
    "answer-only control."
)
PUBLISHED_INTERPRETERS = (
    "METEOR with WordNet, BERTScore F1 with deberta-xlarge-mnli; references with template "
    "sentence and tags; no control and no likelihood was published."
)
