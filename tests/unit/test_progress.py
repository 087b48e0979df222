"""What stands in for the bar where there is no terminal."""

import time

import pytest

from diffdpo import progress


def test_work_of_an_earlier_run_counts_as_done_but_not_for_the_rate(capsys):
    bar = progress.Bar(120, "train", "step", None, True, done=100, began=time.monotonic() - 10)
    bar.done += 10  # in ten seconds
    bar.log()
    assert "110/120" in (line := capsys.readouterr().err)
    assert "1.0 s" in line
    assert "10 s left" in line


def test_the_last_line_is_written_once(capsys):
    with progress.bar("score", 2, "song") as bar:
        bar.advance(2)
        bar.log()
    assert capsys.readouterr().err.count("score: 2/2") == 1


def test_nothing_is_said_on_other_processes(capsys):
    with progress.bar("score", 2, "song", enabled=False) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("speed", "text"), [(None, "- step/s"), (0.5, "2.0 s/step"), (12.34, "12.3 step/s")])
def test_rates_are_said_the_friendlier_way(speed, text):
    assert progress.rate(speed, "step") == text
