"""The verb `evaluate`: two samples folders to a report of paired effects, with songs to listen to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from diffdpo import audio
from diffdpo.checks import check_range
from diffdpo.config import to_yaml
from diffdpo.config_paths import PATH
from diffdpo.data.samples import Samples, open_samples
from diffdpo.data.song_scores import read_scores
from diffdpo.errors import DataError, NotPassedError
from diffdpo.evaluation.band import Band
from diffdpo.evaluation.composites import ALL_TRAITS
from diffdpo.evaluation.effects import (
    AxisEffect,
    PairedSample,
    effects,
    standardised_change,
    verdict,
)
from diffdpo.evaluation.evidence import gather_evidence
from diffdpo.evaluation.verdict import VerdictLimits, reach_verdict
from diffdpo.evaluation.witness_report import (
    fault_line,
    judge_songs,
    shipped_bands,
    witness_faults,
    witness_report,
)
from diffdpo.progress import log
from diffdpo.recipes.paired_songs import (
    check_not_mined,
    chosen_comparisons,
    pair_samples,
    stored_candidates,
)
from diffdpo.report.frontier import FrontierPoint, read_frontier
from diffdpo.report.page import MINED_MEAN, Comparison, Report, write_report
from diffdpo.run_dir import check_inputs, dist_env, open_folder
from diffdpo.runs import (
    CONFIG,
    MANIFEST,
    METRICS,
    atomic_write,
    finish,
    read_json,
    versions,
    write_json,
)
from diffdpo.scorers import SCORERS
from diffdpo.scorers.axes import axis_traits, check_axis_names, check_judges, diagnosis_axes, unproven_judges
from diffdpo.text_files import read_jsonl, read_text

FRONTIER = "frontier.json"
"""The file of a frontier beside a report or in a round's folder."""


@dataclass
class EvaluateRun:
    """Paired comparison of two models: same prompts, same seeds."""

    baseline: str = field(default=MISSING, metadata=PATH)
    """Samples of the model before."""
    aligned: str = field(default=MISSING, metadata=PATH)
    """Samples of the model after."""
    scores: str = field(default=MISSING, metadata=PATH)
    out: str = field(default=MISSING, metadata=PATH)
    mined_axes: list[str] = field(default_factory=list)
    """Axes that were optimised; all others in the scores are judges or diagnoses. Empty: those of the manifest of
    `pairs`."""
    judges: list[str] = field(default_factory=list)
    """Held-out axes that the verdict depends on. Empty: those that were shown to be valid."""
    drift: int = 8
    """Prompts of which one song each measures the drift from the model before, and the error of winners that were
    not trained on; both models are loaded for it. 0: neither is measured."""
    drift_limit: float = 80.0
    """Largest drift of a model that passes, in nats a second of song, fixed by four models of the tiny bundle
    (docs/theory/evaluation.md); inf: none."""
    diversity: bool = True
    """Whether the songs are embedded by two networks, to measure how different they are."""
    require_pass: bool = False
    """Exit with code 1 unless the verdict is passed; the report is written all the same."""
    pairs: str = field(default="", metadata=PATH)
    """Folder of the mined pairs: names the mined axes, and evaluation prompts that were mined are refused."""
    training: str = field(default="", metadata=PATH)
    """Run directory whose curves the report shows."""
    candidates: str = field(default="", metadata=PATH)
    """Scored songs of the model before, several a prompt: the report names the best-of-N that gains as much."""
    listen: int = 6
    """Pairs of songs with players in the report: a third each those with the worst, median and best change."""
    frontier: str = field(default="", metadata=PATH)
    """File of `tools/bench_frontier.py`, whose points the report draws beside this model. Empty: `frontier.json` in
    `out`, if it is there."""
    long_song: str = field(default="", metadata=PATH)
    """Audio file of one more song for the report."""
    long_song_caption: str = ""
    command: str = ""
    """The command that the report names for making the comparison again; empty: `diffdpo evaluate` on `out`."""
    license: str = ""
    """Of the weights, and so of the songs."""

    def __post_init__(self) -> None:
        check_range(self, "listen", "drift", low=0)
        check_range(self, "drift_limit", low=0, high=math.inf)

    def check_parts(self) -> None:
        """Errors for an axis that does not exist and for a frontier that is none, before any work."""
        check_axis_names(self.mined_axes, "mined_axes")
        check_judges(self.judges)
        if self.frontier:
            read_frontier(Path(self.frontier))


def run(cfg: EvaluateRun) -> Path:
    """Compare two folders of samples and write the report."""
    check_inputs(samples=[cfg.baseline, cfg.aligned], scores=cfg.scores, pairs=cfg.pairs)
    dist, out = dist_env(), Path(cfg.out)
    warn_of_judges(cfg.judges, visible=dist.main)
    with open_folder(out, dist):
        if dist.main:
            _evaluate(cfg, out)
        dist.barrier()
    if cfg.require_pass:
        check_passed(out)
    return out


def warn_of_judges(judges: Sequence[str], *, visible: bool = True) -> None:
    """One line of warning if a verdict depends on axes that are not shown to be valid."""
    if axes := unproven_judges(judges):
        log(
            f"WARNING: the verdict depends on {', '.join(axes)}, not shown to be valid on generated songs; leave "
            "judges empty, or look at `diffdpo audit`",
            visible=visible,
        )


def check_passed(folder: Path) -> None:
    """NotPassedError with the reasons unless the verdict of a report is passed."""
    verdict = read_json(folder / "report.json")["verdict"]
    if not verdict["passed"]:
        raise NotPassedError(f"{folder}: the verdict is not passed: {'; '.join(verdict['reasons'])}")


def _evaluate(cfg: EvaluateRun, out: Path) -> None:
    from diffdpo.recipes.model_evidence import measure_evidence  # loads models, which a dry run does not

    baseline, aligned = open_samples(cfg.baseline), open_samples(cfg.aligned)
    scores = read_scores(Path(cfg.scores))
    mining = read_json(Path(cfg.pairs) / MANIFEST) if cfg.pairs else {}
    mined_axes = cfg.mined_axes or mining.get("axes", [])
    check_axis_names(cfg.mined_axes, "mined_axes")
    for axis in cfg.mined_axes:
        if axis not in scores.axes:
            raise DataError(f"{cfg.scores}: no scores on the mined axis {axis!r}; score its scorer first")
    check_not_mined(cfg.pairs, baseline)
    frontier = _frontier(cfg)
    pairs = pair_samples(baseline, aligned, scores)
    axes = [axis for scorer in SCORERS.values() for axis in scorer.axes]
    axis_effects = effects(pairs, mined_axes, axes, diagnosis_axes(axes, cfg.judges, mined_axes))
    _check_judges(cfg, axis_effects)
    sentence = verdict(axis_effects)
    bands = shipped_bands()
    models = measure_evidence(baseline, aligned, pairs, axis_effects, cfg.drift, diversity=cfg.diversity)
    evidence = gather_evidence(
        pairs, axis_effects, metrics=_training_rows(cfg), bands=bands, **vars(models)
    )  # fmt: skip
    decision = reach_verdict(evidence, VerdictLimits(drift_kl=cfg.drift_limit * _mean_seconds(aligned)))
    candidates = stored_candidates(cfg.candidates, scores)
    witnesses = witness_report(pairs, mined_axes, candidates, bands, judge_songs())
    mean_changes = [standardised_change(pair, axis_effects) for pair in pairs]
    changes = witnesses.gains if witnesses is not None else mean_changes
    result = {
        "verdict": {"sentence": sentence, **asdict(decision)},
        "witnesses": asdict(witnesses) if witnesses is not None else None,
        "axes": [_axis_row(axis, bands) for axis in axis_effects],
        "samples": [
            asdict(pair) | {"change": change} for pair, change in zip(pairs, mean_changes, strict=True)
        ],
        "mining": mining,
        "versions": versions(),
    }
    write_json(out / "report.json", result)
    atomic_write(out / CONFIG, to_yaml(cfg))
    comparisons = chosen_comparisons(pairs, changes, baseline, aligned, cfg.listen)
    report = replace(
        _report(cfg, pairs, axis_effects, comparisons, mining),
        verdict=decision,
        witnesses=witnesses,
        bands=bands,
        frontier=frontier,
        change_name=ALL_TRAITS if witnesses is not None else MINED_MEAN,
    )
    write_report(out / "report.html", report)
    finish(out, samples=len(pairs), prompts=len({pair.group for pair in pairs}))
    absence = fault_line(witness_faults(pairs, mined_axes))
    for line in (sentence, *(witnesses.lines if witnesses is not None else ()), absence, decision.text):
        if line:
            log(line)
    log(f"report: {out / 'report.html'}")


def _axis_row(axis: AxisEffect, bands: Mapping[str, Band]) -> dict[str, Any]:
    """The numbers of an axis, with its trait and the band of real songs where it has them."""
    band = bands.get(axis.axis)
    return asdict(axis) | {
        "direction": axis.effect.direction,
        "trait": axis_traits().get(axis.axis),
        "band": asdict(band) if band is not None else None,
    }


def _mean_seconds(samples: Samples) -> float:
    """Mean duration of the songs of a folder, at least one second."""
    durations = [row.duration_s for row in samples.rows()]
    return max(1.0, math.fsum(durations) / len(durations))


def _check_judges(cfg: EvaluateRun, axis_effects: Sequence[AxisEffect]) -> None:
    """DataError for a judge of the configuration that was mined or has no scores."""
    judges = [a.axis for a in axis_effects if a.role == "judge"]
    for axis in cfg.judges:
        if axis not in judges:
            raise DataError(f"judges: {axis} was mined or has no scores; score it, or name another judge")


def _training_rows(cfg: EvaluateRun) -> list[dict[str, Any]]:
    """The metrics of the training, if its folder is given."""
    if not cfg.training:
        return []
    return [row for _, row in read_jsonl(Path(cfg.training) / METRICS, non_finite=True)]


def compare(baseline: Path, aligned: Path, scores: Path, mined_axes: Sequence[str]) -> list[AxisEffect]:
    """The effects of a comparison, without a report."""
    pairs = pair_samples(open_samples(baseline), open_samples(aligned), read_scores(scores))
    axes = [axis for scorer in SCORERS.values() for axis in scorer.axes]
    return effects(pairs, mined_axes, axes, diagnosis_axes(axes, mined=mined_axes))


def _report(
    cfg: EvaluateRun,
    pairs: Sequence[PairedSample],
    axis_effects: Sequence[AxisEffect],
    comparisons: Sequence[Comparison],
    mining: Mapping[str, Any],
) -> Report:
    """The content of the report, but for what the witnesses say."""
    training = _training_rows(cfg)
    facts = {"Evaluation prompts": len({pair.group for pair in pairs}), "Songs by each model": len(pairs)}
    if mining:
        facts = {
            "Pairs mined": mining["pairs"],
            "Steps trained": training[-1]["step"] if training else 0,
        } | facts
    return Report(
        title="Before and after alignment",
        facts={label: str(value) for label, value in facts.items()},
        effects=axis_effects,
        comparisons=comparisons,
        long_song=audio.read(cfg.long_song) if cfg.long_song else None,
        long_song_caption=cfg.long_song_caption,
        training=training,
        mining=_mining_facts(mining) if mining else {},
        unpaired_prompts=mining.get("skipped", {}),
        config_yaml=_config_yaml(cfg),
        versions=versions(),
        command=cfg.command or f"diffdpo evaluate {cfg.out}/{CONFIG}",
        license=cfg.license,
    )


def _frontier(cfg: EvaluateRun) -> tuple[FrontierPoint, ...]:
    """The points of the configuration's file, or of the one in `out`; none without either."""
    path = Path(cfg.frontier) if cfg.frontier else Path(cfg.out) / FRONTIER
    return read_frontier(path) if cfg.frontier or path.is_file() else ()


def _mining_facts(mining: Mapping[str, Any]) -> dict[str, str]:
    """What the report says of the mining, by its manifest."""
    facts = {"Candidates": str(mining["candidates"]), "Axes": ", ".join(mining["axes"]) or "none"}
    count = mining.get("pairs_with_real_winners", 0)
    return facts | ({"Pairs with winners of a data set": str(count)} if count else {})


def _config_yaml(cfg: EvaluateRun) -> str:
    """The configuration of the training if its folder is given; else that of the comparison."""
    path = Path(cfg.training) / CONFIG
    return read_text(path) if cfg.training and path.is_file() else to_yaml(cfg)
