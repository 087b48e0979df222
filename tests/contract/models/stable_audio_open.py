"""Stable Audio Open: a v-prediction network, an Oobleck autoencoder, T5, no in-painting."""

from pathlib import Path

from support.model_contract import ModelFixture
from support.stable_audio_open import write_open

from diffdpo.models import MODELS
from diffdpo.models.base import SongModel
from diffdpo.types import Prompt


def load(folder: Path, network: str = "", adapter: str = "") -> SongModel:
    if not (folder / "projection_model").is_dir():
        write_open(folder)
    return MODELS["stable_audio_open"](checkpoint=str(folder), network=network, adapter=adapter).load()


FIXTURE = ModelFixture(
    load=load,
    prompts=(
        Prompt(id="a", text="slow jazz", duration_s=0.5),
        Prompt(id="b", text="metal with a choir", duration_s=1.9),
        Prompt(id="c", text="", duration_s=1.2),
    ),
)
