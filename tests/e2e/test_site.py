"""The site of the documentation: it builds without a warning, covers every module, and loads nothing from hosts."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.browser import LOG_EVENTS, Browser, chromium_path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "reference" / "api"
UNDOCUMENTED = {
    "__init__",
    "__main__",
    "assets",
    "cli",
    "commands",
    "commands_evaluation",
    "commands_reward",
    "config_commands",
    "commands_search",
    "commands_servers",
    "commands_store",
    "commands_training",
    "presets",
}
LOADED = {"img": "src", "script": "src", "link": "href", "audio": "src", "source": "src", "iframe": "src"}
"""What a browser fetches by itself, and the attribute that says where."""


class References(HTMLParser):
    """Addresses a page loads from, and those its links lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if LOADED.get(tag) in attributes:
            self.loaded.append(attributes[LOADED[tag]] or "")
        if tag == "a":
            self.links.append(attributes.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, References]:
    return {path: References(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_of_the_documentation_is_there(site: Path, pages: dict[Path, References]) -> None:
    sources = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    names = {Path("index.md"): Path("index.html"), Path("decisions/README.md"): Path("decisions/index.html")}
    expected = {site / names.get(source, source.with_suffix(".html")) for source in sources}
    assert set(pages) == expected


def test_pages_load_nothing_from_elsewhere(pages: dict[Path, References]) -> None:
    for path, references in pages.items():
        for address in references.loaded:
            parts = urlsplit(address)
            assert parts.scheme in ("", "data"), f"{path.name}: {address}"
            assert parts.scheme or (path.parent / parts.path).is_file(), f"{path.name}: {address}"


def test_links_lead_to_pages_or_to_the_repository(pages: dict[Path, References]) -> None:
    outside = {link for references in pages.values() for link in references.links if "/blob/main/" in link}
    assert outside
    for link in outside:
        assert (ROOT / link.split("/blob/main/")[1].split("#")[0]).exists(), link
    for path, references in pages.items():
        for link in references.links:
            parts = urlsplit(link)
            assert parts.scheme or not parts.path or (path.parent / parts.path).exists(), f"{path}: {link}"


def test_the_reference_covers_every_module() -> None:
    documented = {
        name
        for page in API.glob("*.md")
        for name in re.findall(r"^::: diffdpo\.(\S+)$", page.read_text(), re.MULTILINE)
    }
    modules = {
        p.stem for p in (ROOT / "diffdpo").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert modules - UNDOCUMENTED == {name for name in documented if "." not in name}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(chromium_path(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", ["index.html", "reference/api/objectives.html"])
def test_a_page_works_from_disk(browser: Browser, site: Path, name: str) -> None:
    """Its search too, and nothing is asked of any host."""
    browser.events.clear()
    browser.open(site / name, "document.documentElement.classList.contains('js')")
    browser.run("document.querySelector('[data-md-toggle=search]').click()")
    browser.run("document.querySelector('[data-md-component=search-query]').focus()")
    browser.call("Input.insertText", text="safeguard")
    browser.wait("document.querySelectorAll('.md-search-result__link').length > 2")
    hits = browser.run("[...document.querySelectorAll('.md-search-result__link')].map((a) => a.href)")
    assert any("theory/objectives.html" in hit for hit in hits)
    assert browser.run("trouble") == []
    sent = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert all(url.startswith((site.as_uri(), "data:", "about:")) for url in sent), sent
    assert [event["params"] for event in browser.events if event.get("method") in LOG_EVENTS] == []
