"""Windows of a song, as scorers hear them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from jaxtyping import Float

from diffdpo.data.scores import Grid
from diffdpo.errors import ConfigError
from diffdpo.recipes.score import Job, Sound, _for_windows, _score_windows
from diffdpo.scorers.canonical import canonical
from diffdpo.types import Clip


@dataclass(frozen=True)
class Level:
    """Root mean square and length of a clip."""

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("level.rms", "level.seconds")
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 2.0
    weights_hash: ClassVar[str] = ""

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return np.array([[np.sqrt((clip.samples**2).mean()), clip.seconds] for clip in clips])


def rows_of(clip, grid):
    job = Job("sha", Sound(Path("x.flac")), (), ("level",))
    return {
        row.axis: row
        for row in _score_windows(job, canonical(clip), {"level": Level()}, {"level": "v"}, grid)
    }


def loud_then_quiet(rate=8000):
    """Four seconds of noise, then four that are 20 dB lower."""
    noise = np.random.default_rng(0).normal(0, 0.2, (1, 8 * rate)).astype(np.float32)
    noise[:, 4 * rate :] *= np.float32(0.1)
    return Clip(samples=noise, sample_rate=rate)


def test_windows_keep_the_level_they_have_in_the_whole_song():
    rows = rows_of(loud_then_quiet(), Grid(2.0, 2.0))
    assert rows["level.rms"].starts_s == (0.0, 2.0, 4.0, 6.0)
    loud, quiet = rows["level.rms"].values[:2], rows["level.rms"].values[2:]
    assert np.mean(loud) / np.mean(quiet) == pytest.approx(10, rel=0.03)
    assert rows["level.seconds"].values == (2.0,) * 4


def test_a_song_shorter_than_a_window_has_none_and_is_still_known():
    rows = rows_of(loud_then_quiet(), Grid(9.0, 1.0))
    assert rows["level.rms"].values == () == rows["level.rms"].starts_s
    assert (rows["level.rms"].window, rows["level.rms"].scorer) == ("9/1", "level")


def test_scorers_that_need_longer_windows_are_named(capsys):
    assert list(_for_windows({"level": Level()}, 2.0, main=True)) == ["level"]
    with pytest.raises(ConfigError, match="no scorer can hear windows of 1 s"):
        _for_windows({"level": Level()}, 1.0, main=True)
    assert "no windows for level: it needs 2 s, window_s is 1" in capsys.readouterr().err
