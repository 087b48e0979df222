"""The band of real songs, and what it calls over-optimised."""

import numpy as np
import pytest

from diffdpo.errors import DataError
from diffdpo.evaluation.band import BAND_WITNESSES, Band, band_change, in_band_shares, real_bands, style_bands

PROMPTS = [f"p{k // 2:02d}" for k in range(48)]


def songs(count=48, mean=0.0, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return {axis: rng.normal(mean, spread, count) for axis in BAND_WITNESSES}


REAL = songs(2000, seed=9)
BANDS = real_bands(REAL)


def test_a_band_is_the_10th_to_the_90th_percentile_and_holds_four_of_five_real_windows():
    assert real_bands({"x": np.arange(101.0)})["x"] == Band(10.0, 90.0)
    assert real_bands({"x": np.append(np.arange(101.0), [np.nan, np.inf])})["x"] == Band(10.0, 90.0)
    assert band_change(songs(), songs(), PROMPTS, BANDS, real=REAL).real_share == pytest.approx(
        0.8, abs=0.001
    )


def test_the_share_of_a_song_counts_its_witnesses_and_what_is_no_number_is_outside():
    values = {axis: np.zeros(3) for axis in BAND_WITNESSES}
    values["note.key"] = np.array([0.0, 9.0, np.nan])
    values["note.scale"] = np.array([0.0, -9.0, 0.0])
    np.testing.assert_allclose(in_band_shares(values, BANDS), [1, 7 / 9, 8 / 9])


def test_real_songs_in_the_place_of_a_model_are_not_over_optimised():
    change = band_change(songs(), songs(seed=1), PROMPTS, BANDS)
    assert not change.over_optimised
    assert change.reasons == ()


def test_a_mean_outside_of_its_band_is_over_optimised_whatever_the_share():
    aligned = songs(spread=0.1, seed=1)
    aligned["note.scale"] = aligned["note.scale"] + 1.5
    change = band_change(songs(), aligned, PROMPTS, BANDS)
    assert change.witnesses_outside == ("note.scale",)
    assert change.aligned_share > change.base_share
    assert change.over_optimised
    assert "note.scale" in change.reasons[0]


def test_a_share_that_falls_by_its_whole_interval_is_over_optimised():
    change = band_change(songs(), songs(spread=1.6, seed=1), PROMPTS, BANDS)
    assert change.witnesses_outside == ()
    assert change.change.high < 0
    assert change.over_optimised
    few = {axis: values[:8] for axis, values in songs(spread=1.6, seed=1).items()}
    base = {axis: values[:8] for axis, values in songs().items()}
    assert not band_change(base, few, PROMPTS[:8], BANDS).over_optimised, "4 prompts decide nothing"


def test_the_change_is_paired():
    """The same songs again change nothing, however different they are."""
    change = band_change(songs(spread=3), songs(spread=3), PROMPTS, BANDS)
    assert (change.change.mean, change.change.low, change.change.high) == (0, 0, 0)


def test_a_style_has_a_band_of_its_own_if_it_has_enough_windows():
    styles = ["rock"] * 1000 + ["folk"] * 990 + ["rare"] * 10
    real = {axis: values + np.array([4.0] * 1000 + [0.0] * 1000) for axis, values in REAL.items()}
    by_style = style_bands(real, styles)
    assert sorted(by_style) == ["folk", "rock"]
    assert by_style["rock"]["note.key"].low == pytest.approx(4 - 1.28, abs=0.15)
    rock, rare = songs(2, mean=4, spread=0.01), songs(2, mean=4, spread=0.01, seed=1)
    values = {axis: np.concatenate([rock[axis], rare[axis]]) for axis in rock}
    shares = in_band_shares(
        values, real_bands(real), styles=["folk", "rock", "rare", "rare"], bands_by_style=by_style
    )
    np.testing.assert_allclose(shares, [0, 1, 1, 1])  # a rare style has the band of all


def test_an_absent_witness_is_named():
    short = {axis: values for axis, values in songs().items() if axis != "beat.pulse"}
    with pytest.raises(DataError, match=r"beat\.pulse"):
        in_band_shares(short, BANDS)
    with pytest.raises(DataError, match=r"bands of real songs"):
        in_band_shares(songs(), {axis: band for axis, band in BANDS.items() if axis != "note.key"})
    with pytest.raises(DataError, match="no band"):
        real_bands({"note.key": np.full(9, np.nan)})
