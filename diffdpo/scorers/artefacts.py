"""Artefacts, optional and never mined: how clean the sound is to a network that rates speech."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.hub import Published, find_package_file, sha256_of
from diffdpo.scorers.features import ClipFeatures, mono, score_each
from diffdpo.types import Clip

DISTILL_MOS = Published(name="DistillMOS", repo="distillmos==0.9.1", license="MIT")
DISTILL_MOS_FILE = "weights/distill_mos_v7.pt"
MOS_EXCERPT_S = 7.68


@dataclass(frozen=True)
class Artefacts:
    """How free of artefacts DistillMOS (Stahl & Gamper 2025) hears a song.

    artefacts.mos  Mean opinion score, from 1 to 5, of excerpts of 7.68 s; silence 1. For songs with the same prompt
                   and seed only.

    It was trained on speech: real songs do not score above generated ones, so it says nothing of two different
    songs. Of the same song it hears fewer sampling steps, clipping, noise and missing treble. It is a
    diagnosis unless `judges` names it: its agreement with another axis is not shown. The weights, 17 MB, do not
    ship: `pip install --no-deps distillmos==0.9.1`, or name the file.

    How it can be gamed: less going on has fewer artefacts; a solo voice scores higher than a full song.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("artefacts.mos",)
    traits: ClassVar[Mapping[str, str]] = {"artefacts.mos": "production"}
    licenses: ClassVar[tuple[str, ...]] = (DISTILL_MOS.license,)
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = 4.0

    weights: str = field(default="", repr=False, metadata=PATH)
    """The file distill_mos_v7.pt or the folder of the package distillmos; by default the package, if installed."""
    hop_s: float = MOS_EXCERPT_S
    """Longest distance between the starts of two excerpts. 1 is the published way, eight times as slow."""

    def __post_init__(self) -> None:
        check_range(self, "hop_s", above=0)

    @property
    def weights_hash(self) -> str:
        return sha256_of(self._file())

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        import torch

        from diffdpo.encoders import distill_mos as encoder

        network = encoder.load_distill_mos(self._file())
        samples = mono(features, encoder.MOS_SAMPLE_RATE)
        if not samples.any():
            return (encoder.LOWEST_MOS,)
        hop_samples = max(1, round(self.hop_s * encoder.MOS_SAMPLE_RATE))
        return (encoder.song_mos(network, torch.from_numpy(samples), hop_samples),)

    def _file(self) -> Path:
        return find_package_file(DISTILL_MOS, self.weights, DISTILL_MOS_FILE)
