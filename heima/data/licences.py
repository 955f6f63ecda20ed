"""The terms that bind who uses the paper's data and models: said where they are fetched.

A summary for orientation, not legal advice; the licence itself is on a repository's page.
"""

from __future__ import annotations

_NOT_IN_THE_EU = (
    "Llama 3.2 Community License, whose use policy grants no rights in multimodal models to "
    "individuals domiciled in the European Union or companies with their principal place of "
    "business there"
)
_LLAMA_2 = (
    "Llama 2 Community License; trained on conversations and answers that OpenAI's models wrote, "
    "whose terms restrict what may be done with their output"
)

_TERMS = {
    "Xkev/LLaVA-CoT-100k": (
        "Apache-2.0 for the annotations, which GPT-4o wrote; every image keeps the licence of the "
        "data set that it comes from, and some of them (ScienceQA's CC BY-NC-SA 4.0) exclude "
        "commercial use"
    ),
    "Xkev/Llama-3.2V-11B-cot": (
        "published as Apache-2.0, but tuned from Llama-3.2-11B-Vision-Instruct, and bound by "
        f"Meta's terms as well: {_NOT_IN_THE_EU}"
    ),
    "meta-llama/Llama-3.2-": _NOT_IN_THE_EU,
    "meta-llama/Llama-3.1-": (
        "Llama 3.1 Community License: what is built with it says so, and models trained on its "
        "output carry Llama in their name"
    ),
    "shawnricecake/Heima": (
        "adapters on Llama 3.2's 11B and Llama 3.1's 8B, and bound by Meta's terms as those are "
        "(the code beside them has no licence; see the repository's page)"
    ),
    "llava-hf/llava-v1.6-vicuna-": _LLAMA_2,
    "lmsys/vicuna-": _LLAMA_2,
}
"""Beginning of a repository's id -> its terms."""


def terms(repository: str) -> str | None:
    """What binds who uses this repository of the hub, where it is one of the paper's."""
    return next((text for start, text in _TERMS.items() if repository.startswith(start)), None)
