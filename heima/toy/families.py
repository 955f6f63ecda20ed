"""The toy families: which module builds a family's tokenizer, processor and VLM."""

from __future__ import annotations

from types import ModuleType

from heima.toy import llava_next, models

TOYS: dict[str, ModuleType] = {"toy-mllama": models, "toy-llava-next": llava_next}
"""The families of `config.TOY_FAMILIES`. Each module has `build_tokenizer` (of the interpreter),
`build_processor` and `build_vlm`."""
