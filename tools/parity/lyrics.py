"""Compares lyrics with numbers of the original front end: phonemes, tokens and their places on the frame axis.

A folder holds `g2p_english.json` (rows of lyric, phonemes joined by `|`, token_ids), a song as `*.lrc`, and
`lrc_placement_*.safetensors` with that song's tokens for the published 95 and 285 second networks.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdpo.errors import DataError
from diffdpo.lyrics.front_end import (
    LYRICS_FRAMES_PER_SECOND,
    VOCABULARY_VARIABLE,
    LineEnd,
    LyricsFrontEnd,
    place_tokens,
    read_vocabulary,
)
from diffdpo.lyrics.phonemes import english, phonemes
from tools.parity.diffrhythm import Case, compare, read_json, read_tensors

WINDOWS: dict[str, LineEnd] = {"base95.lrc_tokens": "drop", "full177.lrc_tokens": "cut"}
"""The treatment of the last line of a song by the published front end, for each network."""


def lyrics(folder: Path, vocabulary: Path | None = None) -> list[Case]:
    """The cases of every row and every placement of a folder.

    The vocabulary belongs to the checkpoint: a path, or DIFFDPO_DIFFRHYTHM_VOCAB, or data/vocab.json in the folder.
    """
    default = os.environ.get(VOCABULARY_VARIABLE) or folder / "data" / "vocab.json"
    front_end = LyricsFrontEnd(read_vocabulary(vocabulary or default))
    rows = read_json(folder / "g2p_english.json").get("rows")
    if not isinstance(rows, list):
        raise DataError(f"{folder}/g2p_english.json: holds no rows")
    cases = [case for row in rows for case in check_row(row, front_end)]
    songs = sorted(folder.glob("*.lrc"))
    placements = sorted(folder.glob("lrc_placement_*.safetensors"))
    if len(songs) != 1 or not placements:
        raise DataError(f"{folder}: expected one *.lrc and its lrc_placement_*.safetensors")
    for path in placements:
        cases += check_placement(songs[0].read_text(), read_tensors(path), front_end.vocabulary)
    return cases


def check_row(row: dict[str, Any], front_end: LyricsFrontEnd) -> list[Case]:
    """The cases of one line: its English phonemes, and its tokens without the full stop of the placement."""
    phones, golden_phones = english(row["lyric"]), row["phonemes"].split("|")
    tokens = [
        front_end.vocabulary[phone] + 1 for phone in phonemes(row["lyric"]) if phone in front_end.vocabulary
    ]
    return [
        Case(f"{row['lyric']!r} phonemes", differences(phones, golden_phones)),
        Case(f"{row['lyric']!r} tokens", differences(tokens, row["token_ids"])),
    ]


def differences(tokens: list[Any], golden: list[Any]) -> float:
    """The number of entries that differ, plus the difference in length."""
    unequal = sum(a != b for a, b in zip(tokens, golden, strict=False))
    return float(unequal + abs(len(tokens) - len(golden)))


def check_placement(song: str, golden: Mapping[str, Tensor], vocabulary: Mapping[str, int]) -> list[Case]:
    """The cases of the song's tokens on the frame axis, one for each published network."""
    cases = []
    for name, golden_tokens in sorted(golden.items()):
        if name not in WINDOWS:
            cases.append(Case(name, is_covered=False))
            continue
        front_end = LyricsFrontEnd(vocabulary, end=WINDOWS[name])
        frames = len(golden_tokens)
        lines = front_end.encode(song, "en", frames / LYRICS_FRAMES_PER_SECOND).lines
        tokens = place_tokens(lines, frames, LYRICS_FRAMES_PER_SECOND)
        cases.append(compare(name, tokens.to(torch.float64), golden_tokens.to(torch.float64)))
    return cases
