"""An Mllama made of SmolLM2, as Llama 3.2 Vision was made of Llama 3.1, and SmolLM2 itself.

Its vocabulary reserves nothing. The models that `teach` makes of it have reserved tokens behind it,
named as Llama 3's, so that thinking tokens stand as Mllama's do.
"""

from __future__ import annotations

from heima.families.mllama import Mllama, chat_template


class Smol(Mllama):
    # ChatML as SmolLM2's own writes it, without the system prompt that it puts before a chat that
    # has none, and without the line break behind an answer's end.
    chat_template = chat_template(begin="<|im_start|>", named="\\n", end="<|im_end|>\\n")
    # The tokenizer pads with its end of turn; this is for one that does not say so.
    pad_token = "<|endoftext|>"
