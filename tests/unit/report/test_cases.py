"""Which pairs of songs the page plays."""

import pytest

from diffdpo.report.cases import choose_cases


def test_worst_median_and_best_of_nine() -> None:
    gains = [0.4, -0.3, 0.0, 0.9, -0.1, 0.2, 0.1, 0.5, -0.7]
    cases = [(gains[place], case) for place, case in choose_cases(gains, 3)]
    assert cases == [(-0.7, "worst"), (0.1, "median"), (0.9, "best")]
    cases = [(gains[place], case) for place, case in choose_cases(gains, 6)]
    assert cases == [
        *((-0.7, "worst"), (-0.3, "worst")),
        *((0.0, "median"), (0.1, "median")),
        *((0.5, "best"), (0.9, "best")),
    ]


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("songs", range(9))
def test_no_song_is_played_twice_and_the_worst_is_never_left_out(songs: int, count: int) -> None:
    gains = [float((7 * k) % 5) for k in range(songs)]
    chosen = choose_cases(gains, count)
    places = [place for place, _ in chosen]
    assert len(set(places)) == len(places) == min(songs, count)
    assert [gains[place] for place in places] == sorted(gains[place] for place in places)
    if chosen:
        assert gains[places[0]] == min(gains)
        assert chosen[0][1] == "worst"
    if len(chosen) > 1:
        assert gains[places[-1]] == max(gains)
        assert chosen[-1][1] == "best"
    counts = [sum(case == kind for _, case in chosen) for kind in ("worst", "best", "median")]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[2] <= 1
