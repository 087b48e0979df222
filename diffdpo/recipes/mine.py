"""Scores to preference pairs."""

from collections.abc import Iterable
from pathlib import Path

from diffdpo.config import MineRun, build_rule
from diffdpo.data import tables
from diffdpo.data.pairs import KEY, TABLE, pair_row
from diffdpo.data.samples import Samples, open_samples
from diffdpo.data.scores import Scores, read_scores
from diffdpo.errors import ConfigError, DataError
from diffdpo.mining import Rule
from diffdpo.progress import say
from diffdpo.recipes.common import claim, workers
from diffdpo.registry import closest
from diffdpo.runs import finish, finished
from diffdpo.scorers import SCORERS
from diffdpo.scorers.gates import LIMITS, passes
from diffdpo.types import Candidate


def run(cfg: MineRun) -> Path:
    group = workers()
    rule = build_rule(cfg.rule)
    out = claim(cfg, group=group)
    if group.main and not finished(out):
        scores = read_scores(Path(cfg.scores))
        axes = mined_axes(cfg.axes, scores)
        _mine(cfg, rule, axes, scores, out)
    group.barrier()
    return out


def _mine(cfg: MineRun, rule: Rule, axes: list[str], scores: Scores, out: Path) -> None:
    rows: list[tables.Row] = []
    skipped: dict[str, str] = {}
    candidates = 0
    for folder in cfg.samples:
        samples = open_samples(folder)
        group = list(read_candidates(samples, scores, gated=cfg.gates))
        candidates += len(group)
        mined = rule(group, axes)
        rows += [pair_row(pair, Path(folder), out / TABLE) for pair in mined.pairs]
        without = {prompt.id for prompt in samples.prompts()} - {c.prompt_id for c in group}
        skipped |= dict(mined.skipped) | dict.fromkeys(
            sorted(without), "no candidate was sampled, scored and passed the gates"
        )
    for prompt, reason in sorted(skipped.items())[:5]:
        say(f"no pair for prompt {prompt!r}: {reason}")
    if not rows:
        reason = next(iter(skipped.values()), "there are no candidates")
        raise DataError(f"{cfg.scores}: no pairs mined from {candidates} candidates; first reason: {reason}")
    tables.append(out / TABLE, rows)
    tables.compact(out / TABLE, KEY)
    finish(out, pairs=len(rows), candidates=candidates, axes=axes, skipped=skipped)
    say(f"{len(rows)} pairs from {candidates} candidates, {len(skipped)} prompts without a pair")


NOT_QUALITY = {"audiobox.pc"}
"""Axes that are mined only when they are asked for: more complex is not better."""


def mined_axes(asked: list[str], scores: Scores) -> list[str]:
    """The axes to mine, checked: they exist, and none belongs to a judge."""
    scored = {axis for values in scores.values() for axis in values}
    judges = {axis for scorer in SCORERS.values() if scorer.judge_only for axis in scorer.axes}
    known = [axis for scorer in SCORERS.values() for axis in scorer.axes if axis in scored]
    for axis in asked:
        if axis in judges:
            raise ConfigError(f"the axis {axis!r} belongs to a judge, which is held out of mining")
        if axis not in known:
            raise ConfigError(
                f"no scores on the axis {axis!r}.{closest(axis, known)} Known: {', '.join(known)}."
            )
    axes = asked or [axis for axis in known if axis not in judges | NOT_QUALITY]
    if not axes:
        raise DataError("there are no scores to mine; run `diffdpo score` first")
    return axes


def read_candidates(samples: Samples, scores: Scores, *, gated: bool) -> Iterable[Candidate]:
    """The songs of a folder that have scores; without those that fail a gate."""
    for row in samples.rows():
        values = scores.get(row["sha256"])
        if values is None:
            continue
        faults = {name: values[name] for name in LIMITS if name in values}
        if gated and not passes(faults, {name: LIMITS[name] for name in faults}):
            continue
        yield Candidate(
            prompt_id=row["prompt_id"], group=row["group"], sample_id=row["sample_id"], scores=values
        )
