"""Sound as data URIs and pictures, numbers as charts: the parts of a report in one file."""

import base64
import io
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float, UInt8

from diffdpo import audio
from diffdpo.types import Clip

MINUS = "\N{MINUS SIGN}"
LISTENING_LUFS = -18.0
LOSSY_PEAK_LIMIT = 0.95
"""Peak of the samples that are encoded: lossy codecs overshoot."""
KBPS_PER_CHANNEL = 64
MP3_RATES = {
    **dict.fromkeys((8000, 11025, 12000), (8, 64)),
    **dict.fromkeys((16000, 22050, 24000), (8, 160)),
    **dict.fromkeys((32000, 44100, 48000), (32, 320)),
}
"""Lowest and highest kbit/s at each sample rate that MP3 knows."""
WAVE_COLUMNS, WAVE_HEIGHT = 300, 100
SPECTRUM_COLUMNS, SPECTRUM_BANDS, SPECTRUM_LEVELS = 480, 80, 64
RANGE_DB = 70.0
CHART = (44.0, 352.0, 10.0, 122.0)
"""Left, right, top and bottom of the plot in an SVG of 360 x 148."""
CHART_POINTS = 400


def match_loudness(clips: Sequence[Clip], target_lufs: float = LISTENING_LUFS) -> list[Clip]:
    """Clips for comparison by ear: equally loud, equally long, none clipped, at sample rates of MP3.

    If one clip would exceed full scale at the target loudness, the gain of all is lowered alike.
    """
    seconds = max(clip.seconds for clip in clips)
    normal_clips = [audio.normalise(_playable(clip, seconds), target_lufs) for clip in clips]
    peak = max(float(np.abs(clip.samples).max(initial=0.0)) for clip in normal_clips)
    gain = np.float32(min(1.0, LOSSY_PEAK_LIMIT / max(peak, 1e-9)))
    return [Clip(samples=clip.samples * gain, sample_rate=clip.sample_rate) for clip in normal_clips]


def _playable(clip: Clip, seconds: float) -> Clip:
    """One or two channels at an MP3 rate, silence appended up to `seconds`."""
    clip = clip if clip.samples.shape[0] <= 2 else audio.stereo(clip)
    clip = audio.resample(clip, min((rate for rate in MP3_RATES if rate >= clip.sample_rate), default=48000))
    n_silent = max(0, round(seconds * clip.sample_rate) - clip.samples.shape[1])
    return Clip(samples=np.pad(clip.samples, ((0, 0), (0, n_silent))), sample_rate=clip.sample_rate)


def embed(clip: Clip, budget_bytes: int) -> str:
    """A clip of `match_loudness` as an MP3 data URI, which every browser plays, of at most `budget_bytes`."""
    kbps = min(KBPS_PER_CHANNEL * clip.samples.shape[0], budget_bytes * 8 / 1000 / clip.seconds)
    lowest, highest = MP3_RATES[clip.sample_rate]
    level = (highest - kbps) / (highest - lowest)
    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        clip.samples.T,
        clip.sample_rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=min(0.99, max(0.0, level)),
        bitrate_mode="CONSTANT",
    )
    return data_uri("audio/mpeg", buffer.getvalue())


def data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Picture:
    """A sound as waveform and spectrogram, in one colour that the page sets."""

    peaks: str
    """SVG path in a box of WAVE_COLUMNS x WAVE_HEIGHT: the extremes of the waveform."""
    body: str
    """SVG path in the same box: the root mean square of the waveform."""
    spectrogram: str
    """Data URI of a PNG that is black with the level as its opacity: a mask."""


def draw_pictures(clips: Sequence[Clip]) -> list[Picture]:
    """Pictures of clips on common scales of amplitude and level."""
    peak = max(1e-6, *(float(np.abs(clip.samples).max(initial=0.0)) for clip in clips))
    spectra = [mel_db(clip) for clip in clips]
    top = max(float(spectrum.max()) for spectrum in spectra)
    return [
        Picture(*_waveform(clip, peak), data_uri("image/png", mask_png(spectrum, top)))
        for clip, spectrum in zip(clips, spectra, strict=True)
    ]


def _waveform(clip: Clip, peak: float) -> tuple[str, str]:
    columns = min(WAVE_COLUMNS, clip.samples.shape[1])
    starts = np.linspace(0, clip.samples.shape[1], columns, endpoint=False).astype(int)
    widths = np.diff([*starts, clip.samples.shape[1]])
    high = np.maximum.reduceat(clip.samples.max(0), starts)
    low = np.minimum.reduceat(clip.samples.min(0), starts)
    power = np.add.reduceat((clip.samples.astype(np.float64) ** 2).mean(0), starts)
    body = np.sqrt(power / widths)
    x = np.linspace(0, WAVE_COLUMNS, columns)
    return _band(x, high / peak, low / peak), _band(x, body / peak, -body / peak)


def _band(
    x: Float[np.ndarray, " column"], high: Float[np.ndarray, " column"], low: Float[np.ndarray, " column"]
) -> str:
    """SVG path of the area between two curves of range ±1, at least one unit thick."""
    half = WAVE_HEIGHT / 2
    upper = np.minimum(half - half * high, half - 0.5)
    lower = np.maximum(half - half * low, half + 0.5)
    upper_path = polyline(x, upper)
    lower_path = polyline(x[::-1], lower[::-1])
    return f"{upper_path}L{lower_path[1:]}Z"


def mel_db(clip: Clip) -> Float[np.ndarray, "band column"]:
    """Mel power in dB, averaged into columns so that long songs hide nothing between two windows."""
    from torchaudio.transforms import MelSpectrogram

    n_samples = clip.samples.shape[1]
    per_column = max(1, n_samples // (SPECTRUM_COLUMNS * 1024))
    mel = MelSpectrogram(
        clip.sample_rate,
        n_fft=2048,
        hop_length=max(1, n_samples // (SPECTRUM_COLUMNS * per_column)),
        f_max=min(16000.0, clip.sample_rate / 2),
        n_mels=SPECTRUM_BANDS,
        mel_scale="slaney",
        pad_mode="constant",
    )(torch.from_numpy(clip.samples.mean(0, dtype=np.float32)))
    length = mel.shape[1] // per_column * per_column
    power = mel[:, :length].reshape(SPECTRUM_BANDS, -1, per_column).mean(2)
    return np.asarray(10 * np.log10(power.numpy() + 1e-10))


def _levels(spectrum: Float[np.ndarray, "band column"], top: float) -> UInt8[np.ndarray, "row column"]:
    level = np.clip(1 + (spectrum - top) / RANGE_DB, 0, 1) ** 1.5  # the power keeps quiet parts light
    return np.round(level[::-1] * (SPECTRUM_LEVELS - 1)).astype(np.uint8)


def mask_png(spectrum: Float[np.ndarray, "band column"], top: float) -> bytes:
    """A spectrum in dB up to `top` as a palette PNG (RFC 2083): every colour black, opacity in the palette."""
    levels = _levels(spectrum, top)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = levels.shape
    opacity = np.linspace(0, 255, SPECTRUM_LEVELS).astype(np.uint8)
    rows = np.pad(levels, ((0, 0), (1, 0)))  # a zero before each row: no filter
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes(3 * SPECTRUM_LEVELS)),
            chunk(b"tRNS", opacity.tobytes()),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            chunk(b"IEND", b""),
        )
    )


@dataclass(frozen=True)
class Curve:
    label: str
    raw: str
    """SVG path of dots, at most CHART_POINTS of them."""
    smooth: str
    last: float
    """Last value of the smooth line."""


@dataclass(frozen=True)
class Chart:
    title: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    """(position, label)."""
    y_ticks: tuple[tuple[float, str], ...]
    baseline: float | None
    """Position of the value that stands for no change."""


def chart(
    title: str,
    steps: Float[np.ndarray, " row"],
    series: Mapping[str, Float[np.ndarray, " row"]],
    *,
    baseline: float | None = None,
) -> Chart:
    """Series over steps: dots, and their running mean. Values that are not finite are left out.

    The range covers the smooth lines and all but the wildest hundredth of the dots, which sit on the frame.
    """
    left, right, top, bottom = CHART
    points = {
        label: (steps[ok], values[ok])
        for label, values in series.items()
        if (ok := np.isfinite(values)).any()
    }
    smooth = {
        label: running_mean(values, smoothing_width(len(values))) for label, (_, values) in points.items()
    }
    extremes = [*np.concatenate([np.quantile(values, (0.005, 0.995)) for _, values in points.values()])]
    extremes += [*np.concatenate([*smooth.values()])] + ([] if baseline is None else [baseline])
    low, high = _pad_range(min(extremes), max(extremes))
    first, last = float(steps.min()), float(max(steps.max(), steps.min() + 1))

    def x(values: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        return left + (values - first) / (last - first) * (right - left)

    def y(values: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        return bottom - (np.clip(values, low, high) - low) / (high - low) * (bottom - top)

    curves = []
    for label, (at, values) in points.items():
        index = np.unique(np.linspace(0, len(at) - 1, CHART_POINTS).astype(int))
        line = polyline(x(at[index]), y(smooth[label][index]))
        curves.append(Curve(label, _dots(x(at[index]), y(values[index])), line, float(smooth[label][-1])))
    return Chart(
        title=title,
        curves=tuple(curves),
        x_ticks=_tick_labels([tick for tick in ticks(first, last, 4) if tick % 1 == 0], x),
        y_ticks=_tick_labels(ticks(low, high, 3), y),
        baseline=None if baseline is None else float(y(np.array([baseline]))[0]),
    )


def _tick_labels(values: Sequence[float], place: Callable[..., Any]) -> tuple[tuple[float, str], ...]:
    labels = (f"{value:g}".replace("-", MINUS) for value in values)
    return tuple(zip(map(float, place(np.array(values))), labels, strict=True))


def smoothing_width(rows: int) -> int:
    return max(1, rows // 20)


def running_mean(values: Float[np.ndarray, " row"], width: int) -> Float[np.ndarray, " row"]:
    """Mean around each value, weighted by a bell (Hann) `width` wide at half its height, cut at the ends."""
    bell = np.hanning(2 * width + 1)
    padded_values = np.concatenate([np.zeros(width), values, np.zeros(width)])
    presence = np.concatenate([np.zeros(width), np.ones(len(values)), np.zeros(width)])
    return np.asarray(np.convolve(padded_values, bell, "valid") / np.convolve(presence, bell, "valid"))


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within the range."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor > 0.7 * raw)
    return [
        round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def polyline(x: Float[np.ndarray, " point"], y: Float[np.ndarray, " point"]) -> str:
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _dots(x: Float[np.ndarray, " point"], y: Float[np.ndarray, " point"]) -> str:
    return "".join(f"M{a:.1f},{b:.1f}h0" for a, b in zip(x, y, strict=True))


def _pad_range(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or max(1e-6, 0.1 * abs(high))
    return low - margin, high + margin
