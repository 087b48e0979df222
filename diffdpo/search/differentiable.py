"""What a sound is, as tensors that gradients pass through: loudness, pitch classes, timbre, form.

Sound is [channel, sample] at any rate; windows and hops are in seconds, so that a curve means the same at every
rate. The n-th frame is centred on n hops, with silence outside of the sound, unless a function says otherwise.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SoundTensor = Float[Tensor, "side sample"]
HOP_S = 0.05
"""Time between two frames of all features but style."""
LEVEL_S = 0.1
"""Length of the windows whose level is measured."""
FLOOR_DB = -70.0
SPECTRUM_S = 0.19
"""Length of the windows of spectra, rounded to a power of two in samples: 8,192 at 44.1 kHz."""
LOWEST_HZ, HIGHEST_HZ = 80.0, 2000.0
"""Range of the pitches of a chromagram."""
MEL_BANDS, COEFFICIENTS = 40, 13


def decibels(power: Float[Tensor, "*shape"], floor_db: float = FLOOR_DB) -> Float[Tensor, "*shape"]:
    """10 log10 of a power, with a floor that is added to it, so that silence has a gradient."""
    return 10 * torch.log10(power + 10 ** (floor_db / 10))


def loudness_curve(sound: SoundTensor, sample_rate: int, smoothing_s: float = 1.0) -> Float[Tensor, " frame"]:
    """Level in dB of every HOP_S, smoothed as DITTO smooths it: a Savitzky-Golay filter over `smoothing_s`; 0 for
    none. A sine of amplitude 1 has -3 dB."""
    power = (sound**2).mean(0)
    width, hop = max(1, round(LEVEL_S * sample_rate)), round(HOP_S * sample_rate)
    power = F.pad(power[None, None], (width // 2, width // 2))
    count = F.pad(torch.ones_like(sound[:1])[None], (width // 2, width // 2))
    means = F.avg_pool1d(power, width, hop) / F.avg_pool1d(count, width, hop).clamp(min=1e-3)
    curve = decibels(means[0, 0])
    return smooth(curve, round(smoothing_s / HOP_S) // 2 * 2 + 1) if smoothing_s else curve


def smooth(curve: Float[Tensor, " frame"], width: int, degree: int = 2) -> Float[Tensor, " frame"]:
    """Savitzky and Golay's filter (1964): the value at its centre of the polynomial that fits `width` frames best.
    Beyond the ends the first and last value are repeated."""
    if width <= degree + 1:
        return curve
    kernel = savitzky_golay(width, degree).to(curve)
    signal = F.pad(curve[None, None], (width // 2, width // 2), mode="replicate")
    return F.conv1d(signal, kernel[None, None])[0, 0]


@cache
def savitzky_golay(width: int, degree: int) -> Float[Tensor, " {width}"]:
    """Weights of the filter of an odd width: the first row of the pseudo-inverse of powers of the place."""
    place = torch.linspace(-1, 1, width, dtype=torch.float64)
    powers = place[:, None] ** torch.arange(degree + 1)
    return torch.linalg.pinv(powers)[0]


def spectrogram(sound: SoundTensor, sample_rate: int) -> Float[Tensor, "frame bin"]:
    """Power of the mean of the channels in Hann windows, a frame every HOP_S; a sine of amplitude 1 has about 1."""
    size = spectrum_size(sample_rate)
    window = torch.hann_window(size).to(sound)
    spectrum = torch.stft(
        sound.mean(0),
        size,
        round(HOP_S * sample_rate),
        window=window,
        pad_mode="constant",
        return_complex=True,
    )
    return (spectrum.real**2 + spectrum.imag**2).T * (2 / window.sum()) ** 2


def spectrum_size(sample_rate: int) -> int:
    """Samples in a window of SPECTRUM_S, a power of two."""
    return int(2 ** round(math.log2(SPECTRUM_S * sample_rate)))


def chromagram(
    sound: SoundTensor,
    sample_rate: int,
    lowest_hz: float = LOWEST_HZ,
    highest_hz: float = HIGHEST_HZ,
) -> Float[Tensor, "frame 12"]:
    """How much of each pitch class, C first, sounds in every frame: square roots of powers, each frame of length 1
    where anything sounds and short where nothing does."""
    filters = chroma_bank(sample_rate, lowest_hz, highest_hz).to(sound)
    power = spectrogram(sound, sample_rate) @ filters
    chroma = (power + 1e-12).sqrt()
    return chroma / (chroma.square().sum(1, keepdim=True) + 10 ** (FLOOR_DB / 10)).sqrt()


@cache
def chroma_bank(sample_rate: int, lowest_hz: float, highest_hz: float) -> Float[Tensor, "bin 12"]:
    """The share of each bin of a spectrum in each pitch class at A440: Gaussian in pitch, a third of a semitone
    wide, summing to one, and fading at both ends of the range within half an octave."""
    size = spectrum_size(sample_rate)
    hertz = torch.arange(size // 2 + 1, dtype=torch.float64) * sample_rate / size
    pitch = 69 + 12 * torch.log2(hertz.clamp(min=1.0) / 440)
    distance = (pitch[:, None] - torch.arange(12) + 6) % 12 - 6
    shares = torch.softmax(-(distance**2) / (2 * (1 / 3) ** 2), 1)
    low, high = (69 + 12 * math.log2(edge / 440) for edge in (lowest_hz, highest_hz))
    fade = ((pitch - low) / 6 + 0.5).clamp(0, 1) * ((high - pitch) / 6 + 0.5).clamp(0, 1)
    return shares * (fade * (hertz > 0))[:, None]


def mel_cepstrum(sound: SoundTensor, sample_rate: int) -> Float[Tensor, "frame coefficient"]:
    """Timbre of every frame: mel-frequency cepstral coefficients 0 to 12 of levels in dB."""
    mel = decibels(spectrogram(sound, sample_rate) @ mel_bank(sample_rate).to(sound), -90.0)
    places = (torch.arange(MEL_BANDS) + 0.5) / MEL_BANDS
    cosines = torch.cos(math.pi * torch.arange(COEFFICIENTS)[:, None] * places).to(sound)
    scale = torch.full((COEFFICIENTS,), math.sqrt(2 / MEL_BANDS)).to(sound)
    scale[0] = math.sqrt(1 / MEL_BANDS)
    return mel @ cosines.T * scale


@cache
def mel_bank(sample_rate: int) -> Float[Tensor, "bin band"]:
    """Triangles of area one on the mel scale of O'Shaughnessy, 30 Hz to 11 kHz or half the rate."""
    size, top = spectrum_size(sample_rate), min(11_000.0, sample_rate / 2)
    hertz = torch.arange(size // 2 + 1, dtype=torch.float64) * sample_rate / size
    low, high = (1127 * math.log1p(edge / 700) for edge in (30.0, top))
    edges = 700 * torch.expm1(torch.linspace(low, high, MEL_BANDS + 2, dtype=torch.float64) / 1127)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    rise, fall = (hertz[:, None] - left) / (middle - left), (right - hertz[:, None]) / (right - middle)
    triangles = torch.minimum(rise, fall).clamp(min=0)
    return triangles / triangles.sum(0).clamp(min=1e-9)


def moment_means(frames: Float[Tensor, "frame feature"], per_moment: int) -> Float[Tensor, "moment feature"]:
    """Means of frames over moments end to end; frames behind the last whole moment are left out."""
    count = len(frames) // per_moment
    return frames[: count * per_moment].unflatten(0, (count, per_moment)).mean(1)


def similarity_matrix(moments: Float[Tensor, "moment feature"]) -> Float[Tensor, "moment moment"]:
    """Cosines of all pairs of moments, each feature without its mean over time (Foote 1999)."""
    deviations = moments - moments.mean(0)
    unit = deviations / (deviations.square().sum(1, keepdim=True) + 1e-6).sqrt()
    return unit @ unit.T
