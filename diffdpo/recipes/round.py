"""Rounds of sample, score, mine and train; then the comparison with where it all began."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from diffdpo.config import (
    Choice,
    EvaluateRun,
    MineRun,
    RoundRun,
    SampleRun,
    ScoreRun,
    TrainRun,
    build_objective,
    check,
)
from diffdpo.data.prompts import check_disjoint, read_prompts
from diffdpo.data.samples import Samples, sample_id
from diffdpo.errors import ConfigError
from diffdpo.evaluation.selection import Decision, RoundResult, decide, round_result
from diffdpo.progress import say
from diffdpo.recipes import evaluate, mine, sample, score, train
from diffdpo.run_dir import Workers, claim, workers
from diffdpo.runs import MANIFEST, METRICS, finish, read_json, read_jsonl, settle
from diffdpo.training.config import FREE_TO_CHANGE


def run(cfg: RoundRun) -> Path:
    _check_prompts(cfg)
    if cfg.train.lora is None and cfg.rounds > 1 and "network" not in cfg.model.args:
        say("full fine-tuning: each round starts from the network of the round before")
    group = workers()
    out = claim(cfg, free=["rounds", *(f"train.{key}" for key in FREE_TO_CHANGE)], group=group)
    models, results, decision = [cfg.model], [], Decision(best=0, stop=False, reason="")
    for number in range(1, cfg.rounds + 1):
        say(f"round {number} of {cfg.rounds}", enabled=group.main)
        folder = out / f"round-{number}"
        models.append(_round(cfg, models[-1], folder, number))
        results.append(_result(cfg, models[-1], out, folder))
        decision = decide(results, cfg.stop)
        if decision.stop:
            say(f"stopped; {decision.reason}", enabled=group.main)
            break
    if decision.best == 0:
        say(
            "no round kept the rule: the model stays what it was; the report shows the last round",
            enabled=group.main,
        )
    shown = decision.best or len(results)
    _report(cfg, models[shown], out, out / f"round-{shown}", group)
    if group.main:
        best = models[decision.best]
        finish(
            out,
            rounds=len(results),
            best=decision.best,
            stopped=decision.reason,
            results=[asdict(result) for result in results],
            model={"name": best.name, **best.args},
        )
    return out


def _check_prompts(cfg: RoundRun) -> None:
    """Prompts to mine, to choose by and to evaluate on are disjoint groups."""
    mining, evaluation = read_prompts(cfg.mining_prompts), read_prompts(cfg.evaluation_prompts)
    check_disjoint(mining, evaluation)
    if cfg.validation_prompts:
        validation = read_prompts(cfg.validation_prompts)
        check_disjoint(mining, validation)
        check_disjoint(validation, evaluation)


def _result(cfg: RoundRun, model: Choice, out: Path, folder: Path) -> RoundResult:
    """What a round came to: on validation prompts if there are some, and by the winners' error in training."""
    metrics = [row for _, row in read_jsonl(folder / "train" / METRICS)]
    if not cfg.validation_prompts:
        return round_result([], metrics)
    seed, count = cfg.seed + 1, cfg.evaluation_samples
    before, after = (
        _sample(cfg, which, where, cfg.validation_prompts, count, seed=seed)
        for which, where in ((cfg.model, out / "validation"), (model, folder / "validation"))
    )
    scores = out / "scores"
    score.run(ScoreRun(samples=[str(before), str(after)], out=str(scores), scorers=cfg.scorers))
    mined = read_json(folder / "pairs" / MANIFEST)["axes"]
    return round_result(evaluate.compare(before, after, scores, mined), metrics)


def _report(cfg: RoundRun, model: Choice, out: Path, folder: Path, group: Workers) -> None:
    """The comparison with where it all began, on prompts nothing was chosen by."""
    before, after = (
        _sample(cfg, which, where, cfg.evaluation_prompts, cfg.evaluation_samples, seed=cfg.seed)
        for which, where in ((cfg.model, out / "baseline"), (model, folder / "aligned"))
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


def _round(cfg: RoundRun, model: Choice, folder: Path, number: int) -> Choice:
    """One round from a model to the next."""
    scores, pairs = folder.parent / "scores", folder / "pairs"
    seed = cfg.seed + 1000 * number  # other songs than the evaluation's, and than any other round's
    songs = _sample(cfg, model, folder / "candidates", cfg.mining_prompts, cfg.candidates, seed=seed)
    score.run(
        ScoreRun(
            samples=[str(songs)],
            out=str(scores),
            scorers=cfg.scorers,
            window_s=cfg.window_s,
            hop_s=cfg.hop_s,
        )
    )
    kind = build_objective(cfg.objective).batch_kind
    mine.run(
        MineRun(
            samples=[str(songs)],
            scores=str(scores),
            out=str(pairs),
            axes=cfg.axes,
            rule=cfg.rule,
            pairs=kind == "pair",
            weights=cfg.weights,
            soft_label_temperature=cfg.soft_label_temperature,
            max_pairs=cfg.max_pairs,
            spans=cfg.spans,
        )
    )
    training = TrainRun(
        out=str(folder / "train"),
        model=model,
        data=replace(cfg.data, pairs=str(pairs)) if kind == "pair" else replace(cfg.data, ratings=str(pairs)),
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
