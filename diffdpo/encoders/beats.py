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

from diffdpo.errors import CheckpointError, reason
from diffdpo.sounds import Sound
from diffdpo.types import Clip
from diffdpo.weight_files import read_tensors

Line = tuple[float, tuple[int, ...]]
"""A line of tokens, as a line of lyrics: start in seconds, and the tokens."""
BEATS_FILE = "beats.safetensors"
BEAT = 1
"""The token of a beat."""
RATE, HOP, FRAME = 22050, 512, 2048
LEVEL_RANGE_DB = 80.0
"""Decibels below the loudest band of the recording at which levels end."""
PIECE_S = 30.0
"""Beats are looked for in pieces of about this length, each with its own tempo."""
CLEAR = 0.3
"""Autocorrelation of onset strength at the beats' period from which a piece has a pulse; noise has 0.1."""
MIN_PULSE_PROBABILITY = 0.5
"""Probability of a pulse from which a style is given beats."""
SLOWEST, FASTEST = 40.0, 240.0
BPM = re.compile(r"(?<![\d.])(\d{2,3}(?:\.\d+)?) ?bpm\b", re.IGNORECASE)


def onset_curve(sound: Sound) -> Float[np.ndarray, " frame"]:
    """Onset strength as librosa computes it of the whole, with a mel spectrum of half a minute in memory."""
    mono = sound.map(mix_down).resampled(RATE)
    count, half = 1 + mono.length // HOP, FRAME // 2
    step = round(PIECE_S * RATE / HOP)

    def power(first: int, last: int) -> Float[np.ndarray, "mel frame"]:
        """The mel spectrum of frames, in decibels."""
        begin, end = first * HOP - half, (last - 1) * HOP + half
        samples = mono.read(max(0, begin), min(end, mono.length))[0]
        padding = (max(0, -begin), max(0, end - mono.length))
        mel = librosa.feature.melspectrogram(
            y=np.pad(samples, padding), sr=RATE, n_fft=FRAME, hop_length=HOP, center=False
        )
        return librosa.power_to_db(mel, top_db=None)

    spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    floor = max(float(power(*span).max()) for span in spans) - LEVEL_RANGE_DB
    rise = np.zeros(count, np.float32)
    for first, last in spans:
        levels = np.maximum(power(max(0, first - 1), last), floor)
        rise[first + (first == 0) : last] = np.maximum(np.diff(levels), 0).mean(0)
    strength = np.zeros_like(rise)
    delay = FRAME // (2 * HOP)  # as librosa: the rise counts where the frame that holds it begins to be heard
    strength[delay:] = rise[: count - delay]
    return strength


def mix_down(clip: Clip) -> Clip:
    """The mean of the channels."""
    return Clip(samples=clip.samples.mean(0, keepdims=True), sample_rate=clip.sample_rate)


def track_beats(sound: Sound) -> tuple[float, ...]:
    """Beats of a recording in seconds (dynamic programming: Ellis 2007); none where there is no pulse."""
    strength = onset_curve(sound)
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

    def transcribe(self, sound: Sound) -> tuple[Line, ...]:
        """The beats of a recording."""
        return lines(track_beats(sound))

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
