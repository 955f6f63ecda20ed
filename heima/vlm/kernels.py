"""CPU kernels of the toy that give the same bits on every maker's CPU: products and square roots.

Torch multiplies with MKL, whose one branch that is promised beyond Intel's CPUs is SSE2's: a
training step takes 1.5-1.8 times as long with it. numpy brings an OpenBLAS whose AVX2 kernel can be
chosen by name on any of them (`heima.results.machine.PINS`), and so the products that training is
made of go there.

Square roots go to numpy, too, which leaves them to the CPU, and so they are exact. MKL refines an
approximation that each CPU makes in its own way (even in that branch, with one in five rounded
wrongly), and AdamW divides by them. What else is left to MKL was the same on all CPUs tried.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env

from heima.results import machine


def install() -> None:
    """Give torch these kernels and take oneDNN from it, if the pins are in force; once.

    oneDNN divides its sums by the size of the CPU's caches. Tensors of other types than the
    replacements say stay with torch's own kernels. So does all that a process computes which FSDP
    is asked to shard: it resizes the memory of weights, which it may not once numpy has seen it.
    """
    if _installed or not machine.pinned() or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    torch.backends.mkldnn.set_flags(False)
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # That these kernels are replaced is no news.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, replacement in _REPLACEMENTS.items():
            original = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, replacement(original), "CPU", with_keyset=True)
    _installed.append(library)


_installed: list[torch.library.Library] = []
"""The registration holds as long as its library lives."""


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(…, n, k) times (…, k, m)."""
    # Torch's memory, not numpy's: it is aligned to 64 bytes, and sums may differ by that in MKL.
    result = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=torch.float32)
    np.matmul(a.detach().numpy(), b.detach().numpy(), out=result.numpy())
    return result


def _fits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether `_product` takes these; torch has the others, and the words for wrong shapes."""
    return (
        a.dtype is torch.float32
        and b.dtype is torch.float32
        and a.shape[:-2] == b.shape[:-2]
        and a.shape[-1] == b.shape[-2]
    )


def _multiply(original: Any) -> Any:
    """`mm` and `bmm`, in float32."""

    def multiply(keys: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _product(a, b) if _fits(a, b) else original.call_boxed(keys, a, b)

    return multiply


def _add_product(original: Any) -> Any:
    """`addmm`, in float32: beta times `added` plus alpha times the product."""

    def add_product(
        keys: Any,
        added: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        *,
        beta: float = 1,
        alpha: float = 1,
    ) -> torch.Tensor:
        if added.dtype is not torch.float32 or not _fits(a, b):
            return original.call_boxed(keys, added, a, b, beta=beta, alpha=alpha)
        result = _product(a, b)
        if alpha != 1:
            result.mul_(alpha)
        # With a beta of 0, what is added may be anything, not-a-number too.
        return result.add_(added, alpha=beta) if beta else result

    return add_product


def _sqrt(original: Any) -> Any:
    """`sqrt`, in float32 and float64."""

    def sqrt(keys: Any, values: torch.Tensor) -> torch.Tensor:
        if values.dtype not in (torch.float32, torch.float64):
            return original.call_boxed(keys, values)
        result = torch.empty_like(values)
        _root(values, result)
        return result

    return sqrt


def _sqrt_in_place(original: Any) -> Any:
    """`sqrt_`, in float32 and float64."""

    def sqrt_in_place(keys: Any, values: torch.Tensor) -> torch.Tensor:
        if values.dtype not in (torch.float32, torch.float64):
            return original.call_boxed(keys, values)
        _root(values, values)
        return values

    return sqrt_in_place


def _root(values: torch.Tensor, result: torch.Tensor) -> None:
    with np.errstate(invalid="ignore"):
        np.sqrt(values.detach().numpy(), out=result.detach().numpy())


_REPLACEMENTS = {
    "mm": _multiply,
    "bmm": _multiply,
    "addmm": _add_product,
    "sqrt": _sqrt,
    "sqrt_": _sqrt_in_place,
}
