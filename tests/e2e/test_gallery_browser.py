"""The page of a samples folder in a real browser: it plays its own files, one at a time, and no others."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.browser import LOG_EVENTS, Browser, chromium_path

from diffdpo import audio
from diffdpo.data.samples import SampleRow, Samples
from diffdpo.report.gallery import write_gallery
from diffdpo.types import Clip

pytestmark = pytest.mark.browser

NAMES = ("a #1.000", "a #1.001", "b.000")


def song(hertz: float) -> Clip:
    wave = 0.2 * np.sin(2 * np.pi * hertz * np.arange(4 * 44100) / 44100)
    return Clip(samples=np.stack([wave, wave]).astype(np.float32), sample_rate=44100)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    prompts = [{"id": "a #1", "text": "a very long prompt " * 8}, {"id": "b", "text": "short"}]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    rows = []
    for place, name in enumerate(NAMES):
        audio.write(folder / "audio" / f"{name}.flac", song(500.0 + 500 * place))
        rows.append(
            SampleRow(
                sample_id=name,
                prompt_id=name.rsplit(".", 1)[0],
                duration_s=4.0,
                sha256="x",
                model='{"name": "tiny"}',
                sampling='{"steps": 8, "guidance": 3.0}',
            )
        )
    rows.append(replace(rows[0], sample_id="b.001", error="a very long reason " * 12))
    return write_gallery(Samples(folder), rows)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, page: Path) -> Iterator[Browser]:
    browser = Browser(chromium_path(), tmp_path_factory.mktemp("profile"))
    browser.open(page)
    yield browser
    assert browser.run("trouble") == []
    sent = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in sent
    assert all(url.startswith((page.parent.as_uri(), "data:")) for url in sent), sent
    assert [e["params"] for e in browser.events if e.get("method") in LOG_EVENTS] == []
    browser.close()


def test_every_song_has_its_picture(browser: Browser) -> None:
    browser.run("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
    browser.wait(
        "[...document.querySelectorAll('img')].every((image) => image.complete && image.naturalWidth > 100)"
    )
    assert browser.run("document.querySelectorAll('img').length") == len(NAMES)


def test_a_click_into_a_picture_plays_from_there_and_stops_the_others(browser: Browser) -> None:
    state = "[...document.querySelectorAll('audio')].map((a) => !a.paused)"
    browser.click(".song:nth-of-type(1) .picture", across=0.5)
    browser.wait("document.querySelector('audio').currentTime > 2.0")
    assert browser.run(state) == [True, False, False]
    assert browser.run("document.querySelector('audio').currentTime") < 4.0
    assert browser.run("parseFloat(document.querySelector('.head').style.left)") > 45
    browser.run("document.querySelectorAll('audio')[2].play()")
    browser.wait("document.querySelectorAll('audio')[2].currentTime > 0.1")
    assert browser.run(state) == [False, False, True]
    browser.run("document.querySelectorAll('audio')[2].pause()")


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, width: int) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
    )
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_pictures_turn_light_in_the_dark(browser: Browser) -> None:
    colour = "getComputedStyle(document.body).color"
    before = browser.run(colour)
    for scheme, filtered in (("dark", "invert(1)"), ("light", "none")):
        browser.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        assert browser.run("getComputedStyle(document.querySelector('img')).filter") == filtered
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.run(colour) != before
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_every_player_has_a_name(browser: Browser) -> None:
    labels = browser.run("[...document.querySelectorAll('audio')].map((a) => a.getAttribute('aria-label'))")
    assert labels == list(NAMES)
