"""What prompt lookup saves: `python -m timings.lookup [--models FOLDER] [--data FOLDER]`

Answers `--questions` of the toy's (protocol lmms, as many of each benchmark, greedy, one at a time)
with the trained models of `--models`, token by token and with lookup, and counts the passes of the
text model. Passes, not seconds: it may run beside anything.

It fails where any text differs. The last line is a JSON object:

- `ratio`: passes token by token over those with lookup, the least of the models, which `ratios` has
  one by one; above 1 lookup saves some;
- `passes`: model -> passes an answer with lookup, and without (as many as decoded tokens);
- `same`, `questions`: of how many answers the texts are the same, of how many.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from tabulate import tabulate
from transformers import PreTrainedModel, ProcessorMixin

from eval import benchmark_data
from heima import config
from heima.config import Params
from heima.data.tokens import Vocabulary
from heima.families import batches, registry
from heima.families.images import ImageCache
from heima.vlm.generation import Prompt
from heima.vlm.lookup import looking_up
from heima.vlm.models import load_vlm, vocabulary
from heima.vlm.sampling import sampling
from timings.predict import PARAMS, ask, every

TOKENS = 10
"""How many are looked up a pass, as in `profiles/toy-methods.yaml`."""

VARIANTS = ("text-cot", "heima")


class Answering:
    """Answers one question at a time, and counts the passes of the text model."""

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, words: Vocabulary, limit: int
    ) -> None:
        self._model, self._processor, self._words, self._limit = model, processor, words, limit
        self._family = registry.of(model)
        self._images = ImageCache()
        self.passes = 0
        self._family.language_model(model).register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.passes += 1

    @torch.inference_mode()
    def __call__(self, prompt: Prompt, params: Params, tokens: int | None) -> list[int]:
        """The answer's tokens, its end among them."""
        image = self._images.get(
            prompt.image_key, lambda: self._family.process(prompt.load_image(), self._processor)
        )
        ids = [self._words.prompt_ids(prompt.question, "first")]
        inputs = batches.model_inputs(self._family, ids, [image], self._processor)
        with looking_up(self._model, tokens) as looked:
            output = self._model.generate(
                **inputs,
                **sampling(params.decoding("lmms")),
                max_new_tokens=self._limit,
                pad_token_id=self._processor.tokenizer.pad_token_id,
                **looked,
            )
        answer: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return answer


def compare(
    answering: Answering, params: Params, prompts: Sequence[Prompt]
) -> tuple[float, float, float, int]:
    """Means an answer: decoded tokens, passes without lookup and with; how many are the same."""
    decoded, same = 0, 0
    passes = {None: 0, TOKENS: 0}
    for prompt in prompts:
        answers = []
        for tokens in passes:
            before = answering.passes
            answers.append(answering(prompt, params, tokens))
            passes[tokens] += answering.passes - before
        decoded += len(answers[0])
        same += answers[0] == answers[1]
    count = len(prompts)
    return decoded / count, passes[None] / count, passes[TOKENS] / count, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--data", type=Path, default=benchmark_data.FOLDER)
    parser.add_argument("--questions", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    params = config.load(PARAMS)
    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(benchmark_data, "FOLDER", options.data),
    ):
        prompts = ask(params, Path(scratch))
        picked = [prompts[place] for place in every(prompts, options.questions)]
        lines, ratios, shown, alike = [], {}, {}, {}
        for variant in VARIANTS:
            model = params.variants[variant].model
            seed = params.training_seeds(model)[0]
            loaded, processor = load_vlm(options.models, params.trained(model, seed), params)
            words = vocabulary(processor.tokenizer, params)
            answering = Answering(loaded, processor, words, params.predict.max_new_tokens)
            decoded, plain, looked, same = compare(answering, params, picked)
            ratios[variant] = round(plain / looked, 2)
            shown[variant] = [round(looked, 2), round(plain, 2)]
            alike[variant] = same
            lines.append(
                [
                    *(variant, f"{decoded:.1f}", f"{plain:.1f}", f"{looked:.1f}"),
                    *(f"{plain / looked:.2f}", f"{same} of {len(picked)}"),
                ]
            )
    columns = ["decoded tokens", "passes", "passes with lookup", "ratio", "same text"]
    aligned = ("left", *["right"] * len(columns))
    print(tabulate(lines, ["", *columns], colalign=aligned, disable_numparse=True))
    result = {
        "benchmark": "lookup",
        "baseline": "token by token",
        "ratio": min(ratios.values()),
        "ratios": ratios,
        "passes": shown,
        "same": alike,
        "questions": len(picked),
    }
    print(json.dumps(result))
    if set(alike.values()) != {len(picked)}:
        raise SystemExit("texts with lookup differ from those decoded token by token")


if __name__ == "__main__":
    main()
