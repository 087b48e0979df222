"""What a reward server and its clients send each other: clips and prompts in one safetensors body, values in JSON.

Samples travel as the float32 numbers they are, so that a score by a server is the score of the same scorer here.
Neither side unpickles anything.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffdpo.errors import DataError
from diffdpo.types import Clip, Prompt

HEADER = "header"
"""The tensor that holds JSON as bytes: `rates` of the clips in Hz, and `prompts`, one a clip, or null."""
PROTOCOL = 1
SHORTEST, HIGHEST_RATE = 1, 768_000
"""Samples of a clip, and Hz."""


def encode_request(clips: Sequence[Clip], prompts: Sequence[Prompt] | None) -> bytes:
    """The body of a request. DataError for a prompt with a recording: a server gets words alone."""
    from safetensors.numpy import save

    for prompt in prompts or ():
        if prompt.style_audio is not None:
            raise DataError(
                f"prompt {prompt.id!r}: has a recording, and a reward server takes words alone; score it locally"
            )
    header = {
        "protocol": PROTOCOL,
        "rates": [clip.sample_rate for clip in clips],
        "prompts": None if prompts is None else [{"id": p.id, "text": p.text} for p in prompts],
    }
    tensors = {HEADER: np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}
    for place, clip in enumerate(clips):
        tensors[str(place)] = np.ascontiguousarray(clip.samples, dtype=np.float32)
    return save(tensors)


def decode_request(body: bytes) -> tuple[list[Clip], list[Prompt] | None]:
    """The clips of a request, finite and not empty, and their prompts. DataError, one line, for anything else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(body)
        header = json.loads(tensors.pop(HEADER).tobytes())
        rates, prompts = list(header["rates"]), header["prompts"]
        arrays = [tensors[str(place)] for place in range(len(rates))]
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not a request of protocol {PROTOCOL} ({type(error).__name__})") from None
    if header.get("protocol") != PROTOCOL or len(tensors) != len(arrays):
        raise DataError(f"not a request of protocol {PROTOCOL}")
    if not arrays:
        raise DataError("no clips")
    clips = [_clip(array, rate, place) for place, (array, rate) in enumerate(zip(arrays, rates, strict=True))]
    return clips, None if prompts is None else _prompts(prompts, len(clips))


def _clip(array: Any, rate: Any, place: int) -> Clip:
    """DataError for a clip that no scorer can hear."""
    if array.dtype != np.float32 or array.ndim != 2:
        raise DataError(f"clip {place}: not float32 [channel, sample]")
    if array.shape[0] < 1 or array.shape[1] < SHORTEST:
        raise DataError(f"clip {place}: empty")
    if not isinstance(rate, int) or not 0 < rate <= HIGHEST_RATE:
        raise DataError(f"clip {place}: a sample rate of {rate!r} Hz")
    if not np.isfinite(array).all():
        raise DataError(f"clip {place}: samples that are not numbers")
    return Clip(samples=array, sample_rate=rate)


def _prompts(rows: Any, count: int) -> list[Prompt]:
    """DataError unless there is a prompt for each clip, with text or without."""
    if not isinstance(rows, list) or len(rows) != count:
        raise DataError(f"{count} clips need as many prompts")
    if not all(
        isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("text"), str | None)
        for row in rows
    ):
        raise DataError("prompts are of the form {id, text}")
    return [Prompt(id=row["id"], text=row["text"]) for row in rows]
