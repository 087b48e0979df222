"""The adapters of a network that act in an interval of t: which of them act, song by song, when songs are made."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

ATTRIBUTE = "timed_adapters"
"""The attribute of a network that holds its `TimedAdapters`."""
NEVER = (math.inf, -math.inf)
"""The interval of an adapter that acts at no time by itself."""


@dataclass(eq=False)
class TimedAdapters:
    """The adapters of a network that act in an interval of t, and which of them act now; none at first."""

    intervals: dict[str, tuple[float, float]]
    """The times t of each; `NEVER` for one that acts where it is named."""
    layers: list[Any]
    """peft's layers in the network."""
    names: frozenset[str] = field(default_factory=frozenset)
    """The adapters that act now."""

    def at(self, t: Tensor) -> list[frozenset[str]]:
        """The adapters that act at each of the times t."""
        return [
            frozenset(name for name, (low, high) in self.intervals.items() if low <= time <= high)
            for time in t.tolist()
        ]

    @contextmanager
    def act(self, names: frozenset[str]) -> Iterator[None]:
        """The network with these adapters alone."""
        old_names = self.names
        self.switch(names)
        try:
            yield
        finally:
            self.switch(old_names)

    def switch(self, names: frozenset[str]) -> None:
        """Let these adapters act, and no others."""
        self.names = names
        for layer in self.layers:
            layer.set_adapter([name for name in self.intervals if name in names], inference_mode=True)


def timed_adapters(network: Any) -> TimedAdapters | None:
    """The adapters of a network that act in an interval of t; None where there are none."""
    return getattr(network, ATTRIBUTE, None)


def by_adapters(
    network: Any, evaluate: Callable[[], Callable[..., Tensor]], names: frozenset[str] = frozenset()
) -> Callable[..., Tensor]:
    """A function of (x, t, rows), evaluated in each row with the adapters that act at its t, and those in `names`.

    `evaluate()` makes the function; it is called with those adapters on, once for each set of them. Rows with
    the same adapters are evaluated together.
    """
    schedule = timed_adapters(network)
    if schedule is None:
        return evaluate()
    functions: dict[frozenset[str], Callable[..., Tensor]] = {}

    def evaluate_part(x: Tensor, t: Tensor, rows: Tensor, active: frozenset[str]) -> Tensor:
        with schedule.act(active):
            if active not in functions:
                functions[active] = evaluate()
            return functions[active](x, t, rows)

    def evaluate_rows(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        row_sets = [active | names for active in schedule.at(t)]
        sets = list(dict.fromkeys(row_sets))
        if len(sets) == 1:
            return evaluate_part(x, t, rows, sets[0])
        v: Tensor | None = None
        for part in sets:
            index = t.new_tensor([place for place, active in enumerate(row_sets) if active == part]).long()
            values = evaluate_part(x[index.to(x.device)], t[index], rows[index], part)
            v = x.new_empty(x.shape, dtype=values.dtype) if v is None else v
            v[index.to(x.device)] = values
        assert v is not None
        return v

    return evaluate_rows
