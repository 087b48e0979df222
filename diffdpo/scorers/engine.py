"""Clips to scores, in memory: gates, canonical loudness, prompts, windows, batches, and the keys of a cache.

`score_clips` serves search, rounds and the public API. A caller that stores scores lists the possible keys with
`score_keys`, leaves out those it has, and passes the others to `compute_scores`; so does `diffdpo score`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from diffdpo.data.scores import FULL_SONG, GATES, NO_PROMPT, Grid
from diffdpo.errors import ConfigError
from diffdpo.scorers.base import PromptScorer, Scorer, fingerprint
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.features import EMPTY_PROMPT
from diffdpo.scorers.gates import failures, gates
from diffdpo.types import Clip, Prompt

GATES_VERSION = "1"
"""Raise it whenever a gate's numbers change."""
FINITE = {"non_finite_ratio": (0.0, 0.0)}
"""The gate without which nothing else can be computed."""
BATCH = 16
"""Clips whose canonical forms are in memory at once."""

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
    """The name of the grid of windows, or WHOLE."""


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """All scores of one clip. Bigger is better on every axis; no value is normalised."""

    gates: Mapping[str, float]
    """Faults of the raw clip as numbers, see `gates`."""
    values: Mapping[str, float]
    """Of the whole clip, by axis."""
    starts: tuple[float, ...] = ()
    """Where the windows begin, in seconds."""
    windows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of each window, by axis."""
    undefined: tuple[str, ...] = ()
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
    """The values of each clip for its keys, `prompts` by theirs. What is not finite is kept as it is."""
    measured = [gates(clip) for clip in clips]
    canonicals = [
        None if failures(faults, FINITE) else canonical(clip)
        for clip, faults in zip(clips, measured, strict=True)
    ]
    values: list[dict[ScoreKey, AxisValues]] = [{} for _ in clips]
    rows = [(place, key) for place, clip_keys in enumerate(keys) for key in clip_keys]
    for place, key in rows:
        if key.scorer == GATES:
            values[place][key] = {name: (value,) for name, value in measured[place].items()}
        elif canonicals[place] is None:
            count = 1 if key.window == FULL_SONG or grid is None else len(grid.starts(clips[place].seconds))
            values[place][key] = dict.fromkeys(scorers[key.scorer].axes, (np.nan,) * count)
    for name, scorer in scorers.items():
        finite = [
            (place, key, clip) for place, key in rows if key.scorer == name and (clip := canonicals[place])
        ]
        whole = [row for row in finite if row[1].window == FULL_SONG]
        scores = _score_whole(
            scorer, [(clip, prompts.get(key.prompt, EMPTY_PROMPT)) for _, key, clip in whole]
        )
        for (place, key, _), row in zip(whole, scores, strict=True):
            values[place][key] = {axis: (value,) for axis, value in zip(scorer.axes, row, strict=True)}
        for place, key, clip in finite:
            if grid and key.window == grid.name:
                values[place][key] = _score_windows(scorer, clip, grid)
    return values


def _score_whole(scorer: Scorer, pairs: Sequence[tuple[Clip, Prompt]]) -> list[list[float]]:
    """A row of values for each clip, compared with its prompt by scorers that do so."""
    if not pairs:
        return []
    clips, prompts = [clip for clip, _ in pairs], [prompt for _, prompt in pairs]
    return (scorer(clips, prompts) if isinstance(scorer, PromptScorer) else scorer(clips)).tolist()


def _score_windows(scorer: Scorer, clip: Clip, grid: Grid) -> AxisValues:
    """The values of the windows of a clip, which keep the level they have in it."""
    windows = [_cut(clip, start, grid.window_s) for start in grid.starts(clip.seconds)]
    columns = scorer(windows).T.tolist() if windows else [[] for _ in scorer.axes]
    return {axis: tuple(column) for axis, column in zip(scorer.axes, columns, strict=True)}


def _cut(clip: Clip, start_s: float, seconds: float) -> Clip:
    begin, end = (round(time * clip.sample_rate) for time in (start_s, start_s + seconds))
    return Clip(samples=clip.samples[:, begin:end], sample_rate=clip.sample_rate)


def _collect(clip: Clip, values: Mapping[ScoreKey, AxisValues], grid: Grid | None) -> ClipScores:
    """The values of a clip for all keys, sorted by what they are about."""
    whole = {
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
    columns = [*((axis, (value,)) for axis, value in whole.items()), *windows.items()]
    return ClipScores(
        gates={name: value for name, (value,) in values[ScoreKey(GATES, "")].items()},
        values=whole,
        starts=tuple(grid.starts(clip.seconds)) if grid else (),
        windows=windows,
        undefined=tuple(sorted({axis for axis, column in columns if not np.isfinite(column).all()})),
    )
