"""The verb `evaluate`: two samples folders to a report of paired effects, with songs to listen to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from diffdpo import audio
from diffdpo.checks import check_range
from diffdpo.config import to_yaml
from diffdpo.config_paths import PATH
from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS
from diffdpo.data.ratings import RATINGS
from diffdpo.data.refresh import prompt_inputs
from diffdpo.data.samples import Samples, open_samples
from diffdpo.data.song_scores import Scores, join_scores, read_scores
from diffdpo.errors import DataError, NotPassedError
from diffdpo.evaluation.effects import (
    AxisEffect,
    PairedSample,
    effects,
    pair_rows,
    standardised_change,
    verdict,
)
from diffdpo.evaluation.evidence import gather_evidence
from diffdpo.evaluation.verdict import VerdictLimits, reach_verdict
from diffdpo.evaluation.witness_report import shipped_bands, witness_report
from diffdpo.mining import Candidate
from diffdpo.progress import log
from diffdpo.recipes.model_evidence import measure_evidence
from diffdpo.report.page import Comparison, Report, write_report
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
from diffdpo.scorers.axes import check_axis_names, diagnosis_axes
from diffdpo.text_files import read_jsonl, read_text
from diffdpo.types import Prompt


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
    drift_limit: float = 50.0
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
    """Pairs of songs with players in the report: those with the worst change."""
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
        """ConfigError for an axis that does not exist, before anything is read."""
        check_axis_names(self.mined_axes, "mined_axes")
        check_axis_names(self.judges, "judges")


def run(cfg: EvaluateRun) -> Path:
    """Compare two folders of samples and write the report."""
    check_inputs(samples=[cfg.baseline, cfg.aligned], scores=cfg.scores, pairs=cfg.pairs)
    dist, out = dist_env(), Path(cfg.out)
    with open_folder(out, dist):
        if dist.main:
            _evaluate(cfg, out)
        dist.barrier()
    if cfg.require_pass:
        check_passed(out)
    return out


def check_passed(folder: Path) -> None:
    """NotPassedError with the reasons unless the verdict of a report is passed."""
    verdict = read_json(folder / "report.json")["verdict"]
    if not verdict["passed"]:
        raise NotPassedError(f"{folder}: the verdict is not passed: {'; '.join(verdict['reasons'])}")


def _evaluate(cfg: EvaluateRun, out: Path) -> None:
    baseline, aligned = open_samples(cfg.baseline), open_samples(cfg.aligned)
    scores = read_scores(Path(cfg.scores))
    mining = read_json(Path(cfg.pairs) / MANIFEST) if cfg.pairs else {}
    mined_axes = cfg.mined_axes or mining.get("axes", [])
    check_axis_names(cfg.mined_axes, "mined_axes")
    for axis in cfg.mined_axes:
        if axis not in scores.axes:
            raise DataError(f"{cfg.scores}: no scores on the mined axis {axis!r}; score its scorer first")
    _check_not_mined(cfg, baseline)
    pairs = _pair_samples(baseline, aligned, scores)
    axes = [axis for scorer in SCORERS.values() for axis in scorer.axes]
    axis_effects = effects(pairs, mined_axes, axes, diagnosis_axes(axes, cfg.judges))
    _check_judges(cfg, axis_effects)
    sentence = verdict(axis_effects)
    bands = shipped_bands()
    models = measure_evidence(baseline, aligned, pairs, axis_effects, cfg.drift, diversity=cfg.diversity)
    evidence = gather_evidence(
        pairs, axis_effects, metrics=_training_rows(cfg), bands=bands, **vars(models)
    )  # fmt: skip
    decision = reach_verdict(evidence, VerdictLimits(drift_kl=cfg.drift_limit * _mean_seconds(aligned)))
    witnesses = witness_report(pairs, mined_axes, _candidates(cfg, scores), bands)
    result = {
        "verdict": {"sentence": sentence, **asdict(decision)},
        "witnesses": asdict(witnesses) if witnesses is not None else None,
        "axes": [asdict(axis) | {"direction": axis.effect.direction} for axis in axis_effects],
        "samples": [asdict(pair) | {"change": standardised_change(pair, axis_effects)} for pair in pairs],
        "mining": mining,
        "versions": versions(),
    }
    write_json(out / "report.json", result)
    atomic_write(out / CONFIG, to_yaml(cfg))
    write_report(out / "report.html", _report(cfg, baseline, aligned, pairs, axis_effects, mining))
    finish(out, samples=len(pairs), prompts=len({pair.group for pair in pairs}))
    for line in (sentence, *(witnesses.lines if witnesses is not None else ()), decision.text):
        log(line)
    log(f"report: {out / 'report.html'}")


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


def _candidates(cfg: EvaluateRun, scores: Scores) -> list[Candidate]:
    """The stored candidates of the model before, with their scores."""
    if not cfg.candidates:
        return []
    samples = open_samples(cfg.candidates)
    values = join_scores(scores, samples, samples.prompts()).by_song()
    return [
        Candidate(
            prompt_id=row.prompt_id, group=row.group, sample_id=row.sample_id, scores=values[row.sample_id]
        )
        for row in samples.rows()
        if row.sample_id in values
    ]


def _training_rows(cfg: EvaluateRun) -> list[dict[str, Any]]:
    """The metrics of the training, if its folder is given."""
    if not cfg.training:
        return []
    return [row for _, row in read_jsonl(Path(cfg.training) / METRICS, non_finite=True)]


def _check_not_mined(cfg: EvaluateRun, samples: Samples) -> None:
    """DataError if a prompt group of the samples was mined: the comparison would prove nothing."""
    if not cfg.pairs:
        return
    folder = Path(cfg.pairs)
    mined_groups = {
        group for spec in (PAIRS, RATINGS) for (group,) in tables.read_distinct(folder, spec, ("group",))
    }
    overlap = sorted(mined_groups & {row.group for row in samples.rows()})
    if overlap:
        raise DataError(
            f"{cfg.baseline}: the prompt group {overlap[0]!r} was mined for training; evaluate on other prompts"
        )


def compare(baseline: Path, aligned: Path, scores: Path, mined_axes: Sequence[str]) -> list[AxisEffect]:
    """The effects of a comparison, without a report."""
    pairs = _pair_samples(open_samples(baseline), open_samples(aligned), read_scores(scores))
    axes = [axis for scorer in SCORERS.values() for axis in scorer.axes]
    return effects(pairs, mined_axes, axes, diagnosis_axes(axes))


def _pair_samples(baseline: Samples, aligned: Samples, scores: Scores) -> list[PairedSample]:
    rows = pair_rows(baseline.rows(), aligned.rows())
    contents = [prompt_inputs(side.prompts(), {}, "") for side in (baseline, aligned)]
    for song, _ in rows:
        if contents[0].get(song.prompt_id) != contents[1].get(song.prompt_id):
            raise DataError(
                f"{aligned.folder}: the prompt {song.prompt_id!r} is another than in {baseline.folder}; sample "
                "both models with the same prompts"
            )
    values = [join_scores(scores, side, side.prompts()).by_song() for side in (baseline, aligned)]
    missing_ids = [song.sample_id for song, _ in rows for side in values if song.sample_id not in side]
    if missing_ids:
        raise DataError(
            f"{missing_ids[0]} and {len(missing_ids) - 1} more songs have no scores; run `diffdpo score` first"
        )
    return [
        PairedSample(
            sample_id=song.sample_id,
            prompt_id=song.prompt_id,
            group=song.group,
            baseline=values[0][song.sample_id],
            aligned=values[1][song.sample_id],
        )
        for song, _ in rows
    ]


def _report(
    cfg: EvaluateRun,
    baseline: Samples,
    aligned: Samples,
    pairs: Sequence[PairedSample],
    axis_effects: Sequence[AxisEffect],
    mining: Mapping[str, Any],
) -> Report:
    """The content of the report: effects, songs with the worst change first, and key numbers."""
    prompts = {prompt.id: prompt for prompt in baseline.prompts()}
    worst_pairs = sorted(pairs, key=lambda pair: standardised_change(pair, axis_effects))[: cfg.listen]
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
        comparisons=[
            _comparison(pair, baseline, aligned, prompts[pair.prompt_id], axis_effects)
            for pair in worst_pairs
        ],
        listen=cfg.listen,
        long_song=audio.read(cfg.long_song) if cfg.long_song else None,
        long_song_caption=cfg.long_song_caption,
        training=training,
        mining={"Candidates": str(mining["candidates"]), "Axes": ", ".join(mining["axes"])} if mining else {},
        unpaired_prompts=mining.get("skipped", {}),
        config_yaml=_config_yaml(cfg),
        versions=versions(),
        command=cfg.command or f"diffdpo evaluate {cfg.out}/{CONFIG}",
        license=cfg.license,
    )


def _comparison(
    pair: PairedSample,
    baseline: Samples,
    aligned: Samples,
    prompt: Prompt,
    axis_effects: Sequence[AxisEffect],
) -> Comparison:
    return Comparison(
        prompt_id=pair.prompt_id,
        prompt_text=prompt.text or str(prompt.style_audio or prompt.id),
        sample_id=pair.sample_id,
        baseline=audio.read(baseline.audio(pair.sample_id)),
        aligned=audio.read(aligned.audio(pair.sample_id)),
        baseline_scores=pair.baseline,
        aligned_scores=pair.aligned,
        standardised_change=standardised_change(pair, axis_effects),
    )


def _config_yaml(cfg: EvaluateRun) -> str:
    """The configuration of the training if its folder is given; else that of the comparison."""
    path = Path(cfg.training) / CONFIG
    return read_text(path) if cfg.training and path.is_file() else to_yaml(cfg)
