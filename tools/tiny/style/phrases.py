"""Texts that the text tower learns from its teacher: captions of segments, and phrases of a broad vocabulary.

The phrases make no claim about a sound. Their vectors teach words that captions do not use.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tools.tiny.style.captions import Caption, Captioner

PATTERNS = (
    "{}", "{}", "{} music", "{} {}", "{} {}", "{}, {}", "{}, {}", "{} and {}", "{} {} music", "{} with {}",
    "a {} piece, {}", "{}, {}, {}", "{}, {} and {}", "{} {} {}", "a {} song with {} {}", "{} {}, {}, {}",
    "{} track, {} and {}", "something {}, {}", "{} mood, {} sound", "very {}", "{} tempo", "{} sound",
    "{} atmosphere",
)  # fmt: skip


def broad_phrases(count: int, seed: int = 0) -> list[str]:
    """Phrases of one to four words of the vocabulary, and each word as a phrase."""
    groups = json.loads((Path(__file__).parent / "vocabulary.json").read_text())
    words = sorted({word.replace("-", " ") for group in groups.values() for word in group.split()})
    lists = Captioner()
    phrases = [text for pair in lists.measures for side in pair for text in side]
    phrases += [text for texts in lists.words.values() for text in texts]
    draw, results = random.Random(seed), {*words, *(f"{word} music" for word in words), *phrases}
    while len(results) < count:
        pattern = draw.choice(PATTERNS)
        pool = [draw.choice(words if draw.random() < 0.75 else phrases) for _ in range(pattern.count("{}"))]
        results.add(pattern.format(*pool))
    return sorted(results)


def segment_captions(
    scores: Float[np.ndarray, "segment measure"], words: Sequence[list[str]], seed: int = 0
) -> list[tuple[Caption, Caption]]:
    """A partial and a full caption for each segment."""
    captioner, draw = Captioner(), random.Random(seed)
    return [
        (captioner.caption(s, w, draw), captioner.full(s, w, draw))
        for s, w in zip(scores, words, strict=True)
    ]
