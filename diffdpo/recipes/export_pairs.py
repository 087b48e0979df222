"""The command `export-pairs`: mined pairs as preferences between plans, for programs that train the planner."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from diffdpo.data import tables
from diffdpo.data.datasets.generated import find_sample_row, sample_prompt
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.plans import plan_digest
from diffdpo.data.samples import SampleRow, Samples, open_samples, sample_plan
from diffdpo.errors import DataError
from diffdpo.parts import check_model
from diffdpo.registry import Choice, pick
from diffdpo.runs import atomic_write_parts
from diffdpo.types import PlanText, Prompt

NO_PLAN = "a song without a plan"
REAL_WINNER = "the winner is a song of a data set, which follows no plan"
SAME_PLAN = "winner and loser follow the same plan"
SAME_TEXT = "winner and loser follow plans of the same text"
OTHER_PLANNER = "a plan of another state of the planner"
TWO_PROMPTS = "winner and loser were planned from different prompts"


@dataclass(frozen=True, kw_only=True)
class PairExport:
    """Which pairs are exported, where to and for which program."""

    pairs: Path
    out: Path
    layout: str
    planner: str = ""
    """The state of the planner whose plans are exported; empty where there is only one."""


@dataclass(frozen=True, kw_only=True)
class PlanPair:
    """A mined pair as a preference between two texts that one planner wrote for one prompt."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float | None
    """Winner minus loser, in standard deviations: on the pair's own axis, else the mean over all axes."""
    soft_label: float
    """Probability that the winner really is the better one."""
    axis: str
    planner: str
    """State of the planner that wrote both."""


def trl_row(pair: PlanPair) -> dict[str, Any]:
    """A line of TRL's preference data: its DPO reads prompt, chosen and rejected, and leaves the other columns."""
    return asdict(pair)


LAYOUTS: Mapping[str, Callable[[PlanPair], dict[str, Any]]] = {"trl": trl_row}
"""From the program that pairs are for to the object of a line. A new one is a function here and a line."""


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What was exported, and what was left out and why."""

    out: Path
    count: int
    planner: str
    skips: Mapping[str, int]

    def lines(self) -> list[str]:
        """For the terminal."""
        skips = [f"{number} left out: {reason}" for reason, number in sorted(self.skips.items())]
        return [f"{self.out}: {self.count} pairs of planner {self.planner}", *skips]


@dataclass(frozen=True)
class SongPlan:
    """What identifies the plan of a song; both empty for a song without one."""

    planner: str = ""
    digest: str = ""


class PairedPlans:
    """The plans of the songs that a pairs table names: read once for what identifies them, again for their text."""

    def __init__(self, folder: Path) -> None:
        self.table = folder / PAIRS.folder
        rows = tables.read_rows(folder, PAIRS)
        if not rows:
            raise DataError(
                f"{folder}: holds no pairs; run `diffdpo mine` first, or mine with smaller margins"
            )
        self.rows = sorted(rows, key=lambda row: (row.prompt_id, row.samples, row.winner, row.loser))
        self.folders: dict[str, Samples] = {}
        self.songs: dict[tuple[str, str], SampleRow] = {}
        self.prompts: dict[str, dict[str, Prompt]] = {}
        self.plans: dict[tuple[str, str], SongPlan] = {}
        self.functions: dict[str, Callable[..., PlanText]] = {}
        for name in sorted({row.samples for row in self.rows}):
            self._read(name)

    def _read(self, name: str) -> None:
        """The songs of one folder that are in pairs."""
        samples = self.folders[name] = open_samples(self.table.parent / name)
        self.prompts[name] = {prompt.id: prompt for prompt in samples.prompts()}
        songs = {song.sample_id: song for song in samples.rows()}
        pairs = [row for row in self.rows if row.samples == name]
        for sample in sorted({sample for row in pairs for sample in row.generated}):
            song = self.songs[name, sample] = find_sample_row(songs, sample, self.table, name)
            plan = sample_plan(samples, song)
            self.plans[name, sample] = SongPlan(plan.planner, plan_digest(plan)) if plan else SongPlan()

    def members(self, row: PairRow) -> tuple[SongPlan, SongPlan]:
        """What identifies the plans of winner and loser, which are samples."""
        return self.plans[row.samples, row.winner], self.plans[row.samples, row.loser]

    def text(self, name: str, sample: str) -> PlanText:
        """The plan of a song as its planner reads and writes it. DataError for plans that are no text."""
        samples, song = self.folders[name], self.songs[name, sample]
        prompt = sample_prompt(song, self.prompts[name], self.table, name)
        plan = sample_plan(samples, song)
        assert plan is not None, "a song without a plan is in no pair that is exported"
        if song.model not in self.functions:
            self.functions[song.model] = text_function(song, samples)
        return self.functions[song.model](prompt, plan)


def text_function(song: SampleRow, samples: Samples) -> Callable[..., PlanText]:
    """The function of a song's model that gives prompt and plan as text, without loading the model."""
    args = json.loads(song.model)
    name = args.pop("name", "")
    if not name:
        raise DataError(
            f"{samples.folder}: does not say which model made {song.sample_id!r}; sample it again"
        )
    model = check_model(Choice(name, args))
    if not hasattr(model, "plan_text"):
        raise DataError(
            f"{samples.folder}: the plans of model {name!r} are not text, so they train no language model; "
            "use songs of another model"
        )
    function: Callable[..., PlanText] = model.plan_text
    return function


def export_pairs(settings: PairExport) -> ExportSummary:
    """Write the pairs whose songs follow different plans of one planner; what is left out is counted.

    The file is written as a whole or not at all. DataError for plans of several states of the planner, unless one
    is chosen, and where no pair is left.
    """
    layout = pick("layout", LAYOUTS, settings.layout)
    source = PairedPlans(settings.pairs)
    planner = settings.planner or single_planner(source, settings.pairs)
    skips: Counter[str] = Counter()
    rows = []
    for row in source.rows:
        reason = REAL_WINNER if row.songs else skip_reason(source.members(row), planner)
        if reason:
            skips[reason] += 1
        else:
            rows.append(row)
    pairs = plan_pairs(source, rows, planner, skips)
    first = next(pairs, None)
    if first is None:
        reasons = "; ".join(f"{number}: {reason}" for reason, number in sorted(skips.items()))
        raise DataError(f"{settings.pairs}: no pair has two plans to choose between ({reasons})")
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for pair in chain([first], pairs):
            count += 1
            yield json.dumps(layout(pair), ensure_ascii=False, allow_nan=False) + "\n"

    atomic_write_parts(settings.out, lines())
    return ExportSummary(out=settings.out, count=count, planner=planner, skips=dict(skips))


def single_planner(source: PairedPlans, folder: Path) -> str:
    """The only state of the planner among the plans. DataError if there are several, or no plans at all."""
    counts = Counter(plan.planner for plan in source.plans.values() if plan.planner)
    if not counts:
        raise DataError(
            f"{folder}: none of its songs follows a plan; sample with a model that plans (docs/howto/planners.md)"
        )
    if len(counts) > 1:
        states = ", ".join(f"{planner} ({number} songs)" for planner, number in sorted(counts.items()))
        raise DataError(
            f"{folder}: plans of {len(counts)} states of the planner: {states}; choose with --planner"
        )
    return next(iter(counts))


def skip_reason(members: Sequence[SongPlan], planner: str) -> str:
    """Why a pair is left out, by the plans of its members; "" for one that stays."""
    if not all(plan.planner for plan in members):
        return NO_PLAN
    if any(plan.planner != planner for plan in members):
        return OTHER_PLANNER
    return SAME_PLAN if len({plan.digest for plan in members}) == 1 else ""


def plan_pairs(
    source: PairedPlans, rows: Sequence[PairRow], planner: str, skips: Counter[str]
) -> Iterator[PlanPair]:
    """The pairs as text, one in memory at a time; what their text leaves out is counted in `skips`."""
    for row in rows:
        winner, loser = (source.text(row.samples, sample) for sample in (row.winner, row.loser))
        if winner.prompt != loser.prompt or winner.completion == loser.completion:
            skips[TWO_PROMPTS if winner.prompt != loser.prompt else SAME_TEXT] += 1
            continue
        yield PlanPair(
            id=f"{row.samples}|{row.winner}|{row.loser}",
            prompt=winner.prompt,
            chosen=winner.completion,
            rejected=loser.completion,
            margin=pair_margin(row),
            soft_label=row.soft_label,
            axis=row.axis,
            planner=planner,
        )


def pair_margin(row: PairRow) -> float | None:
    """The margin on the pair's own axis, else the mean over all; None where there is none."""
    margins = [row.margins[row.axis]] if row.axis in row.margins else list(row.margins.values())
    mean = sum(margins) / len(margins) if margins else math.nan
    return mean if math.isfinite(mean) else None
