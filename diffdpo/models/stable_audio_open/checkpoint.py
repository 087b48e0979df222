"""The configuration of a Stable Audio Open checkpoint, which loads as a SongModel."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.errors import CheckpointError
from diffdpo.hub import Published, find_folder, fingerprint_of
from diffdpo.models.adapter_config import AdapterConfig

if TYPE_CHECKING:
    from diffdpo.codecs.oobleck import Vae
    from diffdpo.models.stable_audio_open.adapter import StableAudioOpen
    from diffdpo.types import Embedding

STABLE_AUDIO_OPEN_EMBEDDING_FORMAT = "stable-audio-open-1"
"""Version of the embeddings, part of their fingerprint: raise it whenever they change."""
STABLE_AUDIO_OPEN = Published(
    name="Stable Audio Open",
    repo="stabilityai/stable-audio-open-1.0",
    license="Stability AI Community License",
)
OPEN_RATE, OPEN_HOP, TOKENS = 44100, 2048, 128
"""Samples a second, samples a latent frame, and tokens of text of the published model."""
PARTS = ("transformer", "text_encoder", "tokenizer", "projection_model")


@dataclass(frozen=True)
class StableAudioOpenCheckpoint:
    """A Stable Audio Open network with its autoencoder and text encoder, as a pipeline of diffusers has them."""

    checkpoint: str = field(default="", metadata=PATH)
    """Folder or hub id of stabilityai/stable-audio-open-1.0 or a like model, with transformer, vae, text_encoder,
    tokenizer and projection_model in it."""
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
        from diffdpo.models.checkpoints import load_saved
        from diffdpo.models.stable_audio_open.adapter import StableAudioOpen
        from diffdpo.models.stable_audio_open.network import StableAudioDiTModel
        from diffdpo.models.stable_audio_open.text import T5Prompts
        from diffdpo.models.timed_adapters import apply_adapters

        folder = find_folder(STABLE_AUDIO_OPEN, self.checkpoint)
        for part in PARTS:
            if not (folder / part).is_dir():
                raise CheckpointError(
                    f"{folder}: no folder of Stable Audio Open: it has no {part}; fetch the whole repository "
                    "(hf download stabilityai/stable-audio-open-1.0 --local-dir FOLDER)"
                )
        network = load_saved(StableAudioDiTModel, self.network or folder / "transformer")
        apply_adapters(network, self.adapter, self.adapters)
        codec = oobleck(folder / "vae") if self.audio else None
        channels = int(network.config.in_channels)
        if codec is not None and codec.channels != channels:
            raise CheckpointError(
                f"{folder}: an autoencoder of {codec.channels} channels, the network has {channels}"
            )
        return StableAudioOpen(
            network=network,
            spec=open_spec(network, codec),
            tokens=self._tokens(folder),
            codec=codec,
            encoders=T5Prompts(folder=folder),
            identify=lambda: fingerprint_of(
                STABLE_AUDIO_OPEN_EMBEDDING_FORMAT,
                (path for part in PARTS[1:] for path in sorted((folder / part).glob("*.*"))),
            ),
        )

    def sketch(self) -> "tuple[StableAudioOpen, Embedding]":
        """The model with its network on the meta device, and the embedding of a prompt.

        Of a checkpoint that is here only sizes are read; else they are the published ones."""
        import torch

        from diffdpo.models.checkpoints import CONFIG_FILE, read_config
        from diffdpo.models.stable_audio_open.adapter import StableAudioOpen
        from diffdpo.models.stable_audio_open.network import StableAudioDiTModel

        path = Path(self.network or Path(self.checkpoint) / "transformer") / CONFIG_FILE
        with torch.device("meta"):
            network: StableAudioDiTModel = StableAudioDiTModel.from_config(
                read_config(path) if path.is_file() else {}
            )
        width = network.config.cross_attention_input_dim
        model = StableAudioOpen(
            network=network, spec=open_spec(network, None), tokens=self._tokens(Path(self.checkpoint))
        )
        return model, {"text": torch.zeros(model.tokens, width), "seconds": torch.zeros(2, width)}

    def _tokens(self, folder: Path) -> int:
        """The longest text, as the tokenizer's configuration says."""
        from diffdpo.models.checkpoints import read_config

        path = folder / "tokenizer" / "tokenizer_config.json"
        config = read_config(path) if path.is_file() else {}
        return int(config.get("model_max_length", TOKENS))


def open_spec(network: Any, codec: "Vae | None") -> Any:
    """The latents of a network: songs are generated at its whole length."""
    from diffdpo.models.base import LatentSpec

    rate, length = codec.frames_per_second if codec else OPEN_RATE / OPEN_HOP, int(network.config.sample_size)
    return LatentSpec(
        channels=int(network.config.in_channels),
        frames_per_second=rate,
        sample_rate=codec.sample_rate if codec else OPEN_RATE,
        max_frames=length,
        receptive_frames=codec.chunks.context if codec else 0,
        rounding="up",
        headroom_s=length / rate,
    )
