"""Lyrics of DiffRhythm: LRC lines, and phoneme tokens placed on the frame axis."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

TIMED = re.compile(r"^\s*\[(\d+):(\d+(?:\.\d+)?)\](.*)$")
TAG = re.compile(r"^\s*\[[a-z]+:.*\]\s*$", re.IGNORECASE)

Line = tuple[float, tuple[int, ...]]
"""Start in seconds, and tokens."""


@dataclass(frozen=True)
class Lrc:
    """A parsed LRC text: what can be sung, and what cannot with the reason."""

    lines: tuple[tuple[float, str], ...]
    """(start in seconds, text), in order of time."""
    warnings: tuple[str, ...]


def parse_lrc(text: str, *, duration_s: float | None = None) -> Lrc:
    """Read `[mm:ss.xx]words` lines. Nothing is dropped silently: every unusable line gives a warning."""
    lines, warnings = [], []
    for number, raw in enumerate(text.splitlines(), start=1):
        if not raw.strip() or TAG.match(raw):
            continue
        match = TIMED.match(raw)
        if match is None:
            warnings.append(f"line {number}: no [mm:ss.xx] time, not sung: {raw.strip()!r}")
            continue
        start, words = 60 * int(match[1]) + float(match[2]), match[3].strip()
        if not words:
            warnings.append(f"line {number}: a time without words")
        elif duration_s is not None and start >= duration_s:
            warnings.append(f"line {number}: starts at {start:.2f} s, behind the end at {duration_s:.2f} s")
        else:
            lines.append((start, words))
    if lines != sorted(lines, key=lambda line: line[0]):
        warnings.append("lines are not in order of time; sorted")
    return Lrc(tuple(sorted(lines, key=lambda line: line[0])), tuple(warnings))


def place(lines: Sequence[Line], frames: int, frames_per_second: float) -> Int[Tensor, " {frames}"]:
    """One token a frame from the start of each line on, 0 elsewhere; a line never overwrites the one before."""
    tokens = torch.zeros(frames, dtype=torch.int64)
    free = 0
    for start, line in lines:
        first = max(int(start * frames_per_second), free)
        kept = line[: max(0, frames - first)]
        tokens[first : first + len(kept)] = torch.tensor(kept, dtype=torch.int64)
        free = first + len(line)
    return tokens
