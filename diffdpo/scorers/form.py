"""Form by networks, a judge: the order of seconds in notes and in what musicnn hears, held out of mining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.errors import DataError
from diffdpo.scorers.features import ClipFeatures, mono, score_each
from diffdpo.scorers.notes import transcription
from diffdpo.scorers.order import read_form_utility, window_facts
from diffdpo.scorers.self_similarity import half_second_means
from diffdpo.scorers.structure import SHORTEST_S
from diffdpo.types import Clip

LAYER_LIMIT = 4.0
FORM_PATH = Path(str(resources.files("diffdpo").joinpath("assets/judges/form.safetensors")))


@dataclass(frozen=True)
class FormOrder:
    """Order of a song's seconds as `structure.order` has it, by two networks trained elsewhere on other tasks.

    form.order  Self-similarity of the notes that basic-pitch transcribes and of the frames of musicnn's front end,
                weighed so that windows of real songs come before their own seconds shuffled and before loops of
                one second. In standard deviations of real windows; silence, and clips under 5 s, get the lowest.

    It shares its four facts with `structure.order`, which is mined, but neither the features nor the songs that
    the weights are fitted to.

    How it can be gamed: by few long notes, and by a loop of two seconds and more.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("form.order",)
    traits: ClassVar[Mapping[str, str]] = {"form.order": "form"}
    licenses: ClassVar[tuple[str, ...]] = ("Apache-2.0", "ISC")
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = SHORTEST_S

    @property
    def weights_hash(self) -> str:
        import hashlib

        from diffdpo.encoders import musicnn, notes
        from diffdpo.hub import sha256_of

        hashes = sha256_of(FORM_PATH) + sha256_of(notes.NOTES_WEIGHTS) + musicnn.SHA256
        return hashlib.sha256(hashes.encode()).hexdigest()

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        utility = read_form_utility(FORM_PATH)
        if features.clip.seconds < SHORTEST_S or not mono(features).any():
            return (utility.lowest,)
        return (float(utility(network_facts(features)).mean()),)


def network_facts(features: ClipFeatures) -> Float[np.ndarray, "window 8"]:
    """The facts of form of notes and of musicnn's layers, window by window."""
    layers = standardise_layers(layer_moments(features), *read_layer_scale(FORM_PATH))
    return window_facts(note_moments(features), layers)


def note_moments(features: ClipFeatures) -> Float[np.ndarray, "moment 88"]:
    """How likely each key of the piano sounds, in half seconds."""
    from diffdpo.encoders.notes import NOTES_FRAMES_PER_SECOND

    return half_second_means(features.get(transcription).note.numpy(), NOTES_FRAMES_PER_SECOND)


def layer_moments(features: ClipFeatures) -> Float[np.ndarray, "moment 753"]:
    """What musicnn's front end and dense layers hear, in half seconds."""
    from diffdpo.encoders.musicnn import LAYER_FRAMES_PER_SECOND

    return half_second_means(features.get(musicnn_frames), LAYER_FRAMES_PER_SECOND)


def musicnn_frames(features: ClipFeatures) -> Float[np.ndarray, "frame 753"]:
    """The layers of musicnn for every frame of a clip."""
    import torch

    from diffdpo.encoders import musicnn

    samples = torch.from_numpy(mono(features, musicnn.MUSICNN_SAMPLE_RATE))
    return musicnn.pretrained_musicnn().describe_frames(samples).numpy()


def standardise_layers(
    moments: Float[np.ndarray, "moment 753"],
    center: Float[np.ndarray, " 753"],
    scale: Float[np.ndarray, " 753"],
) -> Float[np.ndarray, "moment 753"]:
    """Features in standard deviations of real songs, cut at ±LAYER_LIMIT.

    A third of them hardly ever moves in music: without the limit, a sound that moves them would be all that counts.
    """
    return np.clip((moments - center) / scale, -LAYER_LIMIT, LAYER_LIMIT)


@cache
def read_layer_scale(path: Path) -> tuple[Float[np.ndarray, " 753"], Float[np.ndarray, " 753"]]:
    """Mean and standard deviation of each of musicnn's features over moments of real songs."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        return tensors["layer_center"].astype(np.float64), tensors["layer_scale"].astype(np.float64)
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); reinstall diffdpo") from None
