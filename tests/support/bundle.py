"""A song model small enough for any test, with the real classes of the shipped one."""

from pathlib import Path

import torch

from diffdpo.codecs.spectral import SpectralCodec
from diffdpo.encoders.descriptors import THIRDS
from diffdpo.encoders.style import TwoTowerStyle
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer


def write_bundle(folder: Path, *, latent_channels: int = 8, dim: int = 32, seed: int = 0) -> Path:
    """A random song model in the layout of the shipped bundle."""
    torch.manual_seed(seed)
    network = DiffRhythmTransformer(
        dim=dim, depth=2, num_attention_heads=2, ff_mult=2, latent_channels=latent_channels, text_num_embeds=4,
        text_dim=16, style_dim=16, cond_dim=16, conv_layers=1, conv_pos_groups=4, max_frames=512,
        duration_embedding=True,
    )  # fmt: skip
    for (
        parameter
    ) in network.text_fusion_linears.parameters():  # zero in a fresh network: nothing would be tested
        torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder / "network")
    codec = SpectralCodec(latent_channels=latent_channels, dim=16, encoder_depth=1, decoder_depth=1)
    codec.save_pretrained(folder / "codec")
    style = TwoTowerStyle(
        thirds={name: list(pair) for name, pair in THIRDS.items()},
        dim=16,
        buckets=64,
        gram_dim=8,
        text_dim=8,
        audio_dim=8,
    )
    style.save_pretrained(folder / "style")
    return folder
