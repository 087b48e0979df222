"""Similar songs: features of harmony, rhythm and style, and the nearest of many songs by one of them.

Distances are Euclidean. Harmony does not change with the key and rhythm hardly with the instruments; style is that
of the shipped style encoder, which text has too.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffdpo import audio
from diffdpo.errors import ConfigError
from diffdpo.evaluation.song_embeddings import embed_style
from diffdpo.runs import read_json, write_json
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures, magnitudes, mel_filters, mono
from diffdpo.scorers.harmony import (
    BINS_PER_OCTAVE,
    CHROMA_HOP,
    HARMONY_STFT,
    constant_q,
    semitone_grid,
    spectral_peaks,
)

SongFeatures = Float[np.ndarray, " dim"]
"""Features of a song; NaN for silence."""
CHORD_STEP_S = 0.5
CHORD_LAGS = (1, 4)
"""Distances of two chords that are compared, in steps of CHORD_STEP_S."""
RHYTHM_STFT, RHYTHM_HOP, RHYTHM_BANDS = 1024, 256, 32
SLOWEST_BPM, FASTEST_BPM, TEMPI = 30.0, 480.0, 64
TEMPO_BLUR = 1.5
"""Width, in steps of the scale of tempi (a sixteenth of an octave), within which two tempi are alike."""
EXACT_BELOW = 20_000
"""Number of songs up to which all distances are computed."""


@dataclass(frozen=True)
class FeatureReader:
    """A way to see what is alike."""

    read: Callable[[ClipFeatures], SongFeatures]
    fingerprint: str
    """Version of the features; raise it when they change."""


def read_harmony(features: ClipFeatures) -> SongFeatures:
    """Which intervals sound together, and by which intervals the harmony moves, whatever the key.

    Magnitudes of the Fourier transform of the chroma over pitch classes (Quinn 2007), of the song's mean and as a
    mean over moments; and how often a pitch class is followed by one so many semitones above, half a second and two
    seconds later.
    """
    samples = mono(features, at_least_s=2.0)
    if not samples.any():
        return np.full(36, np.nan)
    peaks = spectral_peaks(magnitudes(features, HARMONY_STFT, CHROMA_HOP, at_least_s=2.0).T)
    chroma = _chroma(samples, float(np.angle(semitone_grid(peaks)) / (2 * np.pi)))
    mean = chroma.mean(0)
    parts = [_fourier(mean[None])[0], _fourier(chroma).mean(0)]
    for lag in CHORD_LAGS:
        first, second = (chroma[:-lag], chroma[lag:]) if len(chroma) > lag else (chroma, chroma)
        moves = np.array([(first * np.roll(second, -step, axis=1)).sum() for step in range(12)])
        parts.append(np.sqrt(moves / max(moves.sum(), 1e-12)))
    return np.concatenate(parts)


def _chroma(samples: Float[np.ndarray, " sample"], semitones: float) -> Float[np.ndarray, "moment 12"]:
    """The share of each pitch class in each half second, loud moments counting more; rows sum to their weight."""
    import librosa

    lowest = float(librosa.note_to_hz("C2")) * 2 ** (semitones / 12)
    energy = constant_q(samples, lowest).astype(np.float64) ** 2
    fold = librosa.filters.cq_to_chroma(len(energy), bins_per_octave=BINS_PER_OCTAVE, fmin=lowest)
    chroma = (fold @ energy).T
    size = max(1, round(CHORD_STEP_S * SAMPLE_RATE / CHROMA_HOP))
    count = max(1, len(chroma) // size)
    moments = np.stack([part.sum(0) for part in np.array_split(chroma[: count * size], count)])
    moments = np.sqrt(moments)  # amplitudes: one loud tone does not hide a chord
    weights = moments.sum(1, keepdims=True)
    shares: Float[np.ndarray, "moment 12"] = moments / max(float(weights.mean()), 1e-12)
    return shares


def _fourier(chroma: Float[np.ndarray, "moment 12"]) -> Float[np.ndarray, "moment 6"]:
    """Magnitudes of the first six components over pitch classes, relative to the sum."""
    spectrum = np.abs(np.fft.rfft(chroma, axis=1))
    return spectrum[:, 1:] / np.maximum(spectrum[:, :1], 1e-12)


def read_rhythm(features: ClipFeatures) -> SongFeatures:
    """How strongly onsets repeat at each tempo, 30 to 480 beats a minute, and how many there are.

    The autocorrelation of the spectral flux over a logarithmic scale of periods, blurred: near tempi are near.
    """
    samples = mono(features, at_least_s=4.5)
    if not samples.any():
        return np.full(TEMPI + 1, np.nan)
    flux = _flux(features)
    centred_flux = flux - flux.mean()
    size = 1 << (2 * len(centred_flux) - 1).bit_length()
    power = np.abs(np.fft.rfft(centred_flux, size)) ** 2
    correlation = np.fft.irfft(power)[: len(centred_flux)]
    correlation = correlation / max(float(correlation[0]), 1e-12)
    tempi = np.geomspace(SLOWEST_BPM, FASTEST_BPM, TEMPI)
    lags = 60 / tempi * SAMPLE_RATE / RHYTHM_HOP
    strength = np.interp(lags, np.arange(len(correlation)), correlation)
    reach = np.arange(-6, 7)
    kernel = np.exp(-0.5 * (reach / TEMPO_BLUR) ** 2)
    tempo_profile = np.convolve(np.maximum(strength, 0), kernel / kernel.sum(), "same")
    loud = flux > flux.mean() + flux.std()
    onsets = float((loud[1:] & ~loud[:-1]).sum()) / (len(flux) * RHYTHM_HOP / SAMPLE_RATE)
    return np.append(tempo_profile, np.log2(1 + onsets) / 8)


def _flux(features: ClipFeatures) -> Float[np.ndarray, " frame"]:
    """By how much bands of the log spectrum rise, frame by frame."""
    power = magnitudes(features, RHYTHM_STFT, RHYTHM_HOP, at_least_s=4.5) ** 2
    bands = np.log1p(100 * (mel_filters(RHYTHM_STFT, RHYTHM_BANDS) @ power).astype(np.float64))
    flux: Float[np.ndarray, " frame"] = np.maximum(np.diff(bands, axis=1), 0).sum(0)
    return flux


READERS: Mapping[str, FeatureReader] = {
    "harmony": FeatureReader(read_harmony, "1"),
    "rhythm": FeatureReader(read_rhythm, "1"),
    "style": FeatureReader(embed_style, "1"),
}


def read_song(path: Path, reader: str) -> SongFeatures:
    """The features of an audio file; NaN for silence."""
    values: SongFeatures = READERS[reader].read(ClipFeatures(canonical(audio.read(path))))
    return values


def text_style(text: str) -> SongFeatures:
    """The style of a text. ConfigError for a text without a word."""
    from diffdpo.encoders.style import pretrained_encoder, words_of
    from diffdpo.hub import BUNDLE

    if not words_of(text):
        raise ConfigError(f"the text {text!r} has no words")
    values: SongFeatures = pretrained_encoder(BUNDLE).embed_texts([text])[0].detach().double().numpy()
    return values


def nearest(
    query: SongFeatures,
    songs: Float[np.ndarray, "song dim"],
    count: int,
    *,
    candidates: Sequence[int] | None = None,
    index: Path | None = None,
) -> list[tuple[int, float]]:
    """The places of the nearest songs and their distances, the nearest first; places that tie in order.

    All distances are computed, or, with the path of an `index`, those that a graph of neighbours leads to; the
    index is made anew where it is of other features. `candidates` are the places that count; where they are
    less than a tenth of the songs, all of them are compared: the graph leads past most of them.
    """
    places = np.arange(len(songs)) if candidates is None else np.asarray(candidates, np.int64)
    if index is None or 10 * len(places) < len(songs):
        return _rank(query, songs, places, count)
    graph = _open_index(index, songs)
    allowed_places = set(places.tolist())
    number = min(len(songs), 4 * count)
    while True:
        keys = graph.search(query.astype(np.float32), number).keys.tolist()
        hits = [int(key) for key in keys if int(key) in allowed_places]
        if len(hits) >= min(count, len(allowed_places)) or number == len(songs):
            return _rank(query, songs, np.array(hits, np.int64), count)
        number = min(len(songs), 4 * number)


def _rank(
    query: SongFeatures, songs: Float[np.ndarray, "song dim"], places: Int[np.ndarray, " place"], count: int
) -> list[tuple[int, float]]:
    distances = np.linalg.norm(songs[places] - query, axis=1)
    order = np.lexsort((places, distances))[:count]
    return [(int(places[k]), float(distances[k])) for k in order]


def _open_index(path: Path, songs: Float[np.ndarray, "song dim"]) -> Any:
    """The index in a file, made anew where there is none of these features."""
    try:
        from usearch.index import Index
    except ImportError:
        raise ConfigError(
            'an index of similar songs needs usearch: pip install "diffdpo[people]", or search exactly'
        ) from None
    state = hashlib.sha256(np.ascontiguousarray(songs).tobytes()).hexdigest()
    note = path.with_suffix(".json")
    if path.is_file() and note.is_file() and read_json(note).get("state") == state:
        return Index.restore(str(path))
    graph = Index(ndim=songs.shape[1], metric="l2sq", dtype="f32")
    # One thread: the same songs give the same graph, and threads that race can leave a song out of reach.
    graph.add(np.arange(len(songs), dtype=np.uint64), songs.astype(np.float32), threads=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    graph.save(str(path))
    write_json(note, {"state": state, "songs": len(songs)})
    return graph
