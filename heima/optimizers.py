"""Muon for the matrices of transformer layers, AdamW for everything else, as one optimizer.

Muon orthogonalises each update of a weight matrix (Jordan et al., 2024); the toy models, trained
from scratch, need a fraction of AdamW's steps with it. Adapters train with AdamW, as in the paper.
"""

from __future__ import annotations

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` side by side, with one list of parameter groups.

    Parameters: `matrices` are 2-D weights, `others` all further weights; learning-rate schedules
    scale both groups alike.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        *,
        muon_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        self._parts = (
            torch.optim.Muon(
                matrices,
                lr=muon_learning_rate,
                momentum=0.95,
                weight_decay=weight_decay,
                adjust_lr_fn="original",
            ),
            torch.optim.AdamW(
                others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
            ),
        )
        super().__init__([*matrices, *others], defaults={})
        # The parts' own group dictionaries, so that a schedule changes what the parts read.
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        for part in self._parts:
            part.step()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        muon_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
    ) -> MuonWithAdamW:
        """Muon for the 2-D weights of the text model's layers (`….layers.<i>.…`)."""
        matrices, others = [], []
        for name, weight in model.named_parameters():
            in_text_layer = ".layers." in name and "vision_model" not in name
            (matrices if weight.ndim == 2 and in_text_layer else others).append(weight)
        return cls(
            matrices,
            others,
            muon_learning_rate=muon_learning_rate,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )
