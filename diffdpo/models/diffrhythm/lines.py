"""Timed lines of tokens, of lyrics or of beats: as tensors of an embedding, and on the frames of a row."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from diffdpo.lyrics.front_end import TokenLine, lines_within, place_tokens
from diffdpo.types import Embedding, Row


def line_tensors(lines: Sequence[TokenLine]) -> Embedding:
    """Lines of tokens as tensors: starts in seconds, all tokens one after another, tokens of each line."""
    return {
        "line_s": torch.tensor([start for start, _ in lines], dtype=torch.float64),
        "line_tokens": torch.tensor([token for _, line in lines for token in line], dtype=torch.long),
        "line_lengths": torch.tensor([len(line) for _, line in lines], dtype=torch.long),
    }


def token_lines(embedding: Embedding) -> tuple[TokenLine, ...]:
    """The inverse of `line_tensors`."""
    lengths = embedding["line_lengths"].tolist()
    tokens = embedding["line_tokens"].split(lengths) if lengths else ()
    starts = embedding["line_s"].tolist()
    return tuple((start, tuple(line.tolist())) for start, line in zip(starts, tokens, strict=True))


def place_lines(row: Row, length: int, frames_per_second: float) -> Int[Tensor, " {length}"]:
    """The tokens of the lines that begin in a row, a token a frame, 0 elsewhere."""
    lines = token_lines(row.embedding)
    if not row.is_full_song:
        start, stop = row.first_frame, row.first_frame + row.frames
        lines = lines_within(lines, start / frames_per_second, stop / frames_per_second)
    tokens = place_tokens(lines, min(row.frames, length), frames_per_second)
    return F.pad(tokens, (0, length - len(tokens)))
