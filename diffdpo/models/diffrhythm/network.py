"""The diffusion transformer of DiffRhythm v1.2 (Ning et al. 2025, arXiv:2503.01183), as published.

Lyrics are on the frame axis: one phoneme a frame, 0 where none begins. The lyrics enter twice, concatenated with
the latents channel by channel, and as residuals behind the first half of the layers. Time, style and place in
the song enter through the input projection; only the last norm is modulated. The state dict has the published
keys without their `transformer.` prefix, and no others. Constants of the original are fields of the config, with
the values of v1.2-base (ASLP-lab/DiffRhythm-1_2) as defaults.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffdpo.flow import Latents, Times, mask_from_frames
from diffdpo.models.diffrhythm.layers import (
    FinalNorm,
    HiddenStates,
    InputEmbedder,
    Padding,
    TextEmbedder,
    TimestepEmbedder,
    TransformerBlock,
    angles,
    silence,
)
from diffdpo.models.frame_shards import frame_positions, join_frames, own_frames, padded_length


class EncodedCondition(NamedTuple):
    """The conditions, encoded independently of x and time: computed once a song, not once a sampler step."""

    inputs: Float[Tensor, "batch frame inputs"]
    """Audio, lyrics and style, concatenated for the input projection; if `is_projected`, their projection."""
    residuals: tuple[Float[Tensor, "batch frame dim"], ...]
    """The lyrics' residual behind each layer of the first half."""
    place: Float[Tensor, "batch cond"]
    """Embedding of the start and, if the network takes one, the duration."""
    padding: Padding | None
    """Of all frames, where the rest of the encoding is of this process's own: see `models.frame_shards`."""
    is_projected: bool = False


def padding_behind(frames: Int[Tensor, " batch"], length: int, device: torch.device) -> Padding | None:
    """The padding mask of songs of `frames` frames in a batch of `length`; None if every song fills the batch.

    `frames` is read on the host: a tensor on the CPU needs no GPU synchronisation.
    """
    ends = frames.tolist()
    if not all(1 <= end <= length for end in ends):
        raise ValueError(f"frames must be between 1 and the length {length} of the batch, got {ends}")
    if min(ends) == padded_length(length):
        return None
    mask = mask_from_frames(frames.to(device), padded_length(length))
    return ~rearrange(mask, "batch frame -> batch frame 1")


def own_padding(padding: Padding | None) -> Padding | None:
    """The padding mask of this process's frames."""
    return None if padding is None else own_frames(padding)


class DiffRhythmTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the published velocity, v = song - noise, at x = (1 - time) noise + time song.

    Time runs from 0, noise, to 1, the song: the reverse of `diffdpo.flow`, where t = 1 - time and the velocity is
    -v. The caller of the network reverses both; checkpoints stay as published.

    Conditions are dropped by the caller, as by the original's flags, with zeros in their place: text 0 on every
    frame, style 0, audio 0.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("TransformerBlock",)
    _repeated_blocks = ("TransformerBlock",)

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers writes each argument into config.json
        self,
        dim: int = 2048,
        depth: int = 16,
        num_attention_heads: int = 32,
        ff_mult: int = 4,
        latent_channels: int = 64,
        text_num_embeds: int = 363,  # phonemes, without the filler
        text_dim: int = 512,
        style_dim: int = 512,
        cond_dim: int = 512,  # of time, start and duration
        time_frequencies: int = 256,  # sines and cosines together
        conv_layers: int = 4,
        text_ff_mult: int = 2,
        text_kernel_size: int = 7,
        conv_pos_kernel_size: int = 31,
        conv_pos_groups: int = 16,
        max_frames: int = 2048,  # 95 s; 6144 for 285 s
        duration_embedding: bool = False,  # v1.2-full only
        causal: bool = False,  # v1.0 attended causally; its state dict looks the same
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_sizes(self.config)
        self.gradient_checkpointing = False
        self.time_embed = TimestepEmbedder(time_frequencies, cond_dim)
        self.start_time_embed = TimestepEmbedder(time_frequencies, cond_dim)
        if duration_embedding:
            self.duration_time_embed = TimestepEmbedder(time_frequencies, cond_dim)
        self.text_embed = TextEmbedder(self.config)
        self.input_embed = InputEmbedder(2 * latent_channels + text_dim + style_dim + cond_dim, self.config)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(self.config) for _ in range(depth))
        self.text_fusion_linears = nn.ModuleList(
            nn.Sequential(nn.Linear(text_dim, dim), nn.SiLU()) for _ in range(depth // 2)
        )
        self.norm_out = FinalNorm(dim, cond_dim)
        self.proj_out = nn.Linear(dim, latent_channels)
        for parameter in self.text_fusion_linears.parameters():
            nn.init.zeros_(parameter)

    def forward(  # noqa: PLR0913 - the network's published inputs
        self,
        x: Latents,
        time: Times | Float[Tensor, ""],
        *,
        text: Int[Tensor, "batch frame"] | None = None,
        style: Float[Tensor, "batch style"] | None = None,
        audio: Latents | None = None,
        start_time: Times | None = None,
        duration: Times | None = None,
        frames: Int[Tensor, " batch"] | None = None,
        encoding: EncodedCondition | None = None,
    ) -> Latents:
        """The velocity at (x, time), zero behind the end of each song.

        The conditions are text, style, audio and start_time, or their `encoding` by `encode`, once for all steps.

        `audio` is the context of in-painting (`cond` in the original), zero where the song is to be generated.
        `start_time` is the start of an excerpt as a fraction of its song; `duration` is the song's length in units
        of max_frames. Without `frames` padding is visible to all layers, as published. With `frames` padding is
        hidden from every layer, and the output for a song does not depend on its batch.
        """
        if encoding is None:
            if text is None or style is None or audio is None or start_time is None:
                raise ValueError("text, style, audio and start_time are required without an encoding")
            encoding = self.encode(text, style, audio, start_time, duration, frames)
        return self.denoise(x, time, encoding)

    def encode(
        self,
        text: Int[Tensor, "batch frame"],
        style: Float[Tensor, "batch style"],
        audio: Latents,
        start_time: Times,
        duration: Times | None = None,
        frames: Int[Tensor, " batch"] | None = None,
    ) -> EncodedCondition:
        """The half of `forward` that is the same at every step of a sampler."""
        takes_duration = self.config.duration_embedding
        if takes_duration != (duration is not None):
            problem = "a duration is required" if takes_duration else "no duration can be given"
            raise ValueError(f"duration_embedding={takes_duration}, so {problem}")
        if frames is None and padded_length(text.shape[1]) != text.shape[1]:
            raise ValueError("frames are required where songs are divided over processes")
        padding = None if frames is None else padding_behind(frames, text.shape[1], text.device)
        lyrics, residuals = self.encode_text(own_frames(text), own_padding(padding))
        style_per_frame = repeat(style, "batch style -> batch frame style", frame=lyrics.shape[1])
        context = silence(own_frames(audio), own_padding(padding))
        inputs = torch.cat([context, lyrics, style_per_frame], dim=-1)
        place = self.start_time_embed(start_time, audio.dtype)
        if duration is not None:
            place = place + self.duration_time_embed(duration, audio.dtype)
        return EncodedCondition(inputs, residuals, place, padding)

    def project(self, encoding: EncodedCondition) -> EncodedCondition:
        """The encoding with its part of the input projection computed, unless an adapter wraps the projection."""
        if encoding.is_projected or not self.input_embed.splits:
            return encoding
        projection = self.input_embed.project_static(encoding.inputs, self.config.latent_channels)
        return encoding._replace(inputs=projection, is_projected=True)

    def encode_text(
        self, text: Int[Tensor, "batch frame"], padding: Padding | None = None
    ) -> tuple[Float[Tensor, "batch frame text"], tuple[HiddenStates, ...]]:
        """The lyrics' embedding on the frame axis, and their residual behind each layer of the first half."""
        lyrics = self.text_embed(text, padding)
        return lyrics, tuple(self._run(fusion, lyrics) for fusion in self.text_fusion_linears)

    def denoise(self, x: Latents, time: Times | Float[Tensor, ""], encoding: EncodedCondition) -> Latents:
        """The half of `forward` that a sampler repeats."""
        length, padding = x.shape[1], own_padding(encoding.padding)
        moment = self.time_embed(time.expand(len(x)), x.dtype) + encoding.place
        x = silence(own_frames(x), padding)
        # x comes first in the published order, then audio, lyrics, style, moment.
        if encoding.is_projected:
            h = self.input_embed.place(encoding.inputs + self.input_embed.project_dynamic(x, moment), padding)
        else:
            moment_per_frame = repeat(moment, "batch cond -> batch frame cond", frame=x.shape[1])
            h = self.input_embed(torch.cat([x, encoding.inputs, moment_per_frame], dim=-1), padding)
        head_dim = self.config.dim // self.config.num_attention_heads
        phases = angles(frame_positions(x.shape[1], x.device), head_dim, self.config.rope_theta)
        rotation = phases.cos().to(h.dtype), phases.sin().to(h.dtype)
        # Causally no song sees its padding anyway, and SDPA takes a mask or is_causal, not both.
        visible = None
        if encoding.padding is not None and not self.config.causal:
            visible = ~rearrange(encoding.padding, "batch frame 1 -> batch 1 1 frame")
        for layer, block in enumerate(self.transformer_blocks):
            h = self._run(block, h, rotation, visible)
            if layer < len(encoding.residuals):
                h = h + encoding.residuals[layer]
        return join_frames(silence(self.proj_out(self.norm_out(h, moment)), padding), length)

    def _run(self, module: nn.Module, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(module, *args)
        return module(*args)


def check_sizes(config: Mapping[str, Any]) -> None:
    """A ValueError for sizes from which no network can be built."""
    for name, value in config.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    for name in ("text_kernel_size", "conv_pos_kernel_size"):
        if config[name] % 2 == 0:
            raise ValueError(f"{name} must be odd to keep the length, got {config[name]}")
    for name, least in (("text_dim", 2), ("time_frequencies", 4)):
        if config[name] % 2 or config[name] < least:
            raise ValueError(f"{name} must be even and at least {least}, got {config[name]}")
    dim, heads, groups = config["dim"], config["num_attention_heads"], config["conv_pos_groups"]
    if dim % (2 * heads):
        raise ValueError(f"num_attention_heads={heads} must split dim={dim} into heads of even size")
    if dim % groups:
        raise ValueError(f"conv_pos_groups={groups} must divide dim={dim}")
