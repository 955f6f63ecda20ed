"""Muon for the text layers' matrices, AdamW for all else, as one optimizer.

The toy teacher learns in fewer steps with it than with AdamW alone. `torch.optim.Muon` computes in
bf16, matrix by matrix, which a CPU emulates; here matrices of one shape are orthogonalised together
in fp32, at a tenth of the time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_MATRICES = re.compile(r"(^|\.)layers\.\d+\..*_proj\.weight$")

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration, and how often it runs: as in `torch.optim.Muon`."""
_ITERATIONS = 5
_EPSILON = 1e-7


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps Muon (Nesterov, momentum .95, fp32) and `torch.optim.AdamW` together.

    Groups are Muon's one, then AdamW's one; a schedule scales both, each from its own rate.

    Args:
        model: an Mllama or Llama of this package. Muon gets the projections of the text layers;
            embeddings, lm_head, norms, gates and the vision tower go to AdamW.
        matrix_learning_rate: of Muon, whose updates are orthogonal: about .02.
        learning_rate: of AdamW.
        weight_decay: of both.

    Raises:
        ValueError: if the model has no projection for Muon.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        matrix_learning_rate: float,
        learning_rate: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
    ) -> None:
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        matrices = [p for name, p in trainable.items() if _is_matrix(name)]
        others = [p for name, p in trainable.items() if not _is_matrix(name)]
        if not matrices:
            raise ValueError(
                f"{type(model).__name__} has no trainable weight like "
                "'layers.0.self_attn.q_proj.weight' for Muon; use AdamW"
            )
        self._adamw = torch.optim.AdamW(
            others, lr=learning_rate, weight_decay=weight_decay, betas=betas, foreach=True
        )
        muon = {
            "params": matrices,
            "lr": matrix_learning_rate,
            "weight_decay": weight_decay,
            "momentum": momentum,
        }
        super().__init__([muon, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """AdamW works on this optimizer's own group and states, so that a schedule's rate and a
        loaded state reach it."""
        self._adamw.param_groups = self.param_groups[1:]
        self._adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by `load_state_dict`, which puts new groups and states in place."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_matrices(self.param_groups[0])
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        grads = [weight.grad for weight in weights]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = orthogonalised(torch._foreach_lerp(grads, buffers, group["momentum"]))
        rate = group["lr"]
        scales = [-rate * max(1, weight.size(0) / weight.size(1)) ** 0.5 for weight in weights]
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_(weights, updates)


def orthogonalised(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each matrix with its singular values pulled to about 1 (Newton-Schulz), in fp32.

    Matrices of one shape, or of that shape transposed, are computed together.
    """
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        places[min(matrix.shape), max(matrix.shape)].append(place)
    results = list(matrices)
    for alike in places.values():
        tall = [matrices[place].size(0) > matrices[place].size(1) for place in alike]
        stacked = torch.stack(
            [matrices[p].mT if t else matrices[p] for p, t in zip(alike, tall, strict=True)]
        ).float()
        for place, transposed, found in zip(alike, tall, _newton_schulz(stacked), strict=True):
            results[place] = found.mT if transposed else found
    return results


def _newton_schulz(wide: torch.Tensor) -> torch.Tensor:
    """(count, rows, columns), rows at most columns, to the same shape."""
    a, b, c = _COEFFICIENTS
    x = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _is_matrix(name: str) -> bool:
    return "vision" not in name and _MATRICES.search(name) is not None
