"""The adapted layers of a small model as one matmul each, while it trains.

peft computes a layer as x W' + s (x A') B', three matmuls and two passes over the output. Where the
layer is hardly larger than its adapter, x (W + s B A)' is less work: the same function, summed in
another order. The weights stay peft's own, under its names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from peft.tuners import lora
from torch import nn
from torch.nn.functional import linear


@contextmanager
def merged_forward(model: nn.Module) -> Iterator[None]:
    """Within it, the layers of `model` for which it saves work add their adapter to their weight.

    They are the linear layers with one plain adapter and no dropout, of its precision, and small:
    for t tokens, the gradient of a merged weight takes 2 t inputs outputs FLOPs, and peft's
    separate matmuls take 6 t rank (inputs + outputs). So the merged weights, which a backward pass
    keeps, are never larger than three times their adapters, and no layer of a large model is
    merged. The weights must be whole tensors: a model that FSDP shards trains without.
    """
    layers = [module for module in model.modules() if _is_small(module)]
    for layer in layers:
        layer.forward = functools.partial(_merged, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again


def _is_small(module: nn.Module) -> TypeGuard[lora.Linear]:
    if type(module) is not lora.Linear or module.disable_adapters or module.merged:
        return False
    if len(module.lora_A) != 1 or list(module.active_adapters) != list(module.lora_A):
        return False
    (name,) = module.active_adapters
    base: Any = module.base_layer
    a: Any = module.lora_A[name]
    b: Any = module.lora_B[name]
    outputs, inputs = base.weight.shape
    return (
        type(base) is nn.Linear
        and name not in module.lora_variant
        and isinstance(module.lora_dropout[name], nn.Identity)
        and a.bias is b.bias is None
        and base.weight.dtype == a.weight.dtype == b.weight.dtype
        and inputs * outputs <= 3 * module.r[name] * (inputs + outputs)
    )


def _merged(layer: lora.Linear, x: torch.Tensor) -> torch.Tensor:
    """The layer's output for `x`, (..., inputs) -> (..., outputs)."""
    (name,) = layer.active_adapters
    base: Any = layer.base_layer
    if layer.disable_adapters:
        return linear(x, base.weight, base.bias)
    a: Any = layer.lora_A[name]
    b: Any = layer.lora_B[name]
    weight = torch.addmm(base.weight, b.weight, a.weight, alpha=layer.scaling[name])
    return linear(x, weight, base.bias)
