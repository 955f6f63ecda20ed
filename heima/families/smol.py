"""An Mllama made of SmolLM2, as Llama 3.2 Vision was made of Llama 3.1, and SmolLM2 itself.

Its vocabulary reserves nothing. The models that `teach` makes of it have reserved tokens behind it,
named as Llama 3's, so that thinking tokens stand as Mllama's do.
"""

from __future__ import annotations

from heima.families.mllama import Mllama

# ChatML as SmolLM2's own writes it, without the system prompt that it puts before a chat that has
# none, and without the line break behind an answer's end; content may be a list with an image.
_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif item['type'] == 'text' %}
                {{- item['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


class Smol(Mllama):
    chat_template = _TEMPLATE
    # The tokenizer pads with its end of turn; this is for one that does not say so.
    pad_token = "<|endoftext|>"
