"""Stable Audio 3 in diffusers' layout: an exact window, SAME, T5Gemma, in-painting channels."""

from pathlib import Path

from support.model_contract import ModelFixture
from support.stable_audio3 import write_diffusers

from diffdpo.models import MODELS
from diffdpo.models.base import SongModel
from diffdpo.types import Prompt


def load(folder: Path, network: str = "", adapter: str = "") -> SongModel:
    if not (folder / "scheduler").is_dir():
        write_diffusers(folder)
    return MODELS["stable_audio_3"](checkpoint=str(folder), network=network, adapter=adapter).load()


FIXTURE = ModelFixture(
    load=load,
    prompts=(
        Prompt(id="a", text="slow jazz", duration_s=0.5),
        Prompt(id="b", text="metal with a choir", duration_s=0.4),
        Prompt(id="c", text="", duration_s=200.0),
    ),
    posterior=False,
)
