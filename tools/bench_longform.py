"""Measures how the sound of long songs changes at the seams of windows, against half-way between seams. JSON out.

    python tools/bench_longform.py [--songs 8 --seconds 62 --window 20 --overlap 6 --methods naive continue joint]

Each method generates the same songs: `naive` puts windows of independent noise end to end, `continue` and `joint`
are those of `longform.method`, `unpinned` is `continue` with `longform.clamp_context=false`, `whole` takes the song
as one window. At every seam, and half-way between seams (`elsewhere`), the three seconds before and after are
compared by the cosine distance of their musicnn embeddings, the second before and after by loudness. `excess` is
the mean at seams less the mean elsewhere, with a 95 % interval over songs. `seconds` are those of the
processor.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

import numpy as np
import torch

from diffdpo import audio
from diffdpo.data.prompts import read_prompts
from diffdpo.encoders import musicnn
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig, SongRequest, compose, window_groups
from diffdpo.sampling.request import prompt_rows
from diffdpo.scorers.features import ClipFeatures, mono
from diffdpo.scorers.musicnn import MusicnnTypicality
from diffdpo.statistics import paired_effect
from diffdpo.types import Clip, Prompt
from tools.bench.measure import memory_mb, round_values

METHODS: dict[str, dict[str, Any]] = {
    "naive": {},
    "continue": {"method": "continue"},
    "unpinned": {"method": "continue", "clamp_context": False},
    "joint": {"method": "joint"},
    "whole": {"window_s": 0.0},
}
PATCH_S = musicnn.PATCH_FRAMES * 256 / musicnn.MUSICNN_SAMPLE_RATE


def song_request(store: EmbeddingStore, prompt: Prompt, sample_id: str, frames: int) -> SongRequest:
    """The request for a song of a prompt with `frames` frames."""
    row, negative = prompt_rows(prompt, frames, store.embed)
    return SongRequest(sample_id=sample_id, row=row, negative=negative)


def song_parts(
    store: EmbeddingStore, prompt: Prompt, method: str, longform: LongformConfig
) -> tuple[list[SongRequest], list[float]]:
    """The requests for the parts of a song that are generated one after another, and the seams in seconds."""
    spec = store.model.spec
    rate, length, chunks = spec.frames_per_second, spec.frames(prompt.duration_s), longform.chunks(spec)
    (windows,) = window_groups(torch.ones(length, dtype=torch.bool), chunks)
    ends = [window.stop for window in windows[:-1]]
    if method == "naive":
        parts = []
        for number, (start, stop) in enumerate(pairwise([0, *ends, length])):
            part = replace(prompt, duration_s=(stop - start + 0.5) / rate).with_control(
                "start", start / length
            )
            parts.append(song_request(store, part, f"{prompt.id}/{number}", stop - start))
        return parts, [end / rate for end in ends]
    if method == "joint":
        ends = [end - chunks.overlap // 2 for end in ends]
    return [song_request(store, prompt, prompt.id, length)], [end / rate for end in ends]


class SeamMeter:
    """Differences between the sound before and after a moment."""

    def __init__(self) -> None:
        self.network = musicnn.load_musicnn()

    def embedding(self, samples: np.ndarray, start_s: float) -> np.ndarray:
        """The musicnn embedding of three seconds of mono samples from `start_s` on."""
        first = int(start_s * musicnn.MUSICNN_SAMPLE_RATE)
        window = samples[first : first + int(PATCH_S * musicnn.MUSICNN_SAMPLE_RATE)]
        return self.network.embed(torch.from_numpy(np.ascontiguousarray(window))).embedding[0].numpy()

    def change(self, samples: np.ndarray, at_s: float) -> float:
        """The cosine distance between the embeddings of the three seconds before and after a moment."""
        left, right = (self.embedding(samples, start) for start in (at_s - PATCH_S, at_s))
        return float(1 - left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))

    def step(self, clip: Clip, at_s: float) -> float:
        """The absolute difference in loudness, in dB, between the second before and the second after a moment."""
        at, second = int(at_s * clip.sample_rate), clip.sample_rate
        levels = [
            audio.loudness(Clip(samples=clip.samples[:, start : start + second], sample_rate=second))
            for start in (at - second, at)
        ]
        return abs(levels[1] - levels[0])

    def measure(self, clip: Clip, seams: list[float]) -> dict[str, Any]:
        """Typicality and drift of a song, and its mean changes at seams and half-way between seams."""
        samples = mono(ClipFeatures(clip), musicnn.MUSICNN_SAMPLE_RATE)
        midpoints = [(start + end) / 2 for start, end in pairwise([0.0, *seams, clip.seconds])]
        result: dict[str, Any] = {
            "typicality": float(MusicnnTypicality()([clip])[0, 0]),
            "drift": float(
                1
                - np.corrcoef(
                    self.embedding(samples, 4.0), self.embedding(samples, clip.seconds - 4.0 - PATCH_S)
                )[0, 1]
            ),
        }
        for name, moments in (("seams", seams), ("elsewhere", midpoints)):
            moments = [at for at in moments if PATCH_S <= at <= clip.seconds - PATCH_S]
            result[name] = {
                "embedding": float(np.mean([self.change(samples, at) for at in moments])),
                "loudness_db": float(np.mean([self.step(clip, at) for at in moments])),
            }
        return result


def seam_summary(measurements: dict[str, list[dict[str, Any]]], names: list[str]) -> dict[str, Any]:
    """By method, the means of all measures, the excess at seams, and the paired difference from `continue`."""
    report: dict[str, Any] = {}
    excess: dict[tuple[str, str], np.ndarray] = {}
    for method, songs in measurements.items():
        row: dict[str, Any] = {
            key: float(np.mean([song[key] for song in songs])) for key in ("typicality", "drift", "seconds")
        }
        for measure in ("embedding", "loudness_db"):
            seams, midpoints = (
                np.array([song[position][measure] for song in songs]) for position in ("seams", "elsewhere")
            )
            effect = paired_effect(midpoints, seams, names)
            excess[method, measure] = seams - midpoints
            row[measure] = round_values(
                {
                    "seams": float(seams.mean()),
                    "elsewhere": float(midpoints.mean()),
                    "excess": effect.mean,
                    "low": effect.low,
                    "high": effect.high,
                }
            )
        report[method] = round_values(row)
    if "continue" in measurements:
        for method in measurements.keys() - {"continue"}:
            for measure in ("embedding", "loudness_db"):
                effect = paired_effect(excess["continue", measure], excess[method, measure], names)
                report[method][measure] |= {"more_than_continue": [effect.mean, effect.low, effect.high]}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--songs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=62.0)
    parser.add_argument("--window", type=float, default=20.0)
    parser.add_argument("--overlap", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["naive", "continue", "joint"])
    parser.add_argument("--prompts", type=Path, default=ROOT / "configs/tiny/prompts_evaluation.jsonl")
    parser.add_argument("--keep", type=Path, help="folder for the songs, as FLAC")
    args = parser.parse_args()
    model, meter = build_model(Choice("tiny")), SeamMeter()
    store = EmbeddingStore(model)
    cfg = SamplingConfig(steps=args.steps, guidance_scale=args.guidance)
    longform = LongformConfig(window_s=args.window, overlap_s=args.overlap)
    prompts = [
        replace(prompt, duration_s=args.seconds) for prompt in read_prompts(args.prompts)[: args.songs]
    ]
    measurements: dict[str, list[dict[str, Any]]] = {method: [] for method in args.methods}
    for prompt in prompts:
        for method in args.methods:
            parts, seams = song_parts(store, prompt, method, longform)
            settings = replace(longform, **METHODS[method])
            t_start = time.process_time()
            latents = torch.cat([compose(model, [part], cfg, settings, seed=0)[0] for part in parts])
            seconds = time.process_time() - t_start
            clip = audio.limit(audio.normalise(model.decode(latents), -16.0))
            measurements[method].append(meter.measure(clip, seams) | {"seconds": seconds})
            if args.keep:
                audio.write(args.keep / f"{prompt.id}.{method}.flac", clip)
            print(prompt.id, method, json.dumps(measurements[method][-1]), file=sys.stderr, flush=True)
    report = {
        "settings": {key: value for key, value in vars(args).items() if key not in ("prompts", "keep")},
        **seam_summary(measurements, [prompt.id for prompt in prompts]),
        **round_values(memory_mb()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
