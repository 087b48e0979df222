"""Power against the normal approximation, simulation and its own inverse."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from diffdpo.cli import app
from diffdpo.statistics import estimate_mean
from diffdpo.statistics_power import (
    MAX_PROMPTS,
    MAX_VOTES,
    detection_power,
    prompts_for,
    smallest_effect,
    vote_power,
    votes_for,
)


def test_many_prompts_follow_the_normal_law():
    """(1.96 + 0.84) deviations / √n."""
    assert smallest_effect(0.5, 10_000) == pytest.approx(2.8016 * 0.5 / 100, rel=0.002)
    assert prompts_for(0.05, 0.5) == pytest.approx((2.8016 * 10) ** 2, rel=0.01)


def test_the_power_is_what_a_simulation_counts():
    rng, names = np.random.default_rng(0), [f"p{i:02d}" for i in range(12)]
    effect = smallest_effect(1.0, 12)
    count = sum(estimate_mean(rng.normal(effect, 1, 12), names).interval().low > 0 for _ in range(500))
    assert count / 500 == pytest.approx(0.8, abs=0.055)


def test_without_an_effect_the_power_is_half_the_level_or_less():
    for prompts in (8, 24, 1000):
        assert 0 < detection_power(0.0, 1.0, prompts) <= 0.025 + 1e-9


@pytest.mark.parametrize("level", [0.05, 0.05 / 9])
def test_prompts_and_smallest_effect_are_each_other_s_inverse(level):
    for prompts in (8, 13, 48, 300):
        assert prompts_for(smallest_effect(0.7, prompts, level=level), 0.7, level=level) == prompts
    assert prompts_for(50.0, 0.1, level=level) == 8
    assert prompts_for(1e-6, 1.0, level=level) == MAX_PROMPTS
    assert math.isinf(smallest_effect(1.0, 7))


def write_report(folder, prompts=24):
    rng = np.random.default_rng(0)
    samples = [
        {"group": f"p{k}", "baseline": {"x": b, "flat": 0.0}, "aligned": {"x": b + d, "flat": None}}
        for k in range(prompts)
        for b, d in [(float(rng.normal(0, 2)), float(rng.normal(0, 1)))]
    ]
    (folder / "report.json").write_text(
        json.dumps({"axes": [{"axis": "x"}, {"axis": "flat"}], "samples": samples})
    )
    baseline = np.array([row["baseline"]["x"] for row in samples])
    return float(
        (np.array([row["aligned"]["x"] for row in samples]) - baseline).std(ddof=1) / baseline.std(ddof=1)
    )


def test_the_table_is_that_of_a_report_or_of_a_spread(tmp_path):
    spread = write_report(tmp_path)
    words = ["--effect", "0.2", "--prompts", "24"]
    row = CliRunner().invoke(app, ["power", str(tmp_path), *words]).stdout.splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "x",
        f"{spread:.2f}",
        str(prompts_for(0.2, spread)),
        f"{smallest_effect(spread, 24):.2f}",
    ]
    by_number = CliRunner().invoke(app, ["power", "--sd", str(spread), *words]).stdout.splitlines()[2]
    assert by_number.split("|")[2:] == row.split("|")[2:]
    strict = (
        CliRunner().invoke(app, ["power", "--sd", str(spread), *words, "--axes", "9"]).stdout.splitlines()[2]
    )
    assert int(strict.split("|")[3]) > int(cells[2])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--sd"),
        (["--sd", "0"], "--sd has to be above 0"),
        (["--sd", "1", "--prompts", "7"], "8 or more"),
        (["--sd", "1", "--effect", "0"], "--effect has to be above 0"),
        (["--sd", "1", "--power", "1"], "--power must be in (0, 1)"),
        (["nowhere"], "no such file"),
    ],
)
def test_mistakes_are_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["power", *words])
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_report_of_two_prompts_has_no_spread(tmp_path):
    write_report(tmp_path, prompts=2)
    assert "fewer than 3 prompts" in CliRunner().invoke(app, ["power", str(tmp_path)]).stderr
    (tmp_path / "report.json").write_text("{}")
    assert "no report of `diffdpo evaluate`" in CliRunner().invoke(app, ["power", str(tmp_path)]).stderr


@pytest.mark.parametrize(("share", "robust"), [(0.6, 210), (0.65, 97), (0.7, 54), (0.75, 35)])
def test_votes_of_an_exact_test_and_their_sawtooth(share, robust):
    """The robust numbers of the literature; the first number has the power, the one before it has not."""
    first, last = votes_for(share)
    assert last == robust
    assert vote_power(first, share) >= 0.8 > vote_power(first - 1, share)
    assert vote_power(last - 1, share) < 0.8
    assert all(vote_power(n, share) >= 0.8 for n in range(last, last + 40))


def test_the_power_of_votes_is_that_of_the_textbook_test():
    """Of 30 votes, 21 or more, or 9 or fewer, are significant: 2 · P(X ≥ 21) = 0.043, 2 · P(X ≥ 20) = 0.099."""
    chance = [math.comb(30, k) * 0.75**k * 0.25 ** (30 - k) for k in range(31)]
    assert vote_power(30, 0.75) == pytest.approx(sum(chance[21:]) + sum(chance[:10]))
    assert vote_power(5, 0.9) == 0  # no count of five is significant
    assert votes_for(0.501)[0] == MAX_VOTES


def test_the_table_of_votes_counts_ties_raters_and_correlation():
    result = CliRunner().invoke(
        app, ["power", "--votes", "--share", "0.75", "--per-rater", "10", "--icc", "0.1"]
    )
    assert result.exit_code == 0
    row = [cell.strip() for cell in result.output.splitlines()[-1].strip("|").split("|")]
    assert row == ["0.75", "30", "35", f"{math.ceil(35 * 1.9 / 0.9)}", "8"]


@pytest.mark.parametrize("words", [["--share", "0.5"], ["--icc", "2"], ["--ties", "1"], ["--per-rater", "0"]])
def test_votes_that_cannot_be_planned_are_one_line(words):
    result = CliRunner().invoke(app, ["power", "--votes", *words])
    assert result.exit_code == 2
    assert words[0] in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--share", "0.6"], "--share is of votes; add --votes"),
        (["--per-rater", "30"], "--per-rater is of votes"),
        (["--votes", "--effect", "0.3"], "--effect is not of votes"),
        (["--votes", "--sd", "0.3"], "--sd is not of votes"),
    ],
)
def test_an_option_of_the_other_table_is_refused(words, says):
    result = CliRunner().invoke(app, ["power", *words])
    assert result.exit_code == 2
    assert says in result.output
