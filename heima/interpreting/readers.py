"""The interpreters that read a checkpoint's thinking states, one a section, to be asked one by one.

They are those of the pipeline, or of a folder that `save` wrote beside an exported checkpoint:
`interpreters/` with `llm/` (the tokenizer, and the LLM where no hub has it), an adapter for each,
`reading.json` (how they are asked) and `others.safetensors` (states of another question, for the
control).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from heima.config import Decoding, Params
from heima.cot.sections import thinking_token
from heima.cot.thinking import Thinking
from heima.data import hub_cache
from heima.data.tokens import Vocabulary
from heima.families.family import Family
from heima.interpreting import interpreter
from heima.interpreting.wordings import Wordings
from heima.results.files import read_json, write_json
from heima.vlm import models, weights
from heima.vlm.added_tokens import fit, untie
from heima.vlm.pointer import PATTERNS, POINTER, ModelError

FOLDER = "interpreters"
"""Of an exported checkpoint, the folder with what reads it."""
_ASKED, _OTHERS, _LLM = "reading.json", "others.safetensors", "llm"
_WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Readers:
    """`load` gives the LLM anew, whose tokenizer `words` has. `adapters` has for each section its
    interpreter's folder and the command that makes it; `others` the states of another question,
    (count, hidden_size), where there are any."""

    load: Callable[[], PreTrainedModel]
    words: Vocabulary
    adapters: Mapping[str, tuple[Path, str]]
    others: Mapping[str, torch.Tensor]
    thinking: Thinking
    position: Literal["predicting", "at"]
    wordings: Wordings
    decoding: Decoding

    def read(
        self, section: str, question: str, states: torch.Tensor, seed: int
    ) -> tuple[str, str | None]:
        """What a section's interpreter makes of states, (count, hidden_size), and of another
        question's. Raises `ValueError` for an adapter that is not whole."""
        folder, again = self.adapters[section]
        merged = models.load_adapter(self.load(), folder, again=again).merge_and_unload()
        token = self.words.thinking_ids[thinking_token(section)]
        reader = interpreter.StateReader(merged.to(models.device()), [token])
        given = [states]
        if section in self.others:
            given.append(self.others[section].to(states.dtype))
        asked = [
            interpreter.ask(question, section, one, self.words, wordings=self.wordings)
            for one in given
        ]
        rows = interpreter.write(reader, asked, self.words, decoding=self.decoding, seed=seed)
        own, *other = (self.words.decode(row) for row in rows)
        return own, other[0] if other else None


def of_pipeline(params: Params, seed: int) -> Readers:
    """Those of `reconstructions` that are named like their section, as far as they are trained."""
    adapters = {}
    for section in params.sections:
        name = params.reconstructions[section].interpreter
        folder = Path("interpreters") / name / "own" / str(seed)
        if folder.exists():
            given = params.interpreters[name].adapter is not None
            stage = "adopt@interpreter-" if given else "interpret@"
            adapters[section] = folder, f"dvc repro {stage}{name}-own-{seed}"
    return Readers(
        lambda: models.load_llm(models.ROOT, params),
        models.vocabulary(models.load_tokenizer(models.ROOT, params), params),
        adapters,
        _others(adapters, seed),
        params.thinking(params.states.checkpoint),
        params.states.position,
        params.interpret.wordings,
        params.reconstruct,
    )


def _others(sections: Mapping[str, object], seed: int) -> dict[str, torch.Tensor]:
    """The states of a held-out turn; none where none were extracted."""
    path = Path("states") / str(seed) / "heldout.safetensors"
    if not path.exists():
        return {}
    found = {}
    with safe_open(path, framework="pt") as file:
        for section in sections:
            counts = file.get_tensor(f"{section}.counts").tolist()
            turn = int(np.random.default_rng(seed).integers(len(counts)))
            found[section] = file.get_tensor(section).split(counts)[turn].clone()
    return found


def save(readers: Readers, folder: Path) -> None:
    """Write the readers of the pipeline to the new `folder`/`FOLDER`."""
    place = folder / FOLDER
    place.mkdir()
    pointer = models.ROOT / "interpreter" / POINTER
    named = read_json(pointer) if pointer.exists() else {}
    if "id" not in named:
        llm = readers.load()
        llm.save_pretrained(place / _LLM)
    readers.words.tokenizer.save_pretrained(place / _LLM)
    for section, (adapter, _) in readers.adapters.items():
        (place / section).mkdir()
        for name in _WEIGHTS:
            shutil.copyfile(adapter / name, place / section / name)
    save_file(dict(readers.others), place / _OTHERS)
    decoding = {key: getattr(readers.decoding, key) for key in Decoding.model_fields}
    write_json(
        place / _ASKED,
        {
            "llm": {key: named[key] for key in ("id", "revision") if key in named},
            "sections": list(readers.adapters),
            "reserved": readers.words.reserved,
            "thinking": readers.thinking.model_dump(exclude_none=True),
            "position": readers.position,
            "wordings": readers.wordings,
            "decoding": decoding,
        },
    )


def load(folder: Path, family: Family, dtype: torch.dtype) -> Readers | None:
    """What `save` wrote; None where the exported folder has none.

    Raises `ModelError` where the hub's LLM is not on this machine.
    """
    place = folder / FOLDER
    if not (place / _ASKED).exists():
        return None
    asked = read_json(place / _ASKED)
    where: Path | None = place / _LLM
    if asked["llm"]:
        identity, revision = asked["llm"]["id"], asked["llm"].get("revision")
        where = hub_cache.cached("model", identity, revision, PATTERNS)
        if where is None:
            raise ModelError(
                f"{identity} at {revision} is not in the hub's cache: download it first"
            )
    # As it was saved: with the family's chat template and tokens.
    tokenizer = AutoTokenizer.from_pretrained(place / _LLM, local_files_only=True)
    found = where

    def llm() -> PreTrainedModel:
        assert found is not None
        model = weights.load("llm", found, dtype)
        untie(model)
        fit(model, tokenizer, family)
        return model

    return Readers(
        llm,
        Vocabulary(tokenizer, asked["reserved"]),
        {name: (place / name, f"stages.export {folder}") for name in asked["sections"]},
        load_file(place / _OTHERS),
        Thinking(**asked["thinking"]),
        asked["position"],
        asked["wordings"],
        Decoding(**asked["decoding"]),
    )
