"""The tiny model: an exact window, a spectral codec, two towers of style, and beats on the frame axis."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from support.bundle import write_bundle
from support.model_contract import ModelFixture

from diffdpo.encoders.beats import BEATS_FILE
from diffdpo.models import MODELS
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.types import Prompt


def load(folder: Path, network: str = "", adapter: str = "") -> DiffRhythm:
    if not (folder / BEATS_FILE).is_file():
        write_bundle(folder)
        save_file({"weight": torch.zeros(2, 16), "bias": torch.tensor([7.0, 1.0])}, folder / BEATS_FILE)
    return MODELS["tiny"](bundle=str(folder), network=network, adapter=adapter).load()


FIXTURE = ModelFixture(
    load=load,
    prompts=(
        Prompt(id="a", text="slow rock", duration_s=2.0, controls=(("bpm", 200),)),
        Prompt(id="b", text="metal", duration_s=1.0, controls=(("axis", "harmony.key"), ("start", 0.25))),
        Prompt(id="c", text="ambient, 90 bpm", lyrics=None, duration_s=1.5),
    ),
    on_frames=("lyrics",),
)
