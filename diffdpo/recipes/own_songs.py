"""Songs of the network itself, for training that needs none from elsewhere: a slider's neutral prompts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffdpo.checks import check_range
from diffdpo.data.prompts import prompt_row
from diffdpo.data.sliders import SliderContrast, neutral_prompts
from diffdpo.recipes import sample
from diffdpo.recipes.sample import SampleRun
from diffdpo.registry import Choice
from diffdpo.run_dir import dist_env
from diffdpo.runs import write_if_changed
from diffdpo.sampling.config import SamplingConfig

SONGS, PROMPT_FILE = "songs", "neutral.jsonl"
"""Folder of the songs and file of their prompts, in a run directory."""


@dataclass(frozen=True)
class OwnSongs:
    """How a network's own songs are sampled: their latents alone, once, into the run directory."""

    per_prompt: int = 4
    """Songs for each prompt."""
    duration_s: float = 10.0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_range(self, "per_prompt", low=1, prefix="own_songs.")
        check_range(self, "duration_s", above=0, prefix="own_songs.")


def sample_neutrals(
    contrasts: Sequence[SliderContrast], cfg: OwnSongs, model: Choice, seed: int, out: Path
) -> Path:
    """The folder of songs of the neutral prompts of sliders, below `out`; songs that are there are kept."""
    prompts = out / PROMPT_FILE
    rows = [prompt_row(prompt) for prompt in neutral_prompts(contrasts, cfg.duration_s)]
    dist = dist_env()
    if dist.main:
        write_if_changed(prompts, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    dist.barrier()
    return sample.run(
        SampleRun(
            out=str(out / SONGS),
            prompts=str(prompts),
            model=model,
            sampling=cfg.sampling,
            per_prompt=cfg.per_prompt,
            audio=False,
            seed=seed,
        )
    )
