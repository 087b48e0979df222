"""diffdpo: preference optimisation for full-length-song diffusion models.

The names below are the public API. Each is imported when it is first used, so `import diffdpo` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffdpo.compile_cache import reserve_compile_cache

__version__ = "0.2.0"

API = {
    "Clip": "diffdpo.types",
    "Prompt": "diffdpo.types",
    "Song": "diffdpo.api",
    "load_model": "diffdpo.api",
    "mine": "diffdpo.api",
    "sample": "diffdpo.api",
    "score": "diffdpo.api",
    "search_songs": "diffdpo.api_search",
    "train": "diffdpo.api",
}
"""Where each public name is defined."""
__all__ = [
    "Clip",
    "Prompt",
    "Song",
    "__version__",
    "load_model",
    "mine",
    "sample",
    "score",
    "search_songs",
    "train",
]

if TYPE_CHECKING:
    from diffdpo.api import Song, load_model, mine, sample, score, train
    from diffdpo.api_search import search_songs
    from diffdpo.types import Clip, Prompt

reserve_compile_cache()


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'diffdpo' has no attribute {name!r}")
    return getattr(import_module(API[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *API})
