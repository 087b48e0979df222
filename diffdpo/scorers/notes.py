"""Notes, a judge: harmony by a network that transcribes, held out of mining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures, mono, score_each
from diffdpo.scorers.harmony import key_clarity
from diffdpo.scorers.rhythm import LONGEST_S, SHORTEST_S, autocorrelation
from diffdpo.types import Clip

if TYPE_CHECKING:
    from diffdpo.encoders.notes import Notes

AUDIBLE = 0.1
"""Probability below which a note does not sound."""
FLATNESS = 0.01
"""See `Harmony.flatness`."""
TRIAD_FRAMES = 43
"""Half a second."""
POOLED_FRAMES = 8
"""Frames of one moment of form, 93 ms."""
NEAREST_RETURN_S, FARTHEST_RETURN_S, LEAST_OVERLAP_S = 1.5, 60.0, 2.5
DIATONIC_SHARE = 7 / 12
LOWEST_CLEAN = -1.0
ACTIVE = 1e-6


@dataclass(frozen=True)
class NoteHarmony:
    """Harmony of the notes that basic-pitch (Bittner et al. 2022) transcribes, with four diagnoses.

    note.triad    How close the pitch classes of every half second come to a major or minor triad: the cosine with
                  the nearest, weighted by how much sounds. In [0, 1]; silence 0.
    note.key      Key clarity of all notes' pitch classes together, as `harmony.key` has it of a chroma.
    note.scale    Share of notes in the best diatonic scale: 0 where no scale is better than another, 1 for all.
    note.clean    A diagnosis: minus how much neighbouring semitones sound together. In [-1, 0]; silence -1.
    note.pulse    A diagnosis: highest autocorrelation of note onsets at a period of 0.25 to 2 s.
    note.recur    A diagnosis: how much smaller the distance of pitch classes is at the best lag than on average.
    note.variety  A diagnosis: distance of excerpts of 2 s over that of single moments. Compare clips of one length.

    Judges are the first three; the others are reported, and only a band of real songs says what is good.

    How it can be gamed: a drone on a triad gets 0.95 of note.triad, so judge harmony, rhythm and form together. All
    rise beyond real songs when harmony alone is optimised: look at the band. A loop has the highest recurrence and
    pulse. Percussion has no notes and scores low without being bad.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = (
        "note.triad",
        "note.key",
        "note.scale",
        "note.clean",
        "note.pulse",
        "note.recur",
        "note.variety",
    )
    traits: ClassVar[Mapping[str, str]] = {
        "note.triad": "harmony",
        "note.key": "harmony",
        "note.scale": "harmony",
        "note.clean": "harmony",
        "note.pulse": "rhythm",
        "note.recur": "form",
        "note.variety": "form",
    }
    judges: ClassVar[tuple[str, ...]] = ("note.triad", "note.key", "note.scale")
    licenses: ClassVar[tuple[str, ...]] = ("Apache-2.0",)
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = 4.0

    @property
    def weights_hash(self) -> str:
        from diffdpo.encoders.notes import NOTES_WEIGHTS
        from diffdpo.hub import sha256_of

        return sha256_of(NOTES_WEIGHTS)

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float, ...]:
        from diffdpo.encoders.notes import NOTES_FRAMES_PER_SECOND

        if not mono(features).any():
            return (0.0, 0.0, 0.0, LOWEST_CLEAN, 0.0, 0.0, 0.0)
        notes = features.get(transcription)
        audible_notes = audible(notes.note.double().numpy())
        classes = pitch_classes(audible_notes)
        histogram = classes.sum(0)
        if not histogram.any():
            return (0.0, 0.0, 0.0, LOWEST_CLEAN, 0.0, 0.0, 0.0)
        share = histogram / histogram.sum()
        moments = chroma_moments(classes)
        rate = NOTES_FRAMES_PER_SECOND / POOLED_FRAMES
        onsets = audible(notes.onset.double().numpy()).sum(1)
        return (
            triad_fit(classes),
            key_clarity(share, FLATNESS),
            scale_fit(share),
            -neighbour_share(audible_notes),
            pulse_clarity(onsets, NOTES_FRAMES_PER_SECOND),
            note_recurrence(moments, rate),
            note_variety(moments, rate),
        )


def transcription(features: ClipFeatures) -> "Notes":
    """The notes of a clip."""
    import torch

    from diffdpo.encoders.notes import NOTES_SAMPLE_RATE, pretrained_notes

    assert NOTES_SAMPLE_RATE == SAMPLE_RATE
    return pretrained_notes().transcribe(torch.from_numpy(mono(features)))


def audible(probabilities: Float[np.ndarray, "frame note"]) -> Float[np.ndarray, "frame note"]:
    """Probabilities, with 0 for what is below AUDIBLE."""
    return np.where(probabilities > AUDIBLE, probabilities, 0.0)


def pitch_classes(notes: Float[np.ndarray, "frame 88"]) -> Float[np.ndarray, "frame 12"]:
    """How much of each pitch class, from C up, sounds in every frame. The lowest note is an A."""
    octaves = np.pad(notes, ((0, 0), (9, 11))).reshape(len(notes), 9, 12)
    return octaves.sum(1)


def _rotations(*chords: Sequence[int]) -> Float[np.ndarray, "chord 12"]:
    rows = np.zeros((len(chords), 12))
    for row, chord in zip(rows, chords, strict=True):
        row[list(chord)] = 1
    return np.concatenate([np.roll(rows, shift, axis=1) for shift in range(12)])


TRIADS = _rotations((0, 4, 7), (0, 3, 7)) / 3**0.5
DIATONIC_SCALES = _rotations((0, 2, 4, 5, 7, 9, 11))


def triad_fit(classes: Float[np.ndarray, "frame 12"]) -> float:
    """Cosine with the nearest triad, mean over half seconds weighted by their length as vectors."""
    count = len(classes) // TRIAD_FRAMES
    parts = classes[: count * TRIAD_FRAMES].reshape(count, TRIAD_FRAMES, 12).sum(1)
    return float((parts @ TRIADS.T).max(1).sum() / max(np.linalg.norm(parts, axis=1).sum(), 1e-9))


def scale_fit(share: Float[np.ndarray, " 12"]) -> float:
    """Share of notes in the best diatonic scale, from 0, as chance has it, to 1."""
    return float((DIATONIC_SCALES @ share).max() - DIATONIC_SHARE) / (1 - DIATONIC_SHARE)


def neighbour_share(notes: Float[np.ndarray, "frame 88"]) -> float:
    """How much neighbouring semitones sound together, as a share of the power of all notes."""
    return float((notes[:, 1:] * notes[:, :-1]).sum() / max((notes**2).sum(), 1e-9))


def pulse_clarity(activity: Float[np.ndarray, " frame"], rate: float) -> float:
    """Highest autocorrelation at a period of 0.25 to 2 s, at most a quarter of the clip; 0 without activity."""
    shortest = round(SHORTEST_S * rate)
    longest = round(min(LONGEST_S * rate, len(activity) / 4))
    if longest <= shortest or not (activity > ACTIVE).any():
        return 0.0
    return max(0.0, float(autocorrelation(activity)[shortest:longest].max()))


def chroma_moments(classes: Float[np.ndarray, "frame 12"]) -> Float[np.ndarray, "moment 12"]:
    """Square roots of the shares of the pitch classes in every moment; what hardly sounds is near 0 throughout."""
    count = len(classes) // POOLED_FRAMES
    moments = classes[: count * POOLED_FRAMES].reshape(count, POOLED_FRAMES, 12).mean(1)
    level = moments.sum(1, keepdims=True)
    if not level.any():
        return moments
    return np.sqrt(moments / np.maximum(level, 0.05 * level.max() + 1e-9))


def note_recurrence(moments: Float[np.ndarray, "moment 12"], rate: float) -> float:
    """1 - distance at the best lag / mean distance over lags, as `structure` has it of chroma and timbre."""
    width = max(1, round(0.25 * rate))
    means = np.lib.stride_tricks.sliding_window_view(moments, width, axis=0).mean(-1)
    nearest = round(NEAREST_RETURN_S * rate)
    farthest = round(min(FARTHEST_RETURN_S * rate, len(means) - LEAST_OVERLAP_S * rate))
    lags = range(nearest, min(max(farthest, nearest + 2), len(means) - 1))
    distances = [np.linalg.norm(means[lag:] - means[:-lag], axis=1).mean() for lag in lags]
    return float(1 - min(distances) / max(np.mean(distances), 1e-6)) if distances else 0.0


def note_variety(moments: Float[np.ndarray, "moment 12"], rate: float) -> float:
    """Mean distance of excerpts of 2 s, one every half second, over that of moments."""
    from scipy.spatial.distance import pdist

    width, hop = (max(1, round(seconds * rate)) for seconds in (2.0, 0.5))
    views = np.lib.stride_tricks.sliding_window_view(moments, min(width, len(moments)), axis=0)
    excerpts = views[::hop].mean(-1)
    if len(excerpts) < 2:
        return 0.0
    return float(pdist(excerpts).mean() / max(pdist(moments[::2]).mean(), 1e-6))
