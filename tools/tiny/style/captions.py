"""Captions of song segments: what was measured and what the song is labelled with, said in many ways.

A caption is a text and the claims it makes. A claim is a measure with the side of the scale it is on, or a style
word. How far a segment bears out a claim is a number from 0 to 1, so that a caption can be compared with every
segment and not only with the one it was made from.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffdpo.encoders.descriptors import MEASURED

FOLDER = Path(__file__).parent
EDGE = 0.43
"""In standard deviations: a third of a normal distribution lies beyond it on either side."""
STRONG_EDGE = 1.2
CLAIMS, MOST_WORDS = (0, 1, 1, 2, 2, 3, 4, 5), 2
"""How many measures a caption speaks of, one of these; prompts are short."""


@dataclass(frozen=True)
class Caption:
    """A text, the measures it speaks of (-1 low, +1 high), how strongly, and the style words it uses."""

    text: str
    sides: tuple[int, ...]
    """One for every measure of MEASURED, in its order; 0 where nothing is said."""
    is_strong: bool = False
    words: tuple[str, ...] = ()


class Captioner:
    """Texts for segments, from lists of synonyms."""

    def __init__(self) -> None:
        lists = json.loads((FOLDER / "captions.json").read_text())
        self.measures: list[list[list[str]]] = [lists["measures"][name] for name in MEASURED]
        self.words: dict[str, list[str]] = lists["words"]
        self.templates: list[str] = lists["templates"]

    def caption(
        self, scores: Float[np.ndarray, " measure"], words: list[str], draw: random.Random
    ) -> Caption:
        """One of the many captions of a segment with these standard scores and of a song with these words."""
        indices = [i for i, score in enumerate(scores) if abs(score) > EDGE]
        draw.shuffle(indices)
        indices = indices[: draw.choice(CLAIMS if words else CLAIMS[1:])]
        caption_words = (
            draw.sample(words, draw.randint(0 if indices else 1, min(MOST_WORDS, len(words))))
            if words
            else []
        )
        is_strong = len(indices) == 1 and abs(scores[indices[0]]) > STRONG_EDGE and draw.random() < 0.5
        parts = [
            ("very " if is_strong else "") + draw.choice(self.measures[i][int(scores[i] > 0)])
            for i in indices
        ]
        parts += [draw.choice(self.words.get(word, [word])) for word in caption_words]
        if not parts:
            return Caption("music", (0,) * len(scores))
        sides = tuple((1 if scores[i] > 0 else -1) if i in indices else 0 for i in range(len(scores)))
        return Caption(self.phrase(parts, draw), sides, is_strong, tuple(caption_words))

    def full(self, scores: Float[np.ndarray, " measure"], words: list[str], draw: random.Random) -> Caption:
        """Everything there is to say."""
        indices = [i for i, score in enumerate(scores) if abs(score) > EDGE]
        parts = [draw.choice(self.measures[i][int(scores[i] > 0)]) for i in indices]
        parts += [draw.choice(self.words.get(word, [word])) for word in words]
        sides = tuple((1 if scores[i] > 0 else -1) if i in indices else 0 for i in range(len(scores)))
        return Caption(self.phrase(parts or ["music"], draw), sides, False, tuple(words))

    def phrase(self, parts: list[str], draw: random.Random) -> str:
        draw.shuffle(parts)
        text = draw.choice([", ", ", ", " and ", " "]).join(parts)
        return draw.choice(self.templates).format(text)


def failed_claims(
    captions: Sequence[Caption],
    scores: Float[np.ndarray, "segment measure"],
    words: Float[np.ndarray, "segment word"],
    index: dict[str, int],
) -> Float[np.ndarray, "caption segment"]:
    """How many of its claims a segment fails, each from 0, borne out, to 1; `words` says so of the style words."""
    sides = np.array([caption.sides for caption in captions])[:, None]
    edges = np.array([STRONG_EDGE if caption.is_strong else EDGE for caption in captions])[:, None, None]
    failures = np.abs(sides) / (1 + np.exp(3.0 * (sides * scores - edges + 0.3)))
    mentions = np.zeros((len(captions), words.shape[1]))
    for row, caption in zip(mentions, captions, strict=True):
        row[[index[word] for word in caption.words]] = 1.0
    return failures.sum(-1) + mentions @ (1 - words.T)
