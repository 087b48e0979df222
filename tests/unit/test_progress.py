"""Progress: speed and remaining time are said once they can be known."""

import pytest

from diffdpo import progress


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


def bar_at(times, total=160, done=0):
    """A bar after an item at each of these seconds."""
    clock = Clock()
    bar = progress.Bar(total, "score", "song", None, True, n_done=done, pace=progress.Pace(clock))
    for clock.now in times:
        bar.advance()
    return bar


def test_no_remaining_time_is_shown_before_it_can_be_known(capsys):
    for times in ([34.0], [34.0, 35.0], [34.0, 35.0, 36.0]):
        bar_at(times).log()
    assert "left" not in (lines := capsys.readouterr().err)
    assert "score: 1/160" in lines


def test_the_first_item_which_loads_everything_does_not_count():
    bar = bar_at([34.0, 35.0, 36.0, 37.0, 38.0])
    assert bar.pace.speed == pytest.approx(1.0)
    assert bar.pace.eta_s(155) == pytest.approx(155.0)
    assert bar.speed_text() == "1.0 song/s, 3 min left"


def test_work_of_an_earlier_run_counts_as_done_but_not_for_the_speed(capsys):
    bar = bar_at([float(second) for second in range(10)], total=120, done=100)
    bar.log()
    assert "110/120, 1.0 song/s, 10 s left" in capsys.readouterr().err


def test_the_last_line_is_written_once_and_says_how_long_it_took(capsys):
    with progress.bar("score", 2, "song") as bar:
        bar.advance(2)
        bar.log()
    lines = capsys.readouterr().err
    assert lines.count("score: 2/2") == 1
    assert "left" not in lines
    assert ", 0 s" in lines


def test_nothing_is_said_on_other_processes(capsys):
    with progress.bar("score", 2, "song", visible=False) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("speed", "text"), [(None, "- step/s"), (0.5, "2.0 s/step"), (12.34, "12.3 step/s")])
def test_rates_are_said_the_friendlier_way(speed, text):
    assert progress.rate(speed, "step") == text


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_durations_are_said_in_the_unit_that_fits(seconds, text):
    assert progress.duration(seconds) == text
