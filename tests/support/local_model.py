"""A song model of a few lines whose velocity is known in closed form, for what must hold with every model."""

import hashlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from diffdpo.errors import DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models.base import LatentSpec, check_controls, check_part
from diffdpo.types import Clip

CHANNELS, PER_FRAME = 4, 100
SPEC = LatentSpec(channels=CHANNELS, frames_per_second=10.0, sample_rate=1000, max_frames=40)


class LocalNetwork(torch.nn.Module):
    """v = (0.3 + t) mean over 2 reach + 1 frames of tanh(W x + pull + context); nothing behind the end is seen."""

    _repeated_blocks = ("Linear",)

    def __init__(self, reach=0):
        super().__init__()
        self.reach = reach
        self.mix = torch.nn.Linear(CHANNELS, CHANNELS)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            self.mix.weight.copy_(
                torch.eye(CHANNELS) + 0.3 * torch.randn(CHANNELS, CHANNELS, generator=generator)
            )
            self.mix.bias.copy_(0.3 * torch.randn(CHANNELS, generator=generator))

    def forward(self, x, t, pull, context, mask):
        hidden = torch.tanh(self.mix(x) + (pull[:, None] + context).to(x)).where(mask[..., None], 0)
        taps = torch.ones(CHANNELS, 1, 2 * self.reach + 1).to(x) / (2 * self.reach + 1)
        mean = F.conv1d(hidden.transpose(1, 2), taps, padding=self.reach, groups=CHANNELS).transpose(1, 2)
        return ((0.3 + t).to(x)[:, None, None] * mean).where(mask[..., None], 0)


@dataclass(kw_only=True, eq=False)
class LocalModel:
    """A SongModel around LocalNetwork. An embedding is a vector, of the text or of silence; sound is the first two
    channels, held over a frame."""

    network: LocalNetwork = field(default_factory=LocalNetwork)
    spec: LatentSpec = SPEC
    parts: tuple[str, ...] = ("pull",)
    unconditional: tuple[str, ...] = ("pull",)
    lora_targets: tuple[str, ...] = ("mix",)
    fingerprint: str = "local-1"
    timed_lyrics: bool = False
    embeds_audio: bool = False
    has_encoders: bool = True
    prompt_ids: list[str] = field(default_factory=list)
    """Ids of the prompts that were embedded, in order."""

    def embed(self, prompt):
        check_controls(prompt, ("start",))
        if not self.has_encoders:
            raise DataError(f"prompt {prompt.id!r}: the encoders were freed")
        self.prompt_ids.append(prompt.id)
        seed = int.from_bytes(hashlib.sha256((prompt.text or "").encode()).digest()[:4], "big")
        return {"pull": torch.randn(CHANNELS, generator=torch.Generator().manual_seed(seed))}

    def condition(self, rows, length):
        return {
            "pull": torch.stack([row.embedding["pull"] for row in rows]),
            "context": torch.zeros(len(rows), length, CHANNELS),
        }

    def without(self, condition, part, drop_mask):
        check_part(part, self.parts)
        null = torch.full_like(condition[part], 0.25)
        return {**condition, part: torch.where(drop_mask.to(null.device)[:, None], null, condition[part])}

    def with_context(self, condition, latents, keep_mask):
        return {**condition, "context": latents.where(keep_mask[..., None], 0)}

    def velocity(self, network, x, t, condition, frames):
        mask = mask_from_frames(frames.to(x.device), x.shape[1])
        return network(x, t, condition["pull"], condition["context"], mask)

    def encode(self, clip, generator=None):
        frames = torch.from_numpy(clip.samples).unflatten(1, (-1, PER_FRAME)).mean(-1).T
        return F.pad(frames, (0, CHANNELS - 2))

    def decode(self, latents, first_frame=0):
        sound = latents[:, :2].T.repeat_interleave(PER_FRAME, 1).float().numpy()
        return Clip(samples=sound, sample_rate=self.spec.sample_rate)

    def place(self, part, device):
        if part == "encoders" and device is None:
            self.has_encoders = False
