"""The families of `config.TOY_FAMILIES` and what builds each one's models."""

from __future__ import annotations

from collections.abc import Mapping

from heima.toy import idefics3, llava_next, mllama
from heima.toy.models import Twin

TWINS: Mapping[str, Twin] = {
    "toy-mllama": mllama,
    "toy-llava-next": llava_next,
    "toy-idefics3": idefics3,
}
