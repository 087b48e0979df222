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
CRITIC_COMPONENTS = tuple(axis for part in CRITIC_PARTS for axis in part.axes)
CRITIC_FEATURES = (*CRITIC_COMPONENTS, *FACTS)
"""The features: the signal axes, and the facts of form of chroma and timbre. Their means and movements were left
out: with them a critic preferred smooth songs, such as those of two steps instead of six."""


@dataclass(frozen=True)
class Critic:
    """How much a song is like a real one rather than like the same one damaged.

    critic.quality  A Bradley-Terry utility of the signal axes and the facts of form, fitted to real windows after
                    the tiny model's codec and damaged versions of them: out of tune, time or order, or noisy
                    (`tools/judges/fit_critics.py`). The mean of an ensemble less half of its spread, in standard
                    deviations of real windows; silence, and clips under 5 s, get the lowest.

    It weighs the axes of other scorers, so mining it beside them counts them twice. Its songs and damages are not
    those of the second critic, which judges.

    How it can be gamed: as `rhythm.pulse` can, which has most of its weight. It hears no artefacts.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("critic.quality",)
    components: ClassVar[tuple[str, ...]] = CRITIC_COMPONENTS
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
    moments = half_second_means(features.get(structure_frames), FRAME_RATE)
    values = [value for part in CRITIC_PARTS for value in part.score_features(features)]
    return np.concatenate([values, window_facts(moments).mean(0)])


@cache
def read_critic(path: Path) -> UtilityHead:
    """The head in a file of the package. DataError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return read_head(load_file(path), "critic")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); reinstall diffdpo") from None
