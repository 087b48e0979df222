"""Tags by the letter of their formats: ID3v2.3 and 2.4, and the comments of FLAC."""

import numpy as np
import pytest
import soundfile

from diffdpo.data.recording_tags import read_tags
from diffdpo.data.sidecars import read_sidecars


def synchsafe(size):
    return bytes(size >> shift & 127 for shift in (21, 14, 7, 0))


def id3(version, frames, flags=0):
    body = b""
    for name, content in frames:
        size = synchsafe(len(content)) if version == 4 else len(content).to_bytes(4)
        body += name + size + b"\0\0" + content
    body += bytes(64)  # padding
    return b"ID3" + bytes((version, 0, flags)) + synchsafe(len(body)) + body


FRAMES = [
    (b"APIC", bytes(300)),
    (b"TBPM", b"\0" + b"124"),
    (b"TKEY", b"\x01" + "F#m".encode("utf-16")),
    (b"USLT", b"\x03eng" + b"a word\0" + b"la la"),
]
VALUES = {"bpm": "124", "key": "F#m"}


@pytest.mark.parametrize("version", [3, 4])
def test_tempo_and_key_of_id3_are_read(tmp_path, version):
    path = tmp_path / "song.mp3"
    path.write_bytes(id3(version, FRAMES))
    assert read_tags(path) == VALUES


def write_flac(path, comments):
    """A FLAC file of libsndfile's with a block of comments in front of its other blocks but the first."""
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    whole = path.read_bytes()
    block = (5).to_bytes(4, "little") + b"tests" + len(comments).to_bytes(4, "little")
    for comment in comments:
        block += len(comment.encode()).to_bytes(4, "little") + comment.encode()
    first = 4 + 4 + int.from_bytes(whole[5:8])
    assert whole[4] == 0, "the first block holds the format and is not the last"
    path.write_bytes(whole[:first] + bytes([4]) + len(block).to_bytes(3) + block + whole[first:])


def test_the_comments_of_flac_are_read_and_what_stands_beside_the_song_counts_first(tmp_path):
    path = tmp_path / "song.flac"
    write_flac(path, ["TITLE=Song", "Bpm=97.5", "INITIALKEY=Am"])
    assert read_tags(path) == {"bpm": "97.5", "key": "Am"}
    values = read_sidecars(path)
    assert (values["bpm"], values["key"]) == (97.5, "A minor")
    (tmp_path / "song.json").write_text('{"bpm": 120}')
    assert read_sidecars(path)["bpm"] == 120


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ID3",
        id3(4, FRAMES, flags=0x80),
        id3(2, FRAMES),
        id3(3, FRAMES)[:20],
        b"fLaC\x84\0\0\xff",
        b"RIFF",
    ],
)
def test_what_cannot_be_read_says_nothing(tmp_path, content):
    path = tmp_path / "song.mp3"
    path.write_bytes(content)
    assert read_tags(path) == {}


def test_a_tag_that_is_no_tempo_is_passed_over(tmp_path):
    write_flac(tmp_path / "song.flac", ["BPM=fast", "KEY=H"])
    assert "bpm" not in read_sidecars(tmp_path / "song.flac")
    assert "key" not in read_sidecars(tmp_path / "song.flac")
