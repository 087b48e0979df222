"""Reward: a utility learned from people's votes by `diffdpo reward train`, for mining, rounds and search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.errors import CheckpointError
from diffdpo.extractors.base import extract_crops, join_features
from diffdpo.hub import sha256_of
from diffdpo.types import Clip, Prompt

if TYPE_CHECKING:
    from diffdpo.scorers.reward_file import RewardModel

LIMIT = 10.0
"""Values are cut at ±10 standard deviations of the songs of the votes; silence gets the lower end."""


@dataclass(frozen=True)
class VoteReward:
    """How much listeners like a song, as a reward model predicts it from the sound alone.

    reward.preference  Mean utility over the members of an ensemble less `caution` times their spread, in standard
                       deviations of the songs that were voted on. Mean over the windows of the model; silence
                       gets -10.

    The model's card says what it was fitted to and how well it does on prompts that it has not seen. Fitted to
    votes that compare songs of one prompt, it says little about songs of different prompts.

    How it can be gamed: like any learned utility, by songs unlike those of the votes. `caution` takes away where
    the members disagree; keep judges that the model does not share features with, and collect votes on new songs.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("reward.preference",)
    traits: ClassVar[Mapping[str, str]] = {"reward.preference": "appeal"}
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 3.0

    path: str = field(default="", repr=False, metadata=PATH)
    """The folder of `diffdpo reward train`, or the file reward.safetensors."""
    caution: float = 0.5
    """How many times the members' spread is taken off."""

    def __post_init__(self) -> None:
        check_range(self, "caution", low=0)

    @property
    def licenses(self) -> tuple[str, ...]:
        """Licenses of the votes, the songs and the features that the model was made from."""
        return read_model(self.path).card.licenses

    @property
    def weights_hash(self) -> str:
        return weights_identity(self.path)

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        model = read_model(self.path)
        if model.card.text:
            raise CheckpointError(
                f"{self.path}: compares songs with their prompts; use the scorer `prompt_reward`"
            )
        values = [reward_value(model, clip, None, self.caution) for clip in clips]
        return np.array(values, dtype=np.float64).reshape(len(clips), 1)


@dataclass(frozen=True)
class PromptVoteReward:
    """How much listeners like a song for its prompt, as a reward model with a text side predicts it.

    prompt_reward.preference  As `reward.preference`; 0 for a prompt without words, -10 for silence.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("prompt_reward.preference",)
    traits: ClassVar[Mapping[str, str]] = {"prompt_reward.preference": "appeal"}
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 3.0
    needs_prompt: ClassVar[Literal[True]] = True

    path: str = field(default="", repr=False, metadata=PATH)
    """The folder of `diffdpo reward train` with `text`, or the file reward.safetensors."""
    caution: float = 0.5
    """How many times the members' spread is taken off."""

    def __post_init__(self) -> None:
        check_range(self, "caution", low=0)

    @property
    def licenses(self) -> tuple[str, ...]:
        """Licenses of the votes, the songs and the features that the model was made from."""
        return read_model(self.path).card.licenses

    @property
    def weights_hash(self) -> str:
        return weights_identity(self.path)

    def __call__(
        self, clips: Sequence[Clip], prompts: Sequence[Prompt] | None = None
    ) -> Float[np.ndarray, "clip axis"]:
        model = read_model(self.path)
        if not model.card.text:
            raise CheckpointError(f"{self.path}: does not read prompts; use the scorer `reward`")
        texts = [""] * len(clips) if prompts is None else [prompt.text or "" for prompt in prompts]
        values = [
            reward_value(model, clip, text, self.caution) for clip, text in zip(clips, texts, strict=True)
        ]
        return np.array(values, dtype=np.float64).reshape(len(clips), 1)


def read_model(location: str) -> "RewardModel":
    """The model at a path. CheckpointError without one."""
    from diffdpo.scorers.reward_file import read_reward_model, reward_path

    if not location:
        raise CheckpointError("scorer 'reward': no path given; name a folder of `diffdpo reward train`")
    return read_reward_model(reward_path(location))


def weights_identity(location: str) -> str:
    """Hash of a model's file, which holds the fingerprints of its features."""
    from diffdpo.scorers.reward_file import reward_path

    read_model(location)  # or a line that says what is wrong
    return sha256_of(Path(reward_path(location)))


def reward_value(model: "RewardModel", clip: Clip, text: str | None, caution: float) -> float:
    """The utility of a canonical clip, for a prompt's text if the model reads it."""
    if not clip.samples.any():
        return -LIMIT
    crops = model.card.crops
    parts: dict[str, Any] = {
        name: extract_crops(extractor, clip, crops) for name, extractor in model.extractors.items()
    }
    if model.text_side is not None:
        embedding = model.text_side.embed_text(text or "")
        if not embedding.any():
            return 0.0
        parts["text"] = join_text(parts[model.card.text], embedding)
    rows = join_features(list(parts.values()), crops)
    return float(np.clip(model.head.utility(rows, caution).mean(), -LIMIT, LIMIT))


def join_text(
    rows: Float[np.ndarray, "crop feature"], embedding: Float[np.ndarray, " feature"]
) -> Float[np.ndarray, "crop joint"]:
    """What a song and its prompt have in common, by one encoder: their product and their distance, each coordinate
    by itself, and their cosine."""
    product = rows * embedding
    size = np.linalg.norm(rows, axis=1) * np.linalg.norm(embedding)
    cosine = product.sum(1) / np.maximum(size, 1e-12)
    return np.concatenate([product, np.abs(rows - embedding), cosine[:, None]], axis=1)
