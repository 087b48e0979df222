"""Excerpts of songs as listeners hear them: of equal length and equal loudness, damaged on purpose or not.

Loudness is matched by the excerpt and not by the song: a quiet introduction against a refrain would otherwise be
told apart by level alone. Where a true peak would exceed its limit, all excerpts of the trial are lowered alike;
nothing is ever limited.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

from diffdpo import audio
from diffdpo.listen.study import ExcerptConfig
from diffdpo.randomness import seed_for
from diffdpo.types import Clip

FADE_S = 0.008
"""Fade at both ends of an excerpt, so that a loop does not click."""
PEAK_OVERSAMPLING = 4
"""For true peaks (ITU-R BS.1770, annex 2)."""
MIN_EXCERPT_S = 1.0


@dataclass(frozen=True)
class ExcerptLevel:
    """How loud an excerpt is: integrated loudness in LUFS and true peak, linear."""

    lufs: float
    true_peak: float


@dataclass(frozen=True, kw_only=True)
class ExcerptSpan:
    """The part of a song that is played, in seconds."""

    begin_s: float
    seconds: float


def common_span(durations_s: Sequence[float], cfg: ExcerptConfig, seed: int, key: str) -> ExcerptSpan:
    """The part that is played of songs of these lengths: it fits into all, and is the same at every start."""
    shortest = min(durations_s)
    seconds = min(cfg.seconds or shortest, shortest)
    room = shortest - seconds
    share = {"start": 0.0, "middle": 0.5}.get(cfg.start)
    if share is None:
        share = np.random.default_rng(seed_for(seed, key, "excerpt")).random()
    return ExcerptSpan(begin_s=round(float(room * share), 2), seconds=seconds)


def matched_gains(levels: Sequence[ExcerptLevel], cfg: ExcerptConfig) -> tuple[float, ...]:
    """The factors that bring all excerpts to one loudness: the configured one, or less where a peak needs it.

    A silent excerpt has no loudness; its factor is that of the guard.
    """
    factors = [
        10 ** ((cfg.loudness_lufs - level.lufs) / 20) if level.lufs > audio.SILENCE_LUFS else 1.0
        for level in levels
    ]
    peak = max((factor * level.true_peak for factor, level in zip(factors, levels, strict=True)), default=0.0)
    guard = min(1.0, 10 ** (cfg.true_peak_db / 20) / peak) if peak > 0 else 1.0
    return tuple(float(factor * guard) for factor in factors)


def measure_level(clip: Clip) -> ExcerptLevel:
    """The level of an excerpt."""
    from scipy.signal import resample_poly

    if not clip.samples.any():
        return ExcerptLevel(-np.inf, 0.0)
    dense_samples = resample_poly(clip.samples, PEAK_OVERSAMPLING, 1, axis=1)
    peak = max(float(np.abs(dense_samples).max()), float(np.abs(clip.samples).max()))
    return ExcerptLevel(audio.loudness(clip), peak)


def cut_excerpt(path: Path, span: ExcerptSpan, sample_rate: int) -> Clip:
    """A part of a song at a sample rate, with exactly as many samples as the span asks for, faded at its ends."""
    clip = audio.stereo(audio.read(path, start_s=span.begin_s, seconds=span.seconds + 0.1))
    samples = audio.resample(clip, sample_rate).samples
    count = round(span.seconds * sample_rate)
    samples = np.pad(samples[:, :count], ((0, 0), (0, max(0, count - samples.shape[1]))))
    fade = min(count // 4, round(FADE_S * sample_rate))
    samples = samples.astype(np.float32, copy=True)
    if fade:
        ramp = np.linspace(0, 1, fade, dtype=np.float32)
        samples[:, :fade] *= ramp
        samples[:, -fade:] *= ramp[::-1]
    return Clip(samples=samples, sample_rate=sample_rate)


def low_pass(samples: Float[np.ndarray, "channel sample"], rate: int, hertz: float) -> np.ndarray:
    """Nothing above a frequency, without delay."""
    from scipy.signal import butter, sosfiltfilt

    return np.asarray(sosfiltfilt(butter(8, min(hertz, 0.45 * rate), fs=rate, output="sos"), samples))


def _clip(samples: Float[np.ndarray, "channel sample"], rate: int) -> np.ndarray:
    """Hard clipping at an eighth of the peak (18 dB)."""
    limit = np.abs(samples).max(initial=0.0) / 8
    return np.clip(samples, -limit, limit)


def _hiss(samples: Float[np.ndarray, "channel sample"], rate: int) -> np.ndarray:
    """White noise 10 dB below the song; the same for every listener."""
    noise = np.random.default_rng(0).standard_normal(samples.shape)
    return samples + 0.32 * samples.std() * noise


DAMAGES: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "lowpass-1500": lambda samples, rate: low_pass(samples, rate, 1500),
    "clipping": _clip,
    "noise": _hiss,
}
"""Damages of control pairs, which everybody hears; anchors of MUSHRA are `lowpass-HERTZ` too."""


def apply_damage(clip: Clip, name: str) -> Clip:
    """An excerpt with a damage; an empty name is none."""
    if not name:
        return clip
    if name in DAMAGES:
        samples = DAMAGES[name](clip.samples, clip.sample_rate)
    else:
        samples = low_pass(clip.samples, clip.sample_rate, float(name.removeprefix("lowpass-")))
    return Clip(samples=samples.astype(np.float32), sample_rate=clip.sample_rate)


def to_flac(clip: Clip, gain: float) -> bytes:
    """An excerpt as the browser gets it: FLAC of 16 bits, without anything that names the song."""
    buffer = io.BytesIO()
    samples = np.round(np.clip(clip.samples * np.float32(gain), -1, 1) * 32767).astype(np.int16)
    soundfile.write(buffer, samples.T, clip.sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
