"""ACE-Step 1.5: an exact window, lyrics, texts and timbre in one condition, a repaint, and codes of a planner."""

from pathlib import Path

from support.ace_step import write_diffusers, write_planner
from support.model_contract import ModelFixture

from diffdpo.models import MODELS
from diffdpo.models.ace_step.adapter import AceStep
from diffdpo.types import Prompt


def load(folder: Path, network: str = "", adapter: str = "") -> AceStep:
    if not (folder / "planner").is_dir():
        write_diffusers(folder / "checkpoint")
        write_planner(folder / "planner")
    choice = MODELS["ace_step"](
        checkpoint=str(folder / "checkpoint"),
        network=network,
        adapter=adapter,
        planner=str(folder / "planner"),
    )
    return choice.load()


FIXTURE = ModelFixture(
    load=load,
    prompts=(
        Prompt(id="a", text="slow rock", lyrics="[verse]\none line\nand another", language="en", duration_s=1.6),
        Prompt(
            id="b", text="metal", lyrics="no", language="de-AT", duration_s=0.9,
            controls=(("bpm", 150), ("key", "F# minor"), ("metre", "3/4")),
        ),
        Prompt(id="c", text="ambient", lyrics="[00:01.00]long, long ago", duration_s=0.3),
    ),
    on_frames=("source",),
)  # fmt: skip
