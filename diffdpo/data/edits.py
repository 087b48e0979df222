"""Edits of existing songs: spans that are generated anew, music that is added, the strength of a variation.

An edit is the key `edit` of a prompt line. All times are seconds of the song before anything is added; frames
outside the edit stay as they are.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import soundfile
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffdpo.errors import DataError
from diffdpo.registry import closest
from diffdpo.text_files import is_file

TO_THE_END = -1.0
LATENTS_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change of an existing song."""

    song: str
    """Path of the song's latents (.safetensors, as `sample` writes them) or of an audio file."""
    spans: tuple[tuple[float, float], ...] = ()
    """Spans [start, end) in seconds that are generated anew; -1 is the song's start or end."""
    extend_start_s: float = 0.0
    """Seconds of new music before the song."""
    extend_end_s: float = 0.0
    strength: float = 1.0
    """Share of noise mixed into the song, from which sampling begins; 1 generates the spans without the song, below
    1 is a variation of the spans, or of the whole song without spans."""
    cover: bool = False
    """Make the whole song anew after the codes of its own sound, for models that read such codes off recordings."""

    def __post_init__(self) -> None:
        if not self.song:
            raise ValueError("edit.song: name the latents or the audio of the song to edit")
        for name in ("extend_start_s", "extend_end_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"edit.{name} must be seconds of at least 0, got {getattr(self, name)}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"edit.strength must be in (0, 1], got {self.strength}")
        is_extended = self.extend_start_s > 0 or self.extend_end_s > 0
        if self.strength < 1 and is_extended:
            raise ValueError("edit.strength below 1 varies what is there and cannot extend; use two prompts")
        if self.cover and (is_extended or self.spans):
            raise ValueError("edit.cover makes the whole song anew; leave spans and extensions out")
        if self.strength == 1 and not is_extended and not self.spans and not self.cover:
            raise ValueError(
                "edit asks for nothing; give spans, extend_start_s, extend_end_s, cover or a strength below 1"
            )
        _check_spans(self.spans)


def _check_spans(spans: tuple[tuple[float, float], ...]) -> None:
    """ValueError for spans that are invalid whatever the song's length."""
    for start, end in spans:
        if not (start >= 0 or start == TO_THE_END) or not (0 < end < float("inf") or end == TO_THE_END):
            raise ValueError(
                f"edit.spans: [{start:g}, {end:g}] must be seconds of the song, or -1 for its ends"
            )
        if end != TO_THE_END and max(0.0, start) >= end:
            raise ValueError(f"edit.spans: [{start:g}, {end:g}] ends before it begins; write [start, end]")
    intervals = sorted((max(0.0, start), end if end != TO_THE_END else float("inf")) for start, end in spans)
    for (start, end), (next_start, next_end) in pairwise(intervals):
        if next_start < end:
            raise ValueError(
                f"edit.spans: [{start:g}, {end:g}] and [{next_start:g}, {next_end:g}] overlap; join them into one"
            )


def parse_edit(value: Any, folder: Path) -> Edit:
    """An edit from a prompt line, with its song relative to `folder`. ValueError for an invalid edit."""
    if not isinstance(value, Mapping):
        raise ValueError(f'edit must be an object like {{"song": …, "spans": [[s, e]]}}, got {value!r}')
    names = [field.name for field in fields(Edit)]
    for key, entry in value.items():
        if key not in names:
            raise ValueError(f"edit: unknown key {key!r}.{closest(key, names)} Known: {', '.join(names)}.")
        if key == "spans":
            _check_pairs(entry)
        else:
            _check_value(key, entry)
    edit = Edit(
        **{"song": "", **value, "spans": tuple((float(s), float(e)) for s, e in value.get("spans", ()))}
    )
    path = folder / edit.song
    if not is_file(path):
        raise ValueError(f"edit.song {path}: no such file")
    return replace(edit, song=str(path))


def _check_value(key: str, value: Any) -> None:
    noun, types = {"song": ("a path", (str,)), "cover": ("true or false", (bool,))}.get(
        key, ("a number", (int, float))
    )
    if not isinstance(value, types) or (isinstance(value, bool) and key != "cover"):
        raise ValueError(f"edit.{key} must be {noun}, got {value!r}")


def _check_pairs(value: Any) -> None:
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        numbers = isinstance(pair, list) and all(type(number) in (int, float) for number in pair)
        if value is pair or not numbers or len(pair) != 2:
            raise ValueError(f"edit.spans must be a list of [start, end] in seconds, got {value!r}")


def song_frames(edit: Edit, prompt_id: str, *, channels: int, frames_per_second: float) -> int:
    """Frames of the song to be edited, from its header. DataError for latents of another width."""
    path = Path(edit.song)
    location = f"prompt {prompt_id!r}: edit.song {path}"
    if path.suffix != LATENTS_SUFFIX:
        try:
            info = soundfile.info(os.fsencode(path))
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DataError(f"{location}: cannot decode ({error}); give FLAC, WAV or latents") from None
        return max(1, int(info.frames / info.samplerate * frames_per_second))
    try:
        with safe_open(path, "pt") as file:
            frames, width = file.get_slice("latents").get_shape()
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{location}: holds no latents ({str(error).splitlines()[0]})") from None
    if width != channels:
        raise DataError(
            f"{location}: latents of {width} channels, this model's have {channels}; edit with the model that made "
            "them, or give the audio"
        )
    return int(frames)


def to_generate(
    edit: Edit, prompt_id: str, *, frames: int, frames_per_second: float
) -> Bool[Tensor, " frame"]:
    """A mask of the new song: True for frames that are generated, False for frames of the old song that stay.

    DataError for a span outside the song.
    """
    prefix, suffix = (int(s * frames_per_second) for s in (edit.extend_start_s, edit.extend_end_s))
    mask = torch.ones(prefix + frames + suffix, dtype=torch.bool)
    mask[prefix : prefix + frames] = edit.cover or (edit.strength < 1 and not edit.spans)
    seconds = frames / frames_per_second
    for start, end in edit.spans:
        if max(start, end) > seconds + 1 / frames_per_second:
            raise DataError(
                f"prompt {prompt_id!r}: edit.spans: [{start:g}, {end:g}] lies outside the song of {seconds:.2f} s; "
                "use -1 for its end, or extend_end_s for more"
            )
        first = int(max(0.0, start) * frames_per_second)
        last = frames if end == TO_THE_END else min(frames, int(end * frames_per_second))
        if first >= last:
            raise DataError(
                f"prompt {prompt_id!r}: edit.spans: [{start:g}, {end:g}] is shorter than a frame "
                f"({1 / frames_per_second:.3f} s); make it longer"
            )
        mask[prefix + first : prefix + last] = True
    return mask


def place_song(
    song: Float[Tensor, "frame channel"], edit: Edit, *, length: int, frames_per_second: float
) -> Float[Tensor, "{length} channel"]:
    """The latents of the old song at their place in the new song, zeros in added frames."""
    prefix, suffix = (int(s * frames_per_second) for s in (edit.extend_start_s, edit.extend_end_s))
    song = song[
        : length - prefix - suffix
    ]  # the encoder fills up the last frame of a recording, which is cut
    full_song = song.new_zeros(length, song.shape[1])
    full_song[prefix : prefix + len(song)] = song
    return full_song
