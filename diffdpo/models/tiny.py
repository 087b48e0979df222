"""The tiny song model shipped with the package: a DiffRhythm network, a spectral codec,
a style encoder and the tempo that goes with a style."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.hub import BUNDLE, fingerprint_of
from diffdpo.models.adapter_config import AdapterConfig

if TYPE_CHECKING:
    from diffdpo.models.diffrhythm.adapter import DiffRhythm

TINY_EMBEDDING_FORMAT = "tiny-1"
"""Version of the embeddings, part of their fingerprint: raise it whenever they change."""


@dataclass(frozen=True)
class Tiny:
    """A small instrumental song model, trained on 12 hours of freely licensed music; 44.1 kHz stereo."""

    bundle: str = field(default="", metadata=PATH)
    """Folder of the bundle; by default the one shipped with the package."""
    network: str = field(default="", metadata=PATH)
    """Folder with other network weights, such as the `export` of a training run."""
    adapter: str | list[str] = field(default="", metadata=PATH_LIST)
    """Folder with a LoRA adapter, merged into the network on loading; or several, as a list or comma-separated,
    each with an optional weight: `a/export@0.5,b/export@0.5`."""
    adapters: list[AdapterConfig] = field(default_factory=list)
    """More adapters, each {path, strength, interval, layers}: acting at some times t, or in some layers."""

    def load(self) -> "DiffRhythm":
        from diffdpo.codecs.spectral import SpectralCodec
        from diffdpo.encoders import beats, style
        from diffdpo.models.base import LatentSpec
        from diffdpo.models.checkpoints import load_saved
        from diffdpo.models.diffrhythm.adapter import DiffRhythm
        from diffdpo.models.diffrhythm.checkpoints import load_network
        from diffdpo.models.diffrhythm.encoders import Encoders

        folder = Path(self.bundle) if self.bundle else BUNDLE
        network = load_network(
            Path(self.network) if self.network else folder / "network", self.adapter, adapters=self.adapters
        )
        codec = load_saved(SpectralCodec, folder / "codec")
        return DiffRhythm(
            network=network,
            spec=LatentSpec(
                channels=codec.config.latent_channels,
                frames_per_second=codec.frames_per_second,
                sample_rate=codec.config.sample_rate,
                max_frames=network.config.max_frames,
                receptive_frames=codec.receptive_frames,
            ),
            codec=codec,
            encoders=Encoders(style=style.load_style(folder), beats=beats.load_beats(folder)),
            identify=lambda: fingerprint_of(
                TINY_EMBEDDING_FORMAT, sorted((folder / "style").glob("*.*")), [folder / beats.BEATS_FILE]
            ),
        )
