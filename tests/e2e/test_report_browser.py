"""The report in a real browser: what sounds, what is hidden, and that nothing leaves the page.

Chromium is driven over its debugging pipe, so the page sees trusted key presses and clicks. Each test song
is a tone that rises as it runs, in a band of its own: the frequency heard tells which song it is, and where.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import LOG_EVENTS, Browser, chromium_path

from diffdpo.evaluation.effects import AxisEffect
from diffdpo.report.page import Comparison, Report, write_report
from diffdpo.report.plots import MINUS
from diffdpo.statistics import Effect
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
    comparisons = [comparison("p1", 0.5), comparison("p0", -0.5)]
    report = Report(title="Test", facts={}, effects=effects, comparisons=comparisons, long_song=tone(500.0))
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
    ) == [2, 1]
    assert browser.run("document.querySelector('.verdict em').innerText") == (
        "1 judge fell beyond the interval: judge"
    )
    top = "document.querySelector('.tally').innerText"
    assert browser.run(f"{top}.split(/\\s+/).join(' ')") == (
        f"Better pulse +0.30 Worse judge (judge) {MINUS}0.50 Unclear key 0"
    )
    ink = [
        browser.run(f"getComputedStyle(document.querySelector('{part}')).color")
        for part in (".verdict em", ".tally .worse dt", "body")
    ]
    assert ink[0] == ink[1] != ink[2]
    assert browser.run("document.querySelector('.card h3').innerText") == "a tone, p0"


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
