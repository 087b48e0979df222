"""A LoRA adapter as a model uses it: how strong it is, at which times t, and in which layers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.errors import CheckpointError, ConfigError, ensure
from diffdpo.registry import Choice, closest

ALL_LAYERS = ("*",)
"""The pattern of every layer."""
ALWAYS = (0.0, 1.0)
"""The interval of all times t."""
BLOCK_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")
"""A pattern of block numbers: `3`, or `3-7` with both ends."""


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA adapter with its strength, the times t at which it acts, and the layers in which it does."""

    path: str = field(default="", metadata=PATH)
    """Folder or file of the adapter."""
    strength: float = 1.0
    """Factor on the adapter's change of the network."""
    interval: list[float] = field(default_factory=lambda: list(ALWAYS))
    """The times t at which it acts, both ends included: 0 is the song, 1 is noise, so sampling runs from 1 to 0.
    Outside the network is the one without it."""
    layers: list[str] = field(default_factory=lambda: list(ALL_LAYERS))
    """The layers in which it acts: numbers of blocks (`3`, `0-11`), parts of layers' names (`self_attn`,
    `blocks.2`), or whole names with wildcards (`*.to_q`). An empty list is none."""

    def __post_init__(self) -> None:
        ensure(bool(self.path), "adapters: every adapter needs a path")
        check_range(self, "strength", prefix="adapters.")
        check_interval(self.interval, "adapters.interval")

    @property
    def is_timed(self) -> bool:
        """Whether there are times at which it does not act."""
        return tuple(self.interval) != ALWAYS


def check_interval(interval: Sequence[float], key: str) -> None:
    """ValueError unless it is two times t in order."""
    ensure(
        len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1,
        f"{key} must be two times t in [0, 1], 0 the song and 1 noise, the lower one first, got {list(interval)}",
    )


def check_untimed(model: Choice) -> None:
    """ConfigError for a model to be trained with an adapter that acts at some times only, as no weights do."""
    for entry in model.args.get("adapters") or ():
        interval = entry.get("interval") if isinstance(entry, Mapping) else getattr(entry, "interval", None)
        if interval is not None and tuple(map(float, interval)) != ALWAYS:
            raise ConfigError(
                "model.args.adapters: an adapter with an interval of t is for sampling, since training needs one "
                "network for all t; leave its interval out"
            )


def match_layers(network: Any, layers: Iterable[str], patterns: Sequence[str], path: Any) -> frozenset[str]:
    """The layers of an adapter that patterns choose; see `AdapterConfig.layers`.

    CheckpointError for a pattern that chooses none, and for numbers of blocks where a network names no blocks.
    """
    names = sorted(layers)
    selection: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if _is_match(network, name, pattern, path)]
        if not matches:
            parts = sorted({part for name in names for part in name.split(".")})
            raise CheckpointError(
                f"{path}: the adapter has no layer {pattern!r}.{closest(pattern, parts)} It begins with {names[0]}"
            )
        selection.update(matches)
    return frozenset(selection)


def _is_match(network: Any, name: str, pattern: str, path: Any) -> bool:
    """Whether a pattern chooses a layer: by its block's number, by a part of its name, or by its whole name."""
    if numbers := BLOCK_NUMBERS.fullmatch(pattern):
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        blocks = block_names(network)
        if not blocks:
            raise CheckpointError(
                f"{path}: layers {pattern!r}: {type(network).__name__} names no _repeated_blocks; "
                "name layers instead"
            )
        return any(name.startswith(f"{block}.") for block in blocks[first : last + 1])
    return f".{pattern}." in f".{name}." or fnmatchcase(name, pattern)


def block_names(network: Any) -> list[str]:
    """Names of the blocks that a network repeats, in their order; [] where it names no class of them."""
    classes = getattr(network, "_repeated_blocks", None) or ()
    return [name for name, module in network.named_modules() if type(module).__name__ in classes]
