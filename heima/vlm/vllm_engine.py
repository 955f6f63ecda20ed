"""Batches decoded by vLLM, for families that it serves (not mllama).

It answers the same prompts as `heima.vlm.generation.Transformers`, and every token is accounted
for by the same code. The library itself was never run with this code, which knows it by its
documentation: the tests put a small stand-in in its place. What it returns is therefore checked,
not trusted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from heima.config import Decoding, Params
from heima.families.registry import FAMILIES
from heima.vlm.generation import Prompt
from heima.vlm.models import WHOLE, load_processor, load_vlm
from heima.vlm.pointer import locate

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Vllm:
    """Decodes batches through `vllm.LLM`, an adapter merged into the weights first.

    vLLM schedules within a batch, so `predict.batch_size` should be large here (some hundreds):
    a batch is what a killed run has to decode again. Sampled answers depend on the engine.

    Raises `ImportError` where vLLM is not installed, `ValueError` where torchrun has started
    several processes, and `RuntimeError` for an answer that neither ended nor reached its limit.
    """

    def __init__(self, models: Path, name: str, params: Params) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ImportError(
                "predict.engine = 'vllm' needs vLLM, in an environment of its own because it "
                "brings its own torch: pip install -e '.[vllm]'"
            ) from error
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "predict.engine = 'vllm' decodes in one process; torchrun has started "
                f"{os.environ['WORLD_SIZE']}"
            )
        self._sampling = vllm.SamplingParams
        with tempfile.TemporaryDirectory() as scratch:
            source = _source(models, name, params, Path(scratch))
            ends = GenerationConfig.from_pretrained(source).eos_token_id
            self.ends = frozenset(ends if isinstance(ends, list) else [ends])
            self._llm = vllm.LLM(
                model=source,
                dtype=_DTYPES[params.precision],
                # Nothing of the checkpoint's own sampling may leak in.
                generation_config="vllm",
                limit_mm_per_prompt={"image": 1},
                max_num_seqs=params.predict.batch_size,
                enable_prefix_caching=True,
            )

    def __call__(
        self,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        seed: int,
    ) -> list[list[int]]:
        images: dict[str, Any] = {}
        for prompt in prompts:
            if prompt.image_key not in images:
                images[prompt.image_key] = prompt.load_image()
        outputs = self._llm.generate(
            [
                {
                    "prompt_token_ids": list(row),
                    "multi_modal_data": {"image": images[prompt.image_key]},
                }
                for prompt, row in zip(prompts, ids, strict=True)
            ],
            [self._sampled(decoding, seed, place) for place in range(len(prompts))],
            use_tqdm=False,
        )
        return [
            self._checked(output.outputs[0], decoding)
            for _, output in zip(prompts, outputs, strict=True)
        ]

    def ahead(self, batches: Sequence[Sequence[Prompt]]) -> AbstractContextManager[None]:
        """vLLM makes nothing ready here."""
        return contextlib.nullcontext()

    def _sampled(self, decoding: Decoding, seed: int, place: int) -> Any:
        """How one answer of a batch is drawn: each has its own seed, or equal prompts would give
        equal answers."""
        options: dict[str, Any] = {"temperature": 0.0}
        if decoding.temperature > 0:
            options = {
                "temperature": decoding.temperature,
                "top_k": decoding.top_k,
                "top_p": 1.0,
                "seed": (seed + place) % 2**63,
            }
        return self._sampling(
            **options,
            max_tokens=decoding.max_new_tokens,
            stop_token_ids=sorted(self.ends),
            detokenize=False,
        )

    def _checked(self, answer: Any, decoding: Decoding) -> list[int]:
        row = list(answer.token_ids)
        ended = bool(row) and row[-1] in self.ends
        if answer.finish_reason == "stop" and ended:
            return row
        if answer.finish_reason == "length" and len(row) == decoding.max_new_tokens:
            return row
        raise RuntimeError(
            f"vLLM finished an answer by {answer.finish_reason!r} after {len(row)} of "
            f"{decoding.max_new_tokens} tokens, "
            f"{'with' if ended else 'without'} an end of turn"
        )


def _source(models: Path, name: str, params: Params, scratch: Path) -> str:
    """The folder that vLLM loads: a full model's, or `scratch` with one that was changed: by an
    adapter that is merged, or by thinking tokens that are added."""
    if name in WHOLE and not FAMILIES[params.family].added:
        return str(locate(models / name, weights=True))
    model, _ = load_vlm(models, name, params)
    model.save_pretrained(scratch)
    load_processor(models, params).save_pretrained(scratch)
    # vLLM wants the memory.
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return str(scratch)
