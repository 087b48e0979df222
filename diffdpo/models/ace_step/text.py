"""The texts that ACE-Step 1.5 reads for a prompt: an instruction for each task, caption and metas, and lyrics."""

import re
from dataclasses import dataclass

from diffdpo.errors import DataError
from diffdpo.lyrics.lrc import STAMP, WORD_TIME
from diffdpo.lyrics.sections import METADATA_TAG, TIME_TAG, lyric_lines
from diffdpo.models.base import check_controls
from diffdpo.registry import closest
from diffdpo.types import Prompt

INSTRUCTIONS = {
    "text2music": "Fill the audio semantic mask based on the given conditions:",
    "repaint": "Repaint the mask area based on the given conditions:",
    "cover": "Generate audio semantic tokens based on the given conditions:",
}
"""The instruction of each task: a whole song, frames around those that are kept, and a song after audio codes."""
TASKS = tuple(INSTRUCTIONS)
TEXT_TOKENS, LYRIC_TOKENS = 256, 2048
"""The most tokens of a text and of lyrics that the model was trained with."""
LANGUAGE_CODES = """
    ar az bg bn ca cs da de el en es fa fi fr he hi hr ht hu id is it ja ko la lt ms ne nl no pa pl pt ro ru sa sk
    sr sv sw ta te th tl tr uk ur vi yue zh unknown
"""
LANGUAGES = frozenset(LANGUAGE_CODES.split())
"""Codes of the languages that the model sings."""
METRES = {"2": "2/4", "3": "3/4", "4": "4/4", "6": "6/8"}
"""Beats a bar, as the model reads them, and the metre that each stands for."""
BPM_RANGE = (30, 300)
MAX_SECONDS = 600
"""The longest song that the model was trained for."""
KEY = re.compile(r"[A-G][#b♯♭]? (major|minor)")
INSTRUMENTAL_TAG = "[Instrumental]"


@dataclass(frozen=True)
class PromptTexts:
    """The texts of a prompt, as the text encoder's tokenizer takes them."""

    tasks: tuple[str, ...]
    """A text for each of TASKS, with the task's instruction."""
    lyrics: str
    caption: str
    """The caption and the lyrics alone, and the metas, as a planner takes them."""
    words: str
    metas: tuple[tuple[str, str], ...]


def prompt_texts(prompt: Prompt) -> PromptTexts:
    """The texts of a prompt. DataError for a control, a metre, a key or a language that the model
    does not know, and for a song that is too long for it."""
    check_controls(prompt, ("bpm", "key", "metre"))
    if prompt.duration_s > MAX_SECONDS:
        raise DataError(
            f"prompt {prompt.id!r}: {prompt.duration_s:g} s is longer than ACE-Step's {MAX_SECONDS} s; ask for less"
        )
    bpm, metre, key = _bpm(prompt), _metre(prompt), _key(prompt)
    duration = f"{int(prompt.duration_s)} seconds"
    metas = f"- bpm: {bpm}\n- timesignature: {metre}\n- keyscale: {key}\n- duration: {duration}\n"
    caption, words, language = prompt.text or "", plain_lyrics(prompt.lyrics), _language(prompt)
    values = {
        "bpm": bpm,
        "duration": str(int(prompt.duration_s)),
        "keyscale": key,
        "language": language,
        "timesignature": metre,
    }
    return PromptTexts(
        tasks=tuple(
            f"# Instruction\n{instruction}\n\n# Caption\n{caption}\n\n# Metas\n{metas}<|endoftext|>\n"
            for instruction in INSTRUCTIONS.values()
        ),
        lyrics=f"# Languages\n{language}\n\n# Lyric\n{words}<|endoftext|>",
        caption=caption,
        words=words,
        metas=tuple((name, value) for name, value in values.items() if value not in ("N/A", "unknown")),
    )


def plain_lyrics(lyrics: str | None) -> str:
    """Lyrics as the model reads them: lines and structure tags, without the times and metadata of an LRC.

    Lyrics that say that nothing is sung are the tag of an instrumental; without the field there is no text.
    """
    if lyrics is None:
        return ""
    if not lyrics.strip():
        return INSTRUMENTAL_TAG
    lines = [line for _, line in lyric_lines(lyrics)]
    if not any(TIME_TAG.match(line) for line in lines):
        return "\n".join(lines)
    words = (WORD_TIME.sub("", re.sub(STAMP, "", line)) for line in lines if not METADATA_TAG.fullmatch(line))
    return "\n".join(" ".join(line.split()) for line in words).strip("\n")


def _language(prompt: Prompt) -> str:
    code = (prompt.language or "unknown").replace("_", "-").lower()
    for language in (code, code.split("-")[0]):
        if language in LANGUAGES:
            return language
    raise DataError(
        f"prompt {prompt.id!r}: ACE-Step does not sing language {prompt.language!r}."
        f"{closest(code, sorted(LANGUAGES))} Known: {', '.join(sorted(LANGUAGES))}."
    )


def _bpm(prompt: Prompt) -> str:
    bpm = prompt.control("bpm")
    if not isinstance(bpm, int | float):
        return "N/A"
    low, high = BPM_RANGE
    if not low <= bpm <= high:
        raise DataError(f"prompt {prompt.id!r}: bpm {bpm:g} is outside ACE-Step's {low} to {high}")
    return str(round(bpm))


def _metre(prompt: Prompt) -> str:
    metre = prompt.control("metre")
    if metre is None:
        return "N/A"
    for beats, name in METRES.items():
        if str(metre).strip() in (beats, name):
            return beats
    raise DataError(
        f"prompt {prompt.id!r}: ACE-Step knows no metre {metre!r}, choose one of {', '.join(METRES.values())}"
    )


def _key(prompt: Prompt) -> str:
    key = prompt.control("key")
    if key is None:
        return "N/A"
    if not KEY.fullmatch(str(key)):
        raise DataError(f"prompt {prompt.id!r}: ACE-Step knows no key {key!r}; write it as in 'F# minor'")
    return str(key)
