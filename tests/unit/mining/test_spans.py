"""Spans: leads known by hand, invariants, and a defect in a real song found by real scorers."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffdpo.data.scores import Grid
from diffdpo.mining import Pair
from diffdpo.mining.spans import SpanConfig, find_spans, join_spans, moment_leads, window_spread

CONFIG = SpanConfig(min_margin=1.0, max_gap_s=0.0, min_s=0.0)


def pair(axis="", axes=("melody", "sound")):
    return Pair(
        prompt_id="p", group="p", winner="w", loser="l", rule="r", margins=dict.fromkeys(axes, 1.0), axis=axis
    )


def windows(melody, sound=None, length=2.0, hop=1.0):
    """Windows one second apart with these scores."""
    found = {}
    for i, value in enumerate(melody):
        scores = {"melody": value} | ({} if sound is None else {"sound": sound[i]})
        found[i * hop, i * hop + length] = scores
    return found


def test_a_moment_is_the_mean_of_the_windows_that_hold_it():
    leads = {(0.0, 2.0): 1.0, (1.0, 3.0): 3.0, (4.0, 5.0): 7.0}
    assert moment_leads(leads) == [((0.0, 1.0), 1.0), ((1.0, 2.0), 2.0), ((2.0, 3.0), 3.0), ((4.0, 5.0), 7.0)]


def test_the_winner_leads_where_its_windows_do():
    winner, loser = windows([1.0] * 6), windows([1.0, 1.0, -1.0, -1.0, 1.0, 1.0])
    # std of six and four ones and two minus ones: √(1 - (2/3)²); leads 0 0 2 2 0 0 over it
    std = math.sqrt(1 - (8 / 12) ** 2)
    assert window_spread([winner, loser]) == {"melody": pytest.approx(std)}
    # windows 2-4 and 3-5 are hit: full lead between 3 and 4, half of it from 2 to 3 and 4 to 5
    wide = SpanConfig(min_margin=1 / std - 1e-9, max_gap_s=0.0, min_s=0.0)
    assert find_spans(pair("melody"), winner, loser, {}, wide) == ((2.0, 5.0),)
    close = SpanConfig(min_margin=2 / std - 1e-9, max_gap_s=0.0, min_s=0.0)
    assert find_spans(pair("melody"), winner, loser, {}, close) == ((3.0, 4.0),)


def test_a_pair_with_an_axis_looks_at_that_axis_alone():
    winner = windows([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], length=1.0)
    loser = windows([0.0, 1.0, 1.0], [1.0, 1.0, 0.0], length=1.0)
    assert find_spans(pair("melody"), winner, loser, {}, CONFIG) == ((0.0, 1.0),)
    assert find_spans(pair("sound"), winner, loser, {}, CONFIG) == ((2.0, 3.0),)
    # together each is half as far ahead: lead 1 / √(5/36) / 2 = 1.34
    assert find_spans(pair(), winner, loser, {}, CONFIG) == ((0.0, 1.0), (2.0, 3.0))
    assert find_spans(pair(), winner, loser, {"sound": 0.0}, CONFIG) == ((0.0, 1.0),)
    assert find_spans(pair("melody"), loser, winner, {}, CONFIG) == ()


def test_without_windows_of_the_axis_it_is_the_whole_song():
    assert find_spans(pair("sound"), windows([1.0]), windows([0.0]), {}, CONFIG) == ()
    assert find_spans(pair(), {}, {}, {}, CONFIG) == ()
    assert find_spans(pair(), windows([math.nan, 1.0]), windows([0.0, 1.0]), {}, CONFIG) == ()


def test_songs_of_different_lengths_are_compared_where_both_are():
    winner, loser = windows([1.0, 1.0, 1.0, 1.0], length=1.0), windows([0.0, 1.0], length=1.0)
    assert find_spans(pair("melody"), winner, loser, {}, CONFIG) == ((0.0, 1.0),)


def test_near_spans_are_joined_and_short_ones_dropped():
    assert join_spans([(5.0, 6.0), (0.0, 1.0), (1.0, 2.0), (2.5, 3.0)], 0.5) == [(0.0, 3.0), (5.0, 6.0)]
    winner, loser = windows([1.0] * 5, length=1.0), windows([0.0, 1.0, 0.0, 1.0, 1.0], length=1.0)
    bridged = SpanConfig(max_gap_s=1.0, min_s=3.0)
    assert find_spans(pair("melody"), winner, loser, {}, bridged) == ((0.0, 3.0),)
    assert find_spans(pair("melody"), winner, loser, {}, SpanConfig(max_gap_s=0.5, min_s=1.5)) == ()


@pytest.mark.parametrize(
    "bad", [{"min_margin": 0.0}, {"min_margin": math.nan}, {"min_s": -1.0}, {"max_gap_s": -1.0}]
)
def test_wrong_thresholds_are_refused(bad):
    with pytest.raises(ValueError, match="must"):
        SpanConfig(**bad)


scores = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


@settings(max_examples=60)
@given(one=scores, two=scores, margin=st.floats(0.1, 3), gap=st.floats(0, 3), shortest=st.floats(0, 3))
def test_spans_are_in_order_apart_long_enough_and_inside_both_songs(one, two, margin, gap, shortest):
    winner, loser = windows(one), windows(two)
    config = SpanConfig(min_margin=margin, max_gap_s=gap, min_s=shortest)
    spans = find_spans(pair("melody"), winner, loser, {}, config)
    shared = min(len(one), len(two)) + 1.0
    assert all(0 <= start < stop <= shared and stop - start >= shortest for start, stop in spans)
    assert all(after[0] - before[1] > gap for before, after in pairwise(spans))


@settings(max_examples=60)
@given(one=scores, two=scores, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_the_scale_of_an_axis_does_not_move_spans_and_a_lower_margin_only_widens_them(one, two, scale, shift):
    one, two = ([round(value, 1) for value in side] for side in (one, two))
    plain = find_spans(pair("melody"), windows(one), windows(two), {}, CONFIG)
    moved = [windows([value * scale + shift for value in side]) for side in (one, two)]
    above, below = (SpanConfig(min_margin=1 + e, max_gap_s=0.0, min_s=0.0) for e in (1e-6, -1e-6))
    narrow, wide = (find_spans(pair("melody"), *moved, {}, config) for config in (above, below))
    assert _seconds(narrow) <= _seconds(plain) <= _seconds(wide)
    lower = SpanConfig(min_margin=0.5, max_gap_s=0.0, min_s=0.0)
    wide = find_spans(pair("melody"), windows(one), windows(two), {}, lower)
    assert all(any(a <= start and stop <= b for a, b in wide) for start, stop in plain)


@given(window=st.floats(0.5, 20), hop=st.floats(0.1, 20), seconds=st.floats(0.1, 300))
@example(window=5.0 + 1e-12, hop=1.0, seconds=5.0)
@example(window=5.0 + 1e-5, hop=1.0, seconds=5.0)
def test_windows_lie_within_the_song_and_leave_nothing_out(window, hop, seconds):
    starts = Grid(window, hop).starts(seconds)
    if seconds - window < -1e-6:
        assert starts == []
        return
    assert starts[0] == 0
    assert all(one < two <= one + hop + 2e-3 for one, two in pairwise(starts))
    assert starts[-1] + window == pytest.approx(seconds, abs=2e-3)
    assert starts[-1] + window <= seconds + 1e-3


def test_a_grid_is_written_out_as_one_would_by_hand():
    assert Grid(5, 2.5).starts(12.0) == [0.0, 2.5, 5.0, 7.0]
    assert Grid(5, 2.5).starts(10.0) == [0.0, 2.5, 5.0]
    assert Grid(5, 2.5).name == "5/2.5"


def _seconds(spans):
    return float(np.sum([stop - start for start, stop in spans]))
