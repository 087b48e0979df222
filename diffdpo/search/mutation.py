"""A prompt in other words: edits from a small vocabulary of styles, or by a language model that the user names.

Text2midi-InferAlign (Bhandari et al. 2025, arXiv 2505.12669) lets a language model rewrite the caption, since a
model may follow one wording better than another. Whatever a song is made from, it is scored by the user's own
prompt.
"""

import json
import os
import random
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from diffdpo.mining.reference import split_styles
from diffdpo.randomness import seed_for

ATTRIBUTES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tempo": (("slow", "slow tempo", "unhurried", "leisurely"), ("fast", "fast tempo", "quick", "uptempo")),
    "colour": (("dark", "deep", "warm", "muffled"), ("bright", "brilliant", "clear", "sparkling")),
    "density": (("sparse", "minimal", "airy"), ("busy", "dense", "full", "rich")),
    "mode": (("minor", "minor key", "sad", "melancholic"), ("major", "major key", "happy", "cheerful")),
    "width": (("narrow", "close", "centred"), ("wide", "spacious", "wide stereo")),
    "attack": (("smooth", "soft", "gentle", "calm"), ("punchy", "hard-hitting", "driving", "energetic")),
}
"""The two sides of each attribute, in words that mean about the same."""
STYLES: tuple[tuple[str, ...], ...] = (
    ("rock", "guitar rock", "rock music"),
    ("metal", "heavy metal", "metal music"),
    ("electronic", "electronica", "electronic music", "synthesizer music"),
    ("soundtrack", "film music", "cinematic score", "theme"),
    ("ambient", "ambience", "atmospheric music"),
    ("orchestral", "orchestra", "symphonic", "orchestral music"),
    ("piano", "solo piano", "piano music"),
    ("folk", "folk music", "acoustic folk"),
    ("techno", "techno music", "electronic dance music"),
    ("jazz", "jazz music", "jazzy"),
    ("classical", "classical music", "chamber music"),
    ("drums", "percussion", "drum rhythms"),
    ("strings", "string ensemble", "violins"),
    ("flute", "woodwinds", "pipes"),
    ("science fiction", "sci-fi", "space"),
    ("instrumental", "without voices", "instrumental music"),
    ("chiptune", "8-bit", "video game music"),
    ("song", "tune", "piece"),
)
"""Names of styles that mean about the same."""
PROMPT_SYNONYMS: tuple[tuple[str, ...], ...] = (
    *(side for pair in ATTRIBUTES.values() for side in pair),
    *STYLES,
)
LONGEST = 500
"""Characters of the longest rewritten prompt that is taken."""
TIMEOUT_S = 30.0
INSTRUCTION = (
    "Rewrite a short description of music in {count} different ways for a text-to-music model. Keep genre, mood, "
    "instruments and tempo; vary the wording and add a fitting detail. Answer with one description per line and "
    "nothing else."
)


def mutate_text(text: str, draw: random.Random) -> str:
    """One edit of a prompt: a synonym, an attribute more, a part less or in another place."""
    edits = [_exchange_word, _exchange_word, _add_attribute, _drop_part, _move_part]
    draw.shuffle(edits)
    for edit in edits:
        result = edit(text, draw)
        if result != text:
            return result
    return text


def mutations(text: str, count: int, seed: int, key: str) -> list[str]:
    """`count` distinct edits of a text, none the text itself, or fewer where no more are to be had; the same for
    the same seed and key."""
    draw = random.Random(seed_for(seed, key, "mutation"))
    results: dict[str, None] = {}
    for _ in range(20 * count):
        if len(results) == count:
            break
        result = mutate_text(text, draw)
        if result != text:
            results[result] = None
    return list(results)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _find_words(text: str, words: Sequence[str]) -> str | None:
    """The longest of the words that a text has, whole."""
    present = [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)]
    return max(present, key=len, default=None)


def _exchange_word(text: str, draw: random.Random) -> str:
    choices = []
    for group in PROMPT_SYNONYMS:
        word = _find_words(text, group)
        if word is not None:
            choices += [(word, synonym) for synonym in group if _find_words(text, [synonym]) is None]
    if not choices:
        return text
    word, synonym = draw.choice(choices)
    return re.sub(
        rf"(?<!\w){re.escape(word)}(?!\w)", lambda match: synonym, text, count=1, flags=re.IGNORECASE
    )


def _add_attribute(text: str, draw: random.Random) -> str:
    """An attribute on which the text says nothing."""
    silent = [
        pair
        for pair in ATTRIBUTES.values()
        if _find_words(text, pair[0]) is _find_words(text, pair[1]) is None
    ]
    return f"{text}, {draw.choice(draw.choice(draw.choice(silent)))}" if silent and text.strip() else text


def _drop_part(text: str, draw: random.Random) -> str:
    """Without one of the later parts; the first names the style."""
    parts = _parts(text)
    if len(parts) < 3:
        return text
    del parts[draw.randrange(1, len(parts))]
    return ", ".join(parts)


def _move_part(text: str, draw: random.Random) -> str:
    parts = _parts(text)
    if len(split_styles(text)) < 2:
        return text
    parts.insert(0, parts.pop(draw.randrange(1, len(parts))))
    return ", ".join(parts)


def request_texts(endpoint: str, model: str, key_name: str, text: str, count: int) -> list[str]:
    """Rewritten prompts from an OpenAI-compatible endpoint; the key is in the environment under `key_name`.

    One retry. OSError or ValueError if there is no answer in time, or none that can be read.
    """
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": INSTRUCTION.format(count=count)},
            {"role": "user", "content": text},
        ],
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(key_name, ""):
        headers["Authorization"] = f"Bearer {key}"
    call = urllib.request.Request(
        f"{endpoint.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
    )
    try:
        return _answer_lines(call, count)
    except (OSError, ValueError):
        return _answer_lines(call, count)


def _answer_lines(call: urllib.request.Request, count: int) -> list[str]:
    with urllib.request.urlopen(call, timeout=TIMEOUT_S) as response:
        answer: Any = json.load(response)
    try:
        content = str(answer["choices"][0]["message"]["content"])
    except (LookupError, TypeError):
        raise ValueError("the answer has no choices[0].message.content") from None
    lines = [
        re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line).strip().strip("\"'") for line in content.split("\n")
    ]
    texts = list(dict.fromkeys(line[:LONGEST] for line in lines if re.search(r"\w", line)))
    if not texts:
        raise ValueError("the answer holds no text")
    return texts[:count]
