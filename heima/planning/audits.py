"""What audits will take, and what stands beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from heima.config import Predictor, chains, given
from heima.cot.sections import COMPRESSIBLE
from heima.planning import flop_counts
from heima.planning.parts import Stage
from heima.planning.trainings import Trainings

AUDIT_READS = 4
"""How often an audit reads a question: its own, two donors', and its own about another image."""
AUDIT_HELD = 3
"""Batches of questions whose keys and values an audit holds: those that are kept (2), and a pass's
own copy."""


def audit_passes(slots: int, windows: int, *, fed: bool = False, words: bool = False) -> int:
    """Passes over an answer with so many thinking tokens, at most (`eval.audit.measures`); where
    states are `fed` back, two are read once more, with their own states put back.

    With `words` before the conclusion (`eval.audit.words`) what is decoded is among them, and
    `slots` are those that would stand for all sections.

    >>> audit_passes(3, 2), audit_passes(3, 2, fed=True), audit_passes(3, 2, words=True)
    (31, 33, 38)
    """
    replaced = 6 if slots > len(COMPRESSIBLE) else 5
    closed = 1 + (windows if windows > 1 else 0)
    if words:
        # States, then what is written, which is scored: own (read again), the donor's, about the
        # other image; guessed before: replacements, and what passes through and past the states.
        return 4 + 3 * 2 + 1 + 3 * (replaced + 2) + 2 * closed
    # States and own answers, replacements, the donor's answer, mediation, parts, closed ways.
    return 4 + 2 * replaced + 1 + 3 + 3 + 2 * (slots - 1) + 2 * closed + (2 if fed else 0)


CHANGED_CHAINS = 8
"""Chains that an answer is read after: the own one, five parts with none and all of it among them,
a wrong one, and filler; each for the gold conclusion and for the model's own."""


class Audits(Trainings):
    """The stages that ask the questions of an audit, in the order of dvc.yaml."""

    def audits(self) -> Iterator[Stage]:
        """`audit` and `effects`, then `examine`, `theorem` and `truncate`."""
        params = self.params
        yield from self._audit()
        for name in params.audit.checkpoints:
            seeds = params.training_seeds(name)
            yield Stage(f"effects@{name}", samples=self._audited * len(seeds))
        for name in params.examine.checkpoints:
            # A question about its own image and about its donor's, and an answer after each.
            asks = params.audit.asks.get(name)
            for seed in params.training_seeds(name):
                yield self._beside(f"examine@{name}-{seed}", [(name, asks, 2, 2)])
        if predictors := params.audit.predictors:
            # Thinking tokens are replaced, too. One model reads a question for each format anew.
            passes = {"nothing": 1, "tokens": 2, "text": 1}
            yield self._beside(
                f"theorem@{predictors.tokens.model}",
                [(one.model, one.asks, 1, passes[part]) for part, one in predictors.parts.items()],
                times=len(params.seeds),
                fitted=predictors.tokens,
            )
        for name in params.examine.chains:
            # What is decoded costs about a pass more.
            yield self._beside(f"truncate@{name}", [(name, None, 1, 1 + 2 * CHANGED_CHAINS)])

    @property
    def _audited(self) -> int:
        """Questions of an audit: drawn in the toy world, elsewhere held-out turns."""
        wanted = self.params.audit.items
        return wanted if self._toy else min(wanted, self.workload.heldout)

    def _audit(self) -> Iterator[Stage]:
        """Questions are read once for each image and donor, and all passes go on from there."""
        params = self.params
        asked = params.audit
        for name in asked.checkpoints:
            slots = len(COMPRESSIBLE) * given(params.thinking(name).tokens, "thinking.tokens")
            fed = params.feed(name) is not None
            words = not chains.audited_rendering(params, name).constant
            passes = audit_passes(slots, asked.windows, fed=fed, words=words)
            asks = asked.asks.get(name)
            read, again = self._flops(name, asks)
            prompt, answer = self._lengths(name, asks)
            once = AUDIT_READS * read + passes * again
            # What is decoded, a question's answer and its donor's, costs about a pass more each.
            decoded = 0 if words else 2 * again
            flops = self._audited * (once + decoded) + asked.fitted * (read + again)
            before = self._positions(prompt, self.image)
            for seed in params.training_seeds(name):
                yield self._computed(
                    f"audit@{name}-{seed}",
                    samples=self._audited,
                    tokens=self._audited * (AUDIT_READS * before + passes * answer),
                    flops=flops,
                    gpus=self.processes,
                    memory=self._held(prompt + answer),
                    disk=self._audited * 400,
                )

    def _beside(
        self,
        stage: str,
        asked: Sequence[tuple[str, str | None, int, int]],
        *,
        times: int = 1,
        fitted: Predictor | None = None,
    ) -> Stage:
        """Questions of an audit, `times` over: each of the models `asked`, for a rendering where
        it has several, reads them so often, and passes over so many answers. `fitted` reads
        training turns first."""
        samples, flops, tokens, longest = times * self._audited, 0.0, 0.0, 0.0
        for model, asks, reads, passes in asked:
            read, again = self._flops(model, asks)
            prompt, answer = self._lengths(model, asks)
            flops += samples * (reads * read + passes * again)
            tokens += samples * (reads * self._positions(prompt, self.image) + passes * answer)
            longest = max(longest, prompt + answer)
        if fitted is not None:
            flops += times * self.params.audit.fitted * sum(self._flops(fitted.model, fitted.asks))
        return self._computed(
            stage,
            samples=samples,
            tokens=tokens,
            flops=flops,
            gpus=self.processes,
            memory=self._held(longest),
            disk=samples * 200,
        )

    def _held(self, text: float) -> dict[str, float]:
        """Bytes of a batch whose images are read, and of all keys and values that are held."""
        found = self._inference(self.params.audit.batch_size, text)
        return {
            part: size * (AUDIT_HELD if part == "keys and values" else 1)
            for part, size in found.items()
        }

    def _lengths(self, model: str, asks: str | None = None) -> tuple[float, float]:
        """Tokens of a question, and of a model's answer to it."""
        lengths = self.workload.lengths
        rendering = self.params.rendering(model, asks)
        return lengths.prompt, lengths.answer(rendering, self.params.thinking(model))

    def _flops(self, model: str, asks: str | None = None) -> tuple[float, float]:
        """FLOPs of a question that is read, and of a pass over an answer that goes on from it."""
        prompt, answer = self._lengths(model, asks)
        read = self._pass(prompt, logits=1, image=self.image).forward
        again = flop_counts.language(
            self._vlm.text_config,
            answer,
            pairs=answer * (self._positions(prompt, self.image) + answer),
            logits=answer,
            seen=self.image.tokens if self._crosses else 0,
            fresh=False,
        ).forward
        return read, again
