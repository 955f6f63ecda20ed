"""Families: which models belong together, what an adapter trains, where thinking tokens stand.

A family is a VLM and its interpreter LLM (recipe, sections 2 and 3). The toy twins are the same
architectures, small enough for a CPU; nothing but this table tells one family from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from heima.cot.sections import THINKING_TOKENS


@dataclass(frozen=True)
class Family:
    """A VLM and its interpreter LLM.

    - `model_type`: the VLM's in transformers.
    - `vlm_lora`, `llm_lora`: regular expressions over module names, matched whole: short names
      would also hit the frozen vision tower.
    - `thinking_tokens`: each of `sections.THINKING_TOKENS` -> the token of the vocabulary that it
      stands on. So a thinking token has the same id in every checkpoint.
    - `added`: whether those tokens are added to a tokenizer that has no reserved ones; the
      embeddings and the lm_head get rows for them (`heima.vlm.models`).
    - `chat_template`: replaces that of tokenizer and processor; None: the tokenizer's own.
    """

    model_type: str
    vlm_lora: str
    llm_lora: str
    thinking_tokens: Mapping[str, str]
    added: bool = False
    chat_template: str | None = None


def _standing_on(tokens: Iterable[str]) -> dict[str, str]:
    return dict(zip(THINKING_TOKENS, tokens, strict=True))


_LINEARS = r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
_LLM_LORA = rf".*layers\.\d+\.{_LINEARS}|lm_head"

_MLLAMA = Family(
    model_type="mllama",
    vlm_lora=(
        r".*language_model\.layers\.\d+\.(self_attn|cross_attn)\.(q|k|v|o)_proj"
        r"|.*language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj"
        r"|lm_head"
        r"|.*vision_model\.global_transformer\..*(q_proj|k_proj|v_proj|o_proj|fc1|fc2)"
        r"|.*multi_modal_projector"
    ),
    llm_lora=_LLM_LORA,
    # The unnumbered three are Llama 3's ids 128013, 128014 and 128015; the numbered ones follow.
    thinking_tokens=_standing_on(
        f"<|reserved_special_token_{number}|>" for number in range(5, 5 + len(THINKING_TOKENS))
    ),
)

# Vicuna's tokenizer has no chat template, and LLaVA-NeXT's processor puts every image first and
# no system prompt. This is the text that Vicuna 1.1 and LLaVA were tuned on. An image has a line of
# its own. SentencePiece keeps the blank before a word with the word, so a part of the text begins
# with the blank that separates it from the part before.
_VICUNA_TEMPLATE = """\
{{- bos_token }}
{{- ' A chat between a curious user and an artificial intelligence assistant. ' }}
{{- "The assistant gives helpful, detailed, and polite answers to the user's questions." }}
{%- for message in messages %}
    {{- ' ' + message['role'].upper() + ': ' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' %}
                {{- '<image>\\n' if loop.first else '\\n<image>' }}
            {%- elif item['type'] == 'text' %}
                {{- item['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- ' ASSISTANT:' }}
{%- endif %}"""

_LLAVA_NEXT = Family(
    model_type="llava_next",
    # The paper names no modules for this family: the language model as in Mllama, lm_head and
    # projector included. The whole CLIP tower is frozen, for it has no trained counterpart there.
    vlm_lora=(
        rf".*language_model\.layers\.\d+\.{_LINEARS}"
        r"|lm_head"
        r"|.*multi_modal_projector\.linear_(1|2)"
    ),
    llm_lora=_LLM_LORA,
    thinking_tokens=_standing_on(
        f"<|thinking_token_{number}|>" for number in range(len(THINKING_TOKENS))
    ),
    added=True,
    chat_template=_VICUNA_TEMPLATE,
)

FAMILIES = {
    "toy-mllama": _MLLAMA,
    "llava-cot-11b": _MLLAMA,
    "toy-llava-next": _LLAVA_NEXT,
    "llava-next-vicuna-7b": _LLAVA_NEXT,
}
