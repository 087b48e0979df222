"""The verb `mine`: scores to tables of preference pairs and ratings, by the rules of `diffdpo.mining`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float
from omegaconf import MISSING

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS, pair_columns
from diffdpo.data.ratings import MINED_SOURCE, RATINGS
from diffdpo.data.samples import open_samples, relative_folder
from diffdpo.data.scores import read_windows
from diffdpo.data.song_scores import Scores, SongScores, join_scores, read_scores
from diffdpo.errors import DataError
from diffdpo.inputs import digest, read_inputs, write_inputs
from diffdpo.mining import (
    Candidates,
    MiningResult,
    Pair,
    Rule,
    Utility,
    finish_pairs,
    mine_candidates,
    with_spans,
)
from diffdpo.mining.base import check_axes, check_weights
from diffdpo.mining.spans import SpanConfig, WindowScores
from diffdpo.parts import build_rule, build_utility
from diffdpo.progress import log
from diffdpo.registry import Choice
from diffdpo.run_dir import check_inputs, dist_env, open_run
from diffdpo.runs import MANIFEST, finish, is_finished
from diffdpo.scorers.axes import check_axis_names, mined_axes
from diffdpo.scorers.gates import LIMITS

FolderPair = tuple[Path, Pair]
"""A pair with the samples folder it comes from."""


@dataclass
class MineRun:
    """Scores to preference pairs, and to ratings of every song for objectives that need no pairs."""

    samples: list[str] = field(default=MISSING, metadata=PATH)
    scores: str = field(default=MISSING, metadata=PATH)
    out: str = field(default=MISSING, metadata=PATH)
    axes: list[str] = field(default_factory=list)
    """Axes to mine; empty: all that have scores, are shown to be valid on generated songs and belong to no judge.
    consonance, tempo, balance, style and Audiobox's complexity are mined only when named here."""
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
    gates: bool = True
    """Whether songs that fail a gate (silence, clipping, NaN) are left out of the pairs and ratings."""

    def __post_init__(self) -> None:
        check_range(self, "soft_label_temperature", "max_pairs", low=0)
        check_weights(self.weights)

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        build_rule(self.rule)
        build_utility(self.utility, self.axes)
        check_axis_names(self.axes, "axes")
        check_axis_names(self.weights, "weights")


def run(cfg: MineRun) -> Path:
    """Mine pairs and ratings."""
    check_inputs(samples=cfg.samples, scores=cfg.scores)
    dist = dist_env()
    rule = build_rule(cfg.rule)
    with open_run(cfg, dist=dist) as out:
        if dist.main:
            _mine(cfg, rule, out)
        dist.barrier()
    return out


def _mine(cfg: MineRun, rule: Rule, out: Path) -> None:
    """Mine, unless the folder holds pairs of the same songs and scores."""
    scores = read_scores(Path(cfg.scores))
    axes = mined_axes(cfg.axes, scores.axes)
    utility = build_utility(cfg.utility, axes)
    if is_finished(out):
        folders = _read_songs(cfg, scores, utility, axes)
        if read_inputs(out) == {str(songs.folder): songs.digest for songs in folders}:
            return
        log(f"{out}: songs or scores changed since these pairs were mined; mining anew")
        (out / MANIFEST).unlink()
    check_axes(cfg.weights, axes, "weights")
    pairs: list[FolderPair] = []
    parts: list[pa.Table] = []
    reasons: dict[str, str] = {}
    inputs: dict[str, str] = {}
    count = 0
    for songs in _read_songs(cfg, scores, utility, axes):
        folder, candidates = songs.folder, songs.candidates
        inputs[str(folder)] = songs.digest
        result = mine_candidates(candidates, rule if cfg.pairs else None, cfg.weights, songs.utilities)
        count += len(candidates)
        parts.append(rating_columns(candidates, result, relative_folder(folder, out)))
        pairs += [(folder, pair) for pair in result.pairs]
        empty = songs.prompt_ids - set(candidates.prompt_ids)
        reasons |= result.reasons
        reasons |= dict.fromkeys(sorted(empty), "no candidate was sampled, scored and passed the gates")
    ratings = pa.concat_tables(parts)
    _report(cfg, len(pairs) if cfg.pairs else ratings.num_rows, reasons, count)
    pairs = _finish_pairs(cfg, pairs)
    tables.replace(out, RATINGS, ratings)
    _write_pairs(pairs, out)
    write_inputs(out, inputs)
    finish(
        out,
        pairs=len(pairs),
        pairs_by_axis=dict(Counter(pair.axis or "several" for _, pair in pairs)),
        pairs_with_spans=sum(bool(pair.spans) for _, pair in pairs),
        ratings=ratings.num_rows,
        candidates=count,
        axes=axes,
        skipped=reasons,
    )
    log(
        f"{len(pairs)} pairs and {ratings.num_rows} ratings from {count} candidates, {len(reasons)} prompts without"
    )


@dataclass(frozen=True)
class FolderSongs:
    """The songs of a samples folder as candidates, and what identifies all that mining reads of the folder."""

    folder: Path
    prompt_ids: set[str]
    candidates: Candidates
    utilities: Float[np.ndarray, "candidate axis"]
    digest: str


def _read_songs(cfg: MineRun, scores: Scores, utility: Utility, axes: Sequence[str]) -> Iterator[FolderSongs]:
    """The candidates of each folder, one folder in memory at a time."""
    for folder in map(Path, cfg.samples):
        samples = open_samples(folder)
        prompts = samples.prompts()
        songs = join_scores(scores, samples, prompts)
        candidates = to_mine(songs, axes, with_gates=cfg.gates)
        utilities = utility(candidates, {prompt.id: prompt.text or "" for prompt in prompts})
        hashes = _hashes(folder)
        if n_without := len(hashes) - len(songs.sample_ids):
            log(f"{folder}: {n_without} of {len(hashes)} songs have no scores; `diffdpo score` scores them")
        windows = read_windows(Path(cfg.scores), set(hashes.values())) if cfg.spans else {}
        sounds = [hashes[name] for name in candidates.sample_ids]
        identity = [
            vars(candidates),
            sounds,
            sorted((name, sorted(grid.items())) for name, grid in windows.items()),
        ]
        if utilities is not candidates.scores:
            identity.append(utilities)
        names = {prompt.id for prompt in prompts}
        yield FolderSongs(folder, names, candidates, utilities, digest(identity))


def _report(cfg: MineRun, results: int, reasons: Mapping[str, str], candidates: int) -> None:
    """Log which prompts gave no result; DataError if none did."""
    kind = "pair" if cfg.pairs else "rating"
    for prompt, reason in sorted(reasons.items())[:5]:
        log(f"no {kind} for prompt {prompt!r}: {reason}")
    if not results:
        reason = next(iter(reasons.values()), "no prompt has two candidates with a score on every axis")
        raise DataError(
            f"{cfg.scores}: no {kind}s mined from {candidates} candidates; first reason: {reason}"
        )


def _finish_pairs(cfg: MineRun, pairs: Sequence[FolderPair]) -> list[FolderPair]:
    """The strongest pairs, with their soft labels and spans."""
    places = finish_pairs(
        [pair for _, pair in pairs], cfg.weights, limit=cfg.max_pairs, temperature=cfg.soft_label_temperature
    )
    selection = [(pairs[place][0], pair) for place, pair in places]
    return selection if cfg.spans is None else _with_spans(selection, cfg.spans, cfg)


def _write_pairs(pairs: Sequence[FolderPair], out: Path) -> None:
    names = {folder: relative_folder(folder, out) for folder, _ in pairs}
    columns = pair_columns([pair for _, pair in pairs], [names[folder] for folder, _ in pairs])
    tables.replace(out, PAIRS, columns)


def _with_spans(pairs: Sequence[FolderPair], config: SpanConfig, cfg: MineRun) -> list[FolderPair]:
    """The pairs, each with the spans in which its winner leads."""
    songs = {(folder, name) for folder, pair in pairs for name in (pair.winner, pair.loser)}
    hashes = {folder: _hashes(folder) for folder, _ in pairs}
    by_hash = read_windows(Path(cfg.scores), {hashes[folder][name] for folder, name in songs})
    windows: dict[Path, dict[str, WindowScores]] = {folder: {} for folder in hashes}
    for folder, name in songs:
        windows[folder][name] = by_hash.get(hashes[folder][name], {})
    return [(folder, with_spans(pair, windows[folder], cfg.weights, config)) for folder, pair in pairs]


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of each song of a folder, by id."""
    table = open_samples(folder).columns(("sample_id", "sha256"))
    return dict(zip(*(table[name].cast(pa.string()).to_pylist() for name in table.column_names), strict=True))


def to_mine(songs: SongScores, axes: Sequence[str], *, with_gates: bool) -> Candidates:
    """The songs as candidates on these axes; without those that fail a gate."""
    rows = np.flatnonzero(passes_gates(songs)) if with_gates else np.arange(len(songs.sample_ids))
    columns = [songs.axes.index(axis) for axis in axes]
    places = rows.tolist()
    return Candidates(
        prompt_ids=[songs.prompt_ids[place] for place in places],
        groups=[songs.groups[place] for place in places],
        sample_ids=[songs.sample_ids[place] for place in places],
        axes=tuple(axes),
        scores=songs.values[rows][:, columns],
    )


def passes_gates(songs: SongScores) -> Bool[np.ndarray, " song"]:
    """True for the songs within the limits of every gate that has a score."""
    passes = np.ones(len(songs.sample_ids), bool)
    for name, (low, high) in LIMITS.items():
        if name in songs.axes:
            place = songs.axes.index(name)
            value = songs.values[:, place]
            passes &= ~songs.has_score[:, place] | ((low <= value) & (value <= high))
    return passes


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
