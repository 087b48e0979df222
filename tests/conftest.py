"""Fixtures for all tests; and from here on every shape annotation of the package is checked when it is used.

With DIFFDPO_SHAPES=0 none is: the checks are nearly half of the time of tests that sample and train.
"""

import gc
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as the program does

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = (
    "audio", "codecs", "data", "encoders", "evaluation", "flow", "hub", "listen", "lyrics", "mining",
    "models", "names", "objectives", "preferences", "randomness", "report", "runs", "sampling", "scorers",
    "search", "statistics", "statistics_power", "statistics_ratios", "text_files", "training", "types",
    "weight_files", "windows",
)  # fmt: skip
if os.environ.get("DIFFDPO_SHAPES", "1") != "0":
    install_import_hook(
        [f"diffdpo.{name}" for name in CHECKED],
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int will do for a float
    )
settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that no process waits for the last one of another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, "e2e" not in item.path.parts))


def pytest_collection_finish() -> None:
    """Garbage is looked for among what tests make, seldom: what imports made stays, and is a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random tiny model."""
    from support.bundle import write_bundle  # here: a process that only hands out tests needs no torch

    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of songs as `mine` leaves them."""
    from support.songs import write_pairs

    return write_pairs(tmp_path_factory.mktemp("mined"))


@pytest.fixture(scope="session")
def published_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Words of small random ACE-Step, Stable Audio 3 and Stable Audio Open."""
    from support.model_matrix import write_models  # their libraries take seconds

    return write_models(tmp_path_factory.mktemp("models"))
