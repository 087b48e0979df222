"""The configuration of a Stable Audio Open checkpoint, which loads as a SongModel."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.errors import CheckpointError
from diffdpo.hub import fingerprint_of
from diffdpo.models.adapter_config import AdapterConfig

if TYPE_CHECKING:
    from diffdpo.models.stable_audio_open.adapter import StableAudioOpen

STABLE_AUDIO_OPEN_EMBEDDING_FORMAT = "stable-audio-open-1"
"""Version of the embeddings, part of their fingerprint: raise it whenever they change."""
PARTS = ("transformer", "text_encoder", "tokenizer", "projection_model")


@dataclass(frozen=True)
class StableAudioOpenCheckpoint:
    """A Stable Audio Open network with its autoencoder and text encoder, as a pipeline of diffusers has them."""

    checkpoint: str = field(default="", metadata=PATH)
    """Folder of stabilityai/stable-audio-open-1.0 or a like model, with transformer, vae, text_encoder,
    tokenizer and projection_model in it (hf download stabilityai/stable-audio-open-1.0 --local-dir FOLDER)."""
    network: str = field(default="", metadata=PATH)
    """Folder with other network weights, such as the `export` of a training run."""
    adapter: str | list[str] = field(default="", metadata=PATH_LIST)
    """Folder with a LoRA adapter, merged into the network on loading; or several, as a list or comma-separated,
    each with an optional weight: `a/export@0.5,b/export@0.5`."""
    adapters: list[AdapterConfig] = field(default_factory=list)
    """More adapters, each {path, strength, interval, layers}: acting at some times t, or in some layers."""
    audio: bool = True
    """Load the autoencoder; without, the model trains on latents and makes no sound."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ValueError("the model needs a checkpoint: the folder of stabilityai/stable-audio-open-1.0")

    def load(self) -> "StableAudioOpen":
        from diffdpo.codecs.oobleck import oobleck
        from diffdpo.models.base import LatentSpec
        from diffdpo.models.checkpoints import load_saved, read_config
        from diffdpo.models.stable_audio_open.adapter import StableAudioOpen
        from diffdpo.models.stable_audio_open.network import StableAudioDiTModel
        from diffdpo.models.stable_audio_open.text import T5Prompts
        from diffdpo.models.timed_adapters import apply_adapters

        folder = Path(self.checkpoint)
        for part in PARTS:
            if not (folder / part).is_dir():
                raise CheckpointError(
                    f"{folder}: no folder of Stable Audio Open: it has no {part}; fetch the whole repository "
                    "(hf download stabilityai/stable-audio-open-1.0 --local-dir FOLDER)"
                )
        network = load_saved(StableAudioDiTModel, self.network or folder / "transformer")
        apply_adapters(network, self.adapter, self.adapters)
        codec = oobleck(folder / "vae") if self.audio else None
        channels, length = int(network.config.in_channels), int(network.config.sample_size)
        if codec is not None and codec.channels != channels:
            raise CheckpointError(
                f"{folder}: an autoencoder of {codec.channels} channels, the network has {channels}"
            )
        rate = codec.frames_per_second if codec else 44100 / 2048
        limit = read_config(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length", 128)
        return StableAudioOpen(
            network=network,
            spec=LatentSpec(
                channels=channels,
                frames_per_second=rate,
                sample_rate=codec.sample_rate if codec else 44100,
                max_frames=length,
                receptive_frames=codec.chunks.context if codec else 0,
                rounding="up",
                headroom_s=length / rate,
            ),
            tokens=int(limit),
            codec=codec,
            encoders=T5Prompts(folder=folder),
            identify=lambda: fingerprint_of(
                STABLE_AUDIO_OPEN_EMBEDDING_FORMAT,
                (path for part in PARTS[1:] for path in sorted((folder / part).glob("*.*"))),
            ),
        )
