"""Effects as rows of the page: their scale, their traits, and where they lie on the band of real songs."""

import re

import pytest

from diffdpo.evaluation.band import Band
from diffdpo.evaluation.effects import AxisEffect, Role
from diffdpo.report.effect_rows import BAND_ENDS, band_marks, forest
from diffdpo.report.page import Report, render
from diffdpo.statistics import Effect


def axis(
    name: str, role: Role, mean: float, *, half: float = 0.1, std: float = 0.5, base: float = 1.0
) -> AxisEffect:
    effect = Effect(mean, mean - half, mean + half, win_rate=0.5, effect_size=0.0, count=8, clusters=8)
    return AxisEffect(
        name, role, baseline_mean=base, baseline_std=std, aligned_mean=base + mean, effect=effect
    )


def test_one_wild_axis_does_not_flatten_the_others() -> None:
    """Beyond four standard deviations a mark sits at the edge, and the page says so."""
    wild = forest([axis("a.x", "mined", 0.5, std=1), axis("a.y", "mined", 40.0, std=1)])
    assert wild.cut
    first, second = wild.traits[0].rows
    assert first.marks is not None
    assert second.marks is not None
    assert second.marks[1] == 100.0
    assert first.marks[1] - wild.zero > 8
    assert second.effect_sizes[1] == 40.0
    assert not forest([axis("a.x", "mined", 0.5)]).cut


def test_the_plot_is_in_standard_deviations_of_the_baseline() -> None:
    plot = forest([axis("a.x", "mined", 0.5, std=0.5), axis("a.y", "judge", -1.0, std=2.0)])
    rows = plot.traits[0].rows
    assert rows[0].effect_sizes == pytest.approx((0.8, 1.0, 1.2))
    assert rows[1].effect_sizes == pytest.approx((-0.55, -0.5, -0.45))
    marks = [row.marks for row in rows if row.marks is not None]
    scale = (marks[0][1] - plot.zero) / 1.0  # percent a standard deviation
    assert marks[1][1] - plot.zero == pytest.approx(-0.5 * scale, abs=0.02)
    assert all(0 <= value <= 100 for row in marks for value in row)
    assert {label: at for at, label in plot.ticks}["0"] == plot.zero


def test_an_axis_without_spread_has_no_marks_and_breaks_nothing() -> None:
    effects = [axis("a.x", "mined", 0.0, half=0.0, std=0.0)]
    assert forest(effects).traits[0].rows[0].marks is None
    assert "the base does not vary on this axis" in render(Report(title="t", facts={}, effects=effects))


def test_judges_stand_beside_the_mined_axes_of_their_trait() -> None:
    """By the traits of the scorers themselves; the order within a trait is that of the effects."""
    effects = [
        axis("harmony.key", "mined", 0.1),
        axis("rhythm.pulse", "mined", 0.1),
        axis("note.key", "judge", 0.1),
        axis("beat.coherence", "judge", 0.1),
        axis("harmony.consonance", "diagnosis", 0.1),
        axis("a.stranger", "judge", 0.1),
    ]
    groups = {group.trait: [row.effect.axis for row in group.rows] for group in forest(effects).traits}
    assert groups == {
        "harmony": ["harmony.key", "note.key", "harmony.consonance"],
        "rhythm": ["rhythm.pulse", "beat.coherence"],
        "other axes": ["a.stranger"],
    }


@pytest.mark.parametrize(
    ("base", "mean", "places", "outside", "cut"),
    [
        (2.0, 1.0, (0.0, 0.5), False, False),  # base on the lower end, aligned in the middle
        (3.0, 1.0, (0.5, 1.0), False, False),  # aligned on the upper end, which belongs to the band
        (3.0, 1.1, (0.5, 1.05), True, False),
        (1.9, -0.1, (-0.05, -0.1), True, False),
        (3.0, 9.0, (0.5, None), True, True),  # far beyond: at the edge
    ],
)
def test_means_lie_on_a_band_of_one_width(
    base: float, mean: float, places: tuple[float, float | None], outside: bool, cut: bool
) -> None:
    marks = band_marks(axis("a.x", "judge", mean, base=base), Band(2.0, 4.0))
    assert marks is not None
    low, high = BAND_ENDS
    expected = [100.0 if place is None else low + place * (high - low) for place in places]
    assert (marks.base, marks.aligned) == pytest.approx(expected)
    assert (marks.outside, marks.cut) == (outside, cut)
    words = re.search(r"aligned .*, (below|inside|above)$", marks.aria_label)
    assert words is not None
    assert (words[1] != "inside") == outside


def test_the_page_has_a_band_for_each_axis_that_real_songs_were_scored_on() -> None:
    effects = [axis("note.key", "judge", 0.1), axis("form.order", "judge", 0.1)]
    report = Report(title="t", facts={}, effects=effects, bands={"note.key": Band(0.5, 1.5)})
    page = render(report)
    labels = re.findall(r'<svg class="band[^>]*role="img" aria-label="([^"]*)"', page)
    assert labels == [
        "note.key beside real songs, whose middle 80 % lie from 0.500 to 1.50: base 1.00, inside; "
        "aligned 1.10, inside"
    ]
    assert page.count("no real songs") == 1
    assert "real songs" not in render(Report(title="t", facts={}, effects=effects))
    assert band_marks(effects[0], Band(1.0, 1.0)) is None
