"""Ask a checkpoint about an image, and read what its thinking tokens stand for.

    python -m heima.chat IMAGE "question" [--checkpoint recover] [--seed 42]
    python -m heima.chat IMAGE "question" --exported FOLDER

Prints the answer; then, for each section with a thinking token in it, what the section's
interpreter makes of that token's state and, as a control, of a state from another question: a text
that comes out of any state says nothing about this one. Interpreters are those of `reconstructions`
in params.yaml. A folder of `stages.export` has none, and answers alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from heima import config
from heima.config import Decoding
from heima.cot.sections import meant, thinking_token
from heima.data import hub_cache, pictures
from heima.data.encoding import Sample
from heima.data.tokens import Vocabulary
from heima.families import registry
from heima.families.batches import Collator
from heima.families.feeding import Feed
from heima.interpreting import interpreter, states
from heima.results.files import read_json
from heima.vlm import models, weights
from heima.vlm.export import BASE
from heima.vlm.generation import Prompt, generate
from heima.vlm.pointer import PATTERNS, ModelError


class ChatError(RuntimeError):
    """What cannot be answered; one sentence."""


@dataclass(frozen=True)
class Reading:
    """What an interpreter made of a section's states, and of those of another question."""

    section: str
    own: str
    shuffled: str | None


class _OneImage:
    """Stands for an `ImageZip` that has a single image."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image

    def read(self, name: str) -> Image.Image:
        return self._image


def open_image(path: Path, how: config.ImageDecoding = "faithful") -> Image.Image:
    """An image file as RGB, decoded as the training's are.

    Raises `ChatError` where it cannot be read.
    """
    try:
        return pictures.decode(path.read_bytes(), how).image
    except pictures.PIL_FAULTS as error:
        raise ChatError(f"{path} cannot be read as an image: {error}") from error


def load_exported(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin, Vocabulary]:
    """What `stages.export` wrote.

    Raises `ChatError` where the folder holds no such thing, the hub's model below its adapter is
    not on this machine, or the adapter is not whole, and `ModelError` for a model that is not.
    """
    if not (folder / "thinking_tokens.json").exists():
        raise ChatError(f"{folder} was not written by stages.export: it has no thinking tokens")
    adapter = (folder / "adapter_config.json").exists()
    whole = _below(folder) if adapter else folder
    dtype = AutoConfig.from_pretrained(whole).dtype or torch.float32
    model = weights.load("vlm", whole, dtype)
    if adapter:
        model = _merged(model, folder, again=f"stages.export {folder}")
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    tokens = read_json(folder / "thinking_tokens.json")
    reserved = {name: one["token"] for name, one in tokens.items()}
    vocabulary = Vocabulary(processor.tokenizer, reserved)
    return model.to(models.device()).eval(), processor, vocabulary


def _merged(model: PreTrainedModel, adapter: Path, *, again: str) -> PreTrainedModel:
    """`model` with an adapter in its weights. Raises `ChatError` for one that is not whole."""
    try:
        return models.load_adapter(model, adapter, again=again).merge_and_unload()
    except ValueError as error:
        raise ChatError(str(error)) from error


def _below(folder: Path) -> Path:
    """Where the model lies that an exported adapter belongs on."""
    named = read_json(folder / "adapter_config.json")
    base, revision = named["base_model_name_or_path"], named.get("revision")
    if base == BASE:
        return folder / BASE
    found = hub_cache.cached("model", base, revision, PATTERNS)
    if found is None:
        raise ChatError(f"{base} at {revision} is not in the hub's cache: download it first")
    return found


def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    vocabulary: Vocabulary,
    image: Image.Image,
    question: str,
    *,
    max_new_tokens: int,
    feed: Feed | None = None,
) -> str:
    """The model's whole answer, decoded greedily; thinking tokens are shown by name.

    Raises `ChatError` for a question without a word.
    """
    if not question.strip():
        raise ChatError("the question is empty")
    decoding = Decoding(temperature=0, top_k=50, max_new_tokens=max_new_tokens, batch_size=1)
    prompt = Prompt(question, "image", lambda: image)
    [found] = generate(model, processor, vocabulary, [prompt], decoding=decoding, seed=0, feed=feed)
    return found.text


def readings(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    vocabulary: Vocabulary,
    image: Image.Image,
    question: str,
    text: str,
    params: config.Params,
    seed: int,
) -> Iterator[Reading]:
    """What the interpreters make of each thinking token in an answer `text`, section by section.

    The states are those of the answer that the model gave. A section without its own interpreter
    is left out. Raises `ChatError` for an answer without its thinking tokens.
    """
    sample = Sample(vocabulary.encode(question, "first", meant(text)), "image")
    feed = models.feed(processor.tokenizer, params, params.states.checkpoint)
    collate = Collator(
        registry.of(model), processor, _OneImage(image), thoughts=feed.ids if feed else None
    )
    thinking = params.thinking(params.states.checkpoint)
    try:
        found = states.extract(
            model,
            collate([sample]),
            vocabulary,
            thinking,
            position=params.states.position,
            feed=feed,
        )
    except ValueError as error:
        raise ChatError(f"the answer has no thinking tokens to read: {error}") from error
    words = models.vocabulary(models.load_tokenizer(models.ROOT, params), params)
    for named in params.reconstructions.values():
        folder = Path("interpreters") / named.interpreter / "own" / str(seed)
        section = named.section
        if named.interpreter != section or not folder.exists():
            continue
        again = f"dvc repro interpret@{named.interpreter}-own-{seed}"
        merged = _merged(models.load_llm(models.ROOT, params), folder, again=again)
        merged = merged.to(models.device())
        reader = interpreter.StateReader(merged, [words.thinking_ids[thinking_token(section)]])
        given = [found[section].values]
        if (other := _other_states(section, seed)) is not None:
            given.append(other)
        wordings = params.interpret.wordings
        asked = [interpreter.ask(question, section, one, words, wordings=wordings) for one in given]
        written = interpreter.write(reader, asked, words, decoding=params.reconstruct, seed=seed)
        own, *shuffled = (words.decode(row) for row in written)
        yield Reading(section, own, shuffled[0] if shuffled else None)


def _other_states(section: str, seed: int) -> torch.Tensor | None:
    """The states of a held-out turn, (count, hidden_size); None where none were extracted."""
    path = Path("states") / str(seed) / "heldout.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        values, counts = file.get_tensor(section), file.get_tensor(f"{section}.counts").tolist()
    return values.split(counts)[int(np.random.default_rng(seed).integers(len(counts)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--checkpoint", help="of the pipeline (that of `states`)")
    parser.add_argument("--seed", type=int, help="training seed (the first of `seeds`)")
    parser.add_argument("--exported", type=Path, help="a folder of stages.export instead")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    given = parser.parse_args()
    try:
        _chat(given)
    except (ChatError, ModelError, config.ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def _chat(given: argparse.Namespace) -> None:
    if given.exported:
        image = open_image(given.image)
        loaded = load_exported(given.exported)
        print(answer(*loaded, image, given.question, max_new_tokens=given.max_new_tokens))
        return
    params = config.load_resolved()
    image = open_image(given.image, params.image_decoding)
    checkpoint = given.checkpoint or params.states.checkpoint
    known = ["text-cot", "base", *params.checkpoints]
    if checkpoint not in known:
        raise ChatError(f"checkpoint {checkpoint!r} is not one of {', '.join(known)}")
    seed = params.seeds[0] if given.seed is None else given.seed
    model, processor = models.load_vlm(models.ROOT, params.trained(checkpoint, seed), params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    text = answer(
        model,
        processor,
        vocabulary,
        image,
        given.question,
        max_new_tokens=given.max_new_tokens,
        feed=models.feed(processor.tokenizer, params, checkpoint),
    )
    print(text)
    if checkpoint != params.states.checkpoint:
        print(f"\n(the interpreters read {params.states.checkpoint}, not {checkpoint})")
        return
    for one in readings(model, processor, vocabulary, image, given.question, text, params, seed):
        print(f"\n{one.section}\n  its own state: {one.own}")
        print(f"  another question's: {one.shuffled or '(no states are extracted here)'}")


if __name__ == "__main__":
    main()
