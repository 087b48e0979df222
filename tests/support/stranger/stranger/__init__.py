"""A song model outside diffdpo: a flow on frames of the waveform, conditioned on two texts and a planned contour.

Mono sound at 4 kHz is cut into frames of 40 samples, and these are the latents: 40 channels at 100 frames a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import get_timestep_embedding as waves
from torch import Tensor, nn

from diffdpo import audio
from diffdpo.errors import DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models.adapter_config import AdapterConfig
from diffdpo.models.base import Condition, LatentSpec, check_controls, check_part
from diffdpo.models.checkpoints import load_saved
from diffdpo.models.timed_adapters import apply_adapters
from diffdpo.types import Clip, Embedding, Plan, Prompt, Row

RATE, HOP, LEVEL, CODES = 4000, 40, 4.0, 8
TEXTS = ("tags", "words")


class Block(nn.Module):
    """Frames attend to frames and to tokens; an MLP follows."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.mlp_norm = heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, h: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        frames = self.norm(h)
        k, v = self.to_kv(torch.cat([frames, tokens], 1)).chunk(2, -1)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (self.to_q(frames), k, v))
        h = h + self.to_out[0](F.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).flatten(2))
        return h + self.mlp(self.mlp_norm(h))


class StrangerTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """What is trained. Its forward hides padding, whatever wraps it."""

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("Block",)

    @register_to_config
    def __init__(self, dim: int = 32, heads: int = 2, depth: int = 2, text_dim: int = 16) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.frames_in, self.time_in = nn.Linear(HOP, dim), nn.Linear(dim, dim)
        self.texts_in = nn.ModuleDict({name: nn.Linear(text_dim, dim) for name in TEXTS})
        self.null = nn.ParameterDict({name: nn.Parameter(torch.randn(dim)) for name in TEXTS})
        self.contour_in = nn.Embedding(1 + CODES, dim)  # 0: no contour
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.frames_out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, HOP))

    def forward(
        self, x: Tensor, t: Tensor, frames: Tensor, contour: Tensor, first_frame: Tensor, **texts: Tensor
    ) -> Tensor:
        """noise - song. Of each text: NAME, the number of its tokens NAME_count, and whether it is NAME_dropped."""
        inside = mask_from_frames(frames.to(x.device), x.shape[1])
        place = first_frame[:, None] + torch.arange(x.shape[1], device=x.device)
        h = self.frames_in(x.masked_fill(~inside[..., None], 0)) + self.contour_in(contour)
        h = h + waves(place.flatten(), h.shape[-1]).to(x.dtype).view_as(h)
        h = h + self.time_in(waves(1000 * t, h.shape[-1]).to(x.dtype))[:, None]
        tokens, visible = [], [inside]
        for name in TEXTS:
            sequence, is_dropped = self.texts_in[name](texts[name].to(x.dtype)), texts[f"{name}_dropped"]
            tokens.append(torch.where(is_dropped[:, None, None], self.null[name].to(sequence), sequence))
            visible.append(mask_from_frames(texts[f"{name}_count"].where(~is_dropped, 1), sequence.shape[1]))
        args = torch.cat(tokens, 1), torch.cat(visible, 1)[:, None, None]
        for block in self.blocks:
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            h = self._gradient_checkpointing_func(block, h, *args) if recompute else block(h, *args)
        return self.frames_out(h).masked_fill(~inside[..., None], 0)


@dataclass(kw_only=True, eq=False)
class StrangerModel:
    """See `diffdpo.models.base.SongModel`. It plans; it cannot be shown a part of a song."""

    network: StrangerTransformer
    encoder: nn.Embedding | None
    spec = LatentSpec(
        channels=HOP,
        frames_per_second=RATE / HOP,
        sample_rate=RATE,
        max_frames=400,
        rounding="up",
        headroom_s=0.1,
    )
    lora_targets, parts, unconditional = ("to_q", "to_kv", "to_out.0"), (*TEXTS, "contour"), TEXTS
    fingerprint, planner = "bytes-1", "random-contour-1"
    timed_lyrics = embeds_audio = False

    def embed(self, prompt: Prompt) -> Embedding:
        check_controls(prompt, ("bpm",))
        if self.encoder is None or prompt.style_audio is not None:
            reason = "style_audio is not understood, give text" if self.encoder else "the encoder was freed"
            raise DataError(f"prompt {prompt.id!r}: {reason}")
        bpm = prompt.control("bpm")
        texts = {"tags": (prompt.text or "") + (f", {bpm} bpm" if bpm else ""), "words": prompt.lyrics or ""}
        device = self.encoder.weight.device
        with torch.no_grad():
            sequences = (torch.tensor([0, *text.encode()], device=device) for text in texts.values())
            return {name: self.encoder(ids).cpu() for name, ids in zip(texts, sequences, strict=True)}

    def plan(self, prompt: Prompt, frames: int, generator: torch.Generator) -> Plan:
        contour = torch.randint(1, 1 + CODES, (frames,), generator=generator)
        return Plan(planner=self.planner, tensors={"contour": contour})

    def embed_plan(self, plan: Plan) -> Embedding:
        if plan.planner != self.planner:
            raise DataError(
                f"a plan of {plan.planner!r}, this planner is {self.planner!r}; sample the song again"
            )
        return plan.tensors

    def condition(self, rows: Sequence[Row], length: int) -> Condition:
        condition = {
            "first_frame": torch.tensor([row.first_frame for row in rows]),
            "contour": torch.zeros(len(rows), length, dtype=torch.long),
        }
        for contour, row in zip(condition["contour"], rows, strict=True):
            codes = row.embedding.get("contour", contour[:0])[row.first_frame :][: min(length, row.frames)]
            contour[: len(codes)] = codes
        for name in TEXTS:
            sequences = [row.embedding[name] for row in rows]
            condition[name] = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
            condition[f"{name}_count"] = torch.tensor([len(sequence) for sequence in sequences])
            condition[f"{name}_dropped"] = torch.zeros(len(rows), dtype=torch.bool)
        return condition

    def without(self, condition: Condition, part: str, drop_mask: Tensor) -> Condition:
        check_part(part, self.parts)
        drop_mask = drop_mask.to(condition["contour"].device)
        if part == "contour":
            return {**condition, part: condition[part].masked_fill(drop_mask[:, None], 0)}
        return {**condition, f"{part}_dropped": condition[f"{part}_dropped"] | drop_mask}

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Condition, frames: Tensor) -> Tensor:
        time = t.to(x.device, torch.promote_types(x.dtype, torch.float32))
        return network(x, time, frames, **condition)

    def encode(self, clip: Clip, generator: torch.Generator | None = None) -> Tensor:
        samples = torch.from_numpy(audio.resample(clip, RATE).samples).mean(0) * LEVEL
        return F.pad(samples, (0, -len(samples) % HOP)).reshape(-1, HOP)

    def decode(self, latents: Tensor, first_frame: int = 0) -> Clip:
        return Clip(samples=(latents.float().cpu().flatten() / LEVEL)[None].numpy(), sample_rate=RATE)

    def place(self, part: Literal["encoders", "codec"], device: str | None) -> None:
        if part == "encoders" and self.encoder is not None:
            self.encoder = None if device is None else self.encoder.to(device)


@dataclass(frozen=True)
class Stranger:
    """What a configuration says about the model."""

    network: str = ""
    """Folder of the network, such as the `export` of a training run; an untrained one without."""
    adapter: str | list[str] = ""
    """Folders of LoRA adapters, as a list or comma-separated, merged on loading; `FOLDER@0.5` for half of one."""
    adapters: list[AdapterConfig] = field(default_factory=list)
    """Adapters that act at some times t, or in some layers."""

    def load(self) -> StrangerModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder, network = nn.Embedding(256, 16), StrangerTransformer()
        if self.network:
            network = load_saved(StrangerTransformer, self.network)
        apply_adapters(network, self.adapter, self.adapters)
        return StrangerModel(network=network.eval(), encoder=encoder)
