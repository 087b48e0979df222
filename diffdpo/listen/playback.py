"""Sounds as they are served. Levels and files of the last excerpts are kept in memory."""

from functools import lru_cache
from pathlib import Path

from diffdpo.listen.excerpts import (
    ExcerptLevel,
    ExcerptSpan,
    apply_damage,
    cut_excerpt,
    measure_level,
    to_flac,
)
from diffdpo.listen.headphones import huggins_clip

RECENT_LEVELS, RECENT_FILES = 4096, 96


@lru_cache(maxsize=RECENT_LEVELS)
def excerpt_level(path: Path, span: ExcerptSpan, damage_name: str, sample_rate: int) -> ExcerptLevel:
    """The level of an excerpt, with its damage."""
    return measure_level(apply_damage(cut_excerpt(path, span, sample_rate), damage_name))


@lru_cache(maxsize=RECENT_FILES)
def excerpt_flac(path: Path, span: ExcerptSpan, damage_name: str, gain: float, sample_rate: int) -> bytes:
    """An excerpt as a file for the browser."""
    return to_flac(apply_damage(cut_excerpt(path, span, sample_rate), damage_name), gain)


def headphone_flac(target: int, seed: int) -> bytes:
    """An item of the headphone check as a file."""
    return to_flac(huggins_clip(target, seed), 1.0)
