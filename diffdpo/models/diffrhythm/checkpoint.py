"""The configuration of a DiffRhythm checkpoint, which loads as a SongModel."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.errors import CheckpointError
from diffdpo.hub import fingerprint_of
from diffdpo.models.adapter_config import AdapterConfig

if TYPE_CHECKING:
    from diffdpo.models.diffrhythm.adapter import DiffRhythm
    from diffdpo.types import Embedding

SAMPLE_RATE, SAMPLES_PER_FRAME = 44100, 2048
"""Samples a second and samples a latent frame of DiffRhythm's VAE, which is Stable Audio's."""
DIFFRHYTHM_EMBEDDING_FORMAT = "diffrhythm-1"
"""Version of the embeddings, part of their fingerprint: raise it whenever they change."""


@dataclass(frozen=True)
class DiffRhythmCheckpoint:
    """A DiffRhythm network, published or of ours, and its VAE.

    Without a VAE and a style encoder the model trains on datasets and pairs that hold latents, but makes no sound.
    """

    checkpoint: str = field(default="", metadata=PATH)
    """The network: a release (v1.0-base, v1.0-full, v1.2-base, v1.2-full), a hub id, `cfm_model.pt` or safetensors
    in a published layout, or a folder with config.json and safetensors."""
    release: str = ""
    """The release of a published file, where neither its folder nor its weights identify it."""
    ema: bool = False
    """Take the moving average from a training checkpoint that holds both."""
    network: str = field(default="", metadata=PATH)
    """Folder with other network weights, such as the `export` of a training run; overrides `checkpoint`."""
    adapter: str | list[str] = field(default="", metadata=PATH_LIST)
    """Folder with a LoRA adapter, merged into the network on loading; or several, as a list or comma-separated,
    each with an optional weight: `a/export@0.5,b/export@0.5`."""
    adapters: list[AdapterConfig] = field(default_factory=list)
    """More adapters, each {path, strength, interval, layers}: acting at some times t, or in some layers."""
    vae: str = field(default="", metadata=PATH)
    """`vae_model.pt`, a folder of diffusers' AutoencoderOobleck, or a hub id (ASLP-lab/DiffRhythm-vae); without one
    nothing can be heard or encoded."""
    vae_join: Literal["cross_fade", "published"] = "cross_fade"
    """How the chunks of a long song are joined; `published` cuts where the original implementation cuts."""
    vocabulary: str = field(default="", metadata=PATH)
    """The checkpoint's g2p/g2p/vocab.json, to sing lyrics; else the environment's DIFFDPO_DIFFRHYTHM_VOCAB."""
    style: str = field(default="", metadata=PATH)
    """The encoder of styles: `pytorch_model.bin` of MuQ-MuLan-large, its folder, or a hub id
    (OpenMuQ/MuQ-MuLan-large); without one, styles come as embeddings."""
    tokenizer: str = field(default="", metadata=PATH)
    """The style encoder's tokenizer: `tokenizer.json` of xlm-roberta-base, its folder, or a hub id; by default the
    hub's."""
    accept_noncommercial: bool = False
    """Accept the license of MuQ-MuLan, which is CC-BY-NC."""

    def __post_init__(self) -> None:
        if not self.checkpoint and not self.network:
            raise ValueError("the model needs a checkpoint, such as checkpoint=ASLP-lab/DiffRhythm-1_2")

    def sketch(self) -> "tuple[DiffRhythm, Embedding]":
        """The model with its network on the meta device, and the embedding of an instrumental. A release needs no
        file; of anything else only sizes are read."""
        import torch

        from diffdpo.models.base import LatentSpec
        from diffdpo.models.diffrhythm.adapter import DiffRhythm
        from diffdpo.models.diffrhythm.checkpoints import read_network
        from diffdpo.models.diffrhythm.lines import line_tensors
        from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
        from diffdpo.models.diffrhythm.published import RELEASES, config_of

        name = self.network or self.checkpoint
        releases = {entry.repo: entry for entry in RELEASES.values()} | RELEASES
        config = config_of(releases[name], {}) if name in releases else read_network(name).config
        with torch.device("meta"):
            network = DiffRhythmTransformer.from_config(config)
        spec = LatentSpec(
            channels=network.config.latent_channels,
            frames_per_second=SAMPLE_RATE / SAMPLES_PER_FRAME,
            sample_rate=SAMPLE_RATE,
            max_frames=network.config.max_frames,
            window="exact" if network.config.duration_embedding else "fixed",
        )
        embedding = {
            "style": torch.zeros(network.config.style_dim),
            "start": torch.zeros(()),
            **line_tensors(()),
        }
        return DiffRhythm(network=network, spec=spec, encoders=None), embedding

    def load(self) -> "DiffRhythm":
        from diffdpo.codecs.oobleck import load_vae
        from diffdpo.encoders.mulan_style import MuLanStyle
        from diffdpo.lyrics.front_end import front_end
        from diffdpo.models.base import LatentSpec
        from diffdpo.models.diffrhythm.adapter import DiffRhythm
        from diffdpo.models.diffrhythm.checkpoints import load_network
        from diffdpo.models.diffrhythm.encoders import Encoders

        if self.network:
            network = load_network(self.network, self.adapter, adapters=self.adapters)
        else:
            network = load_network(
                self.checkpoint, self.adapter, release=self.release, ema=self.ema, adapters=self.adapters
            )
        config = network.config
        vae = load_vae(self.vae, join=self.vae_join) if self.vae else None
        if vae is not None and vae.channels != config.latent_channels:
            raise CheckpointError(
                f"{self.vae}: a VAE of {vae.channels} channels, the network has {config.latent_channels}"
            )
        rate = vae.frames_per_second if vae else SAMPLE_RATE / SAMPLES_PER_FRAME
        style = partial(
            MuLanStyle,
            weights=self.style,
            tokenizer=self.tokenizer,
            accept_noncommercial=self.accept_noncommercial,
        )
        lyrics = front_end(self.vocabulary, embeddings=config.text_num_embeds, frames_per_second=rate)
        symbols = sorted(lyrics.vocabulary) if lyrics else None
        text_format = f"{DIFFRHYTHM_EMBEDDING_FORMAT}|{config.style_dim}|{rate}|{symbols}"
        return DiffRhythm(
            network=network,
            spec=LatentSpec(
                channels=config.latent_channels,
                frames_per_second=rate,
                sample_rate=vae.sample_rate if vae else SAMPLE_RATE,
                max_frames=config.max_frames,
                window="exact" if config.duration_embedding else "fixed",
                receptive_frames=vae.chunks.context if vae else 0,
            ),
            codec=vae,
            encoders=Encoders(style=style() if self.style else None, lyrics=lyrics),
            identify=lambda: fingerprint_of(text_format, style().files() if self.style else []),
        )
