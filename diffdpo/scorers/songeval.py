"""SongEval (Yao et al. 2025): five ratings of a whole song, learned from those of human annotators."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from diffdpo import hub
from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.errors import DataError
from diffdpo.types import Clip

LOWEST_SCORE = 1.0
"""The open end of the scale, which silence gets: the published network was never shown any."""
HEAD = hub.Published(
    name="the head of SongEval",
    repo="ASLP-lab/SongEval",
    license="CC-BY-NC-SA-4.0",
    noncommercial=True,
)
HEAD_FILE = "ckpt/model.safetensors"


@dataclass(frozen=True)
class SongEval:
    """Predicted ratings of human annotators, from 1 to 5.

    songeval.coherence    Overall coherence.
    songeval.musicality   Overall musicality.
    songeval.memorability
    songeval.clarity      Of the song's structure.
    songeval.naturalness  Of vocal breathing and phrasing.

    The whole song is one input, as published; only its level is not, since every clip is at -14 LUFS. Silence
    gets 1.

    How it can be gamed: the five axes are one axis, their human ratings correlate at 0.95, so count them as one
    vote. What MuQ's features barely hold is barely judged: form and order. Optimising it raised musicality and
    with it the share of wrong words; keep a gate on lyrics and a judge that hears otherwise. Compare songs of
    one prompt only: vocals, genre and production shift all five.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = (
        "songeval.coherence",
        "songeval.musicality",
        "songeval.memorability",
        "songeval.clarity",
        "songeval.naturalness",
    )
    traits: ClassVar[Mapping[str, str]] = {
        "songeval.coherence": "form",
        "songeval.musicality": "appeal",
        "songeval.memorability": "appeal",
        "songeval.clarity": "form",
        "songeval.naturalness": "naturalness",
    }
    licenses: ClassVar[tuple[str, ...]] = (hub.MUQ_LARGE.license, HEAD.license)
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 10.0

    # What does not change the numbers is left out of repr, and so of the cache key.
    muq: str = field(default="", repr=False, metadata=PATH)
    """MuQ-large-msd-iter: file, folder or hub id; by default the hub's."""
    head: str = field(default="", repr=False, metadata=PATH)
    """model.safetensors of SongEval's repository, the folder that holds ckpt/, or the hub id of a copy."""
    accept_noncommercial: bool = field(default=False, repr=False)
    """Both are for non-commercial use only: say that this is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of MuQ's convolutions, most of the work. The rest is fp32 always."""
    batch: int = field(default=1, repr=False)
    """Songs in one forward pass. More fill a GPU; a score does not depend on it."""

    def __post_init__(self) -> None:
        check_range(self, "batch", low=1)

    @property
    def weights_hash(self) -> str:
        return hashlib.sha256("".join(map(hub.sha256_of, self._files())).encode()).hexdigest()

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        from diffdpo.encoders.songeval import load_songeval

        scores = np.full((len(clips), len(self.axes)), LOWEST_SCORE)
        waves = {i: at_24_khz(clip) for i, clip in enumerate(clips) if clip.samples.any()}
        order = sorted(waves, key=lambda i: len(waves[i]))  # alike lengths together: little padding
        for begin in range(0, len(order), self.batch):
            rows = order[begin : begin + self.batch]
            network = load_songeval(*self._files(), self.dtype)
            scores[rows] = network.rate([waves[i] for i in rows]).cpu().numpy()
        return scores

    def _files(self) -> tuple[Path, Path]:
        """Files of encoder and head. DataError for a missing file and for a license that is not accepted."""
        from diffdpo.encoders import muq

        consent = self.accept_noncommercial
        encoder = hub.find_weights(hub.MUQ_LARGE, self.muq, muq.MUQ_FILE, accept_noncommercial=consent)
        if not self.head:
            raise DataError(
                f"songeval: no head given; fetch {HEAD_FILE} from https://github.com/{HEAD.repo} "
                f"(licence: {HEAD.license}) and set head to its path"
            )
        return encoder, hub.find_weights(HEAD, self.head, HEAD_FILE, accept_noncommercial=consent)


def at_24_khz(clip: Clip) -> Float[np.ndarray, " sample"]:
    """The mean of the channels through the published resampler: decibels up to 12 kHz show its edge.

    What is too short for MuQ is filled up with silence.
    """
    import librosa

    from diffdpo.encoders import muq

    mean = clip.samples.mean(0, dtype=np.float32)
    wave = librosa.resample(mean, orig_sr=clip.sample_rate, target_sr=muq.MUQ_SAMPLE_RATE, res_type="soxr_hq")
    return np.pad(wave, (0, max(0, muq.SHORTEST - len(wave))))
