"""Measures a training step on songs divided over two processes, beside the same step in one. JSON out.

    python tools/bench_context.py [--sizes 256x4x1024 …] [--trainings full LoRA …] [--markdown]

A size is width x depth x frames of a random DiffRhythm network; a step is one pair. `activations_mib` is the peak
of live tensor bytes beyond weights, gradients and optimiser in the process that has most of them; `of_one` its
share of that of one process; `peak_of_one` that of the whole peak. `cpu_s` is the processor time of a step, summed
over the processes, and `cpu_of_one` its ratio to one process. `gradient_difference` is the relative difference of
the gradient norms of the first step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from tools.bench.measure import markdown_table, round_values

MIB = 2**20
CHANNELS, STYLE, TIMED_STEPS = 64, 512, 1
TRAININGS = ("full", "LoRA", "LoRA, checkpointing")
COLUMNS = ("activations_mib", "of_one", "peak_mib", "peak_of_one", "cpu_s", "cpu_of_one")


def measure_step(size: str, name: str) -> dict[str, float]:
    """Live tensor bytes of the second step of this process, and the processor seconds of the next."""
    import torch

    from diffdpo.models.frame_shards import divided_frames
    from diffdpo.objectives.dpo import DPO
    from diffdpo.training.config import LoraConfig, TrainConfig
    from diffdpo.training.live_bytes import LiveBytes, count_gradients
    from diffdpo.training.loop import train_step
    from diffdpo.training.session import prepare_training
    from diffdpo.training.strategy import build_accelerator

    torch.set_num_threads(1)
    cfg = TrainConfig(
        global_batch=1, per_device=1, trackers=[], context_parallel=int(os.environ.get("WORLD_SIZE", "1")),
        lora=LoraConfig(rank=16) if "LoRA" in name else None, gradient_checkpointing="checkpointing" in name,
    )  # fmt: skip
    model, examples = build(*map(int, size.split("x")))
    with tempfile.TemporaryDirectory() as folder:
        accelerator = build_accelerator(cfg, folder)
        training, _ = prepare_training(
            model, examples, DPO(), cfg, out=Path(folder), seed=0, accelerator=accelerator, name="dpo"
        )
        stream = batches_of(examples, 2 + TIMED_STEPS)
        count, network = LiveBytes(), training.policy
        with divided_frames(training.shards):
            first = train_step(training, 0, stream, {})
            count.add([*network.parameters(), *network.buffers()], "weights")
            count.add([list(state.values()) for state in training.optimizer.state.values()], "optimizer")
            hooks = count_gradients(count, network.parameters())
            with count:
                train_step(training, 1, stream, {})
            for hook in hooks:
                hook.remove()
            start_s = time.process_time()
            for step in range(TIMED_STEPS):
                train_step(training, 2 + step, stream, {})
        return {
            "activations": float(count.peaks["activations"]),
            "peak": float(count.peak),
            "cpu_s": (time.process_time() - start_s) / TIMED_STEPS,
            "gradient": first["grad_norm"],
        }


def build(width: int, depth: int, frames: int) -> tuple[Any, Any]:
    """A random model of the published kind, and one pair of songs of `frames` frames."""
    import torch

    from diffdpo.data.datasets.memory import PairsInMemory
    from diffdpo.mining.values import Pair
    from diffdpo.models.base import LatentSpec
    from diffdpo.models.diffrhythm.adapter import DiffRhythm
    from diffdpo.models.diffrhythm.lines import line_tensors
    from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
    from diffdpo.types import Row

    torch.manual_seed(0)
    network = DiffRhythmTransformer(
        dim=width, depth=depth, num_attention_heads=width // 64, max_frames=frames
    )
    spec = LatentSpec(channels=CHANNELS, frames_per_second=21.5, sample_rate=44100, max_frames=frames)
    embedding = {"style": torch.zeros(STYLE), "start": torch.tensor(0.0), **line_tensors(())}
    examples = PairsInMemory(
        pairs=[Pair(prompt_id="p", group="p", winner="a", loser="b", rule="r", margins={})],
        latents={name: torch.randn(frames, CHANNELS) for name in "ab"},
        rows=dict.fromkeys("ab", Row(embedding=embedding, frames=frames)),
        frames_per_second=21.5,
    )
    return DiffRhythm(network=network, spec=spec, encoders=None), examples


def batches_of(examples: Any, count: int) -> Any:
    """So many batches of the one pair."""
    from diffdpo.data.datasets.stream import batches

    return batches(examples, iter([[0]] * count), seed=0, workers=0)


def launch(world: int, size: str, name: str) -> list[dict[str, float]]:
    """The measurements of all processes of one launch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder:
        worker = [str(Path(__file__).resolve()), "--worker", folder, "--sizes", size, "--trainings", name]
        launcher = [
            "-m", "accelerate.commands.launch", "--main_process_port", "0",
            "--config_file", str(ROOT / "configs" / "accelerate" / "cpu_2.yaml"),
        ]  # fmt: skip
        command = [sys.executable, *(launcher if world > 1 else []), *worker]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def bench(size: str, name: str) -> dict[str, Any]:
    """The row of one kind of training of one size: two processes against one."""
    (one,), two = launch(1, size, name), launch(2, size, name)
    assert len(two) == 2
    activations, peak = (max(process[kind] for process in two) for kind in ("activations", "peak"))
    cpu_s = sum(process["cpu_s"] for process in two)
    row = {
        "size": size,
        "training": name,
        "activations_mib": activations / MIB,
        "of_one": activations / one["activations"],
        "peak_mib": peak / MIB,
        "peak_of_one": peak / one["peak"],
        "cpu_s": cpu_s,
        "cpu_of_one": cpu_s / one["cpu_s"],
        "gradient_difference": abs(two[0]["gradient"] / one["gradient"] - 1),
    }
    return round_values(row, 3)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["256x4x1024"])
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        path = Path(args.worker, f"{os.environ.get('RANK', '0')}.json")
        path.write_text(json.dumps(measure_step(args.sizes[0], args.trainings[0])))
        return
    rows = []
    for size in args.sizes:
        for name in args.trainings:
            rows.append(bench(size, name))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if args.markdown:
        cells = ([row["size"], row["training"], *(row[column] for column in COLUMNS)] for row in rows)
        print(markdown_table(("size", "training", *COLUMNS), cells))
    else:
        print(json.dumps({"machine": "two cores, no GPU", "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
