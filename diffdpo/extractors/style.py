"""The style encoder of the tiny bundle as features."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.config_paths import PATH
from diffdpo.extractors.base import as_vector
from diffdpo.hub import BUNDLE, sha256_of
from diffdpo.types import Clip


@dataclass(frozen=True)
class StyleFeatures:
    """The unit vector of a sound by the small style encoder, which has a text side."""

    version: ClassVar[str] = "1"
    licenses: ClassVar[tuple[str, ...]] = ("CC-BY-SA-4.0",)

    bundle: str = field(default="", repr=False, metadata=PATH)
    """Folder of the bundle with the encoder; the shipped one by default."""

    @property
    def weights_hash(self) -> str:
        files = sorted((self._folder() / "style").glob("*.*"))
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    def __call__(self, clip: Clip) -> Float[np.ndarray, " feature"]:
        from diffdpo.encoders.style import pretrained_encoder

        return as_vector(pretrained_encoder(self._folder()).embed(None, clip))

    def embed_text(self, text: str) -> Float[np.ndarray, " feature"]:
        """The unit vector of a text; zeros for one without a word."""
        from diffdpo.encoders.style import pretrained_encoder

        return as_vector(pretrained_encoder(self._folder()).embed(text, None))

    def _folder(self) -> Path:
        return Path(self.bundle) if self.bundle else BUNDLE
