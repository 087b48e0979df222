"""The head of TuneJury (2026) on MuQ-MuLan: a preference for a song and its text, with the published names.

Five linear layers, 1024 to 512, 256, 128, 64 and 1, with BatchNorm and ReLU between; dropout has no place in the
file. The input is the embedding of the sound, 512 numbers, and then that of the text: nothing published says the
order, so it is an assumption.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.encoders.muq import fill
from diffdpo.errors import CheckpointError
from diffdpo.weight_files import read_pickle, read_tensors

TUNEJURY_STYLES = 512
"""Length of either embedding."""
TUNEJURY_WIDTHS = (2 * TUNEJURY_STYLES, 512, 256, 128, 64, 1)
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the parameters."""


class TuneJuryHead(nn.Module):
    """Embeddings of a sound and of its text to one number: bigger is preferred."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(TUNEJURY_WIDTHS[:-1]):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Identity()]
        self.score = nn.Sequential(*layers, nn.Linear(*TUNEJURY_WIDTHS[-2:]))

    def forward(
        self, sound: Float[Tensor, "song 512"], text: Float[Tensor, "song 512"]
    ) -> Float[Tensor, " song"]:
        return self.score(torch.cat([sound, text], dim=-1))[:, 0]


@cache
def load_tunejury(path: Path) -> TuneJuryHead:
    """The head in a file, frozen, loaded once a process. One line for a name or a shape that does not fit."""
    tensors: dict[str, Any] = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    for key in WRAPPERS:
        inner = tensors.get(key)
        tensors = inner if isinstance(inner, dict) else tensors
    if strange := [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]:
        raise CheckpointError(f"{path}: {strange[0]!r} is no tensor; not the head of TuneJury")
    with torch.device("meta"):
        head = TuneJuryHead()
    fill(head, tensors, str(path))
    return head
