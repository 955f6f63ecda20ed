"""What configuration has to know of a family; what it does stands in `heima.families`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """A family by name.

    Attributes:
        published: the family of which the paper's values are printed beside its own; of a toy, the
            one whose twin it is. None: the paper has none.
        toy: whether its models are trained here, from scratch, and so small that a CPU will do.
        vllm: whether vLLM serves its VLM.
        closes: whether its checkpoints may train with ways of attention closed (`attention`).
        kinds: the kinds of `teach.vlm` and `teach.llm`, where it is no toy.
    """

    published: str | None
    toy: bool = False
    vllm: bool = True
    closes: bool = True
    kinds: tuple[str, str] = ("pretrained", "pretrained")


RECORDS: Mapping[str, Record] = {
    "toy-mllama": Record("llava-cot-11b", toy=True, vllm=False),
    "toy-llava-next": Record("llava-next-vicuna-7b", toy=True),
    "toy-idefics3": Record(None, toy=True, closes=False),
    "smol": Record(None, vllm=False, closes=False, kinds=("grow", "gguf")),
    "llava-cot-11b": Record("llava-cot-11b", vllm=False),
    "llava-next-vicuna-7b": Record("llava-next-vicuna-7b"),
}

TOY_FAMILIES = tuple(name for name, record in RECORDS.items() if record.toy)


def known(name: str) -> str:
    """The name itself. Raises `ValueError` where no family has it."""
    if name not in RECORDS:
        raise ValueError(f"must be one of {', '.join(RECORDS)}")
    return name
