"""The toy's matrix products on CPUs, by OpenBLAS.

Torch multiplies with MKL, whose one branch that gives the same bits on every maker's CPU is SSE2's:
a training step takes 1.5-1.8 times as long with it. numpy brings an OpenBLAS whose AVX2 kernel can
be chosen by name on any of them (`heima.machine.PINS`), and so the products that training is made
of go there. What is left to MKL (products inside of fused attention, vector mathematics) is
small, and its branch is pinned.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from heima import machine


def install() -> None:
    """Give torch these products and take oneDNN from it, if the pins are in force; once.

    oneDNN divides its sums by the size of the CPU's caches. float32 products alone are replaced.
    """
    if _installed or not machine.pinned():
        return
    torch.backends.mkldnn.set_flags(False)
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # That these kernels are replaced is no news.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, replace in _REPLACEMENTS.items():
            original = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, replace(original), "CPU", with_keyset=True)
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
    """`mm` and `bmm`."""

    def multiply(keys: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _product(a, b) if _fits(a, b) else original.call_boxed(keys, a, b)

    return multiply


def _add_product(original: Any) -> Any:
    """`addmm`: beta times `added` plus alpha times the product."""

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


_REPLACEMENTS = {"mm": _multiply, "bmm": _multiply, "addmm": _add_product}
