"""MuQ as features, by path."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo import hub
from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.extractors.base import as_vector, mono_at
from diffdpo.types import Clip

if TYPE_CHECKING:
    from diffdpo.encoders.muq import MuQ


@dataclass(frozen=True)
class MuQFeatures:
    """Mean over frames of a hidden state of MuQ."""

    version: ClassVar[str] = "1"
    licenses: ClassVar[tuple[str, ...]] = (hub.MUQ_LARGE.license,)

    weights: str = field(default="", repr=False, metadata=PATH)
    """MuQ-large-msd-iter: file, folder or hub id; by default the hub's."""
    accept_noncommercial: bool = field(default=False, repr=False)
    """The weights are for non-commercial use only: say that this is one."""
    blocks: int = 6
    """Which hidden state: that above so many conformer blocks."""

    def __post_init__(self) -> None:
        check_range(self, "blocks", low=1)

    @property
    def weights_hash(self) -> str:
        return hub.sha256_of(self._file())

    def __call__(self, clip: Clip) -> Float[np.ndarray, " feature"]:
        import torch

        from diffdpo.encoders import muq

        wave = mono_at(clip, muq.MUQ_SAMPLE_RATE)
        wave = np.pad(wave, (0, max(0, muq.SHORTEST - len(wave))))
        network = read_muq(self._file(), self.blocks)
        with torch.no_grad():
            hidden, _ = network.embed([torch.from_numpy(wave).to(next(network.parameters()).device)])
        return as_vector(hidden[0].mean(0))

    def _file(self) -> Path:
        from diffdpo.encoders.muq import MUQ_FILE

        return hub.find_weights(
            hub.MUQ_LARGE, self.weights, MUQ_FILE, accept_noncommercial=self.accept_noncommercial
        )


@cache
def read_muq(path: Path, blocks: int) -> "MuQ":
    """The first blocks of MuQ, loaded once a process, on the GPU if there is one."""
    from diffdpo.devices import choose_device
    from diffdpo.encoders.muq import load_muq

    return load_muq(path, blocks).to(choose_device())
