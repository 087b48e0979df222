"""Scores to preference pairs and ratings."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING

from diffdpo.data import ratings, tables
from diffdpo.data.pairs import KEY, TABLE, pair_row
from diffdpo.data.ratings import Rating, rating_row
from diffdpo.data.samples import Samples, open_samples
from diffdpo.data.scores import Scores, Windows, of_songs, read_scores, read_windows
from diffdpo.errors import ConfigError, DataError
from diffdpo.mining import Rule, SpanConfig, advantages, find_spans, soften, strongest
from diffdpo.parts import build_rule
from diffdpo.progress import say
from diffdpo.registry import Choice, closest
from diffdpo.run_dir import check_inputs, claim, workers
from diffdpo.runs import finish, finished
from diffdpo.scorers import SCORERS
from diffdpo.scorers.gates import LIMITS, passes
from diffdpo.types import Candidate, Pair

Found = list[tuple[Path, Pair]]
"""Pairs, each with the samples folder it comes from."""


@dataclass
class MineRun:
    """Scores to preference pairs, and to ratings of every song for objectives that need no pairs."""

    samples: list[str] = MISSING
    scores: str = MISSING
    out: str = MISSING
    axes: list[str] = field(default_factory=list)
    """Axes to mine; empty: all axes of all scorers that are not judges."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis in ratings, soft labels and spans; axes not named weigh 1."""
    pairs: bool = True
    """Mine pairs; false: ratings only."""
    rule: Choice = field(default_factory=lambda: Choice("best_versus_worst"))
    soft_label_temperature: float = 0.0
    """A pair's probability is sigmoid(margin / this), the margin in standard deviations; 0: all pairs are sure."""
    max_pairs: int = 0
    """Keep so many pairs, those with the widest margins, the axes taking turns; 0: all."""
    spans: SpanConfig | None = None
    """Find the stretches in which the winner is better, from scores of windows; {} with the defaults below."""
    gates: bool = True
    """Leave songs that fail a gate (silence, clipping, NaN) out of the winners and the losers."""

    def __post_init__(self) -> None:
        if not self.soft_label_temperature >= 0:
            raise ValueError(
                f"soft_label_temperature must not be negative, got {self.soft_label_temperature}"
            )
        if self.max_pairs < 0:
            raise ValueError(f"max_pairs must not be negative, got {self.max_pairs}")
        if not all(weight >= 0 for weight in self.weights.values()):
            raise ValueError(
                f"weights must not be negative, got {self.weights}: bigger is better on every axis"
            )


def check(cfg: MineRun) -> None:
    """The parts that are chosen by name, before anything is loaded."""
    build_rule(cfg.rule)


def run(cfg: MineRun) -> Path:
    """Mine pairs and ratings."""
    check_inputs(samples=cfg.samples, scores=cfg.scores)
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
    found: Found = []
    rated: list[tables.Row] = []
    skipped: dict[str, str] = {}
    candidates = 0
    for folder in map(Path, cfg.samples):
        samples = open_samples(folder)
        group = list(read_candidates(samples, scores, gated=cfg.gates))
        candidates += len(group)
        rated += _rate(group, axes, cfg.weights, folder, out)
        if cfg.pairs:
            mined = rule(group, axes)
            found += [(folder, pair) for pair in mined.pairs]
            skipped |= mined.skipped
        without = {prompt.id for prompt in samples.prompts()} - {c.prompt_id for c in group}
        skipped |= dict.fromkeys(sorted(without), "no candidate was sampled, scored and passed the gates")
    _explain(cfg, found, rated, skipped, candidates)
    pairs = _finish_pairs(cfg, found)
    tables.append(out / ratings.TABLE, rated)
    tables.compact(out / ratings.TABLE, ratings.KEY)
    tables.append(out / TABLE, [pair_row(pair, folder, out / TABLE) for folder, pair in pairs])
    tables.compact(out / TABLE, KEY)
    finish(
        out,
        pairs=len(pairs),
        pairs_by_axis=dict(Counter(pair.axis or "several" for _, pair in pairs)),
        pairs_with_spans=sum(bool(pair.spans) for _, pair in pairs),
        ratings=len(rated),
        candidates=candidates,
        axes=axes,
        skipped=skipped,
    )
    say(
        f"{len(pairs)} pairs and {len(rated)} ratings from {candidates} candidates, "
        f"{len(skipped)} prompts without"
    )


def _explain(
    cfg: MineRun, found: Found, rated: list[tables.Row], skipped: dict[str, str], candidates: int
) -> None:
    """Say which prompts gave nothing; DataError when all did."""
    what = "pair" if cfg.pairs else "rating"
    for prompt, reason in sorted(skipped.items())[:5]:
        say(f"no {what} for prompt {prompt!r}: {reason}")
    if not (found if cfg.pairs else rated):
        reason = next(iter(skipped.values()), "no prompt has two candidates with a score on every axis")
        raise DataError(
            f"{cfg.scores}: no {what}s mined from {candidates} candidates; first reason: {reason}"
        )


def _finish_pairs(cfg: MineRun, found: Found) -> Found:
    """The strongest pairs, with their soft labels and spans."""
    kept = strongest([pair for _, pair in found], cfg.max_pairs, cfg.weights)
    labelled = [
        (folder, soften(pair, cfg.soft_label_temperature, cfg.weights))
        for folder, pair in (found[i] for i in kept)
    ]
    return labelled if cfg.spans is None else _with_spans(labelled, cfg.spans, cfg)


def _with_spans(found: Found, config: SpanConfig, cfg: MineRun) -> Found:
    """The pairs, each with the stretches in which its winner leads."""
    sound = {
        (folder, row["sample_id"]): row["sha256"]
        for folder in {folder for folder, _ in found}
        for row in open_samples(folder).rows()
    }
    wanted = {sound[folder, name] for folder, pair in found for name in (pair.winner, pair.loser)}
    windows = read_windows(Path(cfg.scores), wanted)

    def heard(folder: Path, name: str) -> Windows:
        return windows.get(sound[folder, name], {})

    return [
        (
            folder,
            replace(
                pair,
                spans=find_spans(
                    pair, heard(folder, pair.winner), heard(folder, pair.loser), cfg.weights, config
                ),
            ),
        )
        for folder, pair in found
    ]


def _rate(
    group: list[Candidate], axes: list[str], weights: dict[str, float], folder: Path, out: Path
) -> list[tables.Row]:
    """Rows of the ratings table."""
    rating = advantages(group, axes, weights)
    return [
        rating_row(
            Rating(prompt_id=c.prompt_id, group=c.group, sample_id=c.sample_id, rating=rating[c.sample_id]),
            folder,
            out / ratings.TABLE,
        )
        for c in group
        if c.sample_id in rating
    ]


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
    known = of_songs(scores, samples)
    for row in samples.rows():
        values = known.get(row["sample_id"])
        if values is None:
            continue
        faults = {name: values[name] for name in LIMITS if name in values}
        if gated and not passes(faults, {name: LIMITS[name] for name in faults}):
            continue
        yield Candidate(
            prompt_id=row["prompt_id"], group=row["group"], sample_id=row["sample_id"], scores=values
        )
