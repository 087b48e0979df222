"""Features of the songs of votes, each computed once and kept in a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.features import FEATURE_TABLE, FeatureKey, FeatureRow, read_feature_cache
from diffdpo.data.vote_songs import VoteSong
from diffdpo.errors import DataError
from diffdpo.extractors.base import Crops, Extractor, extract_crops, extractor_fingerprint
from diffdpo.faults import song_fault
from diffdpo.progress import bar, log
from diffdpo.scorers.canonical import VERSION, canonical
from diffdpo.threads import parallel_map
from diffdpo.types import Clip

FLUSH = 32
"""Songs between two parts of the table."""

SongParts = Mapping[VoteSong, Mapping[str, np.ndarray]]
"""By song and extractor: a vector for each window; no rows for a silent song."""


def song_parts(
    songs: Sequence[VoteSong], extractors: Mapping[str, Extractor], crops: Crops, folder: Path
) -> SongParts:
    """The features of songs by every extractor; songs without a readable sound are left out, with a line for each.

    Vectors that the table in `folder` holds are not computed again.
    """
    prints = {name: extractor_fingerprint(part) for name, part in extractors.items()}
    cache = read_feature_cache(folder, list(prints.values()))
    parts: dict[VoteSong, dict[str, np.ndarray]] = {}
    work: list[tuple[VoteSong, list[str]]] = []
    for song in dict.fromkeys(songs):
        keys = {name: feature_key(song, prints[name], crops) for name in extractors}
        parts[song] = {name: cache[key] for name, key in keys.items() if song.sha256 and key in cache}
        if len(parts[song]) < len(extractors):
            work.append((song, [name for name in extractors if name not in parts[song]]))

    def extract(song: VoteSong, names: Sequence[str]) -> dict[str, np.ndarray] | None:
        try:
            clip = read_excerpt(song)
        except Exception as error:  # whatever a file brings about
            log(f"warning: no features: {song.path}: {song_fault(error)}")
            return None
        return clip_vectors(clip, {name: extractors[name] for name in names}, crops)

    # the first song alone: networks are loaded by one thread
    batches = (
        [work[:1], *(work[start : start + FLUSH] for start in range(1, len(work), FLUSH))] if work else []
    )
    with bar("features", len(work), "song") as progress:
        for batch in batches:
            rows: list[FeatureRow] = []
            for (song, _), vectors in zip(
                batch, parallel_map(extract, *zip(*batch, strict=True)), strict=True
            ):
                progress.advance()
                if vectors is None:
                    del parts[song]
                else:
                    parts[song] |= vectors
                    rows += _rows(song, vectors, prints, crops)
            tables.append(folder, FEATURE_TABLE, rows)
    tables.compact(folder, FEATURE_TABLE)
    return parts


def feature_key(song: VoteSong, fingerprint: str, crops: Crops) -> FeatureKey:
    """The key of a song's vectors in the table."""
    return FeatureKey(song.sha256, song.begin_s, song.end_s, VERSION, fingerprint, crops.name)


def read_excerpt(song: VoteSong) -> Clip:
    """The canonical form of the excerpt that was voted on. DataError unless the sound is the one of the vote."""
    if not song.path.is_file():
        raise DataError(f"{song.path}: no such file; votes on its song are left out")
    clip = audio.read(song.path, with_fold=False)
    if song.sha256 and audio.pcm_sha256(clip.samples, clip.sample_rate) != song.sha256:
        raise DataError(f"{song.path}: its sound is not the one that was voted on")
    begin = round(song.begin_s * clip.sample_rate)
    stop = round(song.end_s * clip.sample_rate) if song.end_s else clip.samples.shape[1]
    excerpt = clip.samples[:, begin:stop]
    if not excerpt.shape[1]:
        raise DataError(f"{song.path}: no sound from {song.begin_s:g} to {song.end_s:g} s")
    return canonical(Clip(samples=excerpt, sample_rate=clip.sample_rate))


def clip_vectors(clip: Clip, extractors: Mapping[str, Extractor], crops: Crops) -> dict[str, np.ndarray]:
    """The vectors of a canonical clip by every extractor; no rows for silence."""
    if not clip.samples.any():
        return {name: np.zeros((0, 0)) for name in extractors}
    return {name: extract_crops(part, clip, crops) for name, part in extractors.items()}


def _rows(
    song: VoteSong, vectors: Mapping[str, np.ndarray], prints: Mapping[str, str], crops: Crops
) -> list[FeatureRow]:
    """Rows of the table; none for a song whose hash the votes do not say."""
    if not song.sha256:
        return []
    return [
        FeatureRow(
            sha256=song.sha256,
            begin_s=song.begin_s,
            end_s=song.end_s,
            preprocessing=VERSION,
            extractor=name,
            fingerprint=prints[name],
            crops=crops.name,
            windows=len(values),
            values=tuple(values.ravel().tolist()),
        )
        for name, values in vectors.items()
    ]
