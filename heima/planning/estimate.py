"""What each stage of the pipeline will take: FLOPs, GPU-hours, memory, disk, judge calls, dollars.

Everything follows from the parameters, a `Workload` and a `Machine`, by the formulas of
`flop_counts` and `memory`. Time is FLOPs over the share `mfu` of the device's peak; decoding, which
reads all weights for each token, takes the longer of that and its bytes over the share `mbu` of the
bandwidth. FLOPs are those that are carried out: padded tiles and recomputed activations included.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property

from heima.config import BenchmarkName, Checkpoint, GivenCheckpoint, Params, ToySource
from heima.config.benchmarks import BENCHMARKS
from heima.cot.rendering import RENDERINGS
from heima.cot.sections import COMPRESSIBLE
from heima.cot.thinking import ONE_TOKEN
from heima.planning import flop_counts, memory
from heima.planning.audits import Audits
from heima.planning.machine import Levers
from heima.planning.parts import Stage
from heima.planning.trainings import FROM_SCRATCH, Training
from heima.toy.world import LETTERS

PADDING = 2.0
"""A batch decodes until its longest answer has ended: so many times the mean answer."""
QUESTION = 100
"""Tokens of a benchmark's prompt, the options included."""
BASE_ANSWER = 120
"""Tokens of an answer of the model that was not tuned on sections (paper: 65 to 240)."""
SOURCE_BYTES = 160e9
"""LLaVA-CoT-100k's images and annotations, about."""
BENCHMARK_BYTES = 3e9
"""The benchmarks together, about."""
ROW_BYTES = 2500
"""A prediction, a reconstruction or a judgement with its texts, about."""

PROBING = 2e-7
"""Seconds for each number of a probe's states: some hundred steps of L-BFGS on one core."""

HASHED = 0.011
"""Seconds that one core takes to decode and hash an image of a megapixel."""
HASHING = 4
"""Threads that hash images."""

INSTRUCTIONS = 320
"""Tokens of the judge's instructions for a reconstruction, and of the form of its reply."""
REPLY = 10
"""Tokens of a judge's reply."""


class Estimate(Audits):
    """The stages of the parameters' pipeline on a machine, in the order of dvc.yaml."""

    @cached_property
    def stages(self) -> list[Stage]:
        params = self.params
        return [
            Stage("resolve"),
            self._prepare(),
            Stage("rewrite", samples=self.workload.turns, disk=self.workload.turns * 1200),
            *(self._teach(name) for name in ("text-cot", "base", "interpreter")),
            *self._adopt(),
            *self._each_seed(
                self._distill(name, one)
                for name, one in params.checkpoints.items()
                if isinstance(one, Checkpoint)
            ),
            *self._each_seed([self._states()]),
            *self._each_seed(
                self._interpret(name, source)
                for name, one in params.interpreters.items()
                if one.adapter is None
                for source in ("own", "question-only")
            ),
            *self._each_seed(self._reconstruct(name) for name in params.reconstructions),
            self._judge(),
            *(self._similarity(name) for name in params.reconstructions),
            self._probe(),
            *(self._predict(name) for name in params.variants),
            *(self._score(name) for name in params.variants),
            *self.audits(),
            self._latency(),
            self._leaks(),
            Stage("flops", note="counts what training took"),
            Stage("tables"),
            Stage("figures"),
            Stage("page"),
            Stage("track"),
        ]

    def with_levers(self, levers: Levers) -> Estimate:
        """The same, computing otherwise; what does not depend on that is not worked out again."""
        assert self.stages  # Counting the weights takes longest, and belongs to both.
        other = copy.copy(self)
        other.levers = levers
        for name in ("stages", "_trained_image"):
            other.__dict__.pop(name, None)
        return other

    def _each_seed(self, stages: Iterable[Stage]) -> Iterator[Stage]:
        """The stages once for each training seed, named as in dvc.yaml."""
        for stage in stages:
            mark = "-" if "@" in stage.name else "@"
            for seed in self.params.seeds:
                yield replace(stage, name=f"{stage.name}{mark}{seed}")

    def _prepare(self) -> Stage:
        source = self.params.source
        if source.kind == "hub":
            return Stage("prepare", disk=SOURCE_BYTES + BENCHMARK_BYTES)
        size = 2000 * self.workload.images if self._toy else BENCHMARK_BYTES
        return Stage(
            "prepare", disk=size, note="" if self._toy else "the source lies there already"
        )

    def _teach(self, name: str) -> Stage:
        part = self.params.teach.llm if name == "interpreter" else self.params.teach.vlm
        config = self._llm if name == "interpreter" else self._vlm
        held = self._llm_weights if name == "interpreter" else self._vlm_weights
        disk = held.frozen * self._size
        if part.kind == "pretrained":
            return Stage(f"teach@{name}", disk=disk, note="downloads weights, trains nothing")
        if part.kind == "gguf":
            return Stage(f"teach@{name}", disk=disk, note="converts a GGUF file, trains nothing")
        samples = part.steps * part.batch_size
        if name == "interpreter":
            text = self._reading("own", self._mean_section)
            once = flop_counts.language(config, text, pairs=text**2, logits=text)
        else:
            # `base` trains on bare answers until it has used the FLOPs of `text-cot`.
            text = self._turn(RENDERINGS["text-cot"], ONE_TOKEN)
            once = self._pass(text, logits=text, image=self._trained_image)
        return self._computed(
            f"teach@{name}",
            samples=samples,
            tokens=samples * text,
            flops=FROM_SCRATCH * samples * once.forward,
            gpus=1,
            disk=disk,
            note="as many FLOPs as text-cot" if name == "base" else "",
        )

    def _adopt(self) -> Iterator[Stage]:
        """Adapters that are given: converted, and nothing trained."""
        note = "a given adapter, checked and converted; trains nothing"
        for name, checkpoint in self.params.checkpoints.items():
            if isinstance(checkpoint, GivenCheckpoint):
                [seed] = self.params.training_seeds(name)
                size = self._vlm_weights.trained * 4
                yield Stage(f"adopt@checkpoint-{name}-{seed}", disk=size, note=note)
        for name, one in self.params.interpreters.items():
            if one.adapter is not None:
                for source in ("own", "question-only"):
                    for seed in self.params.seeds:
                        size = self._llm_weights.trained * 4
                        run = f"adopt@interpreter-{name}-{source}-{seed}"
                        yield Stage(run, disk=size, note=note)

    def _distill(self, name: str, checkpoint: Checkpoint) -> Stage:
        training = self.levers
        found = self.training(name, checkpoint)
        samples = self._samples(checkpoint, self.workload.train)
        image = self._trained_image
        rows = self._rows(checkpoint.batch_size)
        return self._computed(
            f"distill@{name}",
            samples=samples,
            tokens=samples * self._positions(found.text, image),
            flops=samples * found.sample(checkpointing=training.gradient_checkpointing)
            + self.workload.heldout * found.one.forward
            + found.before,
            gpus=self.processes,
            memory=memory.training(
                self._vlm,
                self._vlm_weights,
                size=self._size,
                shards=self._shards,
                rows=rows,
                tokens=self._positions(found.text, image),
                labelled=found.labelled,
                images=max(1.0, rows / self.shared),
                image=image,
                checkpointing=training.gradient_checkpointing,
                logits_chunk=training.logits_chunk if training.labelled_only else None,
            ),
            disk=self._vlm_weights.trained * 4,
            note=_notes(checkpoint, found),
        )

    def _states(self) -> Stage:
        params = self.params
        thinking = params.thinking(params.states.checkpoint)
        text = self._turn(params.rendering(params.states.checkpoint), thinking)
        one = self._pass(text, logits=0, image=self.image)
        width = self._vlm.text_config.hidden_size
        lengths = self.workload.lengths
        vectors = sum(lengths.body(section, "token", thinking) for section in params.sections)
        return self._computed(
            "states",
            samples=self.workload.turns,
            tokens=self.workload.turns * self._positions(text, self.image),
            flops=self.workload.turns * one.forward,
            gpus=self.processes,
            memory=self._inference(params.states.batch_size, text),
            disk=self.workload.turns * vectors * width * self._size,
        )

    def _interpret(self, name: str, source: str) -> Stage:
        params, training = self.params, self.levers
        sections = params.interpreters[name].sections
        mean = sum(self.workload.lengths.sections[one] for one in sections) / len(sections)
        text = self._reading(source, mean)
        labelled = text - self._reading(source, 0) + 1
        schedule = params.interpret.of(params.interpreters[name])
        # An epoch is one over the turns of each section.
        samples = self._samples(schedule, self.workload.train * len(sections))
        logits = labelled if training.labelled_only else text
        one = flop_counts.language(
            self._llm,
            text,
            pairs=text**2,
            logits=logits,
            rank=params.interpret.lora.rank,
            reached=training.gradient_checkpointing,
        )
        return self._computed(
            f"interpret@{name}-{source}",
            samples=samples,
            tokens=samples * text,
            flops=samples * one.total(checkpointing=training.gradient_checkpointing)
            + self.workload.heldout * len(sections) * one.forward,
            gpus=self.processes,
            memory=memory.training(
                self._llm,
                self._llm_weights,
                size=self._size,
                shards=self._shards,
                rows=self._rows(params.interpret.batch_size),
                tokens=text,
                labelled=labelled,
                checkpointing=training.gradient_checkpointing,
                logits_chunk=training.logits_chunk if training.labelled_only else None,
            ),
            disk=self._llm_weights.trained * 4,
        )

    def _reconstruct(self, name: str) -> Stage:
        options = self.params.reconstruct
        section = self.params.reconstructions[name].section
        prompt = self._reading("own", 0)
        written = self.workload.lengths.sections[section] + 1
        samples = self.workload.heldout * len(options.controls)
        longest = min(PADDING * written, options.max_new_tokens)
        # The prompt is read to write, and with the true text to score it.
        whole = prompt + written
        read = flop_counts.language(self._llm, prompt, pairs=prompt**2, logits=1)
        scored = flop_counts.language(self._llm, whole, pairs=whole**2, logits=whole)
        decoded = self._decoded(
            f"reconstruct@{name}",
            samples=samples,
            batch_size=options.batch_size,
            prompt=prompt,
            longest=longest,
            once=read + scored,
        )
        held = memory.inference(
            self._llm,
            self._llm_weights,
            size=self._size,
            rows=options.batch_size,
            tokens=prompt + longest,
        )
        return replace(decoded, gpus=self.processes, memory=held, disk=samples * ROW_BYTES)

    def _judge(self) -> Stage:
        params = self.params
        calls = tokens = 0.0
        for one in params.reconstructions.values():
            count = self.workload.heldout * len(params.similarity.judged) * len(params.seeds)
            asked = INSTRUCTIONS + self.workload.lengths.prompt
            asked += 2 * self.workload.lengths.sections[one.section]
            calls += count
            tokens += count * asked
        return Stage(
            "judge",
            samples=calls,
            judge_calls=round(calls),
            usd=self._price(tokens, calls * REPLY, batch=True),
            disk=calls * ROW_BYTES / 10,
            note="" if params.similarity.judged else "similarity.judged names no control",
        )

    def _similarity(self, name: str) -> Stage:
        params = self.params
        samples = self.workload.heldout * len(params.reconstruct.controls) * len(params.seeds)
        return Stage(f"similarity@{name}", samples=samples, disk=samples * 300)

    def _probe(self) -> Stage:
        """Two probes for each section, training seed and word; on the CPU."""
        params = self.params
        fitted = min(params.probe.fitted, self.workload.train)
        probes = 2 * len(params.sections) * len(params.seeds) * params.probe.words
        width = self._vlm.text_config.hidden_size
        minutes = probes * PROBING * fitted * width / 60
        note = "" if self._toy else f"on the CPU: about {minutes:.0f} min on one core"
        return Stage("probe", samples=probes * fitted, note=note)

    def _predict(self, name: str) -> Stage:
        params = self.params
        prompts = sum(
            benchmark_rows(params, benchmark) * len(protocol.seeds)
            for protocol in params.protocols.values()
            for benchmark in params.benchmarks
        ) * self._models(name)
        prompt, answer = self._asked(name)
        longest = min(PADDING * answer, params.predict.max_new_tokens)
        decoded = self._answered(
            f"predict@{name}", prompts, params.predict.batch_size, prompt, longest
        )
        return replace(
            decoded,
            # vLLM decodes in one process (heima/vlm/vllm_engine.py).
            gpus=1 if params.predict.engine == "vllm" else self.processes,
            memory=self._inference(params.predict.batch_size, prompt + longest),
            disk=prompts * ROW_BYTES,
        )

    def _models(self, variant: str) -> int:
        """How many models a variant has: one a training seed."""
        return len(self.params.training_seeds(self.params.variants[variant].model))

    def _asked(self, variant: str) -> tuple[float, float]:
        """Tokens of a benchmark's prompt to a variant, and of its answer."""
        params, lengths = self.params, self.workload.lengths
        model = params.variants[variant].model
        prompt: float = QUESTION if not self._toy else lengths.prompt
        if model == "base":
            return prompt, lengths.sections["conclusion"] + 1 if self._toy else BASE_ANSWER
        rendering = params.rendering(model, params.variants[variant].asks)
        answer = lengths.answer(rendering, params.thinking(model))
        if params.variants[variant].forced_prefix is not None:
            omitted = rendering.model_copy(update=dict.fromkeys(COMPRESSIBLE, "omit"))
            kept = lengths.answer(omitted, ONE_TOKEN)
            return prompt + answer - kept, kept
        budget = params.variants[variant].budget
        if budget is not None:
            omitted = rendering.model_copy(update=dict.fromkeys(COMPRESSIBLE, "omit"))
            return prompt, min(answer, budget + lengths.answer(omitted, ONE_TOKEN))
        return prompt, answer

    def _score(self, name: str) -> Stage:
        params = self.params
        calls = tokens = 0.0
        for protocol, rules in params.protocols.items():
            for benchmark in params.benchmarks:
                facts = BENCHMARKS[benchmark]
                # Of other benchmarks the judge sees only what no rule can read.
                if protocol not in facts.judged:
                    continue
                count = benchmark_rows(params, benchmark) * len(rules.seeds) * self._models(name)
                calls += count
                tokens += count * facts.judge_tokens
        return Stage(
            f"score@{name}",
            samples=calls,
            judge_calls=round(calls),
            usd=self._price(tokens, calls * REPLY),
        )

    def _latency(self) -> Stage:
        """Each case at each batch size: a warm-up, and every round's batches, four at most."""
        asked = self.params.latency
        rows = benchmark_rows(self.params, asked.benchmark)
        samples = flops = tokens = hours = 0.0
        for case in asked.cases.values():
            prompt, answer = self._asked(case.variant)
            if case.budget is not None:
                answer = min(answer, self._asked(asked.cases[case.budget].variant)[1])
            # What is looked up is decoded at batch 1 alone, in no more passes than tokens.
            for size in asked.batch_sizes if case.lookup is None else (1,):
                batches = 1 + asked.rounds * min(4, rows // size)
                part = self._answered("latency", batches * size, size, prompt, PADDING * answer)
                samples += part.samples
                flops += part.flops
                tokens += part.tokens
                hours += part.gpu_hours
        models = len({self.params.variants[case.variant].model for case in asked.cases.values()})
        held = self._inference(max(asked.batch_sizes), QUESTION + PADDING * answer)
        held["weights"] *= models
        return Stage(
            "latency", samples, tokens, flops, hours, 1, held, note="all models in memory at once"
        )

    def _leaks(self) -> Stage:
        """Images are decoded and hashed, on cores; comparing their hashes takes seconds."""
        if self._toy:
            return Stage("leaks", samples=self.workload.images)
        rows = sum(benchmark_rows(self.params, one) for one in self.params.benchmarks)
        images = self.workload.images + rows
        minutes = images * HASHED / HASHING / 60
        note = f"on the CPU: about {minutes:.0f} min on {HASHING} cores, as fast as images are read"
        return Stage("leaks", samples=images, disk=rows * 100, note=note)


def _notes(checkpoint: Checkpoint, found: Training) -> str:
    """What a checkpoint's training has beside the pass over its samples."""
    notes = []
    if not isinstance(checkpoint.data, str):
        notes.append(f"a mixture: {checkpoint.trained_on}")
    if checkpoint.feed == "state":
        notes.append("states fed back by segments, the FLOPs of one pass")
    if checkpoint.losses.align:
        notes.append("a teacher's pass for each sample")
    if checkpoint.losses.explain:
        notes.append("a decoder of two layers writes the sections")
    if found.before:
        notes.append("text-CoT reads all turns once to shorten them")
    return "; ".join(notes)


def benchmark_rows(params: Params, benchmark: BenchmarkName) -> int:
    """Questions of a benchmark that a run decodes, each rotation counted."""
    if isinstance(params.source, ToySource):
        size = params.source.benchmark_sizes[benchmark]
        return size * len(LETTERS) if BENCHMARKS[benchmark].dataset.rotation else size
    return BENCHMARKS[benchmark].rows
