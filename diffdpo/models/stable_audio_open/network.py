"""The diffusion transformer of Stable Audio Open (Evans et al. 2024, arXiv 2407.14358): diffusers' layers, with
padding hidden.

Predicts v of a variance-preserving diffusion, see `diffdpo.models.reparametrization`. A token of duration and time
stands before the frames.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableAudioDiTModel as DiffusersOpenDiT
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffdpo.flow import Latents, Times, mask_from_frames
from diffdpo.models.base import host_value


class StableAudioDiTModel(DiffusersOpenDiT, PeftAdapterMixin):
    """Diffusers' network under its own name, with the same weights and a forward that hides padding."""

    _no_split_modules = ("StableAudioDiTBlock",)
    _repeated_blocks = ("StableAudioDiTBlock",)

    def forward(
        self,
        x: Latents,
        time: Times,
        *,
        text: Float[Tensor, "batch token text"],
        duration: Float[Tensor, "batch duration"],
        frames: Int[Tensor, " batch"],
    ) -> Latents:
        """v at x, cos(a) song + sin(a) noise, and `time` = 2 a / pi; zero behind the end of each song."""
        inside = mask_from_frames(frames.to(x.device), x.shape[1])
        x = x.masked_fill(~inside[..., None], 0)
        context = self.cross_attention_proj(text)
        weight = self.time_proj.weight.to(time.dtype)
        waves = 2 * torch.pi * time.to(x.device)[:, None] * weight
        moment = self.timestep_proj(torch.cat([waves.cos(), waves.sin()], -1).to(x.dtype))
        token = self.global_proj(duration) + moment
        h = torch.cat([token[:, None], self.proj_in(self._convolve(self.preprocess_conv, x))], 1)
        visible = None
        if host_value(frames.min()) != x.shape[1]:
            visible = F.pad(inside, (1, 0), value=True)[:, None]
        rotation = get_1d_rotary_pos_embed(
            self.config.attention_head_dim // 2,
            torch.arange(h.shape[1], device=h.device),
            use_real=True,
            repeat_interleave_real=False,
        )
        for block in self.transformer_blocks:
            h = self._run(block, h, visible, context, None, rotation)
        v = self._convolve(self.postprocess_conv, self.proj_out(h[:, 1:]))
        return v.masked_fill(~inside[..., None], 0)

    def _convolve(self, convolution: nn.Module, x: Latents) -> Latents:
        """The residual convolution of width one at either end of the network."""
        return convolution(x.transpose(1, 2)).transpose(1, 2) + x

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
