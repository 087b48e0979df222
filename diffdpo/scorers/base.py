"""What a scorer is: audio in, one number an axis out, bigger is better."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from diffdpo.scorers.features import ClipFeatures
from diffdpo.types import Clip, Prompt

TRAITS = ("harmony", "rhythm", "form", "production", "adherence", "naturalness", "appeal", "complexity")
"""What the axes of this package measure."""


@runtime_checkable
class Scorer(Protocol):
    """A frozen dataclass: its fields are its parameters, its call is deterministic.

    It gets clips that went through `canonical`, and nothing else: no paths, devices or configuration. (A
    `PromptScorer` gets their prompts as well.) A clip scores the same alone and in any batch. Every finite clip
    gets finite scores, silence the lowest.
    """

    version: ClassVar[str]
    """Part of the cache key: raise it whenever the numbers change."""
    axes: ClassVar[tuple[str, ...]]
    """Names of the columns, unique over all scorers: 'family.quality'."""
    traits: ClassVar[Mapping[str, str]]
    """What each axis claims to measure: one of TRAITS, or another word. Axes of one trait should agree."""
    judge_only: ClassVar[bool]
    """A judge is held out: mining refuses its axes, so that somebody impartial watches the optimisation."""
    shortest_s: ClassVar[float]
    """Shorter clips get numbers too, but they mean little: no windows under this length are scored."""

    @property
    def licenses(self) -> tuple[str, ...]:
        """Licenses of learned weights; recorded beside the scores."""
        ...

    @property
    def weights_hash(self) -> str:
        """Identity of learned weights, part of the cache key; "" when there are none."""
        ...

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]: ...


@runtime_checkable
class PartialJudge(Protocol):
    """A judge of which only some axes judge. The others are diagnoses: reported, but no verdict depends on them."""

    judges: ClassVar[tuple[str, ...]]


@runtime_checkable
class CompositeScorer(Protocol):
    """A scorer that weighs axes of other scorers. Where its axes are mined, these judge nothing."""

    components: ClassVar[tuple[str, ...]]
    """The axes that it weighs."""


@runtime_checkable
class PromptScorer(Protocol):
    """A Scorer that compares a song with its prompt: its call takes the prompts, too.

    Its scores belong to a sound and a prompt together and are cached so. A song gets 0 where its prompt says
    nothing that the scorer understands, and where there are no prompts. Windows are not compared with prompts.
    """

    needs_prompt: ClassVar[Literal[True]]

    def __call__(
        self, clips: Sequence[Clip], prompts: Sequence[Prompt] | None = None
    ) -> Float[np.ndarray, "clip axis"]: ...


@runtime_checkable
class FeatureScorer(Protocol):
    """A Scorer that shares resampled sound, spectra and embeddings of a clip with other scorers.

    The engine calls `score_features` clip by clip, several clips at a time in threads of one core each. Calling the
    scorer itself gives the same values. A large network should not be a FeatureScorer: it wants batches and cores.
    """

    def score_features(self, features: ClipFeatures) -> Sequence[float]:
        """One value an axis. A PromptScorer takes the prompt as second argument.

        Several threads call the method at a time.
        """
        ...


def fingerprint(scorer: Scorer) -> str:
    """The hash of all that decides a scorer's numbers: class, version, weights and the values of its fields."""
    text = f"{type(scorer).__qualname__}|{scorer.version}|{scorer.weights_hash}|{scorer!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
