"""Provenance names what decides a result."""

from __future__ import annotations

from heima.config import Slurm
from heima.results.provenance import provenance


def test_where_a_stage_ran_is_not_among_its_parameters(params):
    """What DVC does not watch must not make another file of the same result."""
    elsewhere = params.hardware.model_copy(update={"slurm": Slurm(nodes=2), "workers": 3})
    other = params.model_copy(update={"hardware": elsewhere})
    assert provenance("distill@p1-42", params) == provenance("distill@p1-42", other)
    assert (
        provenance("distill@p1-42", params)["params"]
        != provenance("distill@p1-42", params.model_copy(update={"seed": 7}))["params"]
    )
