"""Measures the memory of a search over a long song in chunks against sampling one such song. JSON out.

    python tools/bench_search_memory.py [--seconds 600 --songs 4 --window 20 --guidance 1 --axes adherence.style]

The same song is first sampled and written as `diffdpo sample` does, then searched for by chunk pruning among so
many songs, with one window in a forward pass in both. `live_mib` is the peak of live tensor bytes, without the
weights, `rss_mib` the peak of resident memory so far. The number of steps changes neither.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

import torch

from diffdpo.data.samples import SampleRow, Samples, write_prompts
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model, build_scorers
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig
from diffdpo.sampling.sample_files import write_sample
from diffdpo.sampling.sample_jobs import SampleJob
from diffdpo.search.pruning import ChunkPruner
from diffdpo.search.reward import RewardConfig
from diffdpo.search.store import FolderStore
from diffdpo.search.task import SearchTask
from diffdpo.training.live_bytes import LiveBytes
from diffdpo.types import Prompt
from tools.bench.measure import own_peak_mib, round_values

MIB = 2**20


def build_task(folder: Path, args: argparse.Namespace) -> SearchTask:
    """The search of one prompt in a folder."""
    model, samples = build_model(Choice("tiny")), Samples(folder)
    prompt = Prompt(id="long", text="slow guitar rock, minor", duration_s=args.seconds)
    write_prompts(folder / "prompts.jsonl", [prompt], {})
    reward = RewardConfig(weights=dict.fromkeys(args.axes, 1.0))

    def sample_row(job: Any, digests: Any) -> SampleRow:
        return SampleRow(
            sample_id=job.job.sample_id,
            prompt_id=prompt.id,
            group=prompt.group,
            frames=job.job.frames,
            duration_s=prompt.duration_s,
            sha256=digests.sha256,
        )

    return SearchTask(
        model=model,
        job=SampleJob("long.000", prompt, torch.ones(model.spec.frames(args.seconds), dtype=torch.bool)),
        sampling=SamplingConfig(steps=args.steps, guidance_scale=args.guidance, batch=1),
        longform=LongformConfig(window_s=args.window),
        seed=0,
        budget=args.songs,
        embeddings=EmbeddingStore(model),
        store=FolderStore(
            model=model,
            scorers=build_scorers(reward.scorers()),
            reward=reward,
            samples=samples,
            scores=folder / "scores",
            method="chunk_pruning",
            sample_row=sample_row,
        ),
    )


def measure(task: SearchTask, action: Any) -> dict[str, float]:
    """Peaks of memory, and seconds of the processor."""
    count, begin_s = LiveBytes(), time.process_time()
    count.add([*task.model.network.parameters(), *task.model.network.buffers()], "weights")
    weights = count.total
    with count, torch.no_grad():
        action()
    return {
        "live_mib": (count.peak - weights) / MIB,
        "rss_mib": own_peak_mib(),
        "seconds": time.process_time() - begin_s,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--songs", type=int, default=4)
    parser.add_argument("--window", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--axes", nargs="+", default=["adherence.style"])
    args = parser.parse_args()
    report: dict[str, Any] = {"settings": vars(args)}
    with tempfile.TemporaryDirectory() as name:
        task = build_task(Path(name) / "one", args)

        def sample() -> None:
            job = task.embed(0)
            (latents,) = task.sample([job])
            write_sample(task.model, Samples(Path(name) / "one"), job, latents, audio=True)

        report["sampling"] = round_values(measure(task, sample))
        print(json.dumps(report["sampling"]), file=sys.stderr, flush=True)
        search = build_task(Path(name) / "search", args)
        report["search"] = round_values(measure(search, lambda: ChunkPruner()(search)))
    report["live_ratio"] = round(report["search"]["live_mib"] / report["sampling"]["live_mib"], 3)
    report["rss_ratio"] = round(report["search"]["rss_mib"] / report["sampling"]["rss_mib"], 3)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
