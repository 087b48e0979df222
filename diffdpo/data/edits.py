"""Edits of existing songs: which stretches are made anew, what is added, how far the song may move.

An edit stands in a prompt line under `edit`. All times are seconds of the song as it is, before anything is
added; everything that is not named stays, frame by frame.
"""

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

TO_THE_END = -1.0
LATENTS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to a song."""

    song: str
    """Path of its latents (.safetensors, as `sample` writes them) or of an audio file."""
    spans: tuple[tuple[float, float], ...] = ()
    """[start, end) in seconds of what is made anew; -1 is the song's start or end."""
    extend_start_s: float = 0.0
    """Seconds of new music before the song."""
    extend_end_s: float = 0.0
    strength: float = 1.0
    """Below 1 a variation: sampling begins from the song, mixed with so much noise. Without spans, of it all."""

    def __post_init__(self) -> None:
        if not self.song:
            raise ValueError("edit.song: name the latents or the audio of the song to edit")
        for name in ("extend_start_s", "extend_end_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"edit.{name} must be seconds of at least 0, got {getattr(self, name)}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"edit.strength must be in (0, 1], got {self.strength}")
        extended = self.extend_start_s > 0 or self.extend_end_s > 0
        if self.strength < 1 and extended:
            raise ValueError("edit.strength below 1 varies what is there and cannot extend; use two prompts")
        if self.strength == 1 and not extended and not self.spans:
            raise ValueError(
                "edit asks for nothing; give spans, extend_start_s, extend_end_s or a strength below 1"
            )
        _check_spans(self.spans)


def _check_spans(spans: tuple[tuple[float, float], ...]) -> None:
    """What can be said about spans without knowing the song's length."""
    for start, end in spans:
        if not (start >= 0 or start == TO_THE_END) or not (0 < end < float("inf") or end == TO_THE_END):
            raise ValueError(
                f"edit.spans: [{start:g}, {end:g}] must be seconds of the song, or -1 for its ends"
            )
        if end != TO_THE_END and max(0.0, start) >= end:
            raise ValueError(f"edit.spans: [{start:g}, {end:g}] ends before it begins; write [start, end]")
    ordered = sorted((max(0.0, start), end if end != TO_THE_END else float("inf")) for start, end in spans)
    for (one, until), (other, after) in pairwise(ordered):
        if other < until:
            raise ValueError(
                f"edit.spans: [{one:g}, {until:g}] and [{other:g}, {after:g}] overlap; join them into one"
            )


def parse_edit(value: Any, folder: Path) -> Edit:
    """An edit from a prompt line, its song found relative to the prompt file. ValueError for what is wrong."""
    if not isinstance(value, Mapping):
        raise ValueError(f'edit must be an object like {{"song": …, "spans": [[s, e]]}}, got {value!r}')
    known = [field.name for field in fields(Edit)]
    for key, given in value.items():
        if key not in known:
            raise ValueError(f"edit: unknown key {key!r}.{closest(key, known)} Known: {', '.join(known)}.")
        if key == "spans":
            _check_pairs(given)
        elif isinstance(given, bool) or not isinstance(given, str if key == "song" else (int, float)):
            raise ValueError(f"edit.{key} must be a {'path' if key == 'song' else 'number'}, got {given!r}")
    edit = Edit(
        **{"song": "", **value, "spans": tuple((float(s), float(e)) for s, e in value.get("spans", ()))}
    )
    path = folder / edit.song
    if not path.is_file():
        raise ValueError(f"edit.song {path}: no such file")
    return replace(edit, song=str(path))


def _check_pairs(given: Any) -> None:
    pairs = given if isinstance(given, list) else [given]
    for pair in pairs:
        numbers = isinstance(pair, list) and all(type(number) in (int, float) for number in pair)
        if given is pair or not numbers or len(pair) != 2:
            raise ValueError(f"edit.spans must be a list of [start, end] in seconds, got {given!r}")


def song_frames(edit: Edit, prompt_id: str, *, channels: int, frames_per_second: float) -> int:
    """Frames of the song to be edited, from its header. DataError for latents of another width."""
    path = Path(edit.song)
    where = f"prompt {prompt_id!r}: edit.song {path}"
    if path.suffix != LATENTS:
        try:
            info = soundfile.info(str(path))
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DataError(f"{where}: cannot decode ({error}); give FLAC, WAV or latents") from None
        return max(1, int(info.frames / info.samplerate * frames_per_second))
    try:
        with safe_open(path, "pt") as file:
            frames, width = file.get_slice("latents").get_shape()
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{where}: holds no latents ({str(error).splitlines()[0]})") from None
    if width != channels:
        raise DataError(
            f"{where}: latents of {width} channels, this model's have {channels}; edit with the model that made "
            "them, or give the audio"
        )
    return int(frames)


def to_generate(
    edit: Edit, prompt_id: str, *, frames: int, frames_per_second: float
) -> Bool[Tensor, " frame"]:
    """True for every frame of the new song that is not given. DataError for a span outside the song."""
    before, after = (int(s * frames_per_second) for s in (edit.extend_start_s, edit.extend_end_s))
    mask = torch.ones(before + frames + after, dtype=torch.bool)
    mask[before : before + frames] = edit.strength < 1 and not edit.spans
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
        mask[before + first : before + last] = True
    return mask


def place_song(
    song: Float[Tensor, "frame channel"], edit: Edit, *, length: int, frames_per_second: float
) -> Float[Tensor, "{length} channel"]:
    """The song where it stands in the new one, zeros in what is added."""
    before = int(edit.extend_start_s * frames_per_second)
    whole = song.new_zeros(length, song.shape[1])
    whole[before : before + len(song)] = song
    return whole
