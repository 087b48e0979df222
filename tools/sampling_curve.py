"""Quality against network passes: which solver, schedule, guidance and reuse to sample with. JSON and SVG.

    python tools/sampling_curve.py OUT --manifest CORPUS/manifest.jsonl [--points NAME …]
    python tools/sampling_curve.py OUT --race NAME

Every point samples the shipped model on the same prompts and seeds and is kept in OUT/NAME.npz; a point that is
there is not made again. `published` is 31 Euler steps, prompt and negative at each, nothing kept from step to step.
The kernel distance (KAD) is that of musicnn embeddings to held-out real songs, typicality musicnn's judgement
(bigger is better), `off` the distance of the latents from those of the same noise followed in very small steps, as
a share of their norm. Intervals are 95 % over prompts; differences from `published` are paired. `--race` measures
seconds from prompts to sound, the two sides taking turns. OUT/curve.json and OUT/curve.svg hold all points so far.
"""

import argparse
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from bench_sample import published
from eval_tiny import excerpts, keep
from measure import rounded

from diffdpo import audio, flow
from diffdpo.data.prompts import negative, read_prompts
from diffdpo.denoising import Asked, SamplingConfig
from diffdpo.encoders import musicnn
from diffdpo.evaluation.distances import kernel_distances, median_bandwidth
from diffdpo.models import MODELS
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.progress import bar
from diffdpo.sampling import Request, draw, embed_all, make
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.musicnn import MusicnnTypicality
from diffdpo.statistics import paired_effect

SCALE, SEED, BATCH, RESAMPLES = 3.0, 7, 16, 2000
BASE, TRUTH = "published", "ab-64"
AB = {"solver": "adams_bashforth"}
POINTS: dict[str, dict[str, Any]] = {
    TRUTH: AB | {"steps": 64},
    **{f"euler-{n}": {"solver": "euler", "steps": n} for n in (4, 8, 16)},
    **{f"midpoint-{n}": {"solver": "midpoint", "steps": n} for n in (4, 8)},
    **{f"ab-{n}": AB | {"steps": n} for n in (3, 4, 6, 8, 12)},
    **{f"dpmpp-{n}": {"solver": "dpmpp_2m", "steps": n} for n in (4, 8, 12)},
    "ab-8-shift2": AB | {"steps": 8, "shift": 2.0},
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
    "ab-16-reuse": AB | {"steps": 16, "reuse": 0.15},
    "ab-8-rescaled": AB | {"steps": 8, "guidance_form": "rescaled"},
    "ab-8-zero": AB | {"steps": 8, "guidance_form": "zero_star", "guidance_args": {"held_steps": 0}},
    "ab-8-apg": AB | {"steps": 8, "guidance_form": "apg"},
}


def requests(model: DiffRhythm, prompts_file: Path, per_prompt: int) -> list[Request]:
    prompts = read_prompts(prompts_file)
    embedded = embed_all(model, prompts)
    return [Request(f"{p.id}.{k:03d}", embedded[p.id]) for p in prompts for k in range(per_prompt)]


def by_published(model: DiffRhythm, batch: list[Request]) -> list[torch.Tensor]:
    prompts = [request.prompt for request in batch]
    frames = model.latents.frames(prompts[0].duration_s)
    rows = torch.arange(2 * len(batch))
    condition = model.condition([*prompts, *(model.embed(negative(prompt)) for prompt in prompts)], frames)
    asked = Asked(
        condition=condition, frames=torch.full((len(rows),), frames), towards=rows[: len(batch)],
        away=rows[len(batch) :],
    )  # fmt: skip
    return list(published(model, asked, draw(model, batch, SEED, frames), flow.schedule(31), SCALE))


def songs(model: DiffRhythm, name: str, wanted: list[Request]) -> tuple[list[torch.Tensor], list[int]]:
    """Latents and network passes of all songs of a point."""
    latents, passes = [], []
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        if name == BASE:
            latents += by_published(model, batch)
            passes += [62] * len(batch)
        else:
            cfg = replace(SamplingConfig(guidance=SCALE), **POINTS[name])
            made = make(model, batch, cfg, seed=SEED)
            latents += [song.latents for song in made]
            passes += [song.passes for song in made]
    return latents, passes


def hear(clips: list[audio.Clip]) -> dict[str, np.ndarray]:
    """The embeddings of each clip's three-second patches, and its typicality."""
    listener, judge = musicnn.load(), MusicnnTypicality()
    heard = [canonical(clip) for clip in clips]
    waves = [torch.from_numpy(audio.resample(clip, musicnn.SAMPLE_RATE).samples.mean(0)) for clip in heard]
    return {
        "embeddings": np.stack([listener.listen(wave).embedding.numpy() for wave in waves]),
        "typicality": judge(heard)[:, 0],
    }


def point(model: DiffRhythm, name: str, wanted: list[Request], path: Path) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    latents, passes = songs(model, name, wanted)
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    heard = hear([model.decode(song) for song in latents])
    keep(path, latents=torch.stack(latents).numpy(), passes=np.array(passes), **took, **heard)


def summary(out: Path, wanted: list[Request]) -> dict[str, Any]:
    """Every point so far, against the published way."""
    real = np.load(out / "reference.npz")["embeddings"]
    real = real.reshape(-1, real.shape[-1])
    bandwidth, fixed = median_bandwidth(real), ["real"] * len(real)
    clusters = [request.prompt.id for request in wanted]

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
        typical = paired_effect(found[BASE]["typicality"], made["typicality"], clusters)
        row = {
            "passes": float(made["passes"].mean()), "kad": kad[0], "kad_low": np.quantile(kad[1:], 0.025),
            "kad_high": np.quantile(kad[1:], 0.975), "kad_change": against[0],
            "kad_change_low": np.quantile(against[1:], 0.025), "kad_change_high": np.quantile(against[1:], 0.975),
            "typicality": made["typicality"].mean(), "typicality_change": typical.mean,
            "typicality_change_low": typical.low, "typicality_change_high": typical.high,
            "cpu_s": float(made["cpu_s"]), "times_faster": float(found[BASE]["cpu_s"] / made["cpu_s"]),
        }  # fmt: skip
        if TRUTH in found:
            off = np.linalg.norm(made["latents"] - found[TRUTH]["latents"], axis=(1, 2))
            row["off"] = float((off / np.linalg.norm(found[TRUTH]["latents"], axis=(1, 2))).mean())
        table[name] = rounded({key: float(value) for key, value in row.items()})
    return table


FAMILIES = {
    "euler": ("#888", r"euler-\d+"), "dpmpp_2m": ("#090", r"dpmpp-\d+"), "midpoint": ("#c60", r"midpoint-\d+"),
    "adams_bashforth": ("#06c", r"ab-\d+"),
    "adams_bashforth, 8 steps, guidance_every 2 to 4": ("#a0a", r"ab-8(-every\d)?"),
}  # fmt: skip
"""What the picture shows: a colour and the points of each line."""


def picture(table: dict[str, Any]) -> str:
    """KAD with its interval over passes, a line a solver; the band is the published way's interval."""
    left, right, top, bottom = 60.0, 720.0, 30.0, 390.0
    base = table[BASE]
    low, high = 5.0, 18.0

    def place(passes: float, kad: float) -> tuple[float, float]:
        across = np.log2(max(passes, 5) / 5) / np.log2(66 / 5)
        return left + (right - left) * across, bottom - (bottom - top) * (min(kad, high) - low) / (high - low)

    band = [place(5, base[key])[1] for key in ("kad_high", "kad", "kad_low")]
    parts = [
        f'<rect x="{left}" y="{band[0]:.1f}" width="{right - left}" height="{band[2] - band[0]:.1f}" fill="#eee"/>',
        f'<path d="M{left} {band[1]:.1f}H{right}" stroke="#000" stroke-dasharray="4 3"/>',
        f'<text x="{right}" y="{band[1] - 4:.1f}" text-anchor="end">published: 62 passes</text>',
    ]
    for passes in (6, 8, 12, 16, 24, 32, 62):
        x, _ = place(passes, low)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{passes}</text>')
    for kad in (6, 8, 10, 12, 14, 16, 18):
        parts.append(f'<text x="{left - 6}" y="{place(5, kad)[1] + 4:.1f}" text-anchor="end">{kad}</text>')
    for number, (name, (colour, pattern)) in enumerate(FAMILIES.items()):
        rows = [row for point, row in table.items() if re.fullmatch(pattern, point) and row["passes"] <= 64]
        spots = sorted((*place(row["passes"], row["kad"]), row["kad_low"], row["kad_high"]) for row in rows)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in spots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for x, y, worst, best in spots:
            at, ends = x + 2 * (number - 2), [place(5, kad)[1] for kad in (worst, best)]
            parts.append(f'<path d="M{at:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}" opacity="0.4"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
        parts.append(f'<text x="{right - 290}" y="{top + 14 + 15 * number}" fill="{colour}">{name}</text>')
    parts.append(
        f'<text x="{(left + right) / 2}" y="{bottom + 36}" text-anchor="middle">passes a song</text>'
    )
    parts.append(f'<text x="{left}" y="16">kernel distance to real songs, 95 % over prompts</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 440" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="780" height="440" fill="#fff"/>', *parts, "</svg>"])


def race(model: DiffRhythm, name: str, wanted: list[Request], repeats: int = 3) -> dict[str, Any]:
    """Seconds from prompts to latents and to sound, the sides taking turns; medians, by clock and by processor."""
    times: dict[str, list[list[float]]] = {BASE: [], name: []}
    for _ in range(repeats):
        for side, runs in times.items():
            marks = [(time.perf_counter(), time.process_time())]
            latents, _ = songs(model, side, wanted)
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
    args.out.mkdir(parents=True, exist_ok=True)
    model = MODELS["tiny"]().load()
    wanted = requests(model, args.prompts, args.per_prompt)
    if args.race:
        print(json.dumps(race(model, args.race, wanted[:8]), indent=1))
        return
    if args.manifest and not (args.out / "reference.npz").is_file():
        real = [clip for _, clip in excerpts(args.manifest, ["valid", "test"])]
        keep(args.out / "reference.npz", **hear(real))
    with bar("points", len(args.points), "point") as progress:
        for name in args.points:
            if not (args.out / f"{name}.npz").is_file():
                point(model, name, wanted, args.out / f"{name}.npz")
            progress.advance()
    if (args.out / "reference.npz").is_file():
        table = summary(args.out, wanted)
        (args.out / "curve.json").write_text(json.dumps(table, indent=1) + "\n")
        (args.out / "curve.svg").write_text(picture(table) + "\n")
        print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
