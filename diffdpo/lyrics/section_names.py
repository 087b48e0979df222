# ruff: noqa: RUF001 - dashes, crosses and full-width signs stand in lyrics as they are
"""Names of sections in lyrics as people paste them.

A name may stand in brackets of any kind, between asterisks, behind #, before a colon or alone on its line. Names
that are also usual words (break, end, solo) need such a mark.
"""

import re
import unicodedata
from typing import NamedTuple

BRACKETS = dict(zip("[({<【〔〖「『《", "])}>】〕〗」』》", strict=True))
TAG_BRACKETS = "[{<【〔〖"
"""Brackets that nobody sings: a line in them is a section, of whatever name."""
DECORATION = "*_#=~-–—•·| \t"

ORDER = (
    "first|second|third|fourth|1st|2nd|3rd|4th|last|final|repeat|half|double|instrumental|vocal|outro|intro|"
    "extended"
)
INSTRUMENT = "guitar|piano|drums?|bass|sax|saxophone|synth|violin|flute|organ|keyboard|vocal|instrumental"
PART = (
    r"verse|(?:pre|post)[\s–—-]?chorus|chorus|bridge|intro|outro|interlude|instrumental|refrain|hook|"
    r"middle\s(?:8|eight)"
)
CHINESE_PART = "主歌|(?:前|预|預|后|後)?副歌|导歌|導歌|前奏|间奏|間奏|尾奏|桥段|橋段|过门|過門"
NUMBER = r"(?:\s*\#?\d{1,2}|\s(?:[ivx]{1,4}|[a-d]|one|two|three|four|five|six))?"
CHINESE_NUMBER = "(?:[一二三四五六]|[a-d])?"
NAME = (
    rf"(?:(?:{ORDER})\s)?(?:{PART}){NUMBER}"
    rf"|(?:{INSTRUMENT})\s(?:solo|break|interlude|intro|outro|riff|bridge|section)"
    rf"|(?:第?[一二三四五六\d]{{1,2}}[段节節遍])?(?:{CHINESE_PART})(?:{NUMBER}|\s*{CHINESE_NUMBER})(?:段|部分)?"
)
"""Names that are nothing else when they stand alone on a line."""
WEAK_NAME = (
    r"(?:(?:solo|break(?:down)?|drop|build(?:[\s-]?up)?|coda|tag|vamp|rap|spoken(?:\sword)?|ending|end|skit|inst|"
    r"theme|stanza|strophe|couplet|ad[\s-]?libs?|introduction|turnaround|riff|lead|pause|silence|music|"
    rf"fade[\s-]?out|repeat){NUMBER}|桥|橋|高潮|合唱|独白|獨白|说唱|說唱|念白|尾声|尾聲|伴奏|独奏|獨奏|过渡|過渡|"
    "结尾|結尾|男|女|合|男声|女声|齐唱)"
)
"""Names that are also words; sections only with a mark."""
REPEAT = r"[x×]\s?\d{1,2}|\d{1,2}\s?[x×]|\d{1,2}\stimes|repeat(?:ed)?|repeat\s[x×]\s?\d{1,2}|重复|重複"
REPEATED = rf"(?:\s*[(\[]?\s*(?P<repeat>{REPEAT})\s*[)\]]?)?"
BARE_HEADER = re.compile(rf"(?P<name>{NAME}){REPEATED}\.?")
MARKED_HEADER = re.compile(rf"(?P<name>{NAME}|{WEAK_NAME}){REPEATED}(?:\s*[:|/–—-].*|\s*\(.*\))?")
WORDS_BEHIND_COLON = re.compile(rf"(?P<name>{NAME}){REPEATED}\s?:\s*(?P<words>\S.*)", re.IGNORECASE)
TAG_BEFORE_WORDS = re.compile(
    r"(?P<bracket>[\[(【{〔〖])(?P<inner>[^\[\]()【】{}〔〕〖〗]+)[\])】}〕〗]\s*:?\s*(?P<words>\S.*)"
)
LONE_REPEAT = re.compile(
    rf"[(\[{{*]+\s*(?:{REPEAT})\s*[)\]}}*]+\.?|[x×]\s?\d{{1,2}}|\d{{1,2}}\s?[x×]", re.IGNORECASE
)


class SectionHeader(NamedTuple):
    """The name of a section, in lower case, and what else its line says."""

    name: str
    words: str = ""
    """Words that are sung, behind the name on the same line."""
    repeat: str = ""
    """A mark such as x2."""
    is_usual: bool = True
    """Whether the name is one that sections have."""


def read_header(line: str) -> SectionHeader | None:
    """The section that begins at a line; None for a line that is sung."""
    text = " ".join(unicodedata.normalize("NFKC", line).split())
    if not text or LONE_REPEAT.fullmatch(text):
        return None
    inner, bracket, is_marked = strip_marks(text)
    pattern = MARKED_HEADER if is_marked else BARE_HEADER
    if match := pattern.fullmatch(inner.casefold()):
        return SectionHeader(match["name"].strip(), repeat=match["repeat"] or "")
    if bracket and bracket in TAG_BRACKETS and any(char.isalnum() for char in inner):
        return SectionHeader(inner.split(":")[0].strip().lower(), is_usual=False)
    return _header_before_words(text)


def strip_marks(text: str) -> tuple[str, str, bool]:
    """A line without brackets, asterisks, # and colon around it; its first bracket; whether it had such a mark."""
    inner, bracket = text, ""
    while True:
        bare = inner.strip(DECORATION).removesuffix(":").strip(DECORATION)
        closing = BRACKETS.get(bare[:1])
        if len(bare) > 1 and closing and bare.endswith(closing) and closing not in bare.rstrip(closing):
            bracket = bracket or bare[0]
            bare = bare[1:-1]
        if bare == inner:
            is_framed = inner != text and text[0] in DECORATION and text[-1] in DECORATION
            is_marked = bool(bracket) or text[0] in "*_#=" or text.endswith(":") or is_framed
            return inner, bracket, is_marked
        inner = bare


def _header_before_words(text: str) -> SectionHeader | None:
    """The header of a line such as `[Verse 1] I walk` or `Verse 1: I walk`."""
    if match := WORDS_BEHIND_COLON.fullmatch(text):
        return SectionHeader(match["name"].strip().lower(), match["words"], match["repeat"] or "")
    tag = TAG_BEFORE_WORDS.fullmatch(text)
    if tag is None:
        return None
    pattern = BARE_HEADER if tag["bracket"] == "(" else MARKED_HEADER
    inner = pattern.fullmatch(tag["inner"].casefold())
    return SectionHeader(inner["name"].strip(), tag["words"], inner["repeat"] or "") if inner else None
