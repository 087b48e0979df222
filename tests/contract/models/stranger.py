"""The model of tests/support/stranger: two texts and a planned contour, waveform frames, no in-painting."""

from pathlib import Path

from support.model_contract import ModelFixture

from diffdpo.models import MODELS
from diffdpo.models.base import SongModel
from diffdpo.types import Prompt


def load(folder: Path, network: str = "", adapter: str = "") -> SongModel:
    return MODELS["stranger"](network=network, adapter=adapter).load()


FIXTURE = ModelFixture(
    load=load,
    prompts=(
        Prompt(id="a", text="slow rock", lyrics="one line\nand another", duration_s=0.4),
        Prompt(id="b", text="metal", lyrics="no", duration_s=0.2, controls=(("bpm", 150),)),
        Prompt(id="c", text="ambient", lyrics="long, long ago", duration_s=0.1),
    ),
    on_frames=("contour",),
    posterior=False,
)
