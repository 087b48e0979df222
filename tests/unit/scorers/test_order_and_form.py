"""Order of seconds: its facts on sequences whose answers are known, and both axes on a song that is damaged."""

from pathlib import Path

import numpy as np
import pytest

from diffdpo import audio
from diffdpo.errors import ConfigError, DataError
from diffdpo.evaluation.perturbations import PERTURBATIONS
from diffdpo.scorers.axes import axis_traits, judge_axes, mined_axes
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.features import ClipFeatures
from diffdpo.scorers.form import FORM_PATH, FormOrder, read_layer_scale, standardise_layers
from diffdpo.scorers.order import (
    ORDER_PATH,
    WINDOW,
    StructureOrder,
    read_form_utility,
    window_facts,
    window_starts,
)
from diffdpo.scorers.self_similarity import (
    FACTS,
    FEWEST_MOMENTS,
    form_facts,
    half_second_means,
    squared_distances,
)
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

SONG = audio.read(Path(__file__).parents[2] / "data" / "galactic_temple.ogg", start_s=40.0, seconds=10.0)
RATE = 22_050
SCORERS = (StructureOrder(), FormOrder())


def facts(moments: np.ndarray) -> dict[str, float]:
    return dict(zip(FACTS, form_facts(moments), strict=True))


def scores(clip: Clip) -> list[float]:
    features = ClipFeatures(canonical(clip))
    return [scorer.score_features(features)[0] for scorer in SCORERS]


def tone(seconds: float, *pitches: float) -> Clip:
    time = np.arange(int(seconds * RATE)) / RATE
    wave = sum((np.sin(2 * np.pi * pitch * time) for pitch in pitches), 0 * time)
    return Clip(samples=(0.1 * wave).astype(np.float32)[None], sample_rate=RATE)


def test_half_seconds_are_means_at_their_times_whatever_the_rate():
    for rate in (10.0, 10.77, 62.5, 86.0):
        time = np.arange(int(10 * rate))[:, None] / rate
        moments = half_second_means(np.hstack([time, np.ones_like(time)]), rate)
        assert moments[:, 1] == pytest.approx(1)
        assert moments[:, 0] == pytest.approx(0.25 + 0.25 * np.arange(len(moments)), abs=1.5 / rate)
        assert 37 <= len(moments) <= 39
    assert len(half_second_means(np.zeros((3, 2)), 10.0)) == 0


def test_distances_are_those_of_all_pairs():
    moments = np.random.default_rng(0).standard_normal((12, 5)) + 1e3
    expected = ((moments[:, None] - moments) ** 2).sum(-1)
    assert squared_distances(moments) == pytest.approx(expected, abs=1e-6)


def test_a_loop_comes_back_wholly_at_its_period():
    bar = np.random.default_rng(0).standard_normal((8, 6))
    loop = facts(np.tile(bar, (5, 1))[:WINDOW])
    assert loop["recurrence"] == pytest.approx(1)
    assert loop["period"] == pytest.approx(1)


def test_independent_moments_neither_continue_nor_return():
    rng = np.random.default_rng(0)
    rows = [form_facts(rng.standard_normal((WINDOW, 200))) for _ in range(20)]
    mean = dict(zip(FACTS, np.mean(rows, 0), strict=True))
    assert mean["continuity"] == pytest.approx(0, abs=0.02)
    assert mean["recurrence"] < 0.1
    assert mean["period"] < 0.1
    assert mean["spread"] == pytest.approx(np.log(400**0.5), abs=0.02)


def test_a_walk_continues_and_its_shuffled_moments_do_not():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((WINDOW, 50)), axis=0)
    assert facts(walk)["continuity"] > 0.6
    assert facts(rng.permutation(walk))["continuity"] < 0.2
    assert facts(rng.permutation(walk))["spread"] < facts(walk)["spread"]


def test_scale_and_offset_change_the_spread_alone_and_by_the_logarithm():
    moments = np.random.default_rng(0).standard_normal((WINDOW, 8))
    first, second = form_facts(moments), form_facts(3 * moments + 7)
    assert second[:3] == pytest.approx(first[:3])
    assert second[3] - first[3] == pytest.approx(np.log(3), abs=1e-3)


def test_what_stands_still_has_no_form_and_the_smallest_spread():
    assert form_facts(np.ones((WINDOW, 4))).tolist() == [0, 0, 0, np.log(1e-3)]


def test_few_moments_are_enough_or_an_error():
    moments = np.random.default_rng(0).standard_normal((FEWEST_MOMENTS, 4))
    assert np.isfinite(form_facts(moments)).all()
    with pytest.raises(ValueError, match="facts of form need"):
        form_facts(moments[1:])
    with pytest.raises(ValueError, match="facts of form need"):
        window_facts(moments, moments[1:])


@pytest.mark.parametrize("count", [FEWEST_MOMENTS, WINDOW - 1, WINDOW, WINDOW + 1, 60, 200, 1000])
def test_windows_cover_every_moment_evenly(count):
    starts = window_starts(count)
    covered = {moment for start in starts for moment in range(start, min(start + WINDOW, count))}
    assert covered == set(range(count))
    assert starts[-1] == max(0, count - WINDOW)
    assert len(starts) == -(-count // WINDOW)
    rng = np.random.default_rng(0)
    assert window_facts(rng.random((count, 3)), rng.random((count + 2, 5))).shape == (len(starts), 8)


@pytest.mark.parametrize("name", ["shuffled seconds", "loop of 1 s", "white noise", "silence"])
def test_a_song_is_above_its_shuffled_seconds_its_loop_noise_and_silence(name):
    damaged = PERTURBATIONS[name](SONG, np.random.default_rng(0))
    for song, worse in zip(scores(SONG), scores(damaged), strict=True):
        assert worse < song


def test_a_drone_is_below_a_song_and_silence_below_all():
    song = scores(SONG)
    for sound in (tone(10, 220.0), tone(10, 261.6, 329.6, 392.0)):
        for drone, silence, value in zip(scores(sound), scores(tone(10)), song, strict=True):
            assert silence <= drone < value


def test_short_clips_get_the_lowest():
    short = Clip(samples=SONG.samples[:, : int(4.9 * SONG.sample_rate)], sample_rate=SONG.sample_rate)
    assert scores(short) == [read_form_utility(path).lowest for path in (ORDER_PATH, FORM_PATH)]
    medium = Clip(samples=SONG.samples[:, : int(5.1 * SONG.sample_rate)], sample_rate=SONG.sample_rate)
    assert all(value > short for value, short in zip(scores(medium), scores(short), strict=True))


def test_the_utility_is_linear_above_the_floor_and_punished_below_it():
    utility = read_form_utility(ORDER_PATH)
    rng = np.random.default_rng(0)
    rows = utility.order.center + 3 * utility.order.scale * rng.standard_normal((500, 4))
    order, loops, values = utility.order.utility(rows), utility.loops.utility(rows), utility(rows)
    free = loops >= utility.floor
    assert 0 < free.sum() < len(rows)
    assert values[free] == pytest.approx(order[free])
    assert values[~free] == pytest.approx((order - 3 * (utility.floor - loops))[~free])
    assert values.min() >= utility.lowest


def test_no_feature_of_a_network_counts_for_more_than_the_limit_and_constants_for_nothing():
    center, scale = read_layer_scale(FORM_PATH)
    moments = center + scale * np.linspace(-9, 9, 5)[:, None]
    assert standardise_layers(moments, center, scale) == pytest.approx(
        np.tile([-4.0, -4.0, 0.0, 4.0, 4.0], (753, 1)).T, abs=1e-6
    )
    assert np.abs(standardise_layers((center + 5.0)[None], center, scale)[:, scale > 1e3]).max() < 1e-4


def test_one_is_mined_the_other_judges():
    assert mined_axes([], ["structure.order", "form.order"]) == ["structure.order"]
    with pytest.raises(ConfigError, match="belongs to a judge"):
        mined_axes(["form.order"], ["form.order"])
    assert "form.order" in judge_axes()
    assert axis_traits()["structure.order"] == axis_traits()["form.order"] == "form"


def test_weights_that_are_damaged_are_an_error_of_one_line(tmp_path):
    path = tmp_path / "order.safetensors"
    for content in (None, b"", ORDER_PATH.read_bytes()[:200]):
        if content is not None:
            path.write_bytes(content)
        for read in (read_form_utility, read_layer_scale):
            with pytest.raises(DataError, match="reinstall diffdpo") as error:
                read(path)
            assert "\n" not in str(error.value)
