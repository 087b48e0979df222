"""The plan of the search bench: ways to make songs, at several budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffdpo.evaluation.best_of_n import SELECTION_AXES
from diffdpo.registry import Choice
from diffdpo.sampling.knobs import Knob, KnobVariant
from diffdpo.sampling.reward_guidance import RewardGuidance
from diffdpo.sampling.steering_config import SteeringConfig
from diffdpo.text_files import read_text

REWARD = dict.fromkeys(SELECTION_AXES, 1.0)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One way to make songs, at several budgets."""

    name: str
    method: str = "best_of_n"
    args: Mapping[str, Any]
    budgets: tuple[int, ...]
    prompts: int = 0
    """Of the evaluation prompts the first so many; 0: all."""
    joint: bool = False
    """Whether a larger budget is another search, not more of the same."""
    aligned: bool = False
    """Whether the aligned model makes the songs."""
    weights: Mapping[str, float]
    """The reward's."""
    sampling: Mapping[str, Any]
    """What differs from the run's sampling; names of files as in tools/bench/search_files.py."""
    seconds: float = 0.0
    """Length of the songs; 0: as the prompts say. The base's songs of an entry are of its length."""
    longform: Mapping[str, Any]
    """What differs from the run's windows of long songs."""
    seed: int = 0
    """Added to the run's."""
    one_draw: bool = False
    """Of best-of-N: measure the winner of N songs that were drawn, not what is expected of N by all songs."""


def read_plan(path: Path) -> list[Entry]:
    """The entries of a plan."""
    rows: list[dict[str, Any]] = yaml.safe_load(read_text(path))
    defaults: dict[str, Any] = {"args": {}, "weights": REWARD, "sampling": {}, "longform": {}}
    return [Entry(**{**defaults, **row, "budgets": tuple(row["budgets"])}) for row in rows]


def song_source(plan: Sequence[Entry], entry: Entry) -> Entry:
    """The first entry whose songs are those of `entry`, as many or more; `entry` itself if no other has them.

    Such entries of best-of-N differ in what is searched for alone.
    """

    def recipe(some: Entry) -> tuple[Any, ...]:
        fields = (
            "aligned",
            "args",
            "prompts",
            "sampling",
            "seconds",
            "longform",
            "seed",
            "one_draw",
            "method",
        )
        return tuple(getattr(some, name) for name in fields)

    sources = (e for e in plan if recipe(e) == recipe(entry) and max(e.budgets) >= max(entry.budgets))
    return next(sources, entry)


def sampling_parts(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of SamplingConfig; the solver by its name or as {name, args}, others as in the pages of docs/howto."""
    values = dict(sampling)
    if "knobs" in values:
        values["knobs"] = [_knob(knob) for knob in values["knobs"]]
    if "solver" in values:
        solver = values["solver"]
        values["solver"] = Choice(solver) if isinstance(solver, str) else Choice(**solver)
    if "steering" in values:
        values["steering"] = [SteeringConfig(**entry) for entry in values["steering"]]
    if "reward_guidance" in values:
        values["reward_guidance"] = RewardGuidance(**values["reward_guidance"])
    return values


def _knob(knob: Mapping[str, Any]) -> Knob:
    sides = {side: KnobVariant(**knob[side]) for side in ("positive", "negative") if side in knob}
    return Knob(**{**knob, **sides})
