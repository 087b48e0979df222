"""The songs of a round and their scores: candidates, songs for comparison, and one long song."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdpo.data.samples import Samples, sample_id
from diffdpo.errors import ConfigError
from diffdpo.parts import build_scorers
from diffdpo.recipes import sample, score, search
from diffdpo.recipes.search import SearchRun
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv
from diffdpo.runs import write_if_changed
from diffdpo.search.config import SearchConfig

if TYPE_CHECKING:
    from diffdpo.recipes.round import RoundRun


def sample_candidates(cfg: "RoundRun", model: Choice, out: Path, seed: int) -> Path:
    """The songs that pairs are mined from: plain ones, or all songs of a search."""
    if cfg.search is None:
        return sample_songs(cfg, model, out, cfg.mining_prompts, cfg.candidates, seed=seed)
    run = SearchRun(
        out=str(out), prompts=cfg.mining_prompts, songs=cfg.sample.songs, model=model,
        sampling=cfg.sample.sampling, longform=cfg.sample.longform, search=cfg.search, seed=seed,
        embedding_cache=cfg.sample.embedding_cache,
    )  # fmt: skip
    return search.run(run, free=("model",))


def has_plain_candidates(settings: SearchConfig | None) -> bool:
    """Whether candidates are plain songs, as many for each prompt: only these say what choosing gains."""
    return settings is None or (
        settings.method.name == "best_of_n" and not settings.method.args.get("stop_gain")
    )


def sample_songs(cfg: "RoundRun", model: Choice, out: Path, prompts: str, count: int, *, seed: int) -> Path:
    stage: Any = replace(cfg.sample, out=str(out), prompts=prompts, model=model, per_prompt=count, seed=seed)
    return sample.run(stage, free=("model",))  # songs of another model are made anew


def score_folders(cfg: "RoundRun", samples: Sequence[Path], out: Path) -> None:
    """Scores of some folders, without windows, from which spans are mined of candidates alone."""
    score.run(
        replace(cfg.score, samples=[str(folder) for folder in samples], out=str(out), window_s=0.0, hop_s=0.0)
    )


def score_candidates(cfg: "RoundRun", songs: Path) -> None:
    """Scores of the candidates of a round: of all of them on what is mined, of `judge_candidates` on everything."""
    stage = replace(cfg.score, samples=[str(songs)], out=str(Path(cfg.out) / "scores"))
    score.run(replace(stage, per_prompt=cfg.judge_candidates))
    if cfg.judge_candidates:
        score.run(replace(stage, scorers=mining_scorers(cfg)))


def mining_scorers(cfg: "RoundRun") -> list[Any]:
    """The scorers, as configured, whose axes are mined by name. ConfigError where none is."""
    parts = [build_scorers([entry]) for entry in cfg.score.scorers]
    scorers = [
        entry
        for entry, part in zip(cfg.score.scorers, parts, strict=True)
        if any(set(scorer.axes) & set(cfg.mine.axes) for scorer in part.values())
    ]
    if not scorers:
        raise ConfigError(
            "judge_candidates: name the axes to mine, mine.axes=[…], of scorers that are in score.scorers: the "
            "other songs are scored on these alone"
        )
    return scorers


def sample_long_song(cfg: "RoundRun", model: Choice, out: Path, dist: DistEnv) -> Path | None:
    """One song longer than the clips, from the aligned model."""
    if not cfg.long_song_s:
        return None
    if not cfg.long_song_prompt:
        raise ConfigError("long_song_s is set, but long_song_prompt is empty; say what the song should be")
    prompts, folder = out / "long-song.jsonl", out / "long-song"
    row = {"id": "song", "text": cfg.long_song_prompt, "duration_s": cfg.long_song_s}
    if dist.main:
        write_if_changed(prompts, json.dumps(row) + "\n")
    dist.barrier()
    sample_songs(cfg, model, folder, str(prompts), 1, seed=cfg.seed)
    return Samples(folder).audio(sample_id("song", 0))
