"""A DiffRhythm checkpoint: a fixed window, an Oobleck autoencoder, MuQ-MuLan and phonemes on the frame axis."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderOobleck
from support.model_contract import ModelFixture
from support.mulan import STYLES, write_mulan

from diffdpo.models import MODELS
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.types import Prompt

PHONEMES = [",", ".", "_", "s", "l", "oʊ", "n", "aɪ", "t"]  # noqa: RUF001 - ɪ is meant
CHANNELS = 8


def write(folder: Path) -> None:
    """Network, autoencoder, style encoder and vocabulary."""
    torch.manual_seed(0)
    network = DiffRhythmTransformer(
        dim=32, depth=2, num_attention_heads=2, ff_mult=2, latent_channels=CHANNELS, text_dim=16, style_dim=STYLES,
        cond_dim=16, conv_layers=1, conv_pos_groups=4, max_frames=96, text_num_embeds=len(PHONEMES),
    )  # fmt: skip
    for parameter in network.text_fusion_linears.parameters():  # zero in a new network
        torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder / "network")
    AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS, downsampling_ratios=[8, 8, 8], channel_multiples=[1, 2, 4],
        decoder_channels=4, decoder_input_channels=CHANNELS,
    ).save_pretrained(folder / "vae")  # fmt: skip
    write_mulan(folder / "style")
    (folder / "vocab.json").write_text(json.dumps({"vocab": {p: n for n, p in enumerate(PHONEMES)}}))


def load(folder: Path, network: str = "", adapter: str = "") -> DiffRhythm:
    if not (folder / "vocab.json").is_file():
        write(folder)
    choice = MODELS["diffrhythm"](
        network=network or str(folder / "network"),
        adapter=adapter,
        vae=str(folder / "vae"),
        style=str(folder / "style"),
        tokenizer=str(folder / "style"),
        vocabulary=str(folder / "vocab.json"),
        accept_noncommercial=True,
    )
    return choice.load()


FIXTURE = ModelFixture(
    load=load,
    prompts=(
        Prompt(id="a", text="slow jazz", lyrics="[00:00.13]slow", duration_s=0.5),
        Prompt(
            id="b", text="metal", lyrics="[00:00.02]night", duration_s=0.4,
            controls=(("axis", "harmony.key"), ("start", 0.25)),
        ),
        Prompt(id="c", text="piano", lyrics="[00:00.02]slow night", duration_s=0.3),
    ),
    on_frames=("lyrics",),
)  # fmt: skip
