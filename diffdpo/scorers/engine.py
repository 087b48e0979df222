"""Clips to scores, in memory: gates, canonical loudness, prompts, windows, batches, and the keys of a cache.

`score_clips` serves search, rounds and the public API. A caller that stores scores lists the possible keys with
`score_keys`, leaves out those it has, and passes the others to `compute_scores`; so does `diffdpo score`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from diffdpo.data.scores import FULL_SONG, GATES, NO_PROMPT, Grid, ScoreRow, score_rows
from diffdpo.errors import ConfigError
from diffdpo.scorers.base import FeatureScorer, PromptScorer, Scorer, fingerprint
from diffdpo.scorers.canonical import VERSION, canonical
from diffdpo.scorers.features import EMPTY_PROMPT, ClipFeatures
from diffdpo.scorers.gates import failures, gates
from diffdpo.threads import parallel_map, worker_count
from diffdpo.types import Clip, Prompt

GATES_VERSION = "1"
"""Raise it whenever a gate's numbers change."""
FINITE = {"non_finite_ratio": (0.0, 0.0)}
"""The gate without which nothing else can be computed."""
BATCH = 16
"""Clips whose canonical forms are in memory at once."""

_loaded_scorers: set[str] = set()
"""Scorers whose modules and networks are loaded, see `_warm_up`."""

AxisValues = Mapping[str, tuple[float, ...]]
"""By axis: the one value of a whole clip, or one value a window."""


class ScoreKey(NamedTuple):
    """Identity of a scorer's values of a clip. With the clip's hash and `canonical.VERSION`: the key of a cache."""

    scorer: str
    """Its name, or GATES."""
    fingerprint: str
    prompt: str = NO_PROMPT
    """The key of the prompt (`prompt_key`) for scorers that compare a clip with one."""
    window: str = FULL_SONG
    """The name of the grid of windows, or FULL_SONG."""


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """All scores of one clip. Bigger is better on every axis; no value is normalised."""

    gates: Mapping[str, float]
    """Faults of the raw clip as numbers, see `gates`."""
    values: Mapping[str, float]
    """The values of the full clip, by axis."""
    starts: tuple[float, ...] = ()
    """Where the windows begin, in seconds."""
    windows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The values of the windows, by axis."""
    undefined_axes: tuple[str, ...] = ()
    """Axes on which the clip as a whole, or one of its windows, has no finite number."""


def score_clips(
    clips: Sequence[Clip],
    scorers: Mapping[str, Scorer],
    *,
    prompts: Sequence[Prompt] | None = None,
    grid: Grid | None = None,
) -> list[ClipScores]:
    """Gates and values of clips of any level, each scored for its own prompt, on every axis of every scorer.

    Without prompts the axes of a `PromptScorer` are 0 (silence aside). With a grid, windows are scored too, by the
    scorers of `window_scorers`. A clip that holds numbers that are not finite is measured by gates only: all its
    values are NaN.
    """
    versions = dict.fromkeys([*scorers, GATES], "")  # nothing is cached
    if prompts is not None and len(prompts) != len(clips):
        raise ValueError(f"{len(clips)} clips need as many prompts, got {len(prompts)}")
    by_name = {str(place): prompt for place, prompt in enumerate(prompts or ())}
    keys = [score_keys(scorers, versions, [name], grid) for name in by_name or [NO_PROMPT] * len(clips)]
    scores: list[ClipScores] = []
    for begin in range(0, len(clips), BATCH):
        part = slice(begin, begin + BATCH)
        values = compute_scores(clips[part], keys[part], scorers, prompts=by_name, grid=grid)
        scores += [_collect(clip, row, grid) for clip, row in zip(clips[part], values, strict=True)]
    return scores


def fingerprints(scorers: Mapping[str, Scorer]) -> dict[str, str]:
    """The fingerprint of every scorer, and of the gates, by name."""
    return {name: fingerprint(scorer) for name, scorer in scorers.items()} | {GATES: GATES_VERSION}


def score_keys(
    scorers: Mapping[str, Scorer],
    versions: Mapping[str, str],
    prompts: Collection[str] = (NO_PROMPT,),
    grid: Grid | None = None,
) -> list[ScoreKey]:
    """The keys of all values of one clip, by scorers of these fingerprints, for prompts by their keys."""
    keys = []
    for name, version in versions.items():
        with_prompt = name in scorers and isinstance(scorers[name], PromptScorer)
        keys += [ScoreKey(name, version, prompt) for prompt in (prompts if with_prompt else [NO_PROMPT])]
    if grid:
        keys += [
            ScoreKey(name, versions[name], window=grid.name)
            for name in window_scorers(scorers, grid.window_s)
        ]
    return keys


def window_scorers(scorers: Mapping[str, Scorer], window_s: float) -> list[str]:
    """The names of the scorers that score windows of this length. ConfigError when there is none.

    Left out are judges, from which nothing is mined, scorers that compare a whole song with its prompt, and those
    that need longer windows.
    """
    names = [
        name
        for name, scorer in scorers.items()
        if not (scorer.shortest_s > window_s or scorer.judge_only or isinstance(scorer, PromptScorer))
    ]
    if not names:
        raise ConfigError(f"no scorer scores windows of {window_s:g} s; set window_s=5 or more")
    return names


def compute_scores(
    clips: Sequence[Clip],
    keys: Sequence[Sequence[ScoreKey]],
    scorers: Mapping[str, Scorer],
    *,
    prompts: Mapping[str, Prompt],
    grid: Grid | None = None,
) -> list[dict[ScoreKey, AxisValues]]:
    """The values of each clip for its keys, `prompts` by theirs. What is not finite is kept as it is.

    Scorers that share features score clip by clip, as many clips at a time as there are workers (`parallel_map`).
    The other scorers take all clips at once, with all threads of torch.
    """
    if worker_count() > 1:
        _warm_up(scorers)
    score = partial(_score_clip, scorers=scorers, prompts=prompts, grid=grid)
    values, canonicals = [], []
    for by_key, clip in parallel_map(score, clips, keys):
        values.append(by_key)
        canonicals.append(clip)
    for name, scorer in scorers.items():
        batch = [
            (place, key, clip)
            for place, clip in enumerate(canonicals)
            for key in keys[place]
            if clip is not None and key.scorer == name and key not in values[place]
        ]
        for place, key, columns in _score_batch(scorer, batch, prompts, grid):
            values[place][key] = columns
    return values


def _warm_up(scorers: Mapping[str, Scorer]) -> None:
    """Score a noise by every scorer that shares features, once a process, before threads score clips.

    So modules are imported and networks loaded in one thread: two threads must not begin either at the same time.
    """
    names = {name: f"{type(scorer).__module__}.{scorer!r}" for name, scorer in scorers.items()}
    new_scorers = {
        name: scorer
        for name, scorer in scorers.items()
        if isinstance(scorer, FeatureScorer) and names[name] not in _loaded_scorers
    }
    if new_scorers:
        samples = np.random.default_rng(0).normal(0, 0.1, (2, 6 * 44_100)).astype(np.float32)
        keys = score_keys(new_scorers, dict.fromkeys(new_scorers, ""), ["text"])
        prompts = {"text": Prompt(id="text", text="rock")}
        _score_clip(Clip(samples=samples, sample_rate=44_100), keys, new_scorers, prompts, None)
        _loaded_scorers.update(names[name] for name in new_scorers)


def _score_clip(
    clip: Clip,
    keys: Sequence[ScoreKey],
    scorers: Mapping[str, Scorer],
    prompts: Mapping[str, Prompt],
    grid: Grid | None,
) -> tuple[dict[ScoreKey, AxisValues], Clip | None]:
    """The gates of a clip, its values by scorers that share features, and its canonical form.

    A clip that holds numbers that are not finite has none; its values by all scorers are NaN.
    """
    faults = gates(clip)
    values: dict[ScoreKey, AxisValues] = {
        key: {name: (value,) for name, value in faults.items()} for key in keys if key.scorer == GATES
    }
    if failures(faults, FINITE):
        for key in keys:
            if key.scorer != GATES:
                count = 1 if key.window == FULL_SONG or grid is None else len(grid.starts(clip.seconds))
                values[key] = dict.fromkeys(scorers[key.scorer].axes, (np.nan,) * count)
        return values, None
    clip = canonical(clip)
    return values | _score_features(clip, keys, scorers, prompts, grid), clip


def _score_batch(
    scorer: Scorer,
    batch: Sequence[tuple[int, ScoreKey, Clip]],
    prompts: Mapping[str, Prompt],
    grid: Grid | None,
) -> Iterator[tuple[int, ScoreKey, AxisValues]]:
    """The values of clips by one scorer, all whole clips at once and then the windows of each."""
    songs = [row for row in batch if row[1].window == FULL_SONG]
    if songs:
        clips = [clip for _, _, clip in songs]
        song_prompts = [prompts.get(key.prompt, EMPTY_PROMPT) for _, key, _ in songs]
        table = scorer(clips, song_prompts) if isinstance(scorer, PromptScorer) else scorer(clips)
        for (place, key, _), row in zip(songs, table.tolist(), strict=True):
            yield place, key, _by_axis(scorer, [row])
    for place, key, clip in batch:
        if grid and key.window == grid.name:
            windows = _windows(clip, grid)
            yield place, key, _by_axis(scorer, scorer(windows).tolist() if windows else [])


def _score_features(
    clip: Clip,
    keys: Sequence[ScoreKey],
    scorers: Mapping[str, Any],
    prompts: Mapping[str, Prompt],
    grid: Grid | None,
) -> dict[ScoreKey, AxisValues]:
    """The values of a clip by scorers that share features, with those of one clip or window in memory at a time."""
    keys = [key for key in keys if isinstance(scorers.get(key.scorer), FeatureScorer)]
    values: dict[ScoreKey, AxisValues] = {}
    features = ClipFeatures(clip)
    for key in keys:
        scorer = scorers[key.scorer]
        if key.window == FULL_SONG:
            prompt = [prompts.get(key.prompt, EMPTY_PROMPT)] if isinstance(scorer, PromptScorer) else []
            values[key] = _by_axis(scorer, [scorer.score_features(features, *prompt)])
    rows: dict[ScoreKey, list[Sequence[float]]] = {key: [] for key in keys if key.window != FULL_SONG}
    for window in _windows(clip, grid) if rows and grid else []:
        features = ClipFeatures(window)
        for key in rows:
            rows[key].append(scorers[key.scorer].score_features(features))
    return values | {key: _by_axis(scorers[key.scorer], windows) for key, windows in rows.items()}


def _by_axis(scorer: Scorer, rows: Sequence[Sequence[float]]) -> AxisValues:
    """Rows of values on each axis as a column for each."""
    return {axis: tuple(float(row[place]) for row in rows) for place, axis in enumerate(scorer.axes)}


def _windows(clip: Clip, grid: Grid) -> list[Clip]:
    """The windows of a clip, which keep the level they have in it."""
    return [_cut(clip, start, grid.window_s) for start in grid.starts(clip.seconds)]


def _cut(clip: Clip, start_s: float, seconds: float) -> Clip:
    begin, end = (round(time * clip.sample_rate) for time in (start_s, start_s + seconds))
    return Clip(samples=clip.samples[:, begin:end], sample_rate=clip.sample_rate)


def to_score_rows(sha256: str, values: Mapping[ScoreKey, AxisValues]) -> list[ScoreRow]:
    """Rows of the scores table from the values of one sound; those of windows are left out."""
    rows: list[ScoreRow] = []
    for key, by_axis in values.items():
        if key.window == FULL_SONG:
            column = [(axis, value) for axis, (value,) in by_axis.items()]
            rows += score_rows(sha256, VERSION, key.scorer, key.fingerprint, column, key.prompt)
    return rows


def _collect(clip: Clip, values: Mapping[ScoreKey, AxisValues], grid: Grid | None) -> ClipScores:
    """The values of a clip for all keys, sorted by what they are about."""
    song_values = {
        axis: value
        for key, by_axis in values.items()
        if key.scorer != GATES and key.window == FULL_SONG
        for axis, (value,) in by_axis.items()
    }
    windows = {
        axis: column
        for key, by_axis in values.items()
        if key.window != FULL_SONG
        for axis, column in by_axis.items()
    }
    columns = [*((axis, (value,)) for axis, value in song_values.items()), *windows.items()]
    return ClipScores(
        gates={name: value for name, (value,) in values[ScoreKey(GATES, "")].items()},
        values=song_values,
        starts=tuple(grid.starts(clip.seconds)) if grid else (),
        windows=windows,
        undefined_axes=tuple(sorted({axis for axis, column in columns if not np.isfinite(column).all()})),
    )
