"""The critics: their features by name, damages that they must hear, and songs that are too short."""

from pathlib import Path

import numpy as np
import pytest

from diffdpo import audio
from diffdpo.errors import ConfigError, DataError
from diffdpo.evaluation.perturbations import PERTURBATIONS
from diffdpo.scorers import SCORERS
from diffdpo.scorers.axes import diagnosis_axes, mined_axes
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.critic import CRITIC_FEATURES, CRITIC_PATH, Critic, critic_features, read_critic
from diffdpo.scorers.features import ClipFeatures
from diffdpo.scorers.second_critic import (
    SECOND_CRITIC_FEATURES,
    SECOND_CRITIC_PATH,
    SecondCritic,
    second_critic_features,
)
from diffdpo.types import Clip

SONG = audio.read(Path(__file__).parents[2] / "data" / "galactic_temple.ogg", start_s=40.0, seconds=10.0)


@pytest.fixture(scope="module")
def song() -> ClipFeatures:
    return ClipFeatures(canonical(SONG))


def scores(features: ClipFeatures) -> list[float]:
    return [scorer.score_features(features)[0] for scorer in (Critic(), SecondCritic())]


def test_every_feature_has_a_name_and_is_the_axis_of_that_name(song):
    for names, values, parts in (
        (CRITIC_FEATURES, critic_features(song), ("harmony", "structure", "production")),
        (SECOND_CRITIC_FEATURES, second_critic_features(song), ("notes", "beats")),
    ):
        assert len(set(names)) == len(names) == len(values)
        by_name = dict(zip(names, values, strict=True))
        for part in parts:
            scorer = SCORERS[part]()
            assert [by_name[axis] for axis in scorer.axes] == pytest.approx(scorer.score_features(song))


def test_heads_have_a_weight_for_every_feature_and_are_small():
    for path, names in ((CRITIC_PATH, CRITIC_FEATURES), (SECOND_CRITIC_PATH, SECOND_CRITIC_FEATURES)):
        head = read_critic(path)
        assert head.weights.shape == (16, len(names))
        assert head.caution > 0
        assert path.stat().st_size < 2**21


@pytest.mark.parametrize("name", ["shuffled seconds", "time jitter ±80 ms", "white noise", "silence"])
def test_a_song_is_above_what_damages_make_of_it(song, name):
    damaged = PERTURBATIONS[name](SONG, np.random.default_rng(0))
    for value, worse in zip(scores(song), scores(ClipFeatures(canonical(damaged))), strict=True):
        assert worse < value


def test_clips_too_short_for_form_get_the_lowest():
    short = Clip(samples=SONG.samples[:, : 4 * SONG.sample_rate], sample_rate=SONG.sample_rate)
    lowest = [read_critic(path).lowest() for path in (CRITIC_PATH, SECOND_CRITIC_PATH)]
    assert scores(ClipFeatures(canonical(short))) == lowest


def test_the_first_is_mined_and_the_second_judges():
    assert mined_axes([], ["critic.quality", "critic.second"]) == ["critic.quality"]
    with pytest.raises(ConfigError, match="belongs to a judge"):
        mined_axes(["critic.second"], ["critic.second"])


def test_a_missing_head_is_an_error_of_one_line(tmp_path):
    with pytest.raises(DataError, match="reinstall diffdpo") as error:
        read_critic(tmp_path / "critic.safetensors")
    assert "\n" not in str(error.value)


def test_what_a_mined_critic_weighs_judges_nothing():
    axes = ["critic.quality", "harmony.key", "structure.form", "note.key", "critic.second"]
    assert diagnosis_axes(axes) == []
    assert diagnosis_axes(axes, mined=["structure.order"]) == []
    assert diagnosis_axes(axes, mined=["critic.quality"]) == ["harmony.key", "structure.form"]
    assert diagnosis_axes(axes, ["harmony.key"], ["critic.quality"]) == [
        a for a in axes if a != "harmony.key"
    ]
