"""What end-to-end tests need of the machine."""

import pytest
from support.browser import chromium_path


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without Chromium all tests that need it are skipped from here, hence with one line in pytest's summary."""
    if item.get_closest_marker("browser"):
        chromium_path()
