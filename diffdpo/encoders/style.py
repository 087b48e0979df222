"""Style as text or sound: two small towers that meet on one unit sphere.

Trained contrastively on excerpts of songs and on captions of what is measured there (tools/tiny/build_style.py).
The text tower needs no vocabulary: words and the character n-grams in them are hashed into one table (Bojanowski et
al. 2017). The audio tower sees statistics of a mel spectrogram of middle and side, and the descriptors of sound.
"""

import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from diffdpo import audio
from diffdpo.encoders.descriptors import MEASURES, RATE, measure
from diffdpo.errors import reason
from diffdpo.types import Clip
from diffdpo.weight_files import WEIGHTS, check_weights_file, unreadable

STYLE_WINDOW_S = 10.0
"""Length of the windows into which longer sound is cut; the style is their mean."""
GRAMS = (3, 4, 5)
MOST_WORDS = 64
STFT, HOP, MELS = 1024, 512, 64
FLOOR = 1e-5
"""Floor of mel power, relative to its mean: -50 dB."""
RATES_HZ = (0.4, 0.8, 1.2, 1.7, 2.4, 3.4, 4.8, 6.8, 10.0, 16.0)
FEATURES = 4 * MELS + 8 * (len(RATES_HZ) - 1)


def words_of(text: str) -> list[str]:
    """Lower-case words without accents; punctuation separates."""
    plain = unicodedata.normalize("NFKD", text.lower())
    return re.findall(r"[^\W_]+", "".join(c for c in plain if not unicodedata.combining(c)))[:MOST_WORDS]


@lru_cache(maxsize=1 << 16)
def grams_of(word: str, buckets: int) -> tuple[int, ...]:
    """Places in the table of the word as a whole, and of each 3 to 5 characters of it, its ends marked."""
    chars = f"<{word}>"
    parts = [
        chars,
        *(chars[i : i + n] for n in GRAMS for i in range(len(chars) - n + 1) if n < len(chars)),
    ]
    return tuple(zlib.crc32(part.encode()) % buckets for part in parts)


def standard_scores(
    values: Float[np.ndarray, "*batch measure"], thirds: Mapping[str, Sequence[float]]
) -> Float[np.ndarray, "*batch measure"]:
    """Measures on a scale where the middle third of real songs is -0.43 to 0.43; at most 3 either way."""
    low, high = np.array([thirds[name] for name in MEASURES]).T
    return np.clip((values - (low + high) / 2) / (high - low) * 0.86, -3.0, 3.0)


def windows(clip: Clip) -> list[Clip]:
    """The clip in equal parts of about STYLE_WINDOW_S."""
    parts = np.array_split(clip.samples, max(1, round(clip.seconds / STYLE_WINDOW_S)), axis=1)
    return [Clip(samples=np.ascontiguousarray(part), sample_rate=clip.sample_rate) for part in parts]


class TextTower(nn.Module):
    """Hashed words, a weighted mean over them, an MLP."""

    def __init__(self, buckets: int, gram_dim: int, dim: int, out_dim: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.table = nn.EmbeddingBag(buckets, gram_dim, mode="mean")
        self.widen = nn.Sequential(nn.Linear(gram_dim, dim), nn.GELU())
        self.weigh = nn.Linear(gram_dim, 1)
        self.out = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, out_dim)
        )
        nn.init.normal_(self.table.weight, std=0.1)

    def forward(self, texts: Sequence[str]) -> tuple[Float[Tensor, "text out"], Float[Tensor, "text dim"]]:
        """Text embeddings before normalisation, and the pooled word vectors. Every text must hold a word."""
        split = [words_of(text) for text in texts]
        grams = [grams_of(word, self.buckets) for words in split for word in words]
        device = self.table.weight.device
        ends = torch.tensor([0, *(len(word) for word in grams)][:-1], device=device).cumsum(0)
        flat: Int[Tensor, " gram"] = torch.tensor([g for word in grams for g in word], device=device)
        words = self.table(flat, ends)
        owner = torch.tensor(
            [i for i, grams_of_text in enumerate(split) for _ in grams_of_text], device=device
        )
        weights = self.weigh(words).clamp(-8, 8).exp()
        total = words.new_zeros(len(texts), 1).index_add(0, owner, weights)
        empty = words.new_zeros(len(texts), self.widen[0].out_features)
        pooled_words = empty.index_add(0, owner, weights * self.widen(words)) / total
        return self.out(pooled_words), pooled_words


def spectral_profile(power: Float[Tensor, "2 frame mel"]) -> Float[Tensor, " feature"]:
    """Means and deviations over time of log mel power, and how much it varies at which rate; level is no matter.

    The fluctuation is the variance of eight bands of the middle within ranges of modulation frequency, logarithmic
    (cf. Pampalk, Rauber & Merkl 2002). For sounds longer than a modulation period, length is no matter either.
    """
    level = power.mean().clamp(min=1e-20)
    x = torch.log10(power / level + FLOOR)
    bands = x[0].unflatten(-1, (8, -1)).mean(-1)
    window = torch.hann_window(len(bands), periodic=False)[:, None] + 1e-3
    count = max(1024, len(bands))
    density = torch.fft.rfft((bands - bands.mean(0)) * window, count, dim=0).abs() ** 2
    density = density * 2 / (count * window.square().sum())
    hertz = torch.fft.rfftfreq(count, HOP / RATE)
    ranges = torch.bucketize(hertz, torch.tensor(RATES_HZ))
    totals = torch.zeros(len(RATES_HZ) + 1, density.shape[1]).index_add(0, ranges, density)[1:-1]
    return torch.cat(
        [x.mean(1).flatten(), x.std(1, correction=0).flatten(), torch.log10(totals + 1e-4).flatten()]
    )


class AudioTower(nn.Module):
    """An MLP on a spectral profile and on the measures."""

    shift: Tensor
    spread: Tensor

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))
        self.profile = nn.Sequential(nn.Linear(FEATURES, dim), nn.GELU(), nn.Dropout(0.2))
        self.measures = nn.Sequential(nn.Linear(len(MEASURES), 64), nn.GELU())
        self.out = nn.Sequential(nn.Linear(dim + 64, 2 * dim), nn.GELU(), nn.Linear(2 * dim, out_dim))

    def forward(
        self, profile: Float[Tensor, "batch feature"], scores: Float[Tensor, "batch measure"]
    ) -> tuple[Float[Tensor, "batch out"], Float[Tensor, "batch dim"]]:
        """Audio embeddings before normalisation, and the features of the profile alone."""
        profile_features = self.profile(((profile - self.shift) / self.spread).clamp(-4, 4))
        return self.out(torch.cat([profile_features, self.measures(scores)], -1)), profile_features


class TwoTowerStyle(ModelMixin, ConfigMixin):
    """Style encoder of two towers: text, audio or both to a unit vector."""

    @register_to_config
    def __init__(
        self,
        thirds: dict[str, list[float]],
        dim: int = 512,
        buckets: int = 8192,
        gram_dim: int = 128,
        text_dim: int = 192,
        audio_dim: int = 192,
    ) -> None:
        """`thirds`: for each measure the terciles of the training songs, as `standard_scores` takes them."""
        super().__init__()
        self.text = TextTower(buckets, gram_dim, text_dim, dim)
        self.audio = AudioTower(audio_dim, dim)
        self.register_buffer("text_centre", torch.zeros(dim))
        self.register_buffer("audio_centre", torch.zeros(dim))
        mel = torch.from_numpy(librosa.filters.mel(sr=RATE, n_fft=STFT, n_mels=MELS))
        self.register_buffer("mel", mel, persistent=False)
        self._latest: tuple[Clip, Tensor] | None = None

    @property
    def thirds(self) -> dict[str, list[float]]:
        """For each measure the terciles of the training songs."""
        return self.config.thirds

    def mel_power(self, clip: Clip) -> Float[Tensor, "2 frame mel"]:
        """Mel power spectrogram of middle and side."""
        return self.mel_power_of(torch.from_numpy(audio.resample(audio.stereo(clip), RATE).samples))

    def mel_power_of(self, stereo: Float[Tensor, "2 sample"]) -> Float[Tensor, "2 frame mel"]:
        """Mel power spectrogram of middle and side of a sound at RATE; gradients pass."""
        stereo = F.pad(stereo, (0, max(0, STFT - stereo.shape[-1])))
        mid_side = torch.stack([stereo[0] + stereo[1], stereo[0] - stereo[1]]) / 2
        spectrum = torch.stft(mid_side, STFT, HOP, window=torch.hann_window(STFT), return_complex=True)
        return (self.mel.float().cpu() @ spectrum.abs() ** 2).transpose(1, 2)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "text {self.config.dim}"]:
        """Styles of texts as unit vectors; zeros for a text without a word."""
        out = torch.zeros(len(texts), self.config.dim, device=self.text_centre.device)
        rows = [i for i, text in enumerate(texts) if words_of(text)]
        if rows:
            out[rows] = F.normalize(
                F.normalize(self.text([texts[i] for i in rows])[0], dim=-1) - self.text_centre, dim=-1
            )
        return out

    def embed_profiles(
        self, profiles: Float[Tensor, "batch feature"], scores: Float[Tensor, "batch measure"]
    ) -> Float[Tensor, "batch {self.config.dim}"]:
        """Styles of windows, from spectral profiles and measures, as unit vectors."""
        return F.normalize(F.normalize(self.audio(profiles, scores)[0], dim=-1) - self.audio_centre, dim=-1)

    def embed_clip(self, clip: Clip) -> Float[Tensor, " {self.config.dim}"]:
        """The style of a sound: the mean over its windows, a unit vector. The latest sound is cached."""
        latest = self._latest
        if latest is None or latest[0] is not clip:
            latest = self._latest = clip, self._embed_windows(clip)
        return latest[1]

    def _embed_windows(self, clip: Clip) -> Float[Tensor, " {self.config.dim}"]:
        styles = [self.embed_window(window) for window in windows(clip)]
        return F.normalize(torch.stack(styles).mean(0), dim=0)

    @torch.no_grad()
    def embed_window(
        self, window: Clip, mono: Float[np.ndarray, " sample"] | None = None
    ) -> Float[Tensor, " {self.config.dim}"]:
        """The style of a window, a unit vector. `mono`: the mean of its channels at RATE, if computed."""
        values, device = measure(window, mono), self.audio_centre.device
        scores = standard_scores(np.array([values[name] for name in MEASURES]), self.thirds)
        profile = spectral_profile(self.mel_power(window))[None].to(device)
        return self.embed_profiles(profile, torch.from_numpy(scores).float()[None].to(device))[0]

    @torch.no_grad()
    def embed(self, text: str | None, clip: Clip | None) -> Float[Tensor, " {self.config.dim}"]:
        """The style of text, audio, or both together (the unit sum); zeros when there is neither."""
        total = self.embed_texts([text or ""])[0]
        if clip is not None:
            total = total + self.embed_clip(clip)
        return F.normalize(total, dim=0).cpu()


def load_style(bundle: Path) -> TwoTowerStyle:
    """The encoder in the folder `style` of a bundle, the one its network was trained with."""
    folder = bundle / "style"
    for file in ("config.json", WEIGHTS):
        check_weights_file(folder / file)
    try:
        return TwoTowerStyle.from_pretrained(folder, torch_dtype=torch.float32).eval()
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        cause = f"no encoder of styles with config.json ({reason(error)}); copy both again"
        raise unreadable(folder / WEIGHTS, cause) from None


@cache
def pretrained_encoder(bundle: Path) -> TwoTowerStyle:
    """The encoder of `load_style`, loaded once a bundle and process; callers share it and must not change it."""
    return load_style(bundle)
