"""MuQ-MuLan as features, by path."""

import hashlib
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo import hub
from diffdpo.config_paths import PATH
from diffdpo.extractors.base import as_vector
from diffdpo.types import Clip

if TYPE_CHECKING:
    from diffdpo.encoders.mulan_style import MuLanStyle


@dataclass(frozen=True)
class MuLanFeatures:
    """The embedding of a sound by MuQ-MuLan, the mean over clips of ten seconds; it has a text side."""

    version: ClassVar[str] = "1"
    licenses: ClassVar[tuple[str, ...]] = ("CC-BY-NC-4.0", "MIT")

    weights: str = field(default="", repr=False, metadata=PATH)
    """`pytorch_model.bin` of MuQ-MuLan-large, its folder, or a hub id; by default the hub's."""
    tokenizer: str = field(default="", repr=False, metadata=PATH)
    """`tokenizer.json` of xlm-roberta-base, its folder, or a hub id; by default the hub's."""
    accept_noncommercial: bool = field(default=False, repr=False)
    """The weights are for non-commercial use only: say that this is one."""

    @property
    def weights_hash(self) -> str:
        hashes = [hub.sha256_of(path) for path in self.style().files() if path.is_file()]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def __call__(self, clip: Clip) -> Float[np.ndarray, " feature"]:
        return as_vector(self.style().sound(clip))

    def embed_text(self, text: str) -> Float[np.ndarray, " feature"]:
        """The unit vector of a text; zeros for one that says nothing."""
        return as_vector(self.style().embed(text, None))

    def style(self) -> "MuLanStyle":
        """The two towers, loaded once a process."""
        return read_towers(self.weights, self.tokenizer, self.accept_noncommercial)


@cache
def read_towers(weights: str, tokenizer: str, accept_noncommercial: bool) -> "MuLanStyle":
    """MuQ-MuLan over whole sounds."""
    from diffdpo.encoders.mulan_style import MuLanStyle

    return MuLanStyle(
        weights=weights, tokenizer=tokenizer, accept_noncommercial=accept_noncommercial, excerpt="all"
    )
