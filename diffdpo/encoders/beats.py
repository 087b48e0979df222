"""Beats as tokens of a network: tracked in a recording, or even, at the tempo that a prompt names or has by style.

A model that does not sing has its token track free. The tiny model has a 1 there on every frame in which a beat
falls: rhythm gets a grid to stand on (rhythm on the frame axis: Music ControlNet, Wu et al. 2023).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
from jaxtyping import Float
from torch import Tensor

from diffdpo import audio
from diffdpo.errors import CheckpointError, reason
from diffdpo.types import Clip
from diffdpo.weight_files import read_tensors

Line = tuple[float, tuple[int, ...]]
"""A line of tokens, as a line of lyrics: start in seconds, and the tokens."""
BEATS_FILE = "beats.safetensors"
BEAT = 1
"""The token of a beat."""
RATE, HOP = 22050, 512
PIECE_S = 30.0
"""Beats are looked for in pieces of about this length, each with its own tempo."""
CLEAR = 0.3
"""Autocorrelation of onset strength at the beats' period from which a piece has a pulse; noise has 0.1."""
MIN_PULSE_PROBABILITY = 0.5
"""Probability of a pulse from which a style is given beats."""
SLOWEST, FASTEST = 40.0, 240.0
BPM = re.compile(r"(?<![\d.])(\d{2,3}(?:\.\d+)?) ?bpm\b", re.IGNORECASE)


def track_beats(clip: Clip) -> tuple[float, ...]:
    """Beats of a recording in seconds (dynamic programming: Ellis 2007); none where there is no pulse."""
    mono = audio.resample(
        Clip(samples=clip.samples.mean(0, keepdims=True), sample_rate=clip.sample_rate), RATE
    )
    strength = librosa.onset.onset_strength(y=mono.samples[0], sr=RATE, hop_length=HOP)
    beats_s: list[float] = []
    pieces = np.array_split(np.arange(len(strength)), max(1, round(len(strength) * HOP / RATE / PIECE_S)))
    for piece in pieces:
        frames = librosa.beat.beat_track(
            onset_envelope=strength[piece], sr=RATE, hop_length=HOP, trim=False, units="frames"
        )[1]
        if len(frames) > 3 and clarity(strength[piece], float(np.median(np.diff(frames)))) >= CLEAR:
            beats_s += ((frames + piece[0]) * HOP / RATE).tolist()
    return tuple(beats_s)


def clarity(strength: Float[np.ndarray, " frame"], period: float) -> float:
    """Autocorrelation of log onset strength near a period in frames: 1 is a machine, 0 is no pulse."""
    x = np.log1p(strength.astype(np.float64))
    x -= x.mean()
    lags = range(max(1, math.floor(period) - 1), min(len(x) - 1, math.ceil(period) + 2))
    power = float((x * x).mean())
    return max((float((x[lag:] * x[:-lag]).mean()) / power for lag in lags), default=0.0) if power else 0.0


def lines(beats: tuple[float, ...]) -> tuple[Line, ...]:
    """Beats as lines of one token each."""
    return tuple((at, (BEAT,)) for at in beats)


def named_tempo(text: str) -> float | None:
    """Beats a minute that a text names, as in "rock, 128 bpm"; None if it names none that can be felt."""
    tempos = [float(number) for number in BPM.findall(text)]
    return next((bpm for bpm in tempos if SLOWEST <= bpm <= FASTEST), None)


@dataclass(frozen=True)
class Beats:
    """From a style to a tempo: two linear maps, of log2(beats a minute) and of the probability of a pulse."""

    weight: Float[Tensor, "2 style"]
    bias: Float[Tensor, "2"]

    def transcribe(self, clip: Clip) -> tuple[Line, ...]:
        """The beats of a recording."""
        return lines(track_beats(clip))

    def beats(
        self,
        text: str | None,
        style: Float[Tensor, " style"] | None,
        duration_s: float,
        bpm: float | None = None,
    ) -> tuple[Line, ...]:
        """Even beats from the beginning on, at `bpm`, else at the tempo that the text names or the style has; none
        for a style without a pulse."""
        bpm = bpm or named_tempo(text or "") or self.tempo(style)
        return lines(tuple(np.arange(0, duration_s, 60 / bpm).tolist())) if bpm else ()

    def tempo(self, style: Float[Tensor, " style"] | None) -> float | None:
        """Beats a minute that go with a style; None for none, and for a style without a pulse."""
        if style is None or not style.any():
            return None
        octaves, pulse = (self.weight @ style.float().cpu() + self.bias).tolist()
        return min(FASTEST, max(SLOWEST, 2**octaves)) if pulse >= MIN_PULSE_PROBABILITY else None


def load_beats(bundle: Path) -> Beats | None:
    """The linear maps of a bundle; None for a bundle whose network was trained without beats."""
    path = bundle / BEATS_FILE
    if not path.is_file():
        return None
    try:
        return Beats(**read_tensors(path))
    except TypeError as error:
        raise CheckpointError(f"{path}: no linear maps of beats ({reason(error)})") from None
