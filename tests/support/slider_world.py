"""A song model whose songs are Gaussian with means that prompts choose: a slider's optimum has a closed form.

A prompt's songs are N(mu, s²) in every channel, independently, with mu the sum of its words' vectors. Then
E[song | x_t] = mu + k(t) (x - (1-t) mu) with k(t) = (1-t) s² / ((1-t)² s² + t²), and
v = E[noise - song | x_t] = (x - song) / t is linear in x and in mu: v = a(t) x + b(t) mu.
"""

import hashlib
from dataclasses import dataclass, field

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin

from diffdpo.flow import mask_from_frames
from diffdpo.models.base import LatentSpec

CHANNELS = 3
SPREAD = 0.5
SPEC = LatentSpec(channels=CHANNELS, frames_per_second=10.0, sample_rate=1000, max_frames=40)


def mean_of(text):
    """The mean of the songs of a text: a vector for each of its words, summed."""
    mean = torch.zeros(CHANNELS)
    for word in text.replace(",", " ").split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        mean += torch.randn(CHANNELS, generator=torch.Generator().manual_seed(seed))
    return mean


def coefficients(t, spread=SPREAD):
    """a(t) and b(t) of v = a x + b mu."""
    gain = (1 - t) * spread**2 / ((1 - t) ** 2 * spread**2 + t**2)
    return (1 - gain) / t, -(1 - gain * (1 - t)) / t


class GaussianNetwork(ModelMixin, PeftAdapterMixin, ConfigMixin):
    """The exact velocity; the mean passes through a layer that an adapter can change, the identity at first."""

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Linear(CHANNELS + 1, CHANNELS, bias=False)
        self.gradient_checkpointing = False
        with torch.no_grad():
            self.mean.weight.copy_(torch.eye(CHANNELS + 1)[:CHANNELS])

    def forward(self, x, t, mean, mask):
        ones = torch.ones_like(mean[:, :1])
        inputs = torch.cat([mean, ones], 1)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            own_mean = self._gradient_checkpointing_func(self.mean, inputs)
        else:
            own_mean = self.mean(inputs)
        a, b = (value.to(x)[:, None, None] for value in coefficients(t.double()))
        return (a * x + b * own_mean[:, None]).where(mask[..., None], 0)


@dataclass(kw_only=True, eq=False)
class GaussianModel:
    """A SongModel around GaussianNetwork; an embedding is the mean of the prompt's songs."""

    network: GaussianNetwork = field(default_factory=GaussianNetwork)
    spec: LatentSpec = SPEC
    parts: tuple[str, ...] = ("mean",)
    unconditional: tuple[str, ...] = ("mean",)
    lora_targets: tuple[str, ...] = ("mean",)
    fingerprint: str = "gaussian-1"
    timed_lyrics: bool = False
    embeds_audio: bool = False

    def embed(self, prompt):
        return {"mean": mean_of(prompt.text or "")}

    def condition(self, rows, length):
        return {"mean": torch.stack([row.embedding["mean"] for row in rows])}

    def without(self, condition, part, drop_mask):
        mean = condition["mean"]
        return {"mean": mean.masked_fill(drop_mask.to(mean.device)[:, None], 0)}

    def velocity(self, network, x, t, condition, frames):
        mask = mask_from_frames(frames.to(x.device), x.shape[1])
        return network(x, t, condition["mean"], mask)

    def encode(self, clip, generator=None):
        raise NotImplementedError

    def decode(self, latents, first_frame=0):
        raise NotImplementedError

    def place(self, part, device):
        """Nothing to move."""
