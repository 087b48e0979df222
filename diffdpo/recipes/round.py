"""The verb `round`: rounds of sample, score, mine and train; then the comparison with the first model."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from diffdpo.checks import check_range, check_seed
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.data.prompts import read_edits, read_prompts
from diffdpo.data.refresh import prompt_inputs
from diffdpo.errors import ConfigError
from diffdpo.evaluation.selection import Decision, StopRule, decide
from diffdpo.inputs import digest
from diffdpo.models.adapter_config import ALWAYS, check_interval
from diffdpo.parts import build_objective, model_digest
from diffdpo.progress import log
from diffdpo.recipes import evaluate, mine, train
from diffdpo.recipes.evaluate import EvaluateRun
from diffdpo.recipes.mine import MineRun
from diffdpo.recipes.next_model import next_model
from diffdpo.recipes.rollouts import RolloutConfig, RolloutQueue, rollout_queue
from diffdpo.recipes.round_songs import (
    has_plain_candidates,
    mining_scorers,
    sample_long_song,
    sample_songs,
    score_folders,
)
from diffdpo.recipes.round_validation import check_prompts, first_model, log_result, validate_round
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.recipes.train import TrainRun
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv, dist_env, open_run
from diffdpo.runs import finish, read_json
from diffdpo.search.config import SearchConfig
from diffdpo.training.config import FREE_TO_CHANGE, result_folder

OBJECTIVE_ARGS = {"beta": 500.0, "timestep": {"weight": "clipped_elbo"}, "safeguard": {"mu": 0.5}}
"""Arguments of the default objective: those that came nearest to a known optimum (docs/theory/objectives.md)."""
ROUND_KEYS: dict[str, tuple[str, ...]] = {
    "sample": ("out", "prompts", "model", "per_prompt", "seed", "search"),
    "score": ("out", "samples", "per_prompt"),
    "mine": ("out", "samples", "scores", "pairs"),
    "train": ("out", "model", "seed"),
    "evaluate": (
        "out",
        "baseline",
        "aligned",
        "scores",
        "pairs",
        "training",
        "candidates",
        "command",
        "license",
    ),
}
"""The keys of each stage's configuration that the round sets itself."""

FREE_TO_EVALUATE = ("require_pass", "frontier", "drift", "drift_limit", "diversity")
"""Keys of the evaluation that may change when a run goes on: the report is always made anew."""

STAGES: dict[str, Callable[[], Any]] = {
    "sample": lambda: SampleRun(out="", prompts=""),
    "score": lambda: ScoreRun(samples=[], out=""),
    "mine": lambda: MineRun(samples=[], scores="", out=""),
    "train": lambda: TrainRun(out="", objective=Choice("dpo", deepcopy(OBJECTIVE_ARGS))),
    "evaluate": lambda: EvaluateRun(baseline="", aligned="", scores="", out=""),
}
"""The default configuration of each stage."""


@dataclass
class RoundRun:
    """Sample, score, mine, train, and evaluate against where the round began; each stage by its own
    configuration."""

    out: str = field(default=MISSING, metadata=PATH)
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    start: str = field(default="", metadata=PATH)
    """A finished run of `round`, from whose best model this one starts. It is the reference of what is trained, and
    the report compares with it, as in the second stage of MusicRL-RU (Cideron et al. 2024, arXiv 2402.04229)."""
    mining_prompts: str = field(default=MISSING, metadata=INPUT_FILE)
    evaluation_prompts: str = field(default=MISSING, metadata=INPUT_FILE)
    validation_prompts: str = field(default="", metadata=INPUT_FILE)
    """Prompts that decide which round is best, neither mined nor evaluated on. Without them the newest round within
    the rule about winners' errors is the best."""
    candidates: int = 6
    """Songs sampled for each mining prompt."""
    judge_candidates: int = 0
    """How many of them all of `score.scorers` score; 0: all. The others get the scores of `mine.axes` alone: what
    judges say of candidates, which takes most of the time, only serves to tell what choosing gains."""
    search: SearchConfig | None = None
    """How the songs of the mining prompts are searched for; all songs of a search are candidates. Without it
    `candidates` plain songs are sampled."""
    evaluation_samples: int = 2
    """Songs sampled for each evaluation prompt, by each model, with the same seeds."""
    rounds: int = 1
    """Each round samples from, and is referenced to, the model of the round before."""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    """Whether the songs of a round are made while the round before is trained."""
    stop: StopRule = field(default_factory=StopRule)
    """What ends rounds early. The best round's model is kept, not the last one's."""
    sample: SampleRun = field(default_factory=STAGES["sample"])
    """How songs are sampled: sampling, longform. The round sets out, prompts, model, per_prompt and seed."""
    score: ScoreRun = field(default_factory=STAGES["score"])
    """Which scorers, and windows for spans. The round sets samples, per_prompt and out."""
    mine: MineRun = field(default_factory=STAGES["mine"])
    """Rule, axes, weights, soft labels, spans. The round sets samples, scores, out and pairs."""
    train: TrainRun = field(default_factory=STAGES["train"])
    """Objective, data, and how to train. The round sets out, model, seed and the folders of data."""
    evaluate: EvaluateRun = field(default_factory=STAGES["evaluate"])
    """The report: listen, judges, drift, frontier, require_pass. The round sets folders, long_song and license."""
    license: str = ""
    """Of the weights, and so of the songs."""
    adapter_strength: float = 1.0
    """Factor on each round's adapter after training. More than 1 goes further in the direction that was learnt
    (ExPO, arXiv 2404.16792); less than 1 stays nearer to the model before."""
    adapter_interval: list[float] = field(default_factory=lambda: list(ALWAYS))
    """Times t at which the adapter acts when songs are sampled from the aligned model, both ends included: 0 is the
    song, 1 noise. [0, 0.9] leaves to the base the first step, where songs of one prompt part ways: more
    diversity, less gain. For a single round: the next one would train on a network for all t."""
    seed: int = 0
    long_song_s: float = 0.0
    """Length of one more song, sampled from the aligned model at the end; 0 for none."""
    long_song_prompt: str = ""

    def __post_init__(self) -> None:
        check_range(self, "candidates", low=2)
        check_range(self, "evaluation_samples", "rounds", low=1)
        check_range(self, "long_song_s", "judge_candidates", low=0)
        check_range(self, "adapter_strength", above=0)
        check_interval(self.adapter_interval, "adapter_interval")
        check_seed(self, "seed")
        for stage, names in ROUND_KEYS.items():
            default, cfg = STAGES[stage](), getattr(self, stage)
            for name in names:
                if getattr(cfg, name) != getattr(default, name):
                    raise ValueError(f"{stage}.{name} is set by the round itself; leave it out")

    def check_parts(self) -> None:
        """ConfigError for a part of a stage, or an argument, that does not exist, before anything is loaded."""
        if self.adapter_strength != 1 and self.train.train.lora is None:
            raise ConfigError("adapter_strength scales an adapter; set train.train.lora, or leave it out")
        if tuple(self.adapter_interval) != ALWAYS:
            check_timed(self)
        replace(self.sample, model=self.model).check_parts()
        self.score.check_parts()
        if self.judge_candidates:
            mining_scorers(self)
        if self.search is not None:
            replace(self.sample, model=self.model, search=self.search).check_parts()
        self.mine.check_parts()
        self.evaluate.check_parts()
        replace(self.train, model=self.model).check_parts()


def check_timed(cfg: RoundRun) -> None:
    """ConfigError where an adapter cannot act at some times t alone."""
    lora = cfg.train.train.lora
    if lora is None:
        raise ConfigError("adapter_interval is of an adapter; set train.train.lora, or leave it out")
    if cfg.rounds > 1:
        raise ConfigError(
            "adapter_interval: a next round trains one network for all t; set rounds=1, or leave it out"
        )
    if lora.peft.get("use_dora") and cfg.adapter_strength != 1:
        raise ConfigError(
            "adapter_interval: a DoRA in an interval has strength 1; leave adapter_strength out"
        )


def run(cfg: RoundRun) -> Path:
    """Run the rounds that are not complete yet, and write the report."""
    cfg = replace(cfg, model=first_model(cfg))
    check_prompts(cfg)
    if cfg.train.train.lora is None and cfg.rounds > 1 and "network" not in cfg.model.args:
        log("full fine-tuning: each round starts from the network of the round before")
    dist = dist_env()
    evaluate.warn_of_judges(cfg.evaluate.judges, visible=dist.main)
    free = [
        "rounds",
        "judge_candidates",
        "sample.executor",
        "score.executor",
        "score.batch",
        *(f"evaluate.{key}" for key in FREE_TO_EVALUATE),
        *(f"train.train.{key}" for key in FREE_TO_CHANGE if key != "steps"),
    ]
    mining = prompt_inputs(
        read_prompts(cfg.mining_prompts, cfg.sample.songs), read_edits(cfg.mining_prompts), ""
    )
    inputs = {"mining prompts": digest(mining), "model": model_digest(cfg.model)}
    with open_run(cfg, free=free, inputs=inputs, dist=dist) as out, rollout_queue(cfg, dist) as queue:
        _run_rounds(cfg, out, dist, queue)
    if cfg.evaluate.require_pass:
        evaluate.check_passed(out / "report")
    return out


def _run_rounds(cfg: RoundRun, out: Path, dist: DistEnv, queue: RolloutQueue) -> None:
    models, results, decision = [cfg.model], [], Decision(best=0, stop=False, reason="")
    for number in range(1, cfg.rounds + 1):
        log(f"round {number} of {cfg.rounds}", visible=dist.main)
        folder = out / f"round-{number}"
        models.append(_round(cfg, models, folder, number, queue))
        results.append(validate_round(cfg, models[-1], out, folder))
        log_result(number, results[-1], visible=dist.main)
        decision = decide(results, cfg.stop)
        if decision.stop:
            log(f"stopped; {decision.reason}", visible=dist.main)
            break
    if decision.best == 0:
        log(
            "no round kept the rule: the model stays what it was; the report shows the last round",
            visible=dist.main,
        )
    report_round = decision.best or len(results)
    _report(cfg, models[report_round], out, out / f"round-{report_round}", dist)
    if dist.main:
        best = models[decision.best]
        finish(
            out,
            rounds=len(results),
            best=decision.best,
            stopped=decision.reason,
            results=[asdict(result) for result in results],
            model={"name": best.name, **best.args},
            verdict=read_json(out / "report" / "report.json")["verdict"],
        )


def _report(cfg: RoundRun, model: Choice, out: Path, folder: Path, dist: DistEnv) -> None:
    """Compare a round's model with the first model, on prompts that decided nothing."""
    baseline, aligned = (
        sample_songs(cfg, choice, target, cfg.evaluation_prompts, cfg.evaluation_samples, seed=cfg.seed)
        for choice, target in ((cfg.model, out / "baseline"), (model, folder / "aligned"))
    )
    score_folders(cfg, [baseline, aligned], out / "scores")
    song = sample_long_song(cfg, model, out, dist)
    frontier = out / evaluate.FRONTIER
    evaluate.run(
        replace(
            cfg.evaluate,
            baseline=str(baseline),
            aligned=str(aligned),
            scores=str(out / "scores"),
            out=str(out / "report"),
            pairs=str(folder / "pairs"),
            training=str(folder / "train"),
            candidates=str(out / "round-1" / "candidates") if has_plain_candidates(cfg.search) else "",
            frontier=cfg.evaluate.frontier or (str(frontier) if frontier.is_file() else ""),
            long_song=str(song or ""),
            long_song_caption=f"{cfg.long_song_s:g} s, aligned model: {cfg.long_song_prompt}" if song else "",
            command=f"diffdpo round {out / 'config.yaml'}",
            license=cfg.license,
            require_pass=False,  # not before the round is complete
        )
    )


def _round(cfg: RoundRun, models: list[Choice], folder: Path, number: int, queue: RolloutQueue) -> Choice:
    """One round: from the newest model to the model after training on its own songs, or on those of a model before
    it."""
    model, scores, pairs = models[-1], folder.parent / "scores", folder / "pairs"
    songs = queue.songs(number, models)
    kind = build_objective(cfg.train.objective).batch_kind
    mine.run(
        replace(cfg.mine, samples=[str(songs)], scores=str(scores), out=str(pairs), pairs=kind == "pair")
    )
    data = cfg.train.data
    training = replace(
        cfg.train,
        out=str(folder / "train"),
        model=model,
        data=replace(data, pairs=str(pairs)) if kind == "pair" else replace(data, ratings=str(pairs)),
        seed=cfg.seed,
    )
    queue.begin(number, models)
    train.run(training)
    queue.wait()
    lora = training.train.lora is not None
    return next_model(
        model,
        result_folder(folder / "train"),
        lora=lora,
        strength=cfg.adapter_strength,
        interval=cfg.adapter_interval,
    )
