"""Embeddings of songs by networks that hear different things, for measures of diversity."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffdpo import audio
from diffdpo.errors import DataError
from diffdpo.evaluation.distances import Embeddings
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.features import ClipFeatures, mono
from diffdpo.threads import parallel_map

SongEmbedder = Callable[[ClipFeatures], Float[np.ndarray, " dim"]]
"""The embedding of a song; NaN for silence."""


def embed_songs(paths: Sequence[Path]) -> dict[str, Embeddings]:
    """The embeddings of audio files, by name: `style` by the shipped style encoder, `musicnn` if its weights are
    installed. Rows are in the order of the files; NaN for silence and for a file that holds no numbers."""
    embedders = song_embedders()

    def embed(path: Path) -> list[Float[np.ndarray, " dim"]]:
        clip = audio.read(path)
        if not np.isfinite(clip.samples).all():
            return [np.full(1, np.nan) for _ in embedders]
        features = ClipFeatures(canonical(clip))
        return [embedder(features) for embedder in embedders.values()]

    rows = [embed(path) for path in paths[:1]]  # networks are loaded by one thread alone
    rows += parallel_map(embed, paths[1:])
    return {name: _stack([row[place] for row in rows]) for place, name in enumerate(embedders)}


def song_embedders() -> dict[str, SongEmbedder]:
    """The embedders whose weights are here."""
    from diffdpo.encoders.musicnn import weight_files

    try:
        weight_files()
    except DataError:
        return {"style": embed_style}
    return {"style": embed_style, "musicnn": embed_musicnn}


def embed_style(features: ClipFeatures) -> Float[np.ndarray, " dim"]:
    """The style of a song: the mean over windows of ten seconds."""
    import torch

    from diffdpo.encoders.descriptors import RATE
    from diffdpo.encoders.style import pretrained_encoder, windows
    from diffdpo.hub import BUNDLE

    encoder, clip = pretrained_encoder(BUNDLE), features.clip
    if not clip.samples.any():
        return np.full(encoder.config.dim, np.nan)
    parts = windows(clip)
    sounds = [mono(features, RATE, at_least_s=0.0)] if len(parts) == 1 else [None] * len(parts)
    styles = [encoder.embed_window(*pair).cpu() for pair in zip(parts, sounds, strict=True)]
    mean: Float[np.ndarray, " dim"] = torch.stack(styles).mean(0).double().numpy()
    return mean


def embed_musicnn(features: ClipFeatures) -> Float[np.ndarray, " dim"]:
    """What musicnn's last layer before its tags says of a song: the mean over windows of nine seconds."""
    from diffdpo.encoders.musicnn import EMBEDDING
    from diffdpo.scorers.musicnn import embeddings

    rows = features.get(embeddings)
    return rows.mean(0) if len(rows) else np.full(EMBEDDING, np.nan)


def complete_rows(sides: Mapping[str, tuple[Embeddings, Embeddings]]) -> list[int]:
    """The places at which all embeddings of both sides are finite and other than zero."""
    usable = [
        np.isfinite(side).all(1) & (np.abs(side) > 0).any(1) for pair in sides.values() for side in pair
    ]
    return np.flatnonzero(np.logical_and.reduce(usable)).tolist()


def _stack(rows: Sequence[Float[np.ndarray, " _"]]) -> Embeddings:
    """Rows of one width; a row that is shorter is one without numbers."""
    width = max(len(row) for row in rows)
    return np.stack([row if len(row) == width else np.full(width, np.nan) for row in rows])
