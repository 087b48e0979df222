"""Critic: a utility learned from pairs that need no people, for mining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.errors import DataError
from diffdpo.preferences.heads import UtilityHead, read_head
from diffdpo.scorers.features import ClipFeatures, mono, score_each
from diffdpo.scorers.harmony import Harmony
from diffdpo.scorers.order import window_facts
from diffdpo.scorers.production import Production
from diffdpo.scorers.rhythm import Rhythm
from diffdpo.scorers.self_similarity import FACTS, half_second_means
from diffdpo.scorers.structure import FRAME_RATE, SHORTEST_S, Structure, structure_frames
from diffdpo.types import Clip

CRITIC_PATH = Path(str(resources.files("diffdpo").joinpath("assets/preferences/critic.safetensors")))
CRITIC_PARTS = (Harmony(), Rhythm(), Structure(), Production())
CRITIC_FEATURES = (
    *(axis for part in CRITIC_PARTS for axis in part.axes),
    *FACTS,
    *(f"{kind} {number}" for kind in ("level", "motion", "jump") for number in range(25)),
)
"""The features: the signal axes, facts of form, and of each feature of chroma and timbre the mean, the logarithm of
its deviation over half seconds, and that of its mean step from frame to frame."""


@dataclass(frozen=True)
class Critic:
    """How much a song is like the better of two: real or damaged, real or generated, of a better or worse setting.

    critic.quality  A Bradley-Terry utility of the signal axes, the facts of form, and means and movement of chroma
                    and timbre, fitted to pairs of the tiny model's domain in which the better is known without
                    listening (`tools/judges/fit_critics.py`). The mean of an ensemble minus its spread, in standard
                    deviations of real windows; silence, and clips under 5 s, get the lowest.

    How it can be gamed: by whatever real songs have and damaged ones lack on the whole, such as their balance of
    frequencies; it does not listen. Its songs and damages are not those of the second critic, which judges.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("critic.quality",)
    traits: ClassVar[Mapping[str, str]] = {"critic.quality": "naturalness"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = SHORTEST_S

    @property
    def weights_hash(self) -> str:
        from diffdpo.hub import sha256_of

        return sha256_of(CRITIC_PATH)

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        head = read_critic(CRITIC_PATH)
        if features.clip.seconds < SHORTEST_S or not mono(features).any():
            return (head.lowest(),)
        return (float(head.utility(critic_features(features)[None])[0]),)


def critic_features(features: ClipFeatures) -> Float[np.ndarray, " feature"]:
    """The features CRITIC_FEATURES of a clip of SHORTEST_S or more."""
    frames = features.get(structure_frames)
    moments = half_second_means(frames, FRAME_RATE)
    values = [value for part in CRITIC_PARTS for value in part.score_features(features)]
    motion = np.log(moments.std(0) + 1e-3)
    jumps = np.log(np.abs(np.diff(frames, axis=0)).mean(0) + 1e-3)
    return np.concatenate([values, window_facts(moments).mean(0), frames.mean(0), motion, jumps])


@cache
def read_critic(path: Path) -> UtilityHead:
    """The head in a file of the package. DataError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return read_head(load_file(path), "critic")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); reinstall diffdpo") from None
