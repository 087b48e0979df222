"""Measures the live tensor bytes of a training step on a pair, beside what `diffdpo estimate` says. JSON out.

    python tools/bench_memory.py [--sizes 512x8x1024 768x6x1024 512x8x1536] [--trainings full LoRA …] [--markdown]

A size is width x depth x frames of a random DiffRhythm network. For each size there are rows for training all
weights and LoRA, stacked and with split backward, with gradient checkpointing. `measured` counts the
second step, so that the optimiser has its state; `error` is the estimate's relative error; `of_stacked` is the
measured peak as a share of that of the same training without split backward; `activations_per_weight` are the
measured activations of one song over the weights.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

import torch

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.data.datasets.stream import batches
from diffdpo.mining.values import Pair
from diffdpo.models.base import LatentSpec
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.lines import line_tensors
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.objectives.dpo import DPO
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.estimate import auxiliary_tensors, estimate_memory
from diffdpo.training.live_bytes import LiveBytes, count_gradients
from diffdpo.training.loop import train_step
from diffdpo.training.session import prepare_training
from diffdpo.training.strategy import build_accelerator
from diffdpo.types import Embedding, Row
from tools.bench.measure import markdown_table, round_values

CHANNELS, STYLE = 64, 512
LORA = LoraConfig(rank=16)
RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, split": {"split_backward": True},
    "LoRA": {"lora": LORA},
    "LoRA, split": {"lora": LORA, "split_backward": True},
    "LoRA, checkpointing": {"lora": LORA, "gradient_checkpointing": True},
}
MIB = 2**20


def build(width: int, depth: int, frames: int, device: str) -> DiffRhythm:
    """A random model of the published kind."""
    torch.manual_seed(0)
    with torch.device(device):
        network = DiffRhythmTransformer(
            dim=width, depth=depth, num_attention_heads=width // 64, max_frames=frames
        )
    spec = LatentSpec(
        channels=CHANNELS, frames_per_second=21.5, sample_rate=44100, max_frames=frames, window="fixed"
    )
    return DiffRhythm(network=network, spec=spec, encoders=None)


def embedding() -> Embedding:
    """The embedding of an instrumental prompt."""
    return {"style": torch.zeros(STYLE), "start": torch.tensor(0.0), **line_tensors(())}


def measure_step(cfg: TrainConfig, width: int, depth: int, frames: int) -> dict[str, float]:
    """Live tensor bytes of the second step of a run."""
    model, row = build(width, depth, frames, "cpu"), Row(embedding=embedding(), frames=frames)
    examples = PairsInMemory(
        pairs=[Pair(prompt_id="p", group="p", winner="a", loser="b", rule="r", margins={})],
        latents={name: torch.randn(frames, CHANNELS) for name in "ab"},
        rows=dict.fromkeys("ab", row),
        frames_per_second=21.5,
    )
    objective = DPO()
    with tempfile.TemporaryDirectory() as folder:
        accelerator = build_accelerator(cfg, folder)
        training, _ = prepare_training(
            model, examples, objective, cfg, out=Path(folder), seed=0, accelerator=accelerator, name="dpo"
        )
        stream = batches(examples, iter([[0], [0]]), seed=0, workers=0)
        train_step(training, 0, stream, {})
        count, network = LiveBytes(), training.policy
        count.add([*network.parameters(), *network.buffers()], "weights")
        count.add([list(state.values()) for state in training.optimizer.state.values()], "optimizer")
        count.add(auxiliary_tensors(training.reference), "reference")
        count_gradients(count, network.parameters())
        start_s = time.monotonic()
        with count:
            train_step(training, 1, stream, {})
        peaks = {str(kind): float(size) for kind, size in count.peaks.items()}
        return {**peaks, "peak": count.peak, "seconds": time.monotonic() - start_s}


def bench(size: str, trainings: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each kind of training of one size, WIDTHxDEPTHxFRAMES."""
    width, depth, frames = map(int, size.split("x"))
    rows: list[dict[str, Any]] = []
    for name in trainings:
        settings = RUNS[name]
        cfg = TrainConfig(global_batch=1, per_device=1, trackers=[], **settings)
        measured = measure_step(cfg, width, depth, frames)
        estimate = estimate_memory(
            build(width, depth, frames, "meta"), embedding(), DPO(), replace(cfg, trackers=[]), frames
        )
        songs = 1 if cfg.split_backward else 2
        row = {
            "size": size,
            "training": name,
            "measured_mib": measured["peak"] / MIB,
            "estimate_mib": estimate.peak / MIB,
            "error": estimate.peak / measured["peak"] - 1,
            "activations_per_weight": measured["activations"] / songs / measured["weights"],
            "seconds": measured["seconds"],
        }
        stacked = [pair_row for pair_row in rows if f"{pair_row['training']}, split" == name]
        if stacked:
            row["of_stacked"] = row["measured_mib"] / stacked[0]["measured_mib"]
        rows.append(round_values(row, 3))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["512x8x1024", "768x6x1024", "512x8x1536"])
    parser.add_argument("--trainings", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    rows = [row for size in args.sizes for row in bench(size, args.trainings)]
    if args.markdown:
        head = list(dict.fromkeys(key for row in rows for key in row))
        print(markdown_table(head, [[row.get(key, "") for key in head] for row in rows]))
    else:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
