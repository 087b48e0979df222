"""Captions of song segments: texts on measured properties and style words, in many wordings.

A caption is a text and its claims. A claim is a measure with a side of its scale, or a style word. The truth of a
claim for a segment is a number from 0 to 1, so that a caption can be compared with every segment.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffdpo.encoders.descriptors import MEASURES

FOLDER = Path(__file__).parent
EDGE = 0.43
"""In standard deviations: a third of a normal distribution lies beyond it on either side."""
STRONG_EDGE = 1.2
CLAIMS, MOST_WORDS = (0, 1, 1, 2, 2, 3, 4, 5), 2
"""The number of measures in a caption is drawn from CLAIMS; MOST_WORDS is the most style words."""


@dataclass(frozen=True)
class Caption:
    """A text with the sides of its measures (-1 low, +1 high), their strength and its style words."""

    text: str
    sides: tuple[int, ...]
    """The side of each measure, in the order of MEASURED; 0 for a measure that the text does not mention."""
    is_strong: bool = False
    words: tuple[str, ...] = ()


class Captioner:
    """Composes captions of segments from lists of synonyms."""

    def __init__(self) -> None:
        lists = json.loads((FOLDER / "captions.json").read_text())
        self.measures: list[list[list[str]]] = [lists["measures"][name] for name in MEASURES]
        self.words: dict[str, list[str]] = lists["words"]
        self.templates: list[str] = lists["templates"]

    def caption(
        self, scores: Float[np.ndarray, " measure"], words: list[str], draw: random.Random
    ) -> Caption:
        """A random partial caption for the standard scores of a segment and the style words of its song."""
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
        """A caption with all measures beyond EDGE and all style words."""
        indices = [i for i, score in enumerate(scores) if abs(score) > EDGE]
        parts = [draw.choice(self.measures[i][int(scores[i] > 0)]) for i in indices]
        parts += [draw.choice(self.words.get(word, [word])) for word in words]
        sides = tuple((1 if scores[i] > 0 else -1) if i in indices else 0 for i in range(len(scores)))
        return Caption(self.phrase(parts or ["music"], draw), sides, False, tuple(words))

    def phrase(self, parts: list[str], draw: random.Random) -> str:
        """The parts in random order, joined and put into a random template."""
        draw.shuffle(parts)
        text = draw.choice([", ", ", ", " and ", " "]).join(parts)
        return draw.choice(self.templates).format(text)


def failed_claims(
    captions: Sequence[Caption],
    scores: Float[np.ndarray, "segment measure"],
    words: Float[np.ndarray, "segment word"],
    index: dict[str, int],
) -> Float[np.ndarray, "caption segment"]:
    """The number of each caption's claims that a segment fails; a claim counts from 0 (true) to 1 (false).

    `words` has the agreement of each segment with each style word, 0 to 1; `index` is the column of a word.
    """
    sides = np.array([caption.sides for caption in captions])[:, None]
    edges = np.array([STRONG_EDGE if caption.is_strong else EDGE for caption in captions])[:, None, None]
    failures = np.abs(sides) / (1 + np.exp(3.0 * (sides * scores - edges + 0.3)))
    mentions = np.zeros((len(captions), words.shape[1]))
    for row, caption in zip(mentions, captions, strict=True):
        row[[index[word] for word in caption.words]] = 1.0
    return failures.sum(-1) + mentions @ (1 - words.T)
