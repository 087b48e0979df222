"""DiffRhythm checkpoints as SongModels."""

from dataclasses import dataclass
from pathlib import Path

from diffdpo.models.base import LatentSpec
from diffdpo.models.checkpoints import load_network
from diffdpo.models.diffrhythm.adapter import DiffRhythm

SAMPLE_RATE, SAMPLES_PER_FRAME = 44100, 2048
"""Of DiffRhythm's VAE, which is Stable Audio's."""


@dataclass(frozen=True)
class DiffRhythmCheckpoint:
    """A DiffRhythm network in our folder format, on prepared latents, styles and lyric tokens.

    Without a VAE and a style encoder it trains on datasets and pairs that hold latents; it cannot be heard.
    """

    network: str
    """Folder with config.json and safetensors."""
    adapter: str = ""
    """Folder with a LoRA adapter, merged into the network on loading; several, comma-separated, in order."""

    def load(self) -> DiffRhythm:
        network = load_network(Path(self.network), self.adapter)
        config = network.config
        return DiffRhythm(
            network=network,
            latents=LatentSpec(
                channels=config.latent_channels,
                frames_per_second=SAMPLE_RATE / SAMPLES_PER_FRAME,
                sample_rate=SAMPLE_RATE,
                max_frames=config.max_frames,
                window="exact" if config.duration_embedding else "fixed",
            ),
        )
