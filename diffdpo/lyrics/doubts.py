# ruff: noqa: RUF001 - dashes, crosses and full-width signs stand in lyrics as they are
"""Lines that stand among lyrics and are none: some are never sung, others are sung with a warning."""

import re
import unicodedata

from diffdpo.data.lyrics_files import is_file_name
from diffdpo.lyrics.section_names import LONE_REPEAT, NAME, WEAK_NAME
from diffdpo.lyrics.syllables import syllables

MAX_LINE = 500
"""Longest line, in signs, that is searched for what is no lyrics."""
REPEAT_BEHIND = re.compile(
    r"\s*[(\[{]\s*(?:[x×]\s?\d{1,2}|\d{1,2}\s?[x×])\s*[)\]}]\s*$|(?<!\d)\s[x×]\d{1,2}\s*$", re.IGNORECASE
)
LINK = r"(?:https?://|www\.)\S+|\S+@\S+\.\w{2,}"
CREDIT = (
    r"artists?|title|album|composers?|composed by|lyricists?|lyrics(?: by)?|written by|produced by|producers?|"
    r"copyright|arranged by|arrangement|source|translation|isrc|作词|作詞|作曲|编曲|編曲|制作人|製作人|词|詞|曲|"
    r"监制|監製|混音|母带|录音|吉他|出品|发行|演唱|原唱|歌手|专辑"
)
NO_LYRICS: tuple[tuple[str, str], ...] = (
    (rf"\W*(?:{LINK})\W*", "an address"),
    (rf"\W*(?:{CREDIT})\s*[:：].*|©.*|\(c\)\s\d{{4}}.*", "a credit"),
    (r"\s*[\d:.,]+\s*-->.*|webvtt.*", "the times of a subtitle"),
    (r"\s*#+\s.*", "a heading"),
)
"""Patterns of whole lines that are never sung, and their kind."""
DIRECTION = (
    r"repeat|spoken|whisper\w*|instrumental|solo|fade\w*|applause|laugh\w*|clap\w*|guitar|piano|drums?|music|"
    r"chorus|verse|bridge|hook|intro|outro|interlude|harmony|backing|ad[\s-]?libs?|softly|slowly|shout\w*|"
    r"scream\w*|\d+x|x\d+"
)
CHORD = r"(?:[A-G][#b♯♭]?(?:maj|min|m|dim|aug|sus|add)?\d{0,2}(?:sus\d)?(?:/[A-G][#b♯♭]?)?)"
DOUBTS: tuple[tuple[str, str], ...] = (
    (r"\W*\d[\d\W]*", "only a number, read out"),
    (r"[(（].*[)）]", "in brackets, and sung; take it out if it is a direction"),
    (r".*(?:\[[^\]]*\]|\{[^}]*\}|【[^】]*】|<[^>]*>|\*[^*]+\*).*", "has a mark inside, whose words are sung"),
    (rf".*[(（][^)）]*\b(?i:{DIRECTION})\b[^)）]*[)）].*", "holds a direction, which is sung"),
    (rf".*(?i:{LINK}).*", "holds an address, which is sung"),
    (r"\W{0,2}\d{1,2}:\d\d\b.*", "begins with a time that is not of the form [mm:ss.xx], and is sung"),
    (rf"(?=.*\s)(?!A(?:\sA)*$)(?:{CHORD}(?:[\s|-]+|$))+", "chords, and sung"),
    (r"(?i:(?:lyrics|words|music|written|composed|produced)\sby\b.*)", "looks like a credit, and is sung"),
    (r"(?:作词|作詞|作曲|编曲|編曲|监制|監製).*", "looks like a credit, and is sung"),
    (r"[男女合](?:声)?\s?[:：].*", "begins with a singer's name, which is sung"),
    (
        r"(?i:\d*embed|you might also like.*|see .{1,40} live|lyrics provided.*|all rights reserved.*)",
        "is from the page around the lyrics, and is sung",
    ),
)
"""Patterns of whole lines that may be no lyrics, and what the warning says."""


def cut_repeat(words: str) -> tuple[str, str]:
    """A line without a mark such as (x2) behind it, and the mark; "" without one."""
    match = REPEAT_BEHIND.search(words[-MAX_LINE:])
    return (words.removesuffix(match[0]).rstrip(), match[0].strip()) if match else (words, "")


def explain_silence(words: str) -> str:
    """The reason why a line is never sung, such as an address; empty for any other."""
    if LONE_REPEAT.fullmatch(words.strip()):
        return "a repeat, which is not sung; write the lines again"
    for pattern, kind in NO_LYRICS if len(words) <= MAX_LINE else ():
        if re.fullmatch(pattern, words.strip(), re.IGNORECASE):
            return f"{kind}, not sung"
    return ""


def explain_doubt(words: str) -> str:
    """The reason why a line that is sung may be no lyrics; empty for any other."""
    text = words.strip()
    if len(text) > MAX_LINE:
        return f"a line of {len(text)} signs, sung as one"
    plain = " ".join(re.sub(r"[^\w\s-]", " ", unicodedata.normalize("NFKC", text)).casefold().split())
    if re.fullmatch(rf"(?:\d+\s)?(?:{NAME}|{WEAK_NAME})", plain):
        return f"looks like the name of a section, and is sung; write [{plain}] if it is one"
    if is_file_name(text):
        return "looks like the name of a file, and is sung"
    return next((doubt for pattern, doubt in DOUBTS if re.fullmatch(pattern, text)), "")


def check_line(words: str) -> tuple[str, list[str]]:
    """The words of a line that are sung, "" for none, and warnings about them."""
    if silence := explain_silence(words):
        return "", [f"{silence}: {words!r}"]
    words, repeat = cut_repeat(words)
    warnings = [f"{repeat!r}: a repeat, which is not sung; write the line again"] if repeat else []
    if not syllables(words):
        return "", [*warnings, f"nothing to sing: {words!r}"]
    if doubt := explain_doubt(words):
        warnings.append(f"{doubt}: {words!r}")
    return words, warnings
