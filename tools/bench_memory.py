"""Measures the live tensor bytes of a training step on a pair, beside what `diffdpo estimate` says. JSON out.

    python tools/bench_memory.py [--sizes 512x8x1024 768x6x1024 512x8x1536] [--trainings full LoRA …] [--markdown]
    python tools/bench_memory.py --one-step --sizes 2048x16x2048 --trainings "LoRA, bf16 base, small"

A size is width x depth x frames of a random DiffRhythm network. For each size there are rows for training all
weights and LoRA, stacked and with split backward, with gradient checkpointing. `measured` counts the
second step, so that the optimiser has its state; `error` is the estimate's relative error; `of_stacked` is the
measured peak as a share of that of the same training without split backward; `activations_per_weight` are the
measured activations of one song over the weights; `cpu_s` is the processor time of the step. Each row is measured
in a process of its own, whose peak of resident memory is `peak_rss_mib`, Python and PyTorch included. With
`--one-step` the optimiser gets its state from gradients of zero, and the first step is measured. The second line is
DiffRhythm as published (1.1 billion parameters, a pair of 95 seconds), its blocks' weights made in bf16, never in
fp32.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
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
from diffdpo.training.optimizer import set_rate
from diffdpo.training.quantize import block_layers, quantize_layers
from diffdpo.training.run import Training
from diffdpo.training.session import prepare_training
from diffdpo.training.setup import trainable
from diffdpo.training.strategy import build_accelerator
from diffdpo.types import Embedding, Row
from tools.bench.measure import markdown_table, own_peak_mib, round_values, run_in_process

CHANNELS, STYLE = 64, 512
LORA = LoraConfig(rank=16)
SMALL = "LoRA, bf16 base, small"
"""The least memory: split backward and checkpointing as well."""
DEFAULTS = ("full", "full, split", "LoRA", "LoRA, split", "LoRA, checkpointing")
RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, split": {"split_backward": True},
    "LoRA": {"lora": LORA},
    "LoRA, split": {"lora": LORA, "split_backward": True},
    "LoRA, checkpointing": {"lora": LORA, "gradient_checkpointing": True},
    "LoRA, bf16 base": {"lora": LORA, "base": "bf16"},
    SMALL: {"lora": LORA, "base": "bf16", "split_backward": True, "gradient_checkpointing": True},
}
MIB = 2**20


def build(width: int, depth: int, frames: int, device: str, base: str = "full") -> DiffRhythm:
    """A random model of the published kind; with base=bf16 the blocks' weights are made in bf16."""
    torch.manual_seed(0)
    is_small = base == "bf16" and device != "meta"
    with torch.device("meta" if is_small else device):
        network = DiffRhythmTransformer(
            dim=width, depth=depth, num_attention_heads=width // 64, max_frames=frames
        )
    if is_small:
        quantize_layers(network, block_layers(network), base)
        network.to_empty(device=device)
        for name, parameter in network.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("norm.weight")
            _ = (
                parameter.data.fill_(float(is_scale))
                if parameter.ndim == 1
                else parameter.data.normal_(std=0.02)
            )
    spec = LatentSpec(
        channels=CHANNELS, frames_per_second=21.5, sample_rate=44100, max_frames=frames, window="fixed"
    )
    return DiffRhythm(network=network, spec=spec, encoders=None)


def embedding() -> Embedding:
    """The embedding of an instrumental prompt."""
    return {"style": torch.zeros(STYLE), "start": torch.tensor(0.0), **line_tensors(())}


def prime_optimizer(training: Training) -> None:
    """Let the optimiser have its state, from gradients of zero."""
    for parameter in trainable(training.policy):
        parameter.grad = torch.zeros_like(parameter)
    set_rate(training.optimizer, 0.0)
    training.optimizer.step()
    training.optimizer.zero_grad()


def measure_step(
    cfg: TrainConfig, width: int, depth: int, frames: int, *, one_step: bool = False
) -> dict[str, float]:
    """Live tensor bytes of the second step of a run; of the first for `one_step`."""
    model, row = build(width, depth, frames, "cpu", cfg.base), Row(embedding=embedding(), frames=frames)
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
        if one_step:
            prime_optimizer(training)
        else:
            train_step(training, 0, stream, {})
        count, network = LiveBytes(), training.policy
        count.add([*network.parameters(), *network.buffers()], "weights")
        count.add([list(state.values()) for state in training.optimizer.state.values()], "optimizer")
        count.add(auxiliary_tensors(training.reference), "reference")
        count_gradients(count, network.parameters())
        start_s = time.process_time()
        with count:
            metrics = train_step(training, 1, stream, {})
        peaks = {str(kind): float(size) for kind, size in count.peaks.items()}
        return {
            **peaks, "peak": count.peak, "cpu_s": time.process_time() - start_s, "rss": own_peak_mib(),
            "grad_norm": metrics["grad_norm"],
        }  # fmt: skip


def bench(size: str, name: str, *, one_step: bool) -> dict[str, Any]:
    """The row of one kind of training of one size, WIDTHxDEPTHxFRAMES."""
    width, depth, frames = map(int, size.split("x"))
    cfg = TrainConfig(global_batch=1, per_device=1, trackers=[], **RUNS[name])
    measured = measure_step(cfg, width, depth, frames, one_step=one_step)
    estimate = estimate_memory(build(width, depth, frames, "meta"), embedding(), DPO(), cfg, frames)
    songs = 1 if cfg.split_backward else 2
    return {
        "size": size,
        "training": name,
        "measured_mib": measured["peak"] / MIB,
        "estimate_mib": estimate.peak / MIB,
        "error": estimate.peak / measured["peak"] - 1,
        "activations_per_weight": measured["activations"] / songs / measured["weights"],
        "weights_mib": measured["weights"] / MIB,
        "peak_rss_mib": measured["rss"],
        "cpu_s": measured["cpu_s"],
        "grad_norm": measured["grad_norm"],
    }


def bench_all(sizes: Sequence[str], trainings: Sequence[str], *options: str) -> list[dict[str, Any]]:
    """A row for each kind of training of each size, each from a process of its own."""
    rows: list[dict[str, Any]] = []
    for size, name in itertools.product(sizes, trainings):
        row = run_in_process(__file__, "--row", "--sizes", size, "--trainings", name, *options)
        stacked = [other for other in rows if (other["size"], f"{other['training']}, split") == (size, name)]
        if stacked:
            row["of_stacked"] = row["measured_mib"] / stacked[0]["measured_mib"]
        rows.append(round_values(row, 3))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["512x8x1024", "768x6x1024", "512x8x1536"])
    parser.add_argument("--trainings", nargs="+", choices=RUNS, default=list(DEFAULTS))
    parser.add_argument("--one-step", action="store_true", help="the optimiser starts from gradients of zero")
    parser.add_argument("--row", action="store_true", help="one row, in this process")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.row:
        print(json.dumps(bench(args.sizes[0], args.trainings[0], one_step=args.one_step)))
        return
    rows = bench_all(args.sizes, args.trainings, *(["--one-step"] if args.one_step else []))
    if args.markdown:
        head = list(dict.fromkeys(key for row in rows for key in row))
        print(markdown_table(head, [[row.get(key, "") for key in head] for row in rows]))
    else:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
