"""Rounds of sample, score, mine and train; then the comparison with where it all began."""

import json
from pathlib import Path

from diffdpo.config import (
    Choice,
    DataConfig,
    EvaluateRun,
    MineRun,
    RoundRun,
    SampleRun,
    ScoreRun,
    TrainRun,
    check,
)
from diffdpo.data.prompts import check_disjoint, read_prompts
from diffdpo.data.samples import Samples, sample_id
from diffdpo.errors import ConfigError
from diffdpo.progress import say
from diffdpo.recipes import evaluate, mine, sample, score, train
from diffdpo.recipes.common import Workers, claim, workers
from diffdpo.runs import finish, settle
from diffdpo.training.config import FREE_TO_CHANGE


def run(cfg: RoundRun) -> Path:
    check_disjoint(read_prompts(cfg.mining_prompts), read_prompts(cfg.evaluation_prompts))
    if cfg.train.lora is None and cfg.rounds > 1 and "network" not in cfg.model.args:
        say("full fine-tuning: each round starts from the network of the round before")
    group = workers()
    out = claim(cfg, free=["rounds", *(f"train.{key}" for key in FREE_TO_CHANGE)], group=group)
    model = cfg.model
    for number in range(1, cfg.rounds + 1):
        say(f"round {number} of {cfg.rounds}", enabled=group.main)
        model = _round(cfg, model, out / f"round-{number}", number)
    folder = out / f"round-{cfg.rounds}"
    before = _sample(
        cfg, cfg.model, out / "baseline", cfg.evaluation_prompts, cfg.evaluation_samples, seed=cfg.seed
    )
    after = _sample(
        cfg, model, folder / "aligned", cfg.evaluation_prompts, cfg.evaluation_samples, seed=cfg.seed
    )
    score.run(ScoreRun(samples=[str(before), str(after)], out=str(out / "scores"), scorers=cfg.scorers))
    song = _long_song(cfg, model, out, group)
    evaluate.run(
        EvaluateRun(
            baseline=str(before),
            aligned=str(after),
            scores=str(out / "scores"),
            out=str(out / "report"),
            pairs=str(folder / "pairs"),
            training=str(folder / "train"),
            long_song=str(song or ""),
            long_song_caption=f"{cfg.long_song_s:g} s, aligned model: {cfg.long_song_prompt}" if song else "",
            command=f"diffdpo round {out / 'config.yaml'}",
            licence=cfg.licence,
        )
    )
    if group.main:
        finish(out, rounds=cfg.rounds, model={"name": model.name, **model.args})
    return out


def _round(cfg: RoundRun, model: Choice, folder: Path, number: int) -> Choice:
    """One round from a model to the next."""
    scores, pairs = folder.parent / "scores", folder / "pairs"
    seed = cfg.seed + 1000 * number  # other songs than the evaluation's, and than any other round's
    songs = _sample(cfg, model, folder / "candidates", cfg.mining_prompts, cfg.candidates, seed=seed)
    score.run(ScoreRun(samples=[str(songs)], out=str(scores), scorers=cfg.scorers))
    mine.run(MineRun(samples=[str(songs)], scores=str(scores), out=str(pairs), axes=cfg.axes, rule=cfg.rule))
    training = TrainRun(
        out=str(folder / "train"),
        model=model,
        data=DataConfig(pairs=str(pairs)),
        objective=cfg.objective,
        train=cfg.train,
        seed=cfg.seed,
    )
    check(training)
    train.run(training)
    return next_model(
        model, train.exported(folder / "train", cfg.train.steps), lora=cfg.train.lora is not None
    )


def next_model(model: Choice, export: Path, *, lora: bool) -> Choice:
    """The model after a training run. Adapters of earlier rounds are listed before the new one."""
    if not lora:
        kept = {key: value for key, value in model.args.items() if key != "adapter"}
        return Choice(model.name, {**kept, "network": str(export)})
    earlier = model.args.get("adapter", "")
    adapters = f"{earlier},{export}" if earlier else str(export)
    return Choice(model.name, {**model.args, "adapter": adapters})


def _sample(cfg: RoundRun, model: Choice, out: Path, prompts: str, count: int, *, seed: int) -> Path:
    return sample.run(
        SampleRun(
            out=str(out), prompts=prompts, model=model, sampling=cfg.sampling, per_prompt=count, seed=seed
        )
    )


def _long_song(cfg: RoundRun, model: Choice, out: Path, group: Workers) -> Path | None:
    """One song longer than the clips, from the aligned model."""
    if not cfg.long_song_s:
        return None
    if not cfg.long_song_prompt:
        raise ConfigError("long_song_s is set, but long_song_prompt is empty; say what the song should be")
    prompts, folder = out / "long-song.jsonl", out / "long-song"
    row = {"id": "song", "text": cfg.long_song_prompt, "duration_s": cfg.long_song_s}
    if group.main:
        settle(prompts, json.dumps(row) + "\n")
    group.barrier()
    _sample(cfg, model, folder, str(prompts), 1, seed=cfg.seed)
    return Samples(folder).audio(sample_id("song", 0))
