"""Ask a checkpoint about an image, and read what its thinking tokens stand for.

    python -m heima.chat IMAGE "question" [--checkpoint recover] [--seed 42]
    python -m heima.chat IMAGE "question" --exported FOLDER

Prints the answer; then, for each section with a thinking token in it, what the section's
interpreter makes of that token's state and, as a control, of a state from another question: a text
that comes out of any state says nothing about this one. Interpreters are those of `reconstructions`
in params.yaml that are named like a section, or those of an exported folder (`stages.export
--interpreters`); one without any answers alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from heima import config
from heima.config import Decoding
from heima.config.mixtures import word
from heima.cot.mixtures import asked
from heima.cot.sections import meant
from heima.data import hub_cache, pictures
from heima.data.encoding import Sample
from heima.data.tokens import Vocabulary
from heima.families import registry
from heima.families.batches import Collator
from heima.families.feeding import Feed
from heima.interpreting import readers, states
from heima.interpreting.readers import Readers
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
    reading: Readers,
    seed: int,
    feed: Feed | None = None,
) -> Iterator[Reading]:
    """What the interpreters make of each thinking token in an answer `text`, section by section.

    The states are those of the answer that the model gave. A section without an interpreter is left
    out. Raises `ChatError` for an answer without its thinking tokens, or an interpreter that is not
    whole.
    """
    sample = Sample(vocabulary.encode(question, "first", meant(text)), "image")
    collate = Collator(
        registry.of(model), processor, _OneImage(image), thoughts=feed.ids if feed else None
    )
    try:
        found = states.extract(
            model,
            collate([sample]),
            vocabulary,
            reading.thinking,
            position=reading.position,
            feed=feed,
        )
    except ValueError as error:
        raise ChatError(f"the answer has no thinking tokens to read: {error}") from error
    for section in reading.adapters:
        try:
            own, other = reading.read(section, question, found[section].values, seed)
        except ValueError as error:
            raise ChatError(str(error)) from error
        yield Reading(section, own, other)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--checkpoint", help="of the pipeline (that of `states`)")
    parser.add_argument("--asks", help="the rendering, of a checkpoint trained on several")
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
        text = answer(*loaded, image, given.question, max_new_tokens=given.max_new_tokens)
        print(text)
        reading = readers.load(given.exported, registry.of(loaded[0]), loaded[0].dtype)
        if reading is not None:
            _show(readings(*loaded, image, given.question, text, reading, given.seed or 0))
        return
    params = config.load_resolved()
    image = open_image(given.image, params.image_decoding)
    checkpoint = given.checkpoint or params.states.checkpoint
    known = ["text-cot", "base", *params.checkpoints]
    if checkpoint not in known:
        raise ChatError(f"checkpoint {checkpoint!r} is not one of {', '.join(known)}")
    try:
        control = word(params, checkpoint, given.asks)
    except ValueError as error:
        raise ChatError(f"--{error}") from error
    seed = params.seeds[0] if given.seed is None else given.seed
    model, processor = models.load_vlm(models.ROOT, params.trained(checkpoint, seed), params)
    vocabulary = models.vocabulary(processor.tokenizer, params)
    feed = models.feed(processor.tokenizer, params, checkpoint)
    inputs = (model, processor, vocabulary, image, asked(given.question, control))
    text = answer(*inputs, max_new_tokens=given.max_new_tokens, feed=feed)
    print(text)
    if checkpoint != params.states.checkpoint:
        print(f"\n(the interpreters read {params.states.checkpoint}, not {checkpoint})")
        return
    reading = readers.of_pipeline(params, seed)
    _show(readings(*inputs, text, reading, seed, feed))


def _show(found: Iterator[Reading]) -> None:
    for one in found:
        print(f"\n{one.section}\n  its own state: {one.own}")
        print(f"  another question's: {one.shuffled or '(no states are extracted here)'}")


if __name__ == "__main__":
    main()
