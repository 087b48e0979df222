"""The listening test in a real browser: what sounds is measured, and everything is done by the keyboard alone."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import LOG_EVENTS, Browser, chromium_path
from support.listening import ADMIN, Site, open_house, open_site, write_songs

from diffdpo.data.votes import read_votes
from diffdpo.listen.results import export_results
from diffdpo.listen.study import ExcerptConfig

pytestmark = pytest.mark.browser

SCRIPT = "<img src=x onerror=\"trouble.push('prompt')\"><script>trouble.push('prompt')</script>"
FIRST_HZ, STEP_HZ = 400.0, 400.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two sine songs a prompt, 100 Hz apart and the second at half the level; a second of each has to be heard."""
    folder = tmp_path_factory.mktemp("study")
    write_songs(folder / "songs", prompts=6, seconds=4, hertz=FIRST_HZ, texts=[SCRIPT] * 6)
    trials = {"count": 6, "training": 1, "headphones": 1, "min_heard_s": 1.0, "gold_share": 0, "repeat_share": 0,
              "axes": ["musicality"]}  # fmt: skip
    house = open_house(folder, clock=time.time, trials=trials, excerpts=ExcerptConfig(seconds=3))
    with open_site(house) as site:
        yield site


@pytest.fixture
def browser(tmp_path: Path, site: Site) -> Iterator[Browser]:
    yield from visitor(tmp_path / "profile", site)


@pytest.fixture
def second_browser(tmp_path: Path, site: Site) -> Iterator[Browser]:
    yield from visitor(tmp_path / "second", site)


def visitor(profile: Path, site: Site) -> Iterator[Browser]:
    """A browser at the consent; at the end nothing went wrong in it, and nothing was asked for elsewhere."""
    browser = Browser(chromium_path(), profile)
    browser.visit(site.address, shown("consent"))
    yield browser
    assert browser.run("trouble") == []
    requests = browser.requests()
    assert len(requests) > 5
    assert all(url.startswith((site.address, "data:")) for url in requests), requests
    logs = [event["params"] for event in browser.events if event.get("method") in LOG_EVENTS]
    assert [log for log in logs if "status of 409" not in log.get("entry", {}).get("text", "")] == []
    browser.close()


def shown(section: str) -> str:
    return f"document.getElementById('{section}') && !document.getElementById('{section}').hidden"


READY = f"{shown('trial')} && !document.getElementById('play').disabled"
SOUNDS = "hear().level > 0.01"


def enter(browser: Browser) -> None:
    """From the consent to the first trial, by the keyboard."""
    browser.press("Enter")
    browser.wait(shown("background"))
    browser.press("Enter")
    browser.wait(shown("volume"))
    browser.press(" ")
    browser.wait("window.ear && hear().level > 0.001")
    browser.press("Enter")
    browser.wait(shown("headphones"))
    browser.press(" ")
    browser.wait("!document.querySelector('[data-place]').disabled")
    browser.press("2")
    browser.wait(READY)


def hear_both(browser: Browser, *, differ: bool = False) -> list[dict[str, float]]:
    """Play, and switch from A to B; what sounds of each, B as soon as its pitch is another if they `differ`."""
    browser.press(" ")
    browser.wait(SOUNDS)
    values = []
    for position, key in enumerate("ab"):
        browser.press(key)
        browser.wait(f"document.querySelectorAll('.sound')[{position}].matches('.enough')")
        if values and differ:  # on a busy machine what sounds lags behind
            browser.wait(f"Math.abs(hear().hertz - {values[0]['hertz']}) > 50")
            time.sleep(0.2)
        values.append(browser.run("hear()"))
    return values


def are_the_two_songs(first: dict[str, float], second: dict[str, float]) -> None:
    """Two pitches 100 Hz apart, in bins of 22 Hz, above up to 50 of the prompt; files differ by 6 dB."""
    low, high = sorted((first["hertz"], second["hertz"]))
    assert FIRST_HZ - 15 < low < FIRST_HZ + 65
    assert abs(high - low - 100) < 30
    assert abs(20 * math.log10(first["level"] / second["level"])) < 0.5


def practise(browser: Browser) -> None:
    hear_both(browser)
    browser.press("1")
    browser.press("Enter")
    browser.wait(shown("feedback"))
    browser.press("Enter")
    browser.wait(READY)


def loop(browser: Browser) -> None:
    """Set a loop of about half a second by keys; the sound stays in it."""
    browser.press("[")
    time.sleep(0.5)
    browser.press("]")
    left, width = browser.run(
        "['left', 'width'].map((name) => parseFloat(document.getElementById('loop').style[name]))"
    )
    assert 5 < width < 60
    places = []
    for _ in range(10):
        places.append(browser.run("parseFloat(document.getElementById('head').style.left)"))
        time.sleep(0.08)
    assert all(left - 1 <= place <= left + width + 1 for place in places), (left, width, places)
    assert max(places) > min(places)
    browser.press("l")
    assert browser.run("document.getElementById('loop').hidden")


def skip_and_resume(browser: Browser, site: Site) -> None:
    browser.press("s")  # skips
    browser.wait(f"{READY} && document.getElementById('count').textContent === '3 of 6'")
    browser.visit(site.address, READY)  # a closed tab
    assert browser.run("document.getElementById('count').textContent") == "3 of 6"
    assert browser.run("document.cookie") == ""  # no script reads the token


def test_the_whole_way_by_the_keyboard(browser: Browser, site: Site) -> None:
    enter(browser)
    browser.press(" ")
    browser.wait(SOUNDS)
    browser.press("1")
    browser.press("Enter")
    browser.wait(
        "document.getElementById('message').textContent.includes('1 seconds first')"
    )  # the server's 409
    practise(browser)
    assert browser.run("document.getElementById('count').textContent") == "1 of 6"
    assert browser.run("document.getElementById('prompt').textContent") == SCRIPT
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0

    first, second = hear_both(browser, differ=True)
    are_the_two_songs(first, second)
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    loop(browser)
    for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft", "m"):
        browser.press(key)
    time.sleep(0.4)
    browser.press("m")
    for key in ("2", "w"):
        browser.press(key)
    browser.run("document.getElementById('comment-box').open = true")
    browser.run("document.getElementById('comment').focus()")
    browser.call("Input.insertText", text=f"a 1 b {SCRIPT}")
    browser.press("Escape")
    browser.press("Enter")
    browser.wait(f"{READY} && document.getElementById('count').textContent === '2 of 6'")
    assert export_results(site.house.out)[0] == 1
    (vote,) = read_votes(site.house.out)
    assert (vote.answer, vote.strength, vote.comment) == ("b", 2, f"a 1 b {SCRIPT}")
    ((start, stop),) = vote.spans_b
    assert vote.begin_b_s <= start < stop <= vote.end_b_s
    assert vote.heard_a_s >= 1
    assert vote.heard_b_s >= 1

    skip_and_resume(browser, site)
    browser.run("document.getElementById('my-data').focus()")
    browser.press("Enter")
    browser.wait(shown("data"))
    mine = browser.run("fetch('api/mine').then((answer) => answer.json())")
    assert [trial["answer"]["choice"] for trial in mine["trials"] if trial["answer"]] == ["a", "b", "skip"]
    browser.run("document.getElementById('delete').focus()")
    for _ in range(2):
        browser.press("Enter")
    browser.wait(shown("deleted"))
    assert site.house.rows("SELECT * FROM raters") == []
    browser.visit(site.address, shown("consent"))


def test_two_listeners_at_once(browser: Browser, second_browser: Browser, site: Site) -> None:
    before = len(site.house.rows("SELECT * FROM answers"))
    pages = (browser, second_browser)
    for page in pages:
        enter(page)
        practise(page)
    for page in pages:
        page.press(" ")
    for page in pages:
        page.wait(SOUNDS)
        page.press("b")
    for page in pages:
        hear_both_again = "document.querySelectorAll('.sound')[1].matches('.enough')"
        page.wait(hear_both_again)
        page.press("a")
        page.wait("document.querySelectorAll('.sound')[0].matches('.enough')")
        page.press("1")
        page.press("Enter")
        page.wait(f"{READY} && document.getElementById('count').textContent === '2 of 6'")
    assert len(site.house.rows("SELECT * FROM answers")) == before + 4
    assert len(site.house.rows("SELECT DISTINCT rater FROM trials")) >= 2


def test_a_phone_needs_no_sideways_scrolling(browser: Browser) -> None:
    browser.resize(390, 844)
    wide = "document.documentElement.scrollWidth"
    names = browser.run("[...document.querySelectorAll('main > section')].map((section) => section.id)")
    assert len(names) > 8
    for language in ("en", "de"):
        browser.run(f"document.querySelector('#languages [lang={language}]').click()")
        for name in names:
            browser.run(f"document.querySelectorAll('section').forEach((s) => s.hidden = s.id !== '{name}')")
            assert browser.run(wide) <= 390, (language, name)
    browser.visit(browser.run("location.href"), shown("consent"))
    browser.run("document.querySelector('#languages [lang=de]').click()")
    enter(browser)
    browser.press("1")
    assert browser.run(wide) <= 390
    boxes = browser.run(
        "[...document.querySelectorAll('#trial button')].map((b) => b.getBoundingClientRect())"
        ".filter((box) => box.width).map((box) => [box.left, box.right])"
    )
    assert len(boxes) > 10
    assert all(left >= 0 and right <= 390 for left, right in boxes)


def test_the_admin_sees_progress(browser: Browser, site: Site) -> None:
    browser.visit(f"{site.address}admin#{ADMIN}", "!document.getElementById('content').hidden")
    assert "Listeners" in browser.run("document.getElementById('facts').textContent")
    assert ADMIN not in "".join(browser.requests()).replace(f"#{ADMIN}", "")
    browser.visit(f"{site.address}?", shown("consent"))
