"""The verb `mine`: scores to tables of preference pairs and ratings, by the rules of `diffdpo.mining`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from omegaconf import MISSING

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.data import tables
from diffdpo.data.lineage import data_terms
from diffdpo.data.pairs import PAIRS, pair_columns
from diffdpo.data.ratings import MINED_SOURCE, RATINGS
from diffdpo.data.real_winners import open_winners
from diffdpo.data.samples import relative_folder
from diffdpo.data.scores import read_windows
from diffdpo.data.song_scores import read_scores
from diffdpo.errors import ConfigError, DataError
from diffdpo.inputs import read_inputs, write_inputs
from diffdpo.mining import (
    Candidates,
    MiningResult,
    Pair,
    RealVersusSample,
    Rule,
    finish_pairs,
    mine_candidates,
    uses_real_songs,
    with_spans,
)
from diffdpo.mining.base import check_axes, check_weights
from diffdpo.mining.novelty import NOVELTY
from diffdpo.mining.spans import SpanConfig, WindowScores
from diffdpo.parts import build_extractors, build_rule, build_utility
from diffdpo.progress import log
from diffdpo.recipes.mine_songs import CandidateSource, place_winner, read_folders, song_hashes
from diffdpo.registry import Choice
from diffdpo.run_dir import check_inputs, dist_env, open_run
from diffdpo.runs import MANIFEST, finish, is_finished
from diffdpo.scorers.axes import check_axis_names, mined_axes

FolderPair = tuple[Path, Pair]
"""A pair with the samples folder it comes from."""


@dataclass
class MineRun:
    """Scores to preference pairs, and to ratings of every song for objectives that need no pairs."""

    samples: list[str] = field(default=MISSING, metadata=PATH)
    scores: str = field(default="", metadata=PATH)
    """Folder of `score`. Only the rule real_versus_sample can do without."""
    out: str = field(default=MISSING, metadata=PATH)
    axes: list[str] = field(default_factory=list)
    """Axes to mine; empty: all that have scores, are shown to be valid on generated songs and belong to no judge.
    consonance, tempo, balance, style and Audiobox's complexity are mined only when named here."""
    novelty: list[Any] = field(default_factory=list)
    """Extractors (style, musicnn, clap, …) by which a song unlike the other candidates of its prompt is preferred.
    Each is one more axis, novelty.NAME, and holds against the loss of diversity that training brings."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis in ratings, soft labels and spans; axes not named weigh 1."""
    pairs: bool = True
    """Mine pairs; false: ratings only."""
    rule: Choice = field(default_factory=lambda: Choice("best_versus_worst"))
    utility: Choice = field(default_factory=lambda: Choice("linear"))
    """What more of an axis is worth: linear, or saturating inside the band of real songs. Not that of spans."""
    soft_label_temperature: float = 0.0
    """Soft labels: a pair's probability is sigmoid(margin / temperature), the margin in SD; 0: no soft labels."""
    max_pairs: int = 0
    """Number of pairs to keep, those with the widest margins, the axes in turn; 0: all."""
    spans: SpanConfig | None = None
    """Spans in which the winner is better, from scores of windows; {}: with the defaults below."""
    songs: str = field(default="", metadata=PATH)
    """Folder of `prepare` whose songs win over the answers to their captions: for the rule real_versus_sample."""
    split: str = "train"
    """Split of the songs that win; another for pairs that are validated on."""
    gates: bool = True
    """Whether songs that fail a gate (silence, clipping, NaN) are left out of the pairs and ratings."""

    def __post_init__(self) -> None:
        check_range(self, "soft_label_temperature", "max_pairs", low=0)
        check_weights(self.weights)

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        check_rule_settings(self, build_rule(self.rule))
        build_utility(self.utility, self.axes)
        check_axis_names(self.axes, "axes")
        embedders = build_extractors(self.novelty, "novelty")
        check_axis_names(self.weights, "weights", [NOVELTY + name for name in embedders])


def run(cfg: MineRun) -> Path:
    """Mine pairs and ratings."""
    rule = build_rule(cfg.rule)
    check_rule_settings(cfg, rule)
    if not cfg.scores and not (isinstance(rule, RealVersusSample) and cfg.pairs):
        use = f"rule {cfg.rule.name!r} compares scores" if cfg.pairs else "ratings are made from scores"
        raise ConfigError(f"no value for scores; {use}: add scores=…")
    if not cfg.scores and (cfg.axes or cfg.weights or cfg.novelty):
        raise ConfigError("axes, novelty and weights are about scores; set scores too, or leave them out")
    check_inputs(samples=cfg.samples, scores=cfg.scores, songs=cfg.songs)
    dist = dist_env()
    with open_run(cfg, dist=dist) as out:
        if dist.main:
            _mine(cfg, rule, out)
        dist.barrier()
    return out


def check_rule_settings(cfg: MineRun, rule: Rule) -> None:
    """ConfigError where songs of a data set are missing or of no use, or where they make a setting say nothing."""
    needs_songs, is_real = uses_real_songs(rule), isinstance(rule, RealVersusSample)
    if needs_songs and cfg.pairs and not cfg.songs:
        raise ConfigError(f"rule {cfg.rule.name!r} needs songs that win: set songs to a folder of `prepare`")
    if cfg.songs and not needs_songs:
        raise ConfigError(f"songs: rule {cfg.rule.name!r} pairs no songs of a data set; leave songs out")
    if not is_real or not cfg.pairs:
        return
    for name, value in (
        ("soft_label_temperature", cfg.soft_label_temperature),
        ("max_pairs", cfg.max_pairs),
        ("spans", cfg.spans is not None),
    ):
        if value:
            raise ConfigError(
                f"{name}: songs of a data set win without a margin, which it needs; leave it out"
                + (", or set rule.args.pairs_per_prompt" if name == "max_pairs" else "")
            )


def _mine(cfg: MineRun, rule: Rule, out: Path) -> None:
    """Mine, unless the folder holds pairs of the same songs and scores."""
    source = _open_source(cfg)
    axes, winners = source.all_axes, source.winners
    if is_finished(out):
        if read_inputs(out) == {
            str(songs.folder): songs.digest for songs in read_folders(cfg.samples, source)
        }:
            return
        log(f"{out}: songs or scores changed since these pairs were mined; mining anew")
        (out / MANIFEST).unlink()
    check_axes(cfg.weights, axes, "weights")
    pairs: list[FolderPair] = []
    parts: list[pa.Table] = []
    reasons: dict[str, str] = {}
    inputs: dict[str, str] = {}
    count, prompt_ids = 0, set[str]()
    for songs in read_folders(cfg.samples, source):
        folder, candidates = songs.folder, songs.candidates
        inputs[str(folder)] = songs.digest
        result = mine_candidates(
            candidates, rule if cfg.pairs else None, cfg.weights, songs.utilities, songs.real_songs
        )
        count += len(candidates)
        parts.append(rating_columns(candidates, result, relative_folder(folder, out)))
        pairs += [(folder, place_winner(pair, songs, winners)) for pair in result.pairs]
        empty = songs.prompts.keys() - set(candidates.prompt_ids)
        prompt_ids |= songs.prompts.keys()
        reasons |= result.reasons
        reasons |= dict.fromkeys(sorted(empty), "no candidate was sampled, scored and passed the gates")
        reasons |= {prompt: reason for prompt, reason in songs.reasons.items() if prompt in reasons}
    if winners is not None:
        reasons |= dict.fromkeys(
            winners.captions_without_answer(prompt_ids), "the model has no answer to its caption"
        )
    ratings = pa.concat_tables(parts)
    _report(cfg, len(pairs) if cfg.pairs else ratings.num_rows, reasons, count)
    pairs = _finish_pairs(cfg, pairs)
    tables.replace(out, RATINGS, ratings)
    _write_pairs(pairs, out, cfg.songs)
    write_inputs(out, inputs)
    finish(
        out,
        pairs=len(pairs),
        pairs_by_axis=dict(Counter(_label(pair) for _, pair in pairs)),
        pairs_with_real_winners=sum(pair.is_real for _, pair in pairs),
        pairs_with_spans=sum(bool(pair.spans) for _, pair in pairs),
        ratings=ratings.num_rows,
        candidates=count,
        axes=axes,
        skipped=reasons,
        **data_terms([out]).entries(),
    )
    log(
        f"{len(pairs)} pairs and {ratings.num_rows} ratings from {count} candidates, {len(reasons)} prompts without"
    )


def _label(pair: Pair) -> str:
    """What decided a pair, for the manifest: its axis, several axes together, or where the winner is from."""
    return pair.axis or ("data set" if pair.is_real else "several")


def _open_source(cfg: MineRun) -> CandidateSource:
    """What candidates are read from, and their axes."""
    scores = read_scores(Path(cfg.scores)) if cfg.scores else None
    axes = mined_axes(cfg.axes, scores.axes) if scores else []
    return CandidateSource(
        scores=scores,
        scores_folder=Path(cfg.scores),
        axes=axes,
        utility=build_utility(cfg.utility, axes),
        with_windows=cfg.spans is not None,
        with_gates=cfg.gates,
        winners=open_winners(Path(cfg.songs), cfg.split) if cfg.songs else None,
        embedders=build_extractors(cfg.novelty, "novelty"),
        embeddings_folder=Path(cfg.out),
    )


def _report(cfg: MineRun, results: int, reasons: Mapping[str, str], candidates: int) -> None:
    """Log which prompts gave no result; DataError if none did."""
    kind = "pair" if cfg.pairs else "rating"
    for prompt, reason in sorted(reasons.items())[:5]:
        log(f"no {kind} for prompt {prompt!r}: {reason}")
    if not results:
        reason = next(iter(reasons.values()), "no prompt has two candidates with a score on every axis")
        raise DataError(
            f"{cfg.scores or cfg.songs}: no {kind}s mined from {candidates} candidates; first reason: {reason}"
        )


def _finish_pairs(cfg: MineRun, pairs: Sequence[FolderPair]) -> list[FolderPair]:
    """The strongest pairs, with their soft labels and spans."""
    places = finish_pairs(
        [pair for _, pair in pairs], cfg.weights, limit=cfg.max_pairs, temperature=cfg.soft_label_temperature
    )
    selection = [(pairs[place][0], pair) for place, pair in places]
    return selection if cfg.spans is None else _with_spans(selection, cfg.spans, cfg)


def _write_pairs(pairs: Sequence[FolderPair], out: Path, songs: str) -> None:
    names = {folder: relative_folder(folder, out) for folder, _ in pairs}
    columns = pair_columns(
        [pair for _, pair in pairs],
        [names[folder] for folder, _ in pairs],
        relative_folder(Path(songs), out) if songs else "",
    )
    tables.replace(out, PAIRS, columns)


def _with_spans(pairs: Sequence[FolderPair], config: SpanConfig, cfg: MineRun) -> list[FolderPair]:
    """The pairs, each with the spans in which its winner leads; those with songs of a data set have none."""
    songs = {
        (folder, name) for folder, pair in pairs if not pair.is_real for name in (pair.winner, pair.loser)
    }
    hashes = {folder: song_hashes(folder) for folder, _ in pairs}
    by_hash = read_windows(Path(cfg.scores), {hashes[folder][name] for folder, name in songs})
    windows: dict[Path, dict[str, WindowScores]] = {folder: {} for folder in hashes}
    for folder, name in songs:
        windows[folder][name] = by_hash.get(hashes[folder][name], {})
    return [
        (folder, pair if pair.is_real else with_spans(pair, windows[folder], cfg.weights, config))
        for folder, pair in pairs
    ]


def rating_columns(candidates: Candidates, result: MiningResult, samples: str) -> pa.Table:
    """The ratings of some candidates as columns of the ratings table."""
    places = [place for place, name in enumerate(candidates.sample_ids) if name in result.ratings]
    names = [candidates.sample_ids[place] for place in places]
    count = len(places)
    columns = {
        "prompt_id": [candidates.prompt_ids[place] for place in places],
        "group": [candidates.groups[place] for place in places],
        "samples": pa.repeat(samples, count),
        "sample_id": names,
        "rating": [result.ratings[name] for name in names],
        "source": pa.repeat(MINED_SOURCE, count),
        "weight": pa.repeat(1.0, count),
        "raters": pa.repeat(0, count),
    }
    return pa.table(columns, schema=RATINGS.schema)
