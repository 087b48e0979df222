"""torchao, which int8 weights and 8-bit AdamW alone need: imported when they are used, and not before.

Where it is installed, diffusers, transformers and peft import it with themselves: 6 % of the time to start, and
warnings about parts of it that nothing here uses.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any

from diffdpo.errors import ConfigError

TORCHAO = "torchao"
NOISE = "torch.utils._pytree"
"""The logger that warns of how torchao registers its enumerations."""
PEFT_CHECKS = ("is_torchao_available", "is_torchao_ge_v0_18_0")
"""What peft remembers of torchao, in `peft.import_utils`."""


@contextmanager
def deferred_torchao() -> Iterator[None]:
    """A context in which no library imports torchao by itself; for programs, as libraries remember that."""
    is_deferred = TORCHAO not in sys.modules
    if is_deferred:
        sys.modules[TORCHAO] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        yield
    finally:
        if is_deferred and sys.modules.get(TORCHAO, 0) is None:
            del sys.modules[TORCHAO]


def import_torchao(module: str) -> Any:
    """A module of torchao, such as `torchao.optim`, imported without its warnings."""
    if sys.modules.get(TORCHAO, 0) is None:
        del sys.modules[TORCHAO]
        for check in PEFT_CHECKS:
            answer: Any = getattr(sys.modules.get("peft.import_utils"), check, None)
            if hasattr(answer, "cache_clear"):
                answer.cache_clear()
    with quiet_torchao():
        return import_module(module)


@contextmanager
def quiet_torchao() -> Iterator[None]:
    """A context without the warnings of importing torchao, and of peft that adapters on int8 cannot be merged."""
    logger = logging.getLogger(NOISE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
            yield
    finally:
        logger.setLevel(level)


def require_package(package: str, key: str) -> None:
    """ConfigError, with the key that needs it, for a package that is not installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ConfigError(f"{key} needs {package}, which is not installed; pip install {package}") from None
