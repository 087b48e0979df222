"""The configuration of a Stable Audio 3 checkpoint, which loads as a SongModel."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.hub import Published, find_folder
from diffdpo.models.adapter_config import AdapterConfig

if TYPE_CHECKING:
    from diffdpo.models.stable_audio3.adapter import StableAudio3
    from diffdpo.types import Embedding

SAME = Published(
    name="Stable Audio 3's autoencoder",
    repo="stabilityai/stable-audio-3-medium-base",
    license="Stability AI Community License",
)


@dataclass(frozen=True)
class StableAudio3Checkpoint:
    """A Stable Audio 3 network with its autoencoder and text encoder, as published or in diffusers' form."""

    checkpoint: str = field(default="", metadata=PATH)
    """The published `model.safetensors` with `model_config.json` beside it, their folder or hub id
    (stabilityai/stable-audio-3-medium), or a folder of diffusers' form."""
    network: str = field(default="", metadata=PATH)
    """Folder with other network weights, such as the `export` of a training run."""
    adapter: str | list[str] = field(default="", metadata=PATH_LIST)
    """Folder with a LoRA adapter, merged into the network on loading; or several, as a list or comma-separated,
    each with an optional weight: `a/export@0.5,b/export@0.5`."""
    adapters: list[AdapterConfig] = field(default_factory=list)
    """More adapters, each {path, strength, interval, layers}: acting at some times t, or in some layers."""
    text_encoder: str = field(default="", metadata=PATH)
    """Folder or hub id of T5Gemma; by default the checkpoint's own, else google/t5gemma-b-b-ul2."""
    vae: str = field(default="", metadata=PATH)
    """Folder or hub id of an AutoencoderSAME in diffusers' form, where the checkpoint has none that can be used."""
    audio: bool = True
    """Load the autoencoder; without, the model trains on latents and makes no sound."""
    distilled: bool | None = None
    """Whether the network is a few-step one, sampled in eight steps without guidance; by default as the checkpoint
    says."""
    behavior: Literal["original", "diffusers"] = "original"
    """Where the implementations differ: zeros (original) or no input (diffusers) for in-painting without a context,
    and zeros or the empty text as the null of guidance."""
    headroom_s: float = 6.0
    """Seconds that a song is generated longer than its duration, cut off after decoding; diffusers has 0."""

    def __post_init__(self) -> None:
        check_range(self, "headroom_s", low=0, high=60)
        if not self.checkpoint:
            raise ValueError(
                "the model needs a checkpoint, such as checkpoint=stabilityai/stable-audio-3-medium-base"
            )

    def load(self) -> "StableAudio3":
        from diffdpo.codecs.same import load_same
        from diffdpo.models.checkpoints import load_saved
        from diffdpo.models.stable_audio3.adapter import StableAudio3
        from diffdpo.models.stable_audio3.files import read_files
        from diffdpo.models.stable_audio3.network import StableAudio3DiTModel
        from diffdpo.models.timed_adapters import apply_adapters

        files = read_files(self.checkpoint)
        network = load_saved(StableAudio3DiTModel, self.network) if self.network else files.network()
        apply_adapters(network, self.adapter, self.adapters)
        codec = None
        if self.audio:
            codec = load_same(find_folder(SAME, self.vae)) if self.vae else files.codec()
        distilled = files.distilled if self.distilled is None else self.distilled
        return StableAudio3(
            network=network,
            spec=files.spec(network, codec, headroom_s=self.headroom_s, distilled=distilled),
            codec=codec,
            encoders=files.encoders(self.text_encoder),
            behavior=self.behavior,
            distilled=distilled,
            identify=lambda: files.fingerprint(self.text_encoder, self.behavior),
        )

    def sketch(self) -> "tuple[StableAudio3, Embedding]":
        """The model with its network on the meta device, and the embedding of a prompt; see sketch.py."""
        from diffdpo.models.stable_audio3.sketch import sketch_stable_audio3

        return sketch_stable_audio3(self)
