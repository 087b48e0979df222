"""Measures optimised noise on the tiny model: what targets gain, and the live tensor bytes it takes. JSON out.

    python tools/bench_noise.py [--targets intensity melody …] [--prompts 8 --seconds 6 --iterations 20 --steps 8]
    python tools/bench_noise.py --memory

Per target the loss of the plain songs and of those whose noise was optimised, both made with all steps, their
relative difference with a 95 % interval over prompts, the share of prompts that gain, and processor seconds. The
loudness curve swells by 20 dB and falls again; the melody is a rising scale in C; the
style is "slow, dark". `--memory` compares sampling and decoding a song with optimising
its noise, weights counted in both.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

import numpy as np
import torch

from diffdpo.data.prompts import read_prompts
from diffdpo.models import MODELS
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig, compose
from diffdpo.sampling.sample_jobs import sample_jobs, song_request
from diffdpo.search.noise import NoiseOptimiser
from diffdpo.search.optimised_noise import (
    SongLoss,
    optimise_song,
    song_of_noise,
    surrogate_sampling,
)
from diffdpo.search.reward import RewardConfig
from diffdpo.search.store import MemoryStore
from diffdpo.search.targets import parse_targets
from diffdpo.search.task import SearchTask
from diffdpo.statistics import paired_effect
from diffdpo.training.live_bytes import LiveBytes
from diffdpo.types import Prompt
from tools.bench.measure import round_values

MIB = 2**20


def target_entries(name: str, seconds: float) -> list[dict[str, Any]]:
    """The configuration of a target of this bench."""
    beat = seconds / 8
    scale = [[n * beat, (n + 1) * beat, 60 + p] for n, p in enumerate((0, 2, 4, 5, 7, 9, 11, 12))]
    entries: dict[str, dict[str, Any]] = {
        "intensity": {"curve": [[0, -35], [seconds / 2, -15], [seconds, -35]]},
        "melody": {"notes": scale},
        "style": {"text": "slow, dark"},
    }
    return [{"name": name, **entries[name]}]


def search_task(model: Any, prompt: Prompt, sampling: SamplingConfig, seed: int) -> SearchTask:
    """A search for one prompt, in memory."""
    (job,), _ = sample_jobs(model.spec, [(prompt, 0)], {})
    store = MemoryStore(model=model, scorers={}, reward=RewardConfig())
    return SearchTask(
        model=model, job=job, sampling=sampling, longform=LongformConfig(), seed=seed, budget=1e9,
        embeddings=EmbeddingStore(model), store=store,
    )  # fmt: skip


def measure_target(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The losses of one target with and without optimisation."""
    model = MODELS["tiny"]().load()
    sampling = SamplingConfig(steps=args.steps, solver=Choice(args.solver), guidance_scale=args.guidance)
    surrogate = surrogate_sampling(sampling, args.surrogate_steps)
    plain_losses, losses, names = [], [], []
    start_s = time.process_time()
    for line in read_prompts(ROOT / "configs/tiny/prompts_evaluation.jsonl")[: args.prompts]:
        prompt = Prompt(id=line.id, text=line.text, duration_s=args.seconds)
        task = search_task(model, prompt, sampling, args.seed)
        loss = SongLoss.of(task, parse_targets(target_entries(name, args.seconds)), 0.0)
        job = task.embed(0)
        (plain,) = task.sample([job])
        cfg = NoiseOptimiser(iterations=args.iterations, lr=args.lr)
        state = optimise_song(task, job, surrogate, cfg, loss)
        song = song_of_noise(task, job, state["noise"])
        plain_losses.append(loss.parts(plain)[name])
        losses.append(loss.parts(song)[name])
        names.append(prompt.id)
        progress = [round(value, 4) for value in state["losses"].tolist()]
        report = {
            "prompt": prompt.id,
            "plain": plain_losses[-1],
            "optimised": losses[-1],
            "surrogate": progress,
        }
        print(json.dumps(round_values(report)), file=sys.stderr, flush=True)
    effect = paired_effect(np.array(plain_losses), np.array(losses), names)
    return round_values(
        {
            "target": name,
            "plain": sum(plain_losses) / len(plain_losses),
            "optimised": sum(losses) / len(losses),
            "ratio": sum(losses) / sum(plain_losses),
            "effect": effect.mean,
            "low": effect.low,
            "high": effect.high,
            "share": sum(b > a for b, a in zip(plain_losses, losses, strict=True)) / len(plain_losses),
            "seconds": time.process_time() - start_s,
        }
    )


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peaks of live tensor bytes, in MiB: of sampling a song, decoding it, and two iterations on its noise."""
    model = MODELS["tiny"]().load()
    sampling = SamplingConfig(steps=args.steps, guidance_scale=args.guidance)
    prompt = Prompt(id="p", text="calm piano", duration_s=args.seconds)
    task = search_task(model, prompt, sampling, args.seed)
    job = task.embed(0)
    loss = SongLoss.of(task, parse_targets(target_entries("intensity", args.seconds)), 0.0)
    weights = [*model.network.parameters(), *model.codec.parameters()]
    request = song_request(model, job)
    songs: list[torch.Tensor] = []

    def sample() -> None:
        with torch.no_grad():
            songs[:] = compose(model, [request], sampling, LongformConfig(), seed=args.seed)

    def optimise() -> None:
        surrogate = surrogate_sampling(sampling, args.surrogate_steps)
        optimise_song(task, job, surrogate, NoiseOptimiser(iterations=2), loss)

    peaks = {}
    for name, run in (("sample", sample), ("decode", lambda: model.decode(songs[0])), ("optimise", optimise)):
        count = LiveBytes()
        count.add(weights, "weights")
        with count:
            run()
        peaks[name] = count.peak / MIB
    plain = max(peaks["sample"], peaks["decode"])
    return round_values(
        {**peaks, "weights": sum(p.nbytes for p in weights) / MIB, "ratio": peaks["optimise"] / plain}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=["intensity", "melody"])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--surrogate-steps", type=int, default=4)
    parser.add_argument("--solver", default="adams_bashforth")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args(arguments)
    if args.memory:
        print(json.dumps(measure_memory(args), indent=1))
    else:
        print(json.dumps([measure_target(name, args) for name in args.targets], indent=1))


if __name__ == "__main__":
    main()
