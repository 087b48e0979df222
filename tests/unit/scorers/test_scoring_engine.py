"""Scores of clips in memory: what scorers are given, for which keys, and what comes of clips without numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
from jaxtyping import Float

from diffdpo import audio
from diffdpo.data.scores import FULL_SONG, GATES, NO_PROMPT, Grid
from diffdpo.errors import ConfigError
from diffdpo.scorers import engine
from diffdpo.scorers.canonical import TARGET_LUFS
from diffdpo.scorers.engine import (
    ScoreKey,
    compute_scores,
    fingerprints,
    score_clips,
    score_keys,
    window_scorers,
)
from diffdpo.scorers.gates import gates
from diffdpo.types import Clip, Prompt

RATE = 8000


@dataclass(frozen=True)
class Level:
    """Loudness, root mean square and length of a clip."""

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("level.lufs", "level.rms", "level.seconds")
    traits: ClassVar[Mapping[str, str]] = {
        "level.lufs": "production",
        "level.rms": "production",
        "level.seconds": "production",
    }
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 2.0
    weights_hash: ClassVar[str] = ""

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        rows = [[audio.loudness(c), np.sqrt((c.samples**2).mean()), c.seconds] for c in clips]
        return np.array(rows).reshape(-1, 3)


@dataclass(frozen=True)
class Words:
    """How many words the prompt has."""

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("words.count",)
    traits: ClassVar[Mapping[str, str]] = {"words.count": "production"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 1.0
    weights_hash: ClassVar[str] = ""
    needs_prompt: ClassVar[Literal[True]] = True

    def __call__(
        self, clips: Sequence[Clip], prompts: Sequence[Prompt] | None = None
    ) -> Float[np.ndarray, "clip axis"]:
        texts = [prompt.text or "" for prompt in prompts] if prompts else [""] * len(clips)
        return np.array([[float(len(text.split()))] for text in texts])


@dataclass(frozen=True)
class Undefined:
    """1, and no number for a clip that begins with silence."""

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("undefined.ratio",)
    traits: ClassVar[Mapping[str, str]] = {"undefined.ratio": "production"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 1.0
    weights_hash: ClassVar[str] = ""

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return np.array([[1.0 if clip.samples[0, 0] else np.nan] for clip in clips])


def noise(seconds: float, level: float = 0.2, seed: int = 0) -> Clip:
    samples = np.random.default_rng(seed).normal(0, level, (1, int(seconds * RATE)))
    return Clip(samples=samples.astype(np.float32), sample_rate=RATE)


def loud_then_quiet() -> Clip:
    """Four seconds of noise, then four that are 20 dB lower."""
    clip = noise(8.0)
    clip.samples[:, 4 * RATE :] *= np.float32(0.1)
    return clip


def test_clips_of_any_level_are_scored_at_one_loudness_and_gated_at_their_own():
    clips = [noise(3.0, level) for level in (0.01, 0.3)]
    for clip, scores in zip(clips, score_clips(clips, {"level": Level()}), strict=True):
        assert scores.values["level.lufs"] == pytest.approx(TARGET_LUFS, abs=0.01)
        assert scores.gates == gates(clip)
        assert (scores.windows, scores.starts, scores.undefined_axes) == ({}, (), ())


def test_windows_keep_the_level_they_have_in_the_whole_song():
    (scores,) = score_clips([loud_then_quiet()], {"level": Level()}, grid=Grid(2.0, 2.0))
    assert scores.starts == (0.0, 2.0, 4.0, 6.0)
    loud, quiet = scores.windows["level.rms"][:2], scores.windows["level.rms"][2:]
    assert np.mean(loud) / np.mean(quiet) == pytest.approx(10, rel=0.03)
    assert scores.windows["level.seconds"] == (2.0,) * 4
    assert scores.values["level.seconds"] == 8.0


def test_a_song_shorter_than_a_window_has_none():
    (scores,) = score_clips([noise(8.0)], {"level": Level()}, grid=Grid(9.0, 1.0))
    assert scores.windows == dict.fromkeys(Level.axes, ())
    assert scores.starts == ()


def test_windows_are_scored_by_those_for_whom_they_are_long_enough_and_without_prompts():
    scorers = {"level": Level(), "words": Words()}
    assert window_scorers(scorers, 2.0) == ["level"]
    with pytest.raises(ConfigError, match="no scorer scores windows of 1 s"):
        window_scorers(scorers, 1.0)


def test_every_clip_has_its_own_prompt_however_many_clips_there_are(monkeypatch):
    monkeypatch.setattr(engine, "BATCH", 2)
    clips = [noise(2.0 + i) for i in range(5)]
    prompts = [Prompt(id=str(i), text="la " * i or None) for i in range(5)]
    scores = score_clips(clips, {"words": Words(), "level": Level()}, prompts=prompts)
    assert [row.values["words.count"] for row in scores] == [0, 1, 2, 3, 4]
    assert [row.values["level.seconds"] for row in scores] == [2, 3, 4, 5, 6]
    assert [row.values["words.count"] for row in score_clips(clips, {"words": Words()})] == [0] * 5
    with pytest.raises(ValueError, match="5 clips need as many prompts, got 4"):
        score_clips(clips, {"words": Words()}, prompts=prompts[:4])
    assert score_clips([], {"words": Words()}, prompts=[]) == []


def test_a_clip_that_is_not_finite_has_gates_and_no_values():
    plain, broken = noise(4.0), noise(4.0)
    broken.samples[0, 7] = np.inf
    scorers = {"undefined": Undefined(), "level": Level()}
    rows = score_clips([plain, broken], scorers, grid=Grid(2.0, 2.0))
    assert rows[0].undefined_axes == ()
    assert rows[1].undefined_axes == (*Level.axes, "undefined.ratio")
    assert np.isnan(list(rows[1].values.values())).all()
    assert rows[1].starts == (0.0, 2.0)
    assert all(np.isnan(column).all() and len(column) == 2 for column in rows[1].windows.values())
    assert rows[1].gates["non_finite_ratio"] == pytest.approx(1 / (4 * RATE))
    assert np.isfinite(list(rows[1].gates.values())).all()


def test_a_scorers_nan_is_kept_and_named():
    silence = Clip(samples=np.zeros((1, 4 * RATE), np.float32), sample_rate=RATE)
    (row,) = score_clips([silence], {"undefined": Undefined(), "level": Level()})
    assert row.undefined_axes == ("level.lufs", "undefined.ratio")  # silence has -inf LUFS


def test_only_the_keys_that_are_named_are_computed():
    """A sound for two prompts, of which one is cached, and a scorer that is cached whole but not in windows."""
    scorers, grid = {"level": Level(), "words": Words()}, Grid(2.0, 1.0)
    versions = fingerprints(scorers)
    prompts = {"a": Prompt(id="a", text="la"), "b": Prompt(id="b", text="la la")}
    keys = score_keys(scorers, versions, prompts, grid)
    assert set(keys) == {
        ScoreKey("level", versions["level"], NO_PROMPT, FULL_SONG),
        ScoreKey("words", versions["words"], "a", FULL_SONG),
        ScoreKey("words", versions["words"], "b", FULL_SONG),
        ScoreKey(GATES, "1", NO_PROMPT, FULL_SONG),
        ScoreKey("level", versions["level"], NO_PROMPT, "2/1"),
    }
    lacking = [key for key in keys if key.prompt == "b" or key.window == "2/1"]
    (values,) = compute_scores([noise(3.0)], [lacking], scorers, prompts=prompts, grid=grid)
    assert values.keys() == set(lacking)
    assert values[lacking[0]] == {"words.count": (2.0,)}
    assert values[lacking[1]]["level.seconds"] == (2.0, 2.0)
    assert compute_scores([noise(3.0)], [[]], scorers, prompts={}) == [{}]
