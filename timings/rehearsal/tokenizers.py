"""Tokenizers in the published ones' layouts, and chat templates that decide as theirs do.

Llama 3's is Meta's own where the packages `llama-models` and `tiktoken` are installed. Otherwise,
and for Vicuna, it is built: the same ids for the same special tokens, the same number of them, the
same cutting of words, and pieces learnt from a rehearsal's words; the other ids stand for texts
that never occur. The templates are written in our own words; they decide what the published ones
decide.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from timings.rehearsal.words import corpus

INSTALL = "pip install --no-deps llama-models==0.3.0 tiktoken==0.14.0"

LLAMA_PIECES = 128_000
LLAMA_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
"""The ids from 128000 on that have names; the others are reserved, and numbered through."""
_LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VICUNA_PIECES = 32_000

_HEADER = "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
_GENERATION = (
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
LLAMA_31 = (
    "{{- bos_token }}"
    "{%- if date_string is not defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set told = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set told = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{- 'Cutting Knowledge Date: December 2023\\n' }}"
    "{{- 'Today Date: ' + date_string + '\\n\\n' + told + '<|eot_id|>' }}"
    "{%- for message in messages %}"
    + _HEADER
    + "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    + _GENERATION
)
"""A system block with a date, always; a message is a string, whose ends are trimmed."""
LLAMA_32_VISION = (
    "{{- bos_token }}"
    "{%- set seen = namespace(image=false) %}"
    "{%- for message in messages %}{%- if message['content'] is not string %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{%- set seen.image = true %}{%- endif %}"
    "{%- endfor %}{%- endif %}{%- endfor %}"
    "{%- if date_string is not defined %}"
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- if seen.image %}{{- raise_exception('a system message and an image exclude each other') }}"
    "{%- endif %}{%- endif %}"
    "{%- if not seen.image %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{- 'Cutting Knowledge Date: December 2023\\n' }}"
    "{{- 'Today Date: ' + date_string + '\\n\\n<|eot_id|>' }}{%- endif %}"
    "{%- for message in messages %}"
    + _HEADER
    + "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|image|>' }}"
    "{%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|eot_id|>' }}{%- endfor %}" + _GENERATION
)
"""A list of parts in their order; today's date where there is no image; no trimming."""
LLAVA_16_VICUNA = (
    "{%- for message in messages %}"
    "{%- if message['role'] != 'system' %}{{- message['role'].upper() + ': ' }}{%- endif %}"
    "{%- for part in message['content'] if part['type'] == 'image' %}"
    "{{- '<image>\\n' }}{%- endfor %}"
    "{%- for part in message['content'] if part['type'] == 'text' %}"
    "{{- part['text'] + ' ' }}{%- endfor %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"
)
"""Every image first; no beginning of the text, no system prompt, no end of a turn."""


def metas() -> Path | None:
    """Meta's tokenizer file, if its package is installed with what reads it."""
    if find_spec("llama_models") is None or find_spec("tiktoken") is None:
        return None
    package = find_spec("llama_models")
    places = package.submodule_search_locations if package else None
    if not places:
        return None
    return Path(next(iter(places))) / "llama3" / "tokenizer.model"


def llama_3(template: str, *, pad: bool, image: bool, file: Path | None) -> PreTrainedTokenizerFast:
    """Llama 3's tokenizer, from Meta's `file` or built.

    With `pad` it names a token for padding, as Llama 3.2 Vision's does and Llama 3.1's does not;
    with `image` it has `<|image|>`, the id 128256, for which the lm_head has no row.
    """
    numbers = itertools.count()
    special = [
        LLAMA_NAMED.get(place) or f"<|reserved_special_token_{next(numbers)}|>"
        for place in range(256)
    ]
    special += ["<|image|>"] * image
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_metas(file, special) if file else _byte_level(special),
        bos_token=LLAMA_NAMED[0],
        eos_token=LLAMA_NAMED[9],
        clean_up_tokenization_spaces=False,
        model_max_length=131_072,
        model_input_names=["input_ids", "attention_mask"],
        **({"pad_token": LLAMA_NAMED[4]} if pad else {}),
    )
    tokenizer.chat_template = template
    return tokenizer


def _metas(file: Path, special: list[str]) -> Tokenizer:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converted: Tokenizer = TikTokenConverter(str(file), extra_special_tokens=special).converted()
    return converted


def _byte_level(special: list[str]) -> Tokenizer:
    cutting = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocabulary, merges = _learnt(sorted(pre_tokenizers.ByteLevel.alphabet()), pre_tokenizer=cutting)
    built = Tokenizer(models.BPE(_filled(vocabulary, LLAMA_PIECES), merges))
    built.pre_tokenizer = cutting
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in special])
    return built


def vicuna(*, image: bool) -> PreTrainedTokenizerFast:
    """Llama 2's layout: three special tokens, 256 bytes, pieces that begin with a blank's mark.

    It pads with `<unk>` and has no chat template. With `image`, as LLaVA-NeXT's: `<image>`, which
    is 32000, and `<pad>`.
    """
    marking = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary, merges = _learnt(
        [*map(chr, (*range(33, 127), *range(0xC0, 0x100))), "▁"], first, normalizer=marking
    )
    backend = Tokenizer(
        models.BPE(
            _filled(vocabulary, VICUNA_PIECES),
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = marking
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(one, normalized=False, special=True) for one in ("<unk>", "<s>", "</s>")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    if image:
        tokenizer.add_tokens(
            [AddedToken(one, normalized=False, special=True) for one in ("<image>", "<pad>")]
        )
        tokenizer.pad_token = "<pad>"
    return tokenizer


def _learnt(
    alphabet: Iterable[str],
    first: Iterable[str] = (),
    *,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
    normalizer: normalizers.Normalizer | None = None,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces with their ids, those of `first` before all, and the merges that make them."""
    learning = Tokenizer(models.BPE())
    if pre_tokenizer is not None:
        learning.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        learning.normalizer = normalizer
    learning.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=1500,
            initial_alphabet=list(alphabet),
            special_tokens=list(first),
            show_progress=False,
        ),
    )
    model = json.loads(learning.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def _filled(vocabulary: dict[str, int], size: int) -> dict[str, int]:
    """Pieces that no text has, up to so many."""
    return vocabulary | {
        f"\ue000unused {number}": number for number in range(len(vocabulary), size)
    }
