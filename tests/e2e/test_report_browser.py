"""The report in a real browser: what sounds, what is hidden, and that nothing leaves the page.

Chromium is driven over its debugging pipe, so the page sees trusted key presses and clicks. Each test song
is a tone that rises as it runs, in a band of its own: the frequency heard tells which song it is, and where.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import LOG_EVENTS, Browser, chromium_path

from diffdpo.evaluation.band import Band
from diffdpo.evaluation.effects import AxisEffect
from diffdpo.evaluation.verdict import Evidence, reach_verdict
from diffdpo.evaluation.witness_report import BestOfN, WitnessReport
from diffdpo.report.frontier import FrontierPoint
from diffdpo.report.page import Comparison, Report, write_report
from diffdpo.report.plots import MINUS
from diffdpo.statistics import Effect, Interval
from diffdpo.types import Clip

pytestmark = pytest.mark.browser

RATE = 16000
SECONDS = 8.0
STARTS = {
    ("p0", "baseline"): 500.0,
    ("p0", "aligned"): 1500.0,
    ("p1", "baseline"): 2500.0,
    ("p1", "aligned"): 3500.0,
}
HERTZ_PER_SECOND = 100.0


def tone(start: float) -> Clip:
    t = np.arange(int(SECONDS * RATE)) / RATE
    samples = 0.2 * np.sin(2 * np.pi * (start * t + HERTZ_PER_SECOND * t**2 / 2))
    return Clip(samples=samples.astype(np.float32)[None], sample_rate=RATE)


def comparison(prompt: str, change: float) -> Comparison:
    return Comparison(
        prompt_id=prompt,
        prompt_text=f"a tone, {prompt}",
        sample_id=f"{prompt}-0",
        baseline=tone(STARTS[prompt, "baseline"]),
        aligned=tone(STARTS[prompt, "aligned"]),
        baseline_scores={"rhythm.pulse": 0.4},
        aligned_scores={"rhythm.pulse": 0.4 + change},
        standardised_change=change,
    )


def axis(name: str, role: Any, mean: float) -> AxisEffect:
    effect = Effect(mean, mean - 0.1, mean + 0.1, win_rate=0.6, effect_size=mean, count=8, clusters=8)
    return AxisEffect(name, role, baseline_mean=0.4, baseline_std=1.0, aligned_mean=0.4 + mean, effect=effect)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    effects = [
        axis("rhythm.pulse", "mined", 0.3),
        axis("harmony.key", "mined", 0.0),
        axis("a.judge", "judge", -0.5),
    ]
    worst, best = comparison("p0", -0.5), replace(comparison("p1", 0.5), case="best")
    witnesses = WitnessReport(
        composites={"W.all": axis("W.all", "judge", 0.3).effect},
        definition="W.all is the mean of harmony and rhythm",
        band=None,
        n_equivalent=None,
        best_of_n=tuple(BestOfN(n, n / 2 - 0.5, Interval(n / 10, 0, n / 5)) for n in (1, 2, 3)),
    )
    report = Report(
        title="Test",
        facts={},
        effects=effects,
        comparisons=[worst, best],
        long_song=tone(500.0),
        verdict=reach_verdict(Evidence(judges={"a.judge": axis("a.judge", "judge", -0.5).effect})),
        witnesses=witnesses,
        bands={"rhythm.pulse": Band(0.0, 0.6), "a.judge": Band(-0.5, 1.0)},
        frontier=[FrontierPoint(name="far", method="dpo", kl=40.0, composites={"W.all": Interval(1, 0, 2)})],
    )
    write_report(path, report)
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(chromium_path(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Iterator[Browser]:
    """A fresh copy of the page. Afterwards nothing may have gone wrong on it or have left it."""
    chromium.events.clear()
    chromium.open(page)
    yield chromium
    assert chromium.run("trouble") == []
    sent = [
        e["params"]["request"]["url"]
        for e in chromium.events
        if e.get("method") == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in sent} <= {"file", "data"}
    assert [url for url in sent if url.startswith("file:")] == [page.as_uri()]
    assert [e["params"] for e in chromium.events if e.get("method") in LOG_EVENTS] == []


def heard(browser: Browser) -> tuple[str, str, float]:
    """(prompt, song, position in seconds) from the frequency that sounds."""
    sound = browser.run("hear()")
    assert sound["level"] > 0.02, "silence"
    key, start = max(
        ((k, s) for k, s in STARTS.items() if s <= sound["hertz"] + 50), key=lambda item: item[1]
    )
    return *key, (sound["hertz"] - start) / HERTZ_PER_SECOND


def wait_until_heard(browser: Browser) -> None:
    browser.wait("window.ear && hear().level > 0.05")


def position(browser: Browser, card: int = 0) -> float:
    return float(browser.run(f"document.querySelectorAll('.seek')[{card}].value"))


def test_switching_changes_what_sounds_and_the_position_carries_on(browser: Browser) -> None:
    browser.click(".card .play")
    browser.click(".card .seek", across=0.3)
    time.sleep(0.4)
    prompt, song, before = heard(browser)
    assert (prompt, song) == ("p0", "baseline")
    assert before > 0.25 * SECONDS
    assert before == pytest.approx(position(browser), abs=0.35)

    began = time.monotonic()
    browser.press("b")
    time.sleep(0.4)
    prompt, song, after = heard(browser)
    assert (prompt, song) == ("p0", "aligned")
    assert after - before == pytest.approx(time.monotonic() - began, abs=0.35)

    browser.click(".lane[data-key=baseline] .slot")
    time.sleep(0.4)
    assert heard(browser)[:2] == ("p0", "baseline")


def test_there_is_no_gap_at_a_switch(browser: Browser) -> None:
    browser.click(".card .play")
    wait_until_heard(browser)
    time.sleep(0.3)  # until the window that is measured holds nothing but sound
    levels = browser.run(
        "(async () => { const levels = []; const [a, b] = document.querySelectorAll('.slot');"
        "for (let k = 0; k < 60; k++) { if (k % 10 === 5) (k % 20 === 5 ? b : a).click();"
        "await new Promise(requestAnimationFrame); levels.push(hear().level); } return levels })()"
    )
    assert min(levels) > 0.6 * max(levels)  # both are equally loud, and one of them always sounds


def test_space_pauses_and_the_slider_seeks(browser: Browser) -> None:
    browser.click(".card .play")
    wait_until_heard(browser)
    browser.click(".card .seek", across=0.75)
    time.sleep(0.4)
    assert heard(browser)[2] == pytest.approx(0.75 * SECONDS + 0.4, abs=0.5)
    browser.press(" ")
    time.sleep(0.3)
    assert browser.run("hear().level") < 1e-3
    stopped = position(browser)
    time.sleep(0.2)
    assert position(browser) == stopped > 0.7 * SECONDS
    browser.press("ArrowRight")
    assert position(browser) == pytest.approx(min(SECONDS, stopped + 1), abs=0.05)


def test_only_one_card_plays(browser: Browser) -> None:
    browser.click(".card .play")
    wait_until_heard(browser)
    browser.click(".card:nth-child(2) .play")
    browser.wait("hear().hertz > 2400")
    time.sleep(0.3)
    assert heard(browser)[:2] == ("p1", "baseline")
    assert browser.run("document.querySelectorAll('.playing').length") == 1
    assert browser.run("20 * Math.log10(hear().level)") > -30

    browser.click(".song .play")
    browser.wait("document.querySelector('.song').classList.contains('playing')")
    browser.wait("hear().level < 1e-3")
    browser.wait("document.querySelector('.song audio').currentTime > 0.2")
    assert browser.run("document.querySelectorAll('.playing').length") == 1
    browser.click(".song .play")


def test_blind_mode_hides_names_and_scores_until_a_vote(browser: Browser) -> None:
    text = "document.getElementById('cards').innerText"
    assert "Aligned" in browser.run(text)
    firsts = set()
    for _ in range(20):
        browser.click("#blind")
        told = browser.run(text)
        assert "Base" not in told
        assert "Aligned" not in told
        assert "SD" not in told
        assert "pulse" not in told
        firsts.add(browser.run("document.querySelector('#cards .lane').dataset.key"))
        browser.click("#blind")
        assert browser.run("document.querySelector('#cards .lane').dataset.key") == "baseline"
    assert firsts == {"baseline", "aligned"}

    browser.click("#blind")
    key = browser.run("document.querySelectorAll('#cards .lane')[1].dataset.key")
    browser.click(".card [data-vote='1']")
    assert browser.run("document.querySelector('.card').innerText.includes('Aligned')")
    assert {"aligned": "aligned 1", "baseline": "base 1"}[key] in browser.run(
        "document.getElementById('tally').innerText"
    )
    assert "Aligned" not in browser.run("document.querySelectorAll('.card')[1].innerText")


def test_the_plot_has_one_row_an_axis_and_the_worst_change_comes_first(browser: Browser) -> None:
    assert browser.run("document.querySelectorAll('svg.plot').length") == 3
    assert browser.run(
        "[...document.querySelectorAll('.block')].map((b) => b.querySelectorAll('.effect').length)"
    ) == [1, 1, 1]
    assert browser.run("document.querySelector('.headline em').innerText") == (
        "1 judge fell beyond the interval: judge"
    )
    top = "document.querySelector('.tally').innerText"
    assert browser.run(f"{top}.split(/\\s+/).join(' ')") == (
        f"Better pulse +0.30 Worse judge (judge) {MINUS}0.50 Unclear key 0"
    )
    ink = [
        browser.run(f"getComputedStyle(document.querySelector('{part}')).color")
        for part in (".headline em", ".tally .worse dt", "body")
    ]
    assert ink[0] == ink[1] != ink[2]
    assert browser.run("document.querySelector('.card h3').innerText") == "a tone, p0"


def test_every_plot_has_a_text_and_a_mean_outside_the_band_its_own_colour(browser: Browser) -> None:
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    names = [n["name"]["value"] for n in nodes if n.get("role", {}).get("value") == "image"]
    assert sum("beside real songs" in name for name in names) == 2
    assert sum("standard deviations" in name for name in names) == 3
    assert sum("this model: +0.30" in name for name in names) == 1
    assert all(name.strip() for name in names)
    dots = "[...document.querySelectorAll('.effect svg.band .aligned')].map((d) => getComputedStyle(d).fill)"
    outside, inside = browser.run(dots)  # pulse first: 0.7, and real songs from 0 to 0.6
    assert inside != outside


def test_blind_mode_does_not_tell_which_case_a_song_is(browser: Browser) -> None:
    text = "document.getElementById('cards').innerText"
    assert "worst" in browser.run(text)
    browser.click("#blind")
    assert "worst" not in browser.run(text)
    assert "best" not in browser.run(text)
    browser.click("#blind")


@pytest.mark.parametrize("width", [360, 420, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, width: int) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
    )
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_every_control_has_a_name(browser: Browser) -> None:
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if n.get("role", {}).get("value") in ("button", "slider", "link")]
    assert len(controls) > 12
    assert all(node["name"]["value"].strip() for node in controls)


def test_the_toggle_turns_the_colours(browser: Browser) -> None:
    ink = "getComputedStyle(document.documentElement).color"
    before = browser.run(ink)
    browser.click("#theme")
    assert browser.run(ink) != before
    browser.click("#theme")
    assert browser.run(ink) == before
