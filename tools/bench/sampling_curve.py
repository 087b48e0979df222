"""Measures quality against network passes for solvers, schedules, guidance and reuse in sampling. JSON and SVG out.

    python tools/bench/sampling_curve.py OUT --manifest CORPUS/manifest.jsonl [--points NAME …]
    python tools/bench/sampling_curve.py OUT --race NAME

Every point samples the shipped model with the same prompts and seeds. OUT/NAME.npz holds a point, which is not
computed again. `published` is 31 Euler steps with two passes each, prompt and negative, and no cache between steps.
The kernel distance (KAD) is that of musicnn embeddings to held-out real songs; typicality is the judgement of
musicnn and pulse that of the rhythm scorer (larger is better); `off` is the distance of the latents from those of
64 steps from the same noise, as a share of their norm. Intervals are 95 % over prompts; differences from
`published` are paired. `--race` measures seconds from prompts to sound, with both sides taking turns.
OUT/curve.json and OUT/curve.svg hold all points so far.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.data.prompts import read_prompts
from diffdpo.data.samples import sample_id
from diffdpo.encoders import musicnn
from diffdpo.errors import UserError
from diffdpo.evaluation.distances import kernel_distances, median_bandwidth
from diffdpo.hub import BUNDLE, sha256_of
from diffdpo.models import MODELS
from diffdpo.models.base import take
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.progress import bar
from diffdpo.registry import Choice
from diffdpo.run_dir import open_run
from diffdpo.sampling.conditions import ConditionBatch, encode_conditions
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.noise import start_noise
from diffdpo.sampling.request import Request, prompt_request
from diffdpo.sampling.sampler import generate
from diffdpo.sampling.trajectory import schedule
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.musicnn import MusicnnTypicality
from diffdpo.scorers.rhythm import Rhythm
from diffdpo.statistics import paired_effect
from tools.bench.curve_plot import curve_svg
from tools.bench.measure import round_values
from tools.bench_sample import sample_published
from tools.tiny.array_cache import write_arrays
from tools.tiny.excerpts import excerpts

SCALE, SEED, BATCH, RESAMPLES = 5.0, 7, 16, 2000
BASE, TRUTH = "published", "ab-64"
AB = {"solver": Choice("adams_bashforth")}
POINTS: dict[str, dict[str, Any]] = {
    TRUTH: AB | {"steps": 64},
    **{f"euler-{n}": {"solver": Choice("euler"), "steps": n} for n in (4, 8, 16)},
    **{f"midpoint-{n}": {"solver": Choice("midpoint"), "steps": n} for n in (4, 8)},
    **{f"ab-{n}": AB | {"steps": n} for n in (3, 4, 6, 8, 12)},
    **{f"dpmpp-{n}": {"solver": Choice("dpmpp_2m"), "steps": n} for n in (4, 8, 12)},
    **{f"ab-{n}-shift2": AB | {"steps": n, "shift": 2.0} for n in (4, 6, 8)},
    "ab-8-shift0.5": AB | {"steps": 8, "shift": 0.5},
    "ab-8-sway": AB | {"steps": 8, "sway": -1.0},
    "ab-8-late": AB | {"steps": 8, "guidance_interval": [0.0, 0.6]},
    "ab-8-early": AB | {"steps": 8, "guidance_interval": [0.4, 1.0]},
    "ab-8-every2": AB | {"steps": 8, "guidance_every": 2},
    "ab-8-every3": AB | {"steps": 8, "guidance_every": 3},
    "ab-8-every4": AB | {"steps": 8, "guidance_every": 4},
    "ab-8-early-every2": AB | {"steps": 8, "guidance_every": 2, "guidance_interval": [0.4, 1.0]},
    "ab-7-every2": AB | {"steps": 7, "guidance_every": 2},
    "ab-6-every2": AB | {"steps": 6, "guidance_every": 2},
    "ab-12-every3": AB | {"steps": 12, "guidance_every": 3},
    "ab-16-reuse": AB | {"steps": 16, "cache_threshold": 0.15},
    **{f"ab-12-guidance{n}": AB | {"steps": 12, "guidance_scale": float(n)} for n in (1, 2, 3, 4, 7)},
    "ab-8-rescaled": AB | {"steps": 8, "guidance": Choice("rescaled")},
    "ab-8-zero": AB | {"steps": 8, "guidance": Choice("zero_star", {"zero_init_steps": 0})},
    "ab-8-apg": AB | {"steps": 8, "guidance": Choice("apg")},
}


@dataclass(frozen=True, kw_only=True)
class CurveRun:
    """The settings that all points of a folder share; a folder of other settings or another model is refused."""

    out: str
    prompts: str
    per_prompt: int
    weights: list[str]
    """Hashes of the shipped model's files."""
    scale: float = SCALE
    seed: int = SEED


def requests(model: DiffRhythm, prompts_file: Path, per_prompt: int) -> list[Request]:
    """Requests for several songs of each prompt, which differ by their noise."""
    embed = EmbeddingStore(model).embed
    return [
        prompt_request(prompt, sample_id(prompt.id, k), model.spec.frames(prompt.duration_s), embed)
        for prompt in read_prompts(prompts_file)
        for k in range(per_prompt)
    ]


def by_published(model: DiffRhythm, batch: list[Request]) -> list[torch.Tensor]:
    """Latents of a batch of songs of one length, sampled as published."""
    guidance = SamplingConfig(guidance_scale=SCALE).build_guidance()
    batch_conditions = encode_conditions(model, batch, guidance, torch.device("cpu"))
    rows, places = torch.cat([batch_conditions.cond, batch_conditions.uncond]), torch.arange(2 * len(batch))
    conditions = ConditionBatch(  # all songs, then all negatives
        condition=take(batch_conditions.condition, rows), frames=batch_conditions.frames[rows],
        cond=places[: len(batch)], uncond=places[len(batch) :],
    )  # fmt: skip
    noise = start_noise(batch, SEED, batch_conditions.length, model.spec.channels)
    return list(sample_published(model, conditions, noise, schedule(31), SCALE))


@torch.no_grad()
def sample_point(
    model: DiffRhythm, name: str, all_requests: list[Request]
) -> tuple[list[torch.Tensor], list[int]]:
    """Latents and network passes of all songs of a point."""
    latents: list[torch.Tensor] = []
    passes: list[int] = []
    for start in range(0, len(all_requests), BATCH):
        batch = all_requests[start : start + BATCH]
        if name == BASE:
            latents += by_published(model, batch)
            passes += [62] * len(batch)
        else:
            cfg = replace(SamplingConfig(guidance_scale=SCALE), **POINTS[name])
            samples = generate(model, batch, cfg, seed=SEED)
            latents += [song.latents for song in samples]
            passes += [song.nfe for song in samples]
    return latents, passes


def measure_clips(clips: list[audio.Clip]) -> dict[str, np.ndarray]:
    """The embeddings of each clip's three-second patches, its typicality and its pulse."""
    listener, judge = musicnn.load_musicnn(), MusicnnTypicality()
    canonical_clips = [canonical(clip) for clip in clips]
    waves = [
        torch.from_numpy(audio.resample(clip, musicnn.MUSICNN_SAMPLE_RATE).samples.mean(0))
        for clip in canonical_clips
    ]
    return {
        "embeddings": np.stack([listener.embed(wave).embedding.numpy() for wave in waves]),
        "typicality": judge(canonical_clips)[:, 0],
        "pulse": Rhythm()(canonical_clips)[:, 0],
    }


def write_point(model: DiffRhythm, name: str, all_requests: list[Request], path: Path) -> None:
    """Sample and measure all songs of a point and write the arrays to a file."""
    cpu, wall = time.process_time(), time.perf_counter()
    latents, passes = sample_point(model, name, all_requests)
    cost = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    measurements = measure_clips([model.decode(song) for song in latents])
    write_arrays(path, latents=torch.stack(latents).numpy(), passes=np.array(passes), **cost, **measurements)


def curve_summary(out: Path, all_requests: list[Request]) -> dict[str, Any]:
    """The measures of every point so far, and their differences from `published`.

    Intervals of distances are percentile bootstraps over prompts, a little too narrow; those of axes are not.
    """
    real = np.load(out / "reference.npz")["embeddings"]
    real = real.reshape(-1, real.shape[-1])
    bandwidth, real_clusters = median_bandwidth(real), ["real"] * len(real)
    clusters = [request.sample_id.rpartition(".")[0] for request in all_requests]

    def distances_of(embeddings: np.ndarray) -> np.ndarray:
        count, patches, dim = embeddings.shape
        names = np.repeat(clusters, patches).tolist()
        flat = embeddings.reshape(count * patches, dim)
        return kernel_distances(real, real_clusters, flat, names, bandwidth, resamples=RESAMPLES)

    points = {
        path.stem: dict(np.load(path)) for path in sorted(out.glob("*.npz")) if path.stem != "reference"
    }
    distances = {name: distances_of(arrays["embeddings"]) for name, arrays in points.items()}
    table: dict[str, Any] = {}
    for name, arrays in points.items():
        kad, kad_change = distances[name], distances[name] - distances[BASE]
        row = {
            "passes": float(arrays["passes"].mean()), "kad": kad[0], "kad_low": np.quantile(kad[1:], 0.025),
            "kad_high": np.quantile(kad[1:], 0.975), "kad_change": kad_change[0],
            "kad_change_low": np.quantile(kad_change[1:], 0.025),
            "kad_change_high": np.quantile(kad_change[1:], 0.975),
            "cpu_s": float(arrays["cpu_s"]), "times_faster": float(points[BASE]["cpu_s"] / arrays["cpu_s"]),
        }  # fmt: skip
        for axis in ("typicality", "pulse"):
            effect = paired_effect(points[BASE][axis], arrays[axis], clusters)
            row |= {axis: arrays[axis].mean(), f"{axis}_change": effect.mean}
            row |= {f"{axis}_change_low": effect.low, f"{axis}_change_high": effect.high}
        if TRUTH in points:
            off = np.linalg.norm(arrays["latents"] - points[TRUTH]["latents"], axis=(1, 2))
            row["off"] = float((off / np.linalg.norm(points[TRUTH]["latents"], axis=(1, 2))).mean())
        table[name] = round_values({key: float(value) for key, value in row.items()})
    return table


def race(model: DiffRhythm, name: str, all_requests: list[Request], repeats: int = 3) -> dict[str, Any]:
    """Median seconds from prompts to latents and to sound of a point and of `published`, by clock and processor."""
    times: dict[str, list[list[float]]] = {BASE: [], name: []}
    for _ in range(repeats):
        for side, runs in times.items():
            marks = [(time.perf_counter(), time.process_time())]
            latents, _ = sample_point(model, side, all_requests)
            marks.append((time.perf_counter(), time.process_time()))
            for song in latents:
                model.decode(song)
            marks.append((time.perf_counter(), time.process_time()))
            runs.append([marks[i][k] - marks[0][k] for i in (1, 2) for k in (0, 1)])
    keys = ("latents_wall_s", "latents_cpu_s", "sound_wall_s", "sound_cpu_s")
    published_times, point_times = (np.median(times[side], axis=0) for side in (BASE, name))
    ratio = {
        f"{key.removesuffix('_s')}_ratio": a / b
        for key, a, b in zip(keys, published_times, point_times, strict=True)
    }
    sides = {f"{side}_{key}": value for side, values in ((BASE, published_times), (name, point_times))
             for key, value in zip(keys, values, strict=True)}  # fmt: skip
    return round_values({key: float(value) for key, value in {**sides, **ratio}.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--manifest", type=Path, help="of the real songs; needed the first time")
    parser.add_argument("--points", nargs="*", default=[BASE, *POINTS], help="names, in this order")
    parser.add_argument("--prompts", type=Path, default=Path("configs/tiny/prompts_mining.jsonl"))
    parser.add_argument("--per-prompt", type=int, default=1)
    parser.add_argument("--race", default="", help="a point to time against the published way")
    args = parser.parse_args()
    model = MODELS["tiny"]().load()
    all_requests = requests(model, args.prompts, args.per_prompt)
    if args.race:
        print(json.dumps(race(model, args.race, all_requests[:8]), indent=1))
        return
    weights = [sha256_of(path) for path in sorted(BUNDLE.rglob("*.safetensors"))]
    cfg = CurveRun(out=str(args.out), prompts=str(args.prompts), per_prompt=args.per_prompt, weights=weights)
    try:
        with open_run(cfg):
            pass  # a folder of another curve is refused
    except UserError as error:
        parser.error(str(error))
    if args.manifest and not (args.out / "reference.npz").is_file():
        real = [clip for _, clip in excerpts(args.manifest, ["valid", "test"])]
        write_arrays(args.out / "reference.npz", **measure_clips(real))
    with bar("points", len(args.points), "point") as progress:
        for name in args.points:
            if not (args.out / f"{name}.npz").is_file():
                write_point(model, name, all_requests, args.out / f"{name}.npz")
            progress.advance()
    if (args.out / "reference.npz").is_file():
        table = curve_summary(args.out, all_requests)
        (args.out / "curve.json").write_text(json.dumps(table, indent=1) + "\n")
        (args.out / "curve.svg").write_text(curve_svg(table) + "\n")
        print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
