"""What is heard where the windows of long songs meet, against elsewhere in the same songs; JSON out.

    python tools/bench_longform.py [--songs 8 --seconds 62 --window 20 --overlap 6 --methods naive continue joint]

Each method makes the same songs: `naive` puts windows of their own noise end to end, `continue` and `joint` are
those of `longform.method`, `unpinned` is continue with `longform.clamp_context=false`, `whole` takes the song as
one window. At every seam, and half-way between seams, the three seconds before and after are compared by the
cosine distance of their musicnn embeddings, the second before and after by its loudness. `excess` is seams minus
elsewhere, song by song, with a 95 % bootstrap interval over songs. `seconds` are those of the processor.
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
from tools.bench.measure import memory_mb, rounded

METHODS: dict[str, dict[str, Any]] = {
    "naive": {},
    "continue": {"method": "continue"},
    "unpinned": {"method": "continue", "clamp_context": False},
    "joint": {"method": "joint"},
    "whole": {"window_s": 0.0},
}
PATCH_S = musicnn.PATCH_FRAMES * 256 / musicnn.SAMPLE_RATE


def song_request(store: EmbeddingStore, prompt: Prompt, sample_id: str, frames: int) -> SongRequest:
    """A song of a prompt, of so many frames."""
    row, negative = prompt_rows(prompt, frames, store.embed)
    return SongRequest(sample_id=sample_id, row=row, negative=negative)


def song_parts(
    store: EmbeddingStore, prompt: Prompt, method: str, longform: LongformConfig
) -> tuple[list[SongRequest], list[float]]:
    """What is generated of a song by itself, one part after another, and the seams in seconds."""
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


class Ears:
    """Distances between what is before and behind a moment."""

    def __init__(self) -> None:
        self.network = musicnn.load()

    def embedding(self, samples: np.ndarray, start_s: float) -> np.ndarray:
        first = int(start_s * musicnn.SAMPLE_RATE)
        heard = samples[first : first + int(PATCH_S * musicnn.SAMPLE_RATE)]
        return self.network.listen(torch.from_numpy(np.ascontiguousarray(heard))).embedding[0].numpy()

    def change(self, samples: np.ndarray, at_s: float) -> float:
        before, after = (self.embedding(samples, start) for start in (at_s - PATCH_S, at_s))
        return float(1 - before @ after / (np.linalg.norm(before) * np.linalg.norm(after)))

    def step(self, clip: Clip, at_s: float) -> float:
        """Of loudness, in dB, from the second before to the second after."""
        at, second = int(at_s * clip.sample_rate), clip.sample_rate
        levels = [
            audio.loudness(Clip(samples=clip.samples[:, start : start + second], sample_rate=second))
            for start in (at - second, at)
        ]
        return abs(levels[1] - levels[0])

    def hear(self, clip: Clip, seams: list[float]) -> dict[str, Any]:
        """Means over seams and over the moments half-way between them."""
        samples = mono(ClipFeatures(clip), musicnn.SAMPLE_RATE)
        between = [(one + other) / 2 for one, other in pairwise([0.0, *seams, clip.seconds])]
        found: dict[str, Any] = {
            "typicality": float(MusicnnTypicality()([clip])[0, 0]),
            "drift": float(
                1
                - np.corrcoef(
                    self.embedding(samples, 4.0), self.embedding(samples, clip.seconds - 4.0 - PATCH_S)
                )[0, 1]
            ),
        }
        for name, moments in (("seams", seams), ("elsewhere", between)):
            moments = [at for at in moments if PATCH_S <= at <= clip.seconds - PATCH_S]
            found[name] = {
                "embedding": float(np.mean([self.change(samples, at) for at in moments])),
                "loudness_db": float(np.mean([self.step(clip, at) for at in moments])),
            }
        return found


def summary(heard: dict[str, list[dict[str, Any]]], names: list[str]) -> dict[str, Any]:
    """Per method: levels, and the excess at seams with its interval; against `continue` too, song by song."""
    report: dict[str, Any] = {}
    excess: dict[tuple[str, str], np.ndarray] = {}
    for method, songs in heard.items():
        facts: dict[str, Any] = {
            key: float(np.mean([song[key] for song in songs])) for key in ("typicality", "drift", "seconds")
        }
        for measure in ("embedding", "loudness_db"):
            seams, elsewhere = (
                np.array([song[where][measure] for song in songs]) for where in ("seams", "elsewhere")
            )
            effect = paired_effect(elsewhere, seams, names)
            excess[method, measure] = seams - elsewhere
            facts[measure] = rounded(
                {
                    "seams": float(seams.mean()),
                    "elsewhere": float(elsewhere.mean()),
                    "excess": effect.mean,
                    "low": effect.low,
                    "high": effect.high,
                }
            )
        report[method] = rounded(facts)
    if "continue" in heard:
        for other in heard.keys() - {"continue"}:
            for measure in ("embedding", "loudness_db"):
                effect = paired_effect(excess["continue", measure], excess[other, measure], names)
                report[other][measure] |= {"more_than_continue": [effect.mean, effect.low, effect.high]}
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
    model, ears = build_model(Choice("tiny")), Ears()
    store = EmbeddingStore(model)
    cfg = SamplingConfig(steps=args.steps, guidance_scale=args.guidance)
    longform = LongformConfig(window_s=args.window, overlap_s=args.overlap)
    prompts = [
        replace(prompt, duration_s=args.seconds) for prompt in read_prompts(args.prompts)[: args.songs]
    ]
    heard: dict[str, list[dict[str, Any]]] = {method: [] for method in args.methods}
    for prompt in prompts:
        for method in args.methods:
            parts, seams = song_parts(store, prompt, method, longform)
            settings = replace(longform, **METHODS[method])
            began = time.process_time()
            latents = torch.cat([compose(model, [part], cfg, settings, seed=0)[0] for part in parts])
            seconds = time.process_time() - began
            clip = audio.limit(audio.normalise(model.decode(latents), -16.0))
            heard[method].append(ears.hear(clip, seams) | {"seconds": seconds})
            if args.keep:
                audio.write(args.keep / f"{prompt.id}.{method}.flac", clip)
            print(prompt.id, method, json.dumps(heard[method][-1]), file=sys.stderr, flush=True)
    report = {
        "settings": {key: value for key, value in vars(args).items() if key not in ("prompts", "keep")},
        **summary(heard, [prompt.id for prompt in prompts]),
        **rounded(memory_mb()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
