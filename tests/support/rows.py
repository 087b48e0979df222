"""Embeddings and rows: by hand for a DiffRhythm network, and from prompts for any model."""

import torch

from diffdpo.models.diffrhythm.adapter import line_tensors
from diffdpo.types import Row


def embedding(style, *, start=0.0, lines=()):
    """What a DiffRhythm network takes: a style, lines of (start in seconds, tokens), the place of an excerpt."""
    return {"style": style, "start": torch.tensor(start, dtype=torch.float64), **line_tensors(lines)}


def song_row(model, prompt):
    """The row of a whole song, as long as its prompt says."""
    return Row(embedding=model.embed(prompt), frames=model.spec.frames(prompt.duration_s))
