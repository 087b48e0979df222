"""Measures the time of the sampler and of plain Euler steps as published, and their difference. JSON out.

    python tools/bench_sample.py [--cases tiny sung 2048 6144] [--repeats 5] [--extras bf16 compiled]

`published` is DiffRhythm's way: 31 Euler steps in fp32, each with a pass for the prompt and a pass for its
negative, and no cache between steps. `ours` is `diffdpo.sampling` with the same solver, schedule and guidance. The
case `tiny` is the shipped network on eight songs of ten seconds, `sung` a random network of that size with the text
encoder of the published models; the other cases are random networks of dim 512 and depth 8 on one song of so many
frames. `ratio` is the published time over ours for 31 steps, the work that is done once a song included;
`attainable` is the rate of large matrix products on the same threads, `share` the part of that rate which our steps
reach by FLOPs (attention counted). Seconds are those of the processor over all threads, which other programs hardly
change; `--clock wall` takes those of the clock. `--extras` adds bf16, even on a processor without bf16, and
compiled blocks.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo.models import MODELS
from diffdpo.models.base import LatentSpec
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.registry import Choice
from diffdpo.sampling.conditions import ConditionBatch
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.sampler import Trajectories, conditioned_velocity, follow
from diffdpo.sampling.trajectory import Velocity, schedule
from diffdpo.sampling.velocity import initial_state
from tools.bench.measure import round_values

STEPS, SCALE = 31, 5.0
SONG_COUNTS = {"tiny": 8, "sung": 8, "2048": 1, "6144": 1}
EXTRAS: dict[str, dict[str, Any]] = {"bf16": {"precision": "bf16"}, "compiled": {"compile": True}}
"""Changes of the configuration, in the order of their runs: compiled blocks stay compiled."""
MEASURED_STEPS = {"tiny": 6, "sung": 6, "2048": 1, "6144": 1}
"""The number of steps in one measurement, by case."""


def build_case(case: str) -> tuple[DiffRhythm, int]:
    """The model of a case and the number of frames of its songs."""
    torch.manual_seed(0)
    if case == "tiny":
        model = MODELS["tiny"]().load()
        return model, model.spec.frames(10.0)
    if case == "sung":
        frames, network = (
            215,
            DiffRhythmTransformer(dim=256, depth=8, num_attention_heads=4, ff_mult=2, max_frames=512),
        )
    else:
        frames = int(case)
        network = DiffRhythmTransformer(
            dim=512, depth=8, num_attention_heads=8, max_frames=frames, duration_embedding=frames == 6144
        )
    for parameter in network.text_fusion_linears.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    spec = LatentSpec(channels=64, frames_per_second=21.5, sample_rate=44100, max_frames=frames)
    return DiffRhythm(network=network.eval(), spec=spec), frames


def random_conditions(model: DiffRhythm, songs: int, frames: int) -> ConditionBatch:
    """Conditions with lyrics, a style and a negative for each song. Rows: all songs, then all negatives."""
    random, config = torch.Generator().manual_seed(1), model.network.config
    style = torch.nn.functional.normalize(torch.randn(2 * songs, config.style_dim, generator=random), dim=1)
    text = torch.randint(0, config.text_num_embeds + 1, (2 * songs, frames), generator=random)
    text[songs:] = 0
    condition = {
        "lyrics": text, "style": style, "audio": torch.zeros(2 * songs, frames, config.latent_channels),
        "start_time": torch.zeros(2 * songs),
    }  # fmt: skip
    if config.duration_embedding:
        condition["duration"] = torch.full((2 * songs,), frames / config.max_frames)
    rows = torch.arange(2 * songs)
    return ConditionBatch(
        condition=condition, frames=torch.full((2 * songs,), frames), cond=rows[:songs], uncond=rows[songs:]
    )


@torch.no_grad()
def sample_published(
    model: DiffRhythm, conditions: ConditionBatch, noise: Tensor, times: Tensor, scale: float = SCALE
) -> Tensor:
    """Latents after Euler steps of two full passes each. Rows of the conditions: all songs, then all negatives."""
    config, half = model.network.config, len(noise)

    def branch(x: Tensor, t: Tensor, rows: slice) -> Tensor:
        part = {name: tensor[rows] for name, tensor in conditions.condition.items()}
        return model.network(
            x, (1 - t).to(x).expand(half), text=part["lyrics"], style=part["style"], audio=part["audio"],
            start_time=part["start_time"], duration=part["duration"] if config.duration_embedding else None,
        )  # fmt: skip

    x = noise
    for t, t_next in pairwise(times):
        cond, uncond = branch(x, t, slice(half)), branch(x, t, slice(half, None))
        x = x - (t_next - t).to(x) * (uncond + scale * (cond - uncond))
    return x


@torch.no_grad()
def follow_from(noise: Tensor, times: Tensor, velocity: Velocity, cfg: SamplingConfig) -> Tensor:
    """Latents after the sampler's steps through `times`, from noise."""
    path = Trajectories(
        velocity=velocity,
        x=noise,
        times=times[:, None].expand(-1, len(noise)),
        state=initial_state(torch.arange(len(noise)), noise, cfg.build_guidance(), cached=False),
        noise=lambda step: lambda purpose, state: torch.zeros_like(noise),  # Euler's steps take none
    )
    return follow(path, cfg)[0]


def flops(config: Any, frames: int) -> tuple[float, float]:
    """FLOPs of one song in one pass, and the part that changes from step to step. A multiply-add counts two."""
    dim, inputs = (
        config.dim,
        2 * config.latent_channels + config.text_dim + config.style_dim + config.cond_dim,
    )
    block = 2 * dim * dim * (4 + 3 * config.ff_mult) + 4 * frames * dim
    convolutions = 2 * 2 * dim * (dim // config.conv_pos_groups) * config.conv_pos_kernel_size
    step_flops = config.depth * block + convolutions + 2 * 2 * config.latent_channels * dim
    text = config.conv_layers * 2 * config.text_dim * (2 * config.text_ff_mult * config.text_dim + 7)
    fusion = config.depth // 2 * 2 * config.text_dim * dim
    song_flops = text + fusion + 2 * dim * (inputs - config.latent_channels)
    return frames * (step_flops + song_flops), frames * step_flops


CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
clock = CLOCKS["cpu"]


def time_call(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call."""
    start = clock()
    result = run()
    return clock() - start, result


def product_flops(dim: int, tokens: int) -> float:
    """FLOP/s of matrix products of the sizes in a block."""
    x, weight = torch.randn(tokens, dim), torch.randn(4 * dim, dim)
    repeats = max(1, int(2e10 / (8 * tokens * dim * dim)))
    seconds, _ = time_call(lambda: [torch.nn.functional.linear(x, weight) for _ in range(repeats)])
    return repeats * 8 * tokens * dim * dim / seconds


def bench_case(case: str, repeats: int, extras: list[str]) -> dict[str, Any]:
    """The measurements of one case; medians over `repeats` runs, the sides taking turns."""
    model, frames = build_case(case)
    songs, steps = SONG_COUNTS[case], MEASURED_STEPS[case]
    conditions, config = random_conditions(model, songs, frames), model.network.config
    noise = torch.randn(songs, frames, config.latent_channels, generator=torch.Generator().manual_seed(2))
    times = schedule(STEPS)[: steps + 1]
    cfg = SamplingConfig(steps=STEPS, solver=Choice("euler"), guidance_scale=SCALE)
    settings = {name: replace(cfg, **change) for name, change in EXTRAS.items() if name in extras}

    @torch.no_grad()
    def sample_project(settings: SamplingConfig) -> tuple[float, float, Tensor]:
        setup_s, velocity = time_call(lambda: conditioned_velocity(model, conditions, settings))
        seconds, x = time_call(lambda: follow_from(noise, times, velocity, settings))
        return setup_s, seconds, x

    with torch.no_grad():
        follow_from(noise, times[:2], conditioned_velocity(model, conditions, cfg), cfg)  # warm
    runs: dict[str, list[Any]] = {"published": [], "attainable": [], "ours": []}
    for _ in range(repeats):
        runs["published"].append(time_call(lambda: sample_published(model, conditions, noise, times)))
        runs["attainable"].append(product_flops(config.dim, songs * frames))
        runs["ours"].append(sample_project(cfg))
    published_s = [seconds / steps * STEPS for seconds, _ in runs["published"]]
    project_s = [setup_s + seconds / steps * STEPS for setup_s, seconds, _ in runs["ours"]]
    pass_flops, step_flops = flops(config, frames)
    rate = statistics.median(runs["attainable"])
    step = statistics.median(seconds / steps for _, seconds, _ in runs["ours"])
    result = {
        "songs": songs, "frames": frames, "steps_measured": steps, "repeats": repeats,
        "published_s": statistics.median(published_s), "ours_s": statistics.median(project_s),
        "once_a_song_s": statistics.median(setup_s for setup_s, _, _ in runs["ours"]),
        "ratio": statistics.median(a / b for a, b in zip(published_s, project_s, strict=True)),
        "ratio_by_flops": 2 * STEPS * pass_flops / (2 * STEPS * step_flops + 2 * (pass_flops - step_flops)),
        "difference": (runs["published"][0][1] - runs["ours"][0][2]).abs().max().item(),
        "attainable_gflops": rate / 1e9, "share": 2 * songs * step_flops / step / rate,
    }  # fmt: skip
    for name, extra_settings in settings.items():
        sample_project(extra_settings)  # warm, and compile
        setup_s, seconds, x = sample_project(extra_settings)
        error = (x - runs["ours"][0][2]).norm() / runs["ours"][0][2].norm()
        result |= {f"{name}_s": setup_s + seconds / steps * STEPS, f"{name}_error": error.item()}
    return round_values(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=SONG_COUNTS, default=list(SONG_COUNTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--extras", nargs="+", choices=EXTRAS, default=[])
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    args = parser.parse_args()
    global clock
    clock = CLOCKS[args.clock]
    table: dict[str, Any] = {"clock": args.clock}
    table |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for case in args.cases:
        table |= {case: bench_case(case, args.repeats, args.extras)}
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
