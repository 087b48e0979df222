"""Judge the tiny model by what it sounds like: `python tools/eval_tiny.py MANIFEST [--network FOLDER]`, JSON out.

The same measures for held-out real songs, their reconstructions by the codec, samples of the model, samples of the
untrained model, shuffled real latents, and noise in the latent space: all scorers' axes, and the kernel distance of
musicnn embeddings to other held-out real songs. All excerpts are ten seconds.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.config import OFFLINE
from diffdpo.data.prompts import read_prompts
from diffdpo.encoders import musicnn
from diffdpo.evaluation.distances import kernel_distance, median_bandwidth
from diffdpo.models import MODELS
from diffdpo.models.base import SongModel
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.progress import bar
from diffdpo.sampling import Request, SamplingConfig, batches_of, embed_all, sample
from diffdpo.scorers import SCORERS
from diffdpo.scorers.canonical import canonical
from diffdpo.types import Clip

SECONDS, LOUDNESS = 10.0, -16.0
PLACES = (0.15, 0.3, 0.5, 0.65, 0.8)


def excerpts(manifest: Path, splits: Sequence[str]) -> Iterator[Clip]:
    for row in map(json.loads, manifest.read_text().splitlines()):
        if row["split"] in splits:
            path = manifest.parent / row["audio"]
            length = audio.seconds_of(path)
            for place in PLACES:
                clip = audio.read(path, start_s=place * length, seconds=SECONDS)
                yield audio.normalise(audio.stereo(audio.resample(clip, 44100)), LOUDNESS)


def samples(model: SongModel, prompts: Path, per_prompt: int, cfg: SamplingConfig) -> list[torch.Tensor]:
    embedded = embed_all(model, read_prompts(prompts))
    requests = [Request(f"{name}.{k}", p) for name, p in embedded.items() for k in range(per_prompt)]
    return [song for batch in batches_of(requests, cfg.batch) for song in sample(model, batch, cfg, seed=1)]


def describe(clips: Sequence[Clip], listener: musicnn.Musicnn) -> tuple[dict[str, float], np.ndarray]:
    """Means of all axes, and the musicnn embedding of each three-second patch."""
    scorers = [SCORERS[name]() for name in OFFLINE]
    heard = [canonical(clip) for clip in clips]
    values = {}
    for scorer in scorers:
        table = np.concatenate([scorer([clip]) for clip in heard])
        values |= dict(zip(scorer.axes, table.mean(0).round(3).tolist(), strict=True))
    waves = [torch.from_numpy(audio.resample(clip, 16000).samples.mean(0)) for clip in heard]
    return values, torch.cat([listener.listen(wave).embedding for wave in waves]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--bundle", default="")
    parser.add_argument("--network", default="")
    parser.add_argument("--prompts", type=Path, default=Path("configs/tiny/prompts_mining.jsonl"))
    parser.add_argument("--per-prompt", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--guidance", type=float, default=3.0)
    args = parser.parse_args()
    model = MODELS["tiny"](bundle=args.bundle, network=args.network).load()
    cfg = SamplingConfig(steps=args.steps, solver="euler", guidance=args.guidance, batch=12)
    real = list(excerpts(args.manifest, ["test"]))
    latents = [model.encode(clip) for clip in real]
    generator = torch.Generator().manual_seed(0)
    pool = torch.cat(latents)
    shuffled = [pool[torch.randperm(len(pool), generator=generator)[: len(z)]] for z in latents]
    noise = [torch.randn(z.shape, generator=generator) for z in latents]
    made = samples(model, args.prompts, args.per_prompt, cfg)
    torch.manual_seed(0)
    untrained = type(model)(
        **{**vars(model), "network": DiffRhythmTransformer.from_config(model.network.config).eval()}
    )
    sets = {
        "real, other songs (valid)": list(excerpts(args.manifest, ["valid"])),
        "real (test)": real,
        "codec of real": [model.decode(z) for z in latents],
        "samples": [model.decode(z) for z in made],
        "untrained network": [model.decode(z) for z in samples(untrained, args.prompts, 1, cfg)],
        "shuffled latents": [model.decode(z) for z in shuffled],
        "noise latents": [model.decode(z) for z in noise],
    }
    listener, table = musicnn.load(), {}
    reference = bandwidth = None
    with bar("describe", len(sets), "set") as progress:
        for name, clips in sets.items():
            values, embeddings = describe(clips, listener)
            if reference is None:
                reference, bandwidth = embeddings, median_bandwidth(embeddings)
                distance = 0.0
            else:
                distance = kernel_distance(reference, embeddings, bandwidth)
            table[name] = {"clips": len(clips), **values, "kernel_distance": round(distance, 2)}
            progress.advance()
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
