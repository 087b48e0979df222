"""What each process of a launched training holds: hashes of its weights behind every step."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from diffdpo.recipes import train
from diffdpo.recipes.train import TrainRun


def train_replicas(cfg: TrainRun) -> None:
    """Train, and write `replica-R.json` into `cfg.out`: a hash of all trained weights behind each step."""
    hashes = []

    def record(optimizer: Any, args: Any, kwargs: Any) -> None:
        weights = [p.detach() for group in optimizer.param_groups for p in group["params"]]
        sha256 = hashlib.sha256()
        for weight in weights:
            sha256.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
        hashes.append([sorted({str(weight.dtype) for weight in weights}), sha256.hexdigest()])

    handle = register_optimizer_step_post_hook(record)
    try:
        train.run(cfg)
    finally:
        handle.remove()
    (Path(cfg.out) / f"replica-{os.environ['RANK']}.json").write_text(json.dumps(hashes))
