"""Second critic, a judge: what the critic learns, from other features, songs and damages, held out of mining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.scorers.beats import BeatRhythm
from diffdpo.scorers.critic import read_critic
from diffdpo.scorers.features import ClipFeatures, mono, score_each
from diffdpo.scorers.form import FORM_PATH, network_facts
from diffdpo.scorers.notes import NoteHarmony
from diffdpo.scorers.self_similarity import FACTS
from diffdpo.scorers.structure import SHORTEST_S
from diffdpo.types import Clip

SECOND_CRITIC_PATH = Path(str(resources.files("diffdpo").joinpath("assets/judges/second_critic.safetensors")))
SECOND_CRITIC_PARTS = (NoteHarmony(), BeatRhythm())
SECOND_CRITIC_FEATURES = (
    *(axis for part in SECOND_CRITIC_PARTS for axis in part.axes),
    *(f"{network} {fact}" for network in ("notes", "musicnn") for fact in FACTS),
)
"""The features: all axes of notes and beats, and the facts of form of notes and of musicnn's frames."""


@dataclass(frozen=True)
class SecondCritic:
    """The held-out critic: like `critic.quality`, by networks trained elsewhere.

    critic.second  A Bradley-Terry utility of what basic-pitch and BeatNet hear and of musicnn's embedding, fitted
                   to pairs of other songs, with other damages, than the first critic's.

    How it can be gamed: a song that sounds like the corpus to musicnn has most of it.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("critic.second",)
    traits: ClassVar[Mapping[str, str]] = {"critic.second": "naturalness"}
    licenses: ClassVar[tuple[str, ...]] = ("Apache-2.0", "CC-BY-4.0", "ISC")
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = SHORTEST_S

    @property
    def weights_hash(self) -> str:
        import hashlib

        from diffdpo.encoders import beat_net, musicnn, notes
        from diffdpo.hub import sha256_of

        paths = (SECOND_CRITIC_PATH, FORM_PATH, notes.NOTES_WEIGHTS, beat_net.BEATS_WEIGHTS)
        hashes = [*map(sha256_of, paths), musicnn.SHA256]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        head = read_critic(SECOND_CRITIC_PATH)
        if features.clip.seconds < SHORTEST_S or not mono(features).any():
            return (head.lowest(),)
        return (float(head.utility(second_critic_features(features)[None])[0]),)


def second_critic_features(features: ClipFeatures) -> Float[np.ndarray, " feature"]:
    """The features SECOND_CRITIC_FEATURES of a clip that is not silent."""
    values = [value for part in SECOND_CRITIC_PARTS for value in part.score_features(features)]
    return np.concatenate([values, network_facts(features).mean(0)])
