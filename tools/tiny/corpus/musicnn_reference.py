"""Fits the reference of the judge `musicnn.typicality` to real songs.

    python tools/tiny/corpus/musicnn_reference.py --manifest corpus/manifest.jsonl --root corpus
    python tools/tiny/corpus/musicnn_reference.py song.flac other.ogg

The songs of a manifest (JSON lines with path, split, stems, may_enter_shipped_weights) are the train songs whose
files exist and whose licence permits shipped weights. Excerpts of 9 s are evenly spread, and every song has the
same weight. The reference is a mean, principal axes and variances, shrunk towards a sphere: 53 kB, from which no
song can be recovered.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Float

from diffdpo import audio
from diffdpo.encoders import musicnn
from diffdpo.errors import UserError
from diffdpo.runs import atomic_write
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.features import ClipFeatures, mono
from diffdpo.scorers.musicnn import REFERENCE, WINDOW_PATCHES, EmbeddingGaussian, pool_patches
from diffdpo.types import Clip

EXCERPT_S = 9.2
"""The seconds of an excerpt: three patches and a margin, since frames do not divide seconds."""


def songs_of(manifest: Path, root: Path) -> list[list[Path]]:
    """The files of each usable train song: one file, or the stems of its mix."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    usable = [row for row in rows if row.get("split") == "train" and row.get("may_enter_shipped_weights")]
    songs = [[root / path for path in row.get("stems") or [row["path"]]] for row in usable]
    return [files for files in songs if all(file.is_file() for file in files)]


def song_excerpt(files: Sequence[Path], start_s: float) -> Clip:
    """An excerpt of a song, mixed from its files, in the canonical form of scorers."""
    stems = [audio.stereo(audio.read(file, start_s=start_s, seconds=EXCERPT_S)) for file in files]
    length = min(stem.samples.shape[1] for stem in stems)
    mix = np.sum([stem.samples[:, :length] for stem in stems], axis=0)
    return canonical(Clip(samples=mix, sample_rate=stems[0].sample_rate))


def excerpt_embeddings(
    network: musicnn.Musicnn, files: Sequence[Path], num: int
) -> Float[np.ndarray, "window dim"]:
    """The embedding of each excerpt that is not silent."""
    last = min(audio.seconds_of(file) for file in files) - EXCERPT_S - 1
    embeddings = []
    for start_s in np.linspace(0, last, num + 2)[1:-1] if last > 0 else [0.0]:
        samples = mono(ClipFeatures(song_excerpt(files, float(start_s))), musicnn.MUSICNN_SAMPLE_RATE)
        if samples.any():
            patches = network.embed(torch.from_numpy(samples)).embedding[:WINDOW_PATCHES]
            embeddings.append(pool_patches(patches.double().numpy()))
    return np.concatenate(embeddings) if embeddings else np.zeros((0, 200))


def fit(songs: Sequence[Float[np.ndarray, "_ dim"]], rank: int, shrinkage: float) -> EmbeddingGaussian:
    """A Gaussian on principal axes of the covariance over all songs, of equal weight each.

    Every variance v becomes (1 - shrinkage) v + shrinkage · (mean variance).
    """
    points = np.concatenate(songs)
    weight = np.concatenate([np.full(len(song), 1 / len(song)) for song in songs])[:, None] / len(songs)
    mean = (weight * points).sum(0)
    _, scale, axes = np.linalg.svd(np.sqrt(weight) * (points - mean), full_matrices=False)
    variances = (1 - shrinkage) * scale**2 + shrinkage * (scale**2).sum() / len(mean)
    dims_left = len(mean) - rank
    residual = (1 - shrinkage) * (scale[rank:] ** 2).sum() / dims_left
    residual_variance = residual + shrinkage * (scale**2).sum() / len(mean)
    return EmbeddingGaussian(
        mean=mean, axes=axes[:rank], variances=variances[:rank], residual_variance=float(residual_variance)
    )


def save_reference(reference: EmbeddingGaussian, out: Path, num_songs: int, num_excerpts: int) -> None:
    """Write the reference as safetensors, with the counts of songs and excerpts in the metadata."""
    tensors = {
        "mean": reference.mean,
        "axes": reference.axes,
        "variances": reference.variances,
        "rest": np.array([reference.residual_variance]),
    }
    metadata = {"songs": str(num_songs), "excerpts": str(num_excerpts), "musicnn_sha256": musicnn.SHA256}
    single = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()}
    atomic_write(out, safetensors.numpy.save(single, metadata))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="songs, if there is no manifest")
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--root", type=Path, default=Path(), help="what the manifest's paths are relative to")
    parser.add_argument("--excerpts", type=int, default=10, help="of each song")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--shrinkage", type=float, default=0.05)
    default = Path(__file__).parents[3] / "diffdpo" / REFERENCE
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    songs = [[file] for file in arguments.files]
    try:
        if arguments.manifest:
            songs += songs_of(arguments.manifest, arguments.root)
        network = musicnn.load_musicnn()
        embeddings = []
        for number, files in enumerate(songs, start=1):
            embeddings.append(excerpt_embeddings(network, files, arguments.excerpts))
            print(f"{number}/{len(songs)} {files[0].name}: {len(embeddings[-1])} excerpts", flush=True)
    except (UserError, OSError, KeyError, json.JSONDecodeError) as error:
        parser.error(str(error))
    embeddings = [song for song in embeddings if len(song)]
    num_excerpts = sum(len(song) for song in embeddings)
    if num_excerpts <= arguments.rank:
        parser.error(
            f"{num_excerpts} excerpts cannot give {arguments.rank} axes; use more songs or --excerpts"
        )
    save_reference(
        fit(embeddings, arguments.rank, arguments.shrinkage), arguments.out, len(embeddings), num_excerpts
    )
    print(f"wrote {arguments.out} ({arguments.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
