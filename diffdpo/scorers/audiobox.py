"""Audiobox-Aesthetics (Tjandra et al. 2025): four ratings of 1 to 10 for every ten seconds."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.hub import Published, find_weights, sha256_of
from diffdpo.scorers.features import ClipFeatures, mono, score_each
from diffdpo.types import Clip

PUBLISHED_AUDIOBOX = Published(
    name="Audiobox-Aesthetics", repo="facebook/audiobox-aesthetics", license="CC-BY-4.0"
)
AUDIOBOX_WINDOW_S = 10.0
SILENCE = 0.0
"""The score of silence, on all axes: below the scale."""


@dataclass(frozen=True)
class Audiobox:
    """Predicted ratings of listeners, on their scale of 1 to 10.

    audiobox.ce  Content Enjoyment: is it a pleasure to hear, is it artful?
    audiobox.cu  Content Usefulness: could one make something with it?
    audiobox.pc  Production Complexity: how much goes on at once? Bigger is busier, *not better*.
    audiobox.pq  Production Quality: is it clean, clear, well balanced?

    The published order and scale, before any mean over clips; silence gets 0 on all four. A song is the mean of
    windows of ten seconds, a shorter last one weighing less.

    How it can be gamed: production complexity is no quality: listeners' ratings of it fall with production
    quality in released music (r = -0.30) and rise with it in generated music (+0.31). Name the other axes when
    mining, never this one. They are not three votes either: listeners' means correlate at 0.79 to 0.94, so
    they count as one family; if only one is wanted, ce follows overall quality best. Piano music that was
    optimised on ce got more notes, more voices and no rests, and its variety sank. Nothing beyond ten seconds
    counts: the windows in any order score the same, so a loop costs nothing; watch `structure.form`. It hears
    one channel up to 8 kHz: neither stereo nor air counts. Level hardly counts: the first layer takes it out.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("audiobox.ce", "audiobox.cu", "audiobox.pc", "audiobox.pq")
    traits: ClassVar[Mapping[str, str]] = {
        "audiobox.ce": "appeal",
        "audiobox.cu": "appeal",
        "audiobox.pc": "complexity",
        "audiobox.pq": "production",
    }
    licenses: ClassVar[tuple[str, ...]] = (PUBLISHED_AUDIOBOX.license,)
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 1.0

    weights: str = field(default="", repr=False, metadata=PATH)
    """A folder with model.safetensors and config.json, the path of that file or of the older checkpoint.pt, or a
    hub id; by default facebook/audiobox-aesthetics."""
    min_tail_s: float = 1.0
    """A last window shorter than this is left out, unless it is the only one. 0 is the published way."""
    batch: int = field(default=4, repr=False)
    """Windows in one forward pass; changes nothing but memory and speed."""

    def __post_init__(self) -> None:
        check_range(self, "batch", low=1)
        check_range(self, "min_tail_s", low=0, high=AUDIOBOX_WINDOW_S)

    @property
    def weights_hash(self) -> str:
        """Hash of the weights and of the configuration, which holds the scale."""
        return hashlib.sha256(
            "".join(sha256_of(path) for path in published_files(self.weights)).encode()
        ).hexdigest()

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self._score, len(self.axes))

    def _score(self, features: ClipFeatures) -> list[float]:
        import torch

        from diffdpo.encoders import audiobox as encoder

        if features.clip.samples.any():
            samples = mono(features, encoder.WAVLM_SAMPLE_RATE, at_least_s=0.0)
            if samples.any():
                min_tail = round(self.min_tail_s * encoder.WAVLM_SAMPLE_RATE)
                windows = encoder.cut_windows(torch.from_numpy(samples), min_tail)
                network = encoder.cached_audiobox(published_files(self.weights))
                return encoder.song_score(
                    encoder.rate_windows(network, windows, self.batch), windows
                ).tolist()
        return [SILENCE] * len(self.axes)


def published_files(source: str) -> tuple[Path, ...]:
    """The weights, and their configuration if that is a file of its own."""
    weights = find_weights(PUBLISHED_AUDIOBOX, source, "model.safetensors", accept_noncommercial=False)
    if weights.suffix in (".pt", ".pth"):
        return (weights,)
    if source and Path(source).is_file():
        return weights, weights.with_name("config.json")
    return weights, find_weights(PUBLISHED_AUDIOBOX, source, "config.json", accept_noncommercial=False)
