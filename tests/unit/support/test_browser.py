"""Which browser the browser tests take, and what becomes of them where there is none."""

import sys
from pathlib import Path

import pytest
from support.browser import NAMES, chromium_path


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with nothing on its PATH and no setting."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CHROMIUM", "DIFFDPO_REQUIRE_BROWSER"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_browser_the_test_is_skipped_and_says_how_to_get_it() -> None:
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium, or set CHROMIUM"):
        chromium_path()


def test_where_a_browser_is_required_the_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFDPO_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        chromium_path()


@pytest.mark.parametrize("name", NAMES)
def test_a_browser_on_the_path_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(sys.executable)
    assert chromium_path() == str(tmp_path / name)


def test_the_environment_names_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "chromium").symlink_to(sys.executable)
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert chromium_path() == sys.executable
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "nowhere"))
    with pytest.raises(pytest.fail.Exception, match="nowhere: no such program"):
        chromium_path()
