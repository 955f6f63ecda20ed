"""Trained planted controls: an audit of a checkpoint happens within the ways that it closes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from eval.audit.passes import Places, Within
from heima.config import Attention
from heima.vlm import closed_ways


def world(model: Any, attention: Attention) -> Within:
    """What every pass of a checkpoint happens within."""

    def within(places: Places) -> AbstractContextManager[Any]:
        return closed_ways.closed(
            model,
            attention,
            thinking=places.thinking_mask,
            image=places.image,
            conclusion=places.conclusion,
        )

    return within
