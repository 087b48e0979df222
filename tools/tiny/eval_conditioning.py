"""Measures how far songs of the tiny model follow the words of their prompts. JSON out.

    python tools/tiny/eval_conditioning.py [--measures tempo_bpm …] [--words known] [--per-genre 8] [--seed 0]

For each measure (by default tempo, brightness and density) and every genre of a list, songs are sampled from
opposite prompts ("slow rock", "fast rock") with the same noise, and measured by diffdpo/encoders/descriptors.py.
The effect is the mean difference of the measure between both prompts, with an interval over genres and
noises together.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo.encoders.descriptors import MEASURES, measure
from diffdpo.models import MODELS
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.progress import bar
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import Request, prompt_request
from diffdpo.sampling.sampler import batch_requests, sample_batch
from diffdpo.statistics import paired_effect
from diffdpo.types import Prompt
from tools.tiny.eval_style import GENRES, HELD_OUT

WORDS = {"known": MEASURES, "held_out": HELD_OUT}


def pole_requests(
    model: SongModel, poles: tuple[str, str], per_genre: int, seconds: float
) -> list[list[Request]]:
    """Requests for the low and for the high pole; the n-th requests of both start from the same noise."""
    embed, frames = EmbeddingStore(model).embed, model.spec.frames(seconds)

    def request(pole: str, genre: str, number: int) -> Request:
        prompt = Prompt(id=f"{genre}.{pole}", text=f"{pole} {genre}", duration_s=seconds)
        return prompt_request(prompt, f"{genre}.{number}", frames, embed)

    return [[request(pole, genre, k) for genre in GENRES for k in range(per_genre)] for pole in poles]


def measure_songs(
    model: SongModel, requests: list[Request], cfg: SamplingConfig, seed: int
) -> list[dict[str, float]]:
    """The measures of a sampled song for each request."""
    batches = batch_requests(requests, cfg.batch)  # equal lengths: the order stays
    return [
        measure(model.decode(latents))
        for batch in batches
        for latents in sample_batch(model, batch, cfg, seed=seed)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="")
    parser.add_argument("--network", default="")
    parser.add_argument("--measures", nargs="+", choices=tuple(MEASURES), default=list(MEASURES)[:3])
    parser.add_argument("--words", choices=tuple(WORDS), default="known")
    parser.add_argument("--per-genre", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = MODELS["tiny"](bundle=args.bundle, network=args.network).load()
    cfg = SamplingConfig(steps=args.steps, guidance_scale=args.guidance, batch=8)
    results = {}
    with bar("measure", len(args.measures), "measure") as progress:
        for name in args.measures:
            low, high = pole_requests(model, WORDS[args.words][name], args.per_genre, args.seconds)
            low_measures, high_measures = (measure_songs(model, side, cfg, args.seed) for side in (low, high))
            effect = paired_effect(
                np.array([values[name] for values in low_measures]),
                np.array([values[name] for values in high_measures]),
                [request.sample_id for request in low],
            )
            results[name] = {
                "asked": WORDS[args.words][name],
                "mean_of_low": round(float(np.mean([values[name] for values in low_measures])), 3),
                "mean_of_high": round(float(np.mean([values[name] for values in high_measures])), 3),
                **{key: round(value, 3) for key, value in asdict(effect).items()},
                "as_asked": effect.direction == "better",
            }
            progress.advance(note=name)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
