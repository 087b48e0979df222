"""Quality against network passes: which solver, schedule, guidance and reuse to sample with. JSON and SVG.

    python tools/bench/sampling_curve.py OUT --manifest CORPUS/manifest.jsonl [--points NAME …]
    python tools/bench/sampling_curve.py OUT --race NAME

Every point samples the shipped model on the same prompts and seeds and is kept in OUT/NAME.npz; a point that is
there is not made again. `published` is 31 Euler steps, prompt and negative at each, nothing kept from step to step.
The kernel distance (KAD) is that of musicnn embeddings to held-out real songs; typicality is musicnn's judgement
and pulse the rhythm scorer's (bigger is better); `off` is the distance of the latents from those of the same noise
followed in very small steps, as a share of their norm. Intervals are 95 % over prompts; differences from
`published` are paired. `--race` measures seconds from prompts to sound, the two sides taking turns.
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
from tools.bench.curve_plot import picture
from tools.bench.measure import rounded
from tools.bench_sample import published
from tools.tiny.eval_tiny import excerpts, keep

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
    """What all points of a folder share; a folder of other settings or another model is refused."""

    out: str
    prompts: str
    per_prompt: int
    weights: list[str]
    """Hashes of the shipped model's files."""
    scale: float = SCALE
    seed: int = SEED


def requests(model: DiffRhythm, prompts_file: Path, per_prompt: int) -> list[Request]:
    """Songs of each prompt, told apart by their noise."""
    embed = EmbeddingStore(model).embed
    return [
        prompt_request(prompt, sample_id(prompt.id, k), model.spec.frames(prompt.duration_s), embed)
        for prompt in read_prompts(prompts_file)
        for k in range(per_prompt)
    ]


def by_published(model: DiffRhythm, batch: list[Request]) -> list[torch.Tensor]:
    """Latents of a batch of songs of one length by the published way."""
    guidance = SamplingConfig(guidance_scale=SCALE).build_guidance()
    shared = encode_conditions(model, batch, guidance, torch.device("cpu"))
    rows, places = torch.cat([shared.cond, shared.uncond]), torch.arange(2 * len(batch))
    conditions = ConditionBatch(  # all songs, then all negatives
        condition=take(shared.condition, rows), frames=shared.frames[rows],
        cond=places[: len(batch)], uncond=places[len(batch) :],
    )  # fmt: skip
    noise = start_noise(batch, SEED, shared.length, model.spec.channels)
    return list(published(model, conditions, noise, schedule(31), SCALE))


@torch.no_grad()
def songs(model: DiffRhythm, name: str, all_requests: list[Request]) -> tuple[list[torch.Tensor], list[int]]:
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


def hear(clips: list[audio.Clip]) -> dict[str, np.ndarray]:
    """The embeddings of each clip's three-second patches, its typicality and its pulse."""
    listener, judge = musicnn.load(), MusicnnTypicality()
    heard = [canonical(clip) for clip in clips]
    waves = [torch.from_numpy(audio.resample(clip, musicnn.SAMPLE_RATE).samples.mean(0)) for clip in heard]
    return {
        "embeddings": np.stack([listener.listen(wave).embedding.numpy() for wave in waves]),
        "typicality": judge(heard)[:, 0],
        "pulse": Rhythm()(heard)[:, 0],
    }


def point(model: DiffRhythm, name: str, all_requests: list[Request], path: Path) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    latents, passes = songs(model, name, all_requests)
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    heard = hear([model.decode(song) for song in latents])
    keep(path, latents=torch.stack(latents).numpy(), passes=np.array(passes), **took, **heard)


def summary(out: Path, all_requests: list[Request]) -> dict[str, Any]:
    """Every point so far, against the published way."""
    real = np.load(out / "reference.npz")["embeddings"]
    real = real.reshape(-1, real.shape[-1])
    bandwidth, fixed = median_bandwidth(real), ["real"] * len(real)
    clusters = [request.sample_id.rpartition(".")[0] for request in all_requests]

    def distances_of(embeddings: np.ndarray) -> np.ndarray:
        count, patches, dim = embeddings.shape
        names = np.repeat(clusters, patches).tolist()
        flat = embeddings.reshape(count * patches, dim)
        return kernel_distances(real, fixed, flat, names, bandwidth, resamples=RESAMPLES)

    found = {path.stem: dict(np.load(path)) for path in sorted(out.glob("*.npz")) if path.stem != "reference"}
    distances = {name: distances_of(made["embeddings"]) for name, made in found.items()}
    table: dict[str, Any] = {}
    for name, made in found.items():
        kad, against = distances[name], distances[name] - distances[BASE]
        row = {
            "passes": float(made["passes"].mean()), "kad": kad[0], "kad_low": np.quantile(kad[1:], 0.025),
            "kad_high": np.quantile(kad[1:], 0.975), "kad_change": against[0],
            "kad_change_low": np.quantile(against[1:], 0.025), "kad_change_high": np.quantile(against[1:], 0.975),
            "cpu_s": float(made["cpu_s"]), "times_faster": float(found[BASE]["cpu_s"] / made["cpu_s"]),
        }  # fmt: skip
        for axis in ("typicality", "pulse"):
            effect = paired_effect(found[BASE][axis], made[axis], clusters)
            row |= {axis: made[axis].mean(), f"{axis}_change": effect.mean}
            row |= {f"{axis}_change_low": effect.low, f"{axis}_change_high": effect.high}
        if TRUTH in found:
            off = np.linalg.norm(made["latents"] - found[TRUTH]["latents"], axis=(1, 2))
            row["off"] = float((off / np.linalg.norm(found[TRUTH]["latents"], axis=(1, 2))).mean())
        table[name] = rounded({key: float(value) for key, value in row.items()})
    return table


def race(model: DiffRhythm, name: str, all_requests: list[Request], repeats: int = 3) -> dict[str, Any]:
    """Seconds from prompts to latents and to sound, the sides taking turns; medians, by clock and by processor."""
    times: dict[str, list[list[float]]] = {BASE: [], name: []}
    for _ in range(repeats):
        for side, runs in times.items():
            marks = [(time.perf_counter(), time.process_time())]
            latents, _ = songs(model, side, all_requests)
            marks.append((time.perf_counter(), time.process_time()))
            for song in latents:
                model.decode(song)
            marks.append((time.perf_counter(), time.process_time()))
            runs.append([marks[i][k] - marks[0][k] for i in (1, 2) for k in (0, 1)])
    keys = ("latents_wall_s", "latents_cpu_s", "sound_wall_s", "sound_cpu_s")
    theirs, ours = (np.median(times[side], axis=0) for side in (BASE, name))
    ratio = {f"{key.removesuffix('_s')}_ratio": a / b for key, a, b in zip(keys, theirs, ours, strict=True)}
    sides = {f"{side}_{key}": value for side, values in ((BASE, theirs), (name, ours))
             for key, value in zip(keys, values, strict=True)}  # fmt: skip
    return rounded({key: float(value) for key, value in {**sides, **ratio}.items()})


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
        open_run(cfg)
    except UserError as error:
        parser.error(str(error))
    if args.manifest and not (args.out / "reference.npz").is_file():
        real = [clip for _, clip in excerpts(args.manifest, ["valid", "test"])]
        keep(args.out / "reference.npz", **hear(real))
    with bar("points", len(args.points), "point") as progress:
        for name in args.points:
            if not (args.out / f"{name}.npz").is_file():
                point(model, name, all_requests, args.out / f"{name}.npz")
            progress.advance()
    if (args.out / "reference.npz").is_file():
        table = summary(args.out, all_requests)
        (args.out / "curve.json").write_text(json.dumps(table, indent=1) + "\n")
        (args.out / "curve.svg").write_text(picture(table) + "\n")
        print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
