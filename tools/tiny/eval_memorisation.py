"""Measures whether samples of the tiny model are nearer to its training songs than held-out songs are. JSON out.

    python tools/tiny/eval_memorisation.py MANIFEST [--latents-only] [key=value …]

Each three seconds of the samples are compared with all training songs by two measures: 1 - normalised
cross-correlation of latents (whitened, the first components, all shifts), and the distance of musicnn embeddings of
decoded sound. The same is measured for held-out real songs, and for the controls, excerpts of training songs at any
frame with some noise: a measure that does not find the controls proves nothing. Settings, folder and samples are
those of tools/tiny/eval_tiny.py; the folder keeps the latents and embeddings of every training song.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.encoders import musicnn
from diffdpo.models.base import SongModel
from diffdpo.progress import bar
from diffdpo.scorers.canonical import canonical
from diffdpo.types import Clip
from tools.bench.measure import round_values
from tools.tiny.array_cache import Latents, cached_arrays, cached_latents
from tools.tiny.eval_tiny import (
    CODEC,
    SAMPLES,
    EvalRun,
    describe_sets,
    open_evaluation,
    patch_clusters,
    patch_embeddings,
    real_latents,
    sample_latents,
)
from tools.tiny.excerpts import RATE, SECONDS, read_clip
from tools.tiny.memorisation import WhiteningTransform, best_match, nearest, nearness

SEGMENT_S, COMPONENTS = 3.0, 16
HOP_S = 1.5
"""Seconds between the starts of patches of the training songs; an embedding of 3 s depends on its start."""
CONTROLS, NOISE_DB = 60, -30.0


def training_songs(manifest: Path) -> list[tuple[str, Path]]:
    """The id and the audio file of each training song."""
    rows = map(json.loads, manifest.read_text().splitlines())
    return [(row["id"], manifest.parent / row["audio"]) for row in rows if row["split"] == "train"]


def library(model: SongModel, cfg: EvalRun) -> Iterator[tuple[str, np.ndarray]]:
    """Latents of each training song."""

    def encode(path: Path) -> dict[str, np.ndarray]:
        return {"latents": model.encode(read_clip(path)).numpy().astype(np.float16)}

    songs, folder = training_songs(Path(cfg.manifest)), Path(cfg.out) / "library"
    with bar("training songs", len(songs), "song") as progress:
        for name, path in songs:
            yield (
                name,
                cached_arrays(folder / f"{name}.npz", partial(encode, path))["latents"].astype(np.float32),
            )
            progress.advance()


def song_embeddings(
    model: Any, name: str, latents: np.ndarray, cfg: EvalRun, listener: musicnn.Musicnn
) -> np.ndarray:
    """musicnn embeddings of a decoded training song, of which each excerpt has the loudness of a sample."""

    def make() -> dict[str, np.ndarray]:
        length, embeddings = model.spec.frames(SECONDS + HOP_S), []
        for part in torch.from_numpy(latents).split(length):
            clip = model.decode(part)
            if clip.seconds < SEGMENT_S + HOP_S:
                continue
            for start in (0, round(HOP_S * clip.sample_rate)):
                remainder = Clip(samples=clip.samples[:, start:], sample_rate=clip.sample_rate)
                embeddings.append(patch_embeddings(canonical(remainder), listener))
        return {"embeddings": np.concatenate(embeddings) if embeddings else np.zeros((0, musicnn.EMBEDDING))}

    return cached_arrays(Path(cfg.out) / "library" / f"{name}-musicnn.npz", make)["embeddings"]


def controls(model: SongModel, cfg: EvalRun) -> Latents:
    """Latents of excerpts of training songs with noise, whose starts are off the grid of frames."""

    def make() -> Latents:
        songs, rng = training_songs(Path(cfg.manifest)), np.random.default_rng(cfg.seed)
        latents = []
        for index in rng.permutation(np.arange(CONTROLS) % len(songs)):
            name, path = songs[index]
            start = rng.uniform(0, max(0.0, audio.seconds_of(path) - SECONDS))
            clip = read_clip(path, start, SECONDS)
            level = 10 ** (NOISE_DB / 20) * np.sqrt((clip.samples**2).mean())
            noise = rng.normal(0, level, clip.samples.shape).astype(np.float32)
            latents.append((name, model.encode(Clip(samples=clip.samples + noise, sample_rate=RATE))))
        return latents

    return cached_latents(Path(cfg.out) / "latents" / "controls.npz", make)


def segments(latents: Latents, frames: int, whiten: WhiteningTransform) -> tuple[np.ndarray, list[str]]:
    """Whitened latents in adjacent windows of `frames` frames, and the cluster of each window."""
    segment_latents, names = [], []
    for cluster, z in latents:
        windows = z[: len(z) // frames * frames].split(frames) if len(z) >= frames else ()
        segment_latents += [whiten(window.numpy()) for window in windows]
        names += [cluster] * len(windows)
    return np.stack(segment_latents), names


def by_latents(model: Any, cfg: EvalRun) -> dict[str, Any]:
    """By set, the distances of segments to the training songs, the clusters and the nearest songs, on latents."""
    frames = model.spec.frames(SEGMENT_S)
    songs = dict(library(model, cfg))
    whiten = WhiteningTransform.of(np.concatenate(list(songs.values())), COMPONENTS)
    white = {name: whiten(latents) for name, latents in songs.items()}
    results = {}
    latents_by_set = {
        "held out": real_latents(model, cfg),
        "samples": sample_latents(model, cfg),
        "controls": controls(model, cfg),
    }
    with bar("latents", len(latents_by_set), "set") as progress:
        for name, latents in latents_by_set.items():
            queries, clusters = segments(latents, frames, whiten)
            matches = np.stack([best_match(queries, song) for song in white.values()])
            closest = [list(songs)[i] for i in matches.argmax(0)]
            results[name] = (1 - matches.max(0).astype(np.float64), clusters, closest)
            progress.advance()
    return results


def by_musicnn(model: Any, cfg: EvalRun) -> dict[str, Any]:
    """By set, the distances, clusters and nearest songs, on musicnn embeddings of decoded sound."""
    listener = musicnn.load_musicnn()
    songs = {name: song_embeddings(model, name, z, cfg, listener) for name, z in library(model, cfg)}
    sets = describe_sets(model, cfg, [CODEC, SAMPLES])
    control_embeddings = [
        (name, patch_embeddings(canonical(model.decode(z)), listener)) for name, z in controls(model, cfg)
    ]
    queries_by_set = {
        "held out": (sets[CODEC]["embeddings"], patch_clusters(sets[CODEC])),
        "samples": (sets[SAMPLES]["embeddings"], patch_clusters(sets[SAMPLES])),
        "controls": (
            np.concatenate([rows for _, rows in control_embeddings]),
            [name for name, rows in control_embeddings for _ in rows],
        ),
    }
    results = {}
    for name, (queries, clusters) in queries_by_set.items():
        distances = np.stack(
            [nearest(queries, embeddings) for embeddings in songs.values() if len(embeddings)]
        )
        names = [song for song, embeddings in songs.items() if len(embeddings)]
        results[name] = (distances.min(0), clusters, [names[i] for i in distances.argmin(0)])
    return results


def judge_sets(results: dict[str, Any], resamples: int) -> dict[str, Any]:
    """The nearness of each set against the held-out songs, and the five samples nearest to a training song."""
    real_distances, real_clusters, _ = results["held out"]
    table: dict[str, Any] = {}
    for name, (distances, clusters, _) in results.items():
        result = asdict(nearness(distances, clusters, real_distances, real_clusters, resamples=resamples))
        table[name] = {k: round_values(v) if isinstance(v, dict) else v for k, v in result.items()}
    distances, clusters, songs = results["samples"]
    first = np.argsort(distances)[:5]
    table["nearest samples"] = [
        {"prompt": clusters[i], "song": songs[i], "distance": round(float(distances[i]), 3)} for i in first
    ]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value, as for tools/tiny/eval_tiny.py")
    parser.add_argument("--latents-only", action="store_true", help="leave musicnn out")
    args = parser.parse_intermixed_args()
    model, cfg = open_evaluation(args.manifest, args.settings)
    result = {"settings": asdict(cfg), "latents": judge_sets(by_latents(model, cfg), cfg.resamples)}
    if not args.latents_only:
        result["musicnn"] = judge_sets(by_musicnn(model, cfg), cfg.resamples)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
