"""The headphone check: which of three noises has a tone in it, by Huggins pitch (Milne et al., 2021).

White noise sounds alike in both ears, but for a band around 600 Hz whose phase turns by 360° from one ear to the
other. With headphones a faint tone is heard there; from loudspeakers both channels reach both ears, and it is not.
"""

import numpy as np

from diffdpo.types import Clip

CENTRE_HZ = 600.0
BAND = 0.06
"""Half the width of the band, as a share of its centre."""
NOISE_S, PAUSE_S = 1.0, 0.5
INTERVALS = 3
PASS_SHARE = 0.8
"""Share of right answers at which the check is passed; by chance a third are right."""


def headphone_targets(seed: int, count: int) -> tuple[int, ...]:
    """The place of the tone in each item, 0 to 2."""
    return tuple(int(place) for place in np.random.default_rng(seed).integers(0, INTERVALS, count))


def huggins_clip(target: int, seed: int, sample_rate: int = 44100, peak: float = 0.25) -> Clip:
    """One item: three noises with pauses; the one at place `target` has the tone."""
    rng = np.random.default_rng(seed)
    pause = np.zeros((2, round(PAUSE_S * sample_rate)))
    parts = []
    for place in range(INTERVALS):
        parts += [_noise(rng, place == target, sample_rate), pause]
    samples = np.concatenate(parts[:-1], axis=1)
    return Clip(samples=(peak * samples / np.abs(samples).max()).astype(np.float32), sample_rate=sample_rate)


def _noise(rng: np.random.Generator, with_tone: bool, rate: int) -> np.ndarray:
    """A noise of two channels; with the tone, the right one's phase rises by 360° through the band."""
    count = round(NOISE_S * rate)
    left = rng.standard_normal(count)
    right = left
    if with_tone:
        frequencies = np.fft.rfftfreq(count, 1 / rate)
        low, high = CENTRE_HZ * (1 - BAND), CENTRE_HZ * (1 + BAND)
        turn = np.clip((frequencies - low) / (high - low), 0, 1)
        right = np.fft.irfft(np.fft.rfft(left) * np.exp(2j * np.pi * turn), count)
    ramp = np.minimum(1, np.arange(count) / (0.03 * rate))
    return np.stack([left, right]) * ramp * ramp[::-1]


def is_passed(right: int, count: int) -> bool:
    """Whether enough answers were right."""
    return count > 0 and right >= PASS_SHARE * count
