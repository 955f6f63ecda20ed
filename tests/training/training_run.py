"""A small training run as a process: python -m tests.training.training_run FOLDER OUT [N].

`FOLDER` holds `models/text-cot`, `turns.parquet`, `images.zip` and `params.yaml`. Writes the
adapter and the curve, of about five rows, to `FOLDER/OUT/`. N kills the process (SIGKILL) at its
N-th forward pass.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from heima import config
from heima.data.encoding import encode_turns, fit_turns
from heima.data.images import ImageZip
from heima.data.turns import load_turns
from heima.training import loop
from heima.training.backbone import body
from heima.training.snapshots import Resume
from heima.training.surprisal import surprisals
from heima.training.terms import Align, Explain
from heima.vlm import models


def main(folder: Path, out: str, kill: int = 0) -> None:
    torch.set_num_threads(1)
    loop._LOGS = 5
    params = config.load(folder / "params.yaml")
    model = models.trainable_vlm(folder / "models", "text-cot", params, seed=params.seed)
    processor = models.load_processor(folder / "models", params)
    images = ImageZip(folder / "images.zip")
    turns = load_turns(folder / "turns.parquet")
    vocabulary = models.vocabulary(processor.tokenizer, params)
    checkpoint = params.checkpoints["p3"]
    samples = fit_turns(
        turns,
        "p3",
        vocabulary,
        max_length=512,
        too_long="refuse",
        supervised=checkpoint.losses.any,
    ).samples
    plain = encode_turns(turns[:10], "p3", vocabulary, max_length=512)
    feed = models.feed(processor.tokenizer, params, "p3")
    collate = models.collator(processor, images, params, feed)
    weights = checkpoint.losses
    answering = loop.AnswerLoss(
        model,
        params.hardware,
        body=body(model, feed=feed),
        align=(weights.align, Align(model, body(model))) if weights.align else None,
        explain=(weights.explain, Explain(model, seed=1, fed=bool(feed)))
        if weights.explain
        else None,
    )
    nats = surprisals(answering, plain, collate, batch_size=3)
    if kill:
        _kill_at(answering, kill)
    curve = loop.train(
        answering,
        samples,
        collate,
        checkpoint,
        seed=params.seed,
        precision=params.precision,
        training=params.training,
        hardware=params.hardware,
        groups=[sample.image for sample in samples],
        resume=Resume(folder / "snapshots" / out),
    )
    losses = loop.heldout_losses(answering, samples[:10], collate, batch_size=3)
    weights = loop.trained_weights(model)
    if PartialState().is_main_process:
        models.save_adapter(model, folder / out, weights)
        result = {
            "processes": PartialState().num_processes,
            "policies": sorted({_policy(part) for part in model.modules() if _policy(part)}),
            "sharded": any(isinstance(weight, DTensor) for weight in model.parameters()),
            "curve": curve,
            "losses": losses,
            "surprisals": [sum(row) / len(row) for row in nats],
        }
        (folder / out / "result.json").write_text(json.dumps(result))


def _policy(part: torch.nn.Module) -> str | None:
    """What a sharded part is computed in: of weights, of the sum of gradients, of outputs."""
    if not isinstance(part, FSDPModule):
        return None
    policy = part._get_fsdp_state()._mp_policy
    return str([policy.param_dtype, policy.reduce_dtype, policy.output_dtype])


def _kill_at(answering: loop.AnswerLoss, update: int) -> None:
    seen = []

    def count(*_: object) -> None:
        seen.append(1)
        if len(seen) == update:
            os.kill(os.getpid(), signal.SIGKILL)

    answering.register_forward_pre_hook(count)


if __name__ == "__main__":
    path, name, *rest = sys.argv[1:]
    main(Path(path), name, *map(int, rest))
