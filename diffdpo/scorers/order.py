"""Order: do the seconds of a song follow one another as those of real songs do? A form axis to mine."""

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
from diffdpo.scorers.self_similarity import FEWEST_MOMENTS, form_facts, half_second_means
from diffdpo.scorers.structure import FRAME_RATE, SHORTEST_S, structure_frames
from diffdpo.types import Clip

ORDER_PATH = Path(str(resources.files("diffdpo").joinpath("assets/preferences/order.safetensors")))
WINDOW = 39
"""Moments of the ten seconds in which order is looked for."""
LOOP_PENALTY = 3.0


@dataclass(frozen=True, kw_only=True)
class FormUtility:
    """Form from the facts of ten seconds: a head that prefers seconds in order, less what a loop lacks.

    Its unit is the standard deviation over windows of real songs. The second head prefers songs to loops of them;
    it takes away LOOP_PENALTY times what a song has less than nineteen in twenty real windows, and else nothing.
    """

    order: UtilityHead
    loops: UtilityHead
    floor: float

    def __call__(self, facts: Float[np.ndarray, "window fact"]) -> Float[np.ndarray, " window"]:
        missing_change = np.maximum(0.0, self.floor - self.loops.utility(facts))
        return self.order.utility(facts) - LOOP_PENALTY * missing_change

    @property
    def lowest(self) -> float:
        """What silence gets: no sound has less."""
        return self.order.lowest() - LOOP_PENALTY * max(0.0, self.floor - self.loops.lowest())


@dataclass(frozen=True)
class StructureOrder:
    """Whether a song's seconds stand in an order that its own seconds, shuffled, do not have.

    structure.order  Self-similarity of chroma and timbre in half seconds, weighed so that windows of real songs
                     come before the same windows with their seconds shuffled, and before loops of one second. In
                     standard deviations of real windows; silence, and clips under 5 s, get the lowest. Songs of
                     more than ten seconds get the mean over windows of ten.

    The weights are four for each of the two, fitted to windows of real songs through the tiny model's codec
    (`tools/judges/fit_form.py`); no person said what is good.

    How it can be gamed: by few long notes, by a loop of two seconds and more, and by a drone that something
    interrupts. It knows bars, not sections: whole songs in a random order of verses score as before.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("structure.order",)
    traits: ClassVar[Mapping[str, str]] = {"structure.order": "form"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = SHORTEST_S

    @property
    def weights_hash(self) -> str:
        from diffdpo.hub import sha256_of

        return sha256_of(ORDER_PATH)

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        utility = read_form_utility(ORDER_PATH)
        if features.clip.seconds < SHORTEST_S or not mono(features).any():
            return (utility.lowest,)
        moments = half_second_means(features.get(structure_frames), FRAME_RATE)
        return (float(utility(window_facts(moments)).mean()),)


def window_starts(count: int) -> list[int]:
    """Where windows of ten seconds begin among `count` moments: evenly, and as few as cover all."""
    num = max(1, -(-count // WINDOW))
    return [round(place) for place in np.linspace(0, max(0, count - WINDOW), num)]


def window_facts(*sequences: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, "window fact"]:
    """The facts of form of each window, those of several sequences of moments beside one another.

    The sequences run side by side; the shortest says how long the song is. ValueError below FEWEST_MOMENTS moments.
    """
    count = min(len(moments) for moments in sequences)
    if count < FEWEST_MOMENTS:
        raise ValueError(f"{count} moments, the facts of form need {FEWEST_MOMENTS}")
    return np.array(
        [
            np.concatenate([form_facts(moments[start : min(start + WINDOW, count)]) for moments in sequences])
            for start in window_starts(count)
        ]
    )


@cache
def read_form_utility(path: Path) -> FormUtility:
    """The utility in a file of the package. DataError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        return FormUtility(
            order=read_head(tensors, "order"),
            loops=read_head(tensors, "loops"),
            floor=float(tensors["floor"][0]),
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); reinstall diffdpo") from None
