"""Tags that libsndfile does not tell: tempo and key, in ID3v2.3 and 2.4 (MP3) and Vorbis comments (FLAC).

Tags are written by many programs; what cannot be read is passed over. Lyrics and languages are left out: the former
have no times and are often another recording's, the latter have codes of three letters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

ID3_FRAMES = {"TBPM": "bpm", "TKEY": "key"}
VORBIS_NAMES = {"bpm": "bpm", "tempo": "bpm", "key": "key", "initialkey": "key"}
ENCODINGS = ("latin-1", "utf-16", "utf-16-be", "utf-8")
"""By the first byte of a text in ID3v2."""
UNREADABLE_FLAGS = 0xC0
"""Of a tag: unsynchronised, or with an extended header, which hardly any program writes."""
LARGEST_TAG, COMMENT_BLOCK = 1 << 24, 4


def read_tags(path: Path) -> dict[str, str]:
    """bpm and key, each where the recording has it; {} for another kind of file."""
    with path.open("rb") as file:
        header = file.read(4)
        tags = list(_id3(file) if header[:3] == b"ID3" else _flac(file) if header == b"fLaC" else ())
    return {name: value for name, value in reversed(tags) if value}


def _id3(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Names and values of the frames behind `ID3` and the byte of the version."""
    file.seek(3)
    header = file.read(7)
    if len(header) < 7 or header[0] not in (3, 4) or header[2] & UNREADABLE_FLAGS:
        return
    version, size = header[0], _synchsafe(header[3:7])
    body = file.read(min(size, LARGEST_TAG))
    place = 0
    while place + 10 <= len(body) and body[place]:
        name, flags = body[place : place + 4].decode("latin-1"), body[place + 9]
        raw = body[place + 4 : place + 8]
        length = _synchsafe(raw) if version == 4 else int.from_bytes(raw)
        content = body[place + 10 : place + 10 + length]
        place += 10 + length
        if name in ID3_FRAMES and content and not flags:
            yield ID3_FRAMES[name], _id3_text(content)


def _id3_text(content: bytes) -> str:
    """The text of a frame, behind its encoding."""
    encoding = ENCODINGS[content[0]] if content[0] < len(ENCODINGS) else "latin-1"
    return content[1:].decode(encoding, "replace").strip("\0\ufeff \r\n")


def _synchsafe(raw: bytes) -> int:
    """An integer of seven bits a byte."""
    return sum(byte << shift for byte, shift in zip(raw, (21, 14, 7, 0), strict=False))


def _flac(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Names and values of the comments in the metadata blocks behind `fLaC`."""
    while len(header := file.read(4)) == 4:
        size = int.from_bytes(header[1:])
        if header[0] & 0x7F == COMMENT_BLOCK:
            yield from _vorbis(file.read(size))
            return
        if header[0] & 0x80:  # the last block
            return
        file.seek(size, 1)


def _vorbis(block: bytes) -> Iterator[tuple[str, str]]:
    """Names and values of a block of comments: the vendor, a number, and so many `NAME=value`."""
    place = 4 + int.from_bytes(block[:4], "little")
    place += 4
    while place + 4 <= len(block):
        size = int.from_bytes(block[place : place + 4], "little")
        name, _, value = block[place + 4 : place + 4 + size].decode("utf-8", "replace").partition("=")
        place += 4 + size
        if name.lower() in VORBIS_NAMES:
            yield VORBIS_NAMES[name.lower()], value.strip()
