"""What decides between rounds: prompts that are neither mined nor evaluated on, and the first model."""

from pathlib import Path
from typing import TYPE_CHECKING

from diffdpo.data.prompts import check_disjoint, read_prompts
from diffdpo.data.samples import open_samples
from diffdpo.data.song_scores import read_scores
from diffdpo.errors import DataError
from diffdpo.evaluation.selection import RoundResult, round_result
from diffdpo.progress import log
from diffdpo.recipes import evaluate
from diffdpo.recipes.model_evidence import measure_models
from diffdpo.recipes.paired_songs import pair_samples
from diffdpo.recipes.round_songs import sample_songs, score_folders
from diffdpo.registry import Choice
from diffdpo.runs import MANIFEST, METRICS, read_json
from diffdpo.statistics import MIN_CLUSTERS
from diffdpo.text_files import read_jsonl

if TYPE_CHECKING:
    from diffdpo.recipes.round import RoundRun


def first_model(cfg: "RoundRun") -> Choice:
    """The model that the rounds begin with: the configuration's, or the best one of the run that `start` names.

    DataError for a folder that is no finished run of `round`, and for one whose model is another.
    """
    if not cfg.start:
        return cfg.model
    path = Path(cfg.start) / MANIFEST
    if not path.is_file():
        raise DataError(f"{cfg.start}: no finished run of `diffdpo round`; run it first, or leave start out")
    args = dict(read_json(path).get("model") or {})
    name = args.pop("name", None)
    if name is None:
        raise DataError(f"{path}: names no model; start takes a run of `diffdpo round`")
    if name != cfg.model.name:
        raise DataError(
            f"{cfg.start}: its model is {name!r}, this run's is {cfg.model.name!r}; set model={name}"
        )
    return Choice(name, {**cfg.model.args, **args})


def check_prompts(cfg: "RoundRun") -> None:
    """DataError unless prompts for mining, validation and evaluation are of disjoint groups."""
    songs = cfg.sample.songs
    mining, evaluation = (read_prompts(path, songs) for path in (cfg.mining_prompts, cfg.evaluation_prompts))
    check_disjoint(mining, evaluation)
    if cfg.train.train.validation is not None and (path := cfg.train.train.validation.prompts):
        check_disjoint(mining, read_prompts(path))
        check_disjoint(read_prompts(path), evaluation)
    if cfg.validation_prompts:
        validation = read_prompts(cfg.validation_prompts, songs)
        if (count := len({prompt.group for prompt in validation})) < MIN_CLUSTERS:
            log(
                f"{cfg.validation_prompts}: {count} prompts decide nothing, {MIN_CLUSTERS} are needed; the newest "
                "round within the rule is the best"
            )
        check_disjoint(mining, validation)
        check_disjoint(validation, evaluation)


def validate_round(cfg: "RoundRun", model: Choice, out: Path, folder: Path) -> RoundResult:
    """The outcome of a round: on validation prompts if there are some, and by the winners' error in training."""
    metrics = [row for _, row in read_jsonl(folder / "train" / METRICS, non_finite=True)]
    if not cfg.validation_prompts:
        return round_result([], metrics)
    seed, count = cfg.seed + 1, cfg.evaluation_samples
    baseline, aligned = (
        sample_songs(cfg, choice, target, cfg.validation_prompts, count, seed=seed)
        for choice, target in ((cfg.model, out / "validation"), (model, folder / "validation"))
    )
    score_folders(cfg, [baseline, aligned], out / "scores")
    axis_effects = evaluate.compare(
        baseline, aligned, out / "scores", read_json(folder / "pairs" / MANIFEST)["axes"]
    )
    return round_result(axis_effects, metrics, kl=_divergence(cfg, baseline, aligned, out / "scores"))


def _divergence(cfg: "RoundRun", baseline: Path, aligned: Path, scores: Path) -> float | None:
    """KL divergence of a round's model from the first, in nats a second of song; None where it is not measured."""
    if not cfg.evaluate.drift:
        return None
    folders = open_samples(baseline), open_samples(aligned)
    pairs = pair_samples(*folders, read_scores(scores))
    drift = measure_models(*folders, pairs, [], cfg.evaluate.drift).drift
    seconds = [row.duration_s for row in folders[1].rows()]
    return None if drift is None else drift.value / (sum(seconds) / len(seconds))


def log_result(number: int, result: RoundResult, *, visible: bool) -> None:
    """One line about a round: what it gained, and how far it went for it."""
    parts = [] if result.score is None else [f"mined axes {result.score:+.2f} sd on validation prompts"]
    if result.kl is not None:
        parts.append(f"KL {result.kl:.3g} nats a second from the first model")
    if parts:
        log(f"round {number}: {', '.join(parts)}", visible=visible)
