"""Parts by name: the tables of what can be chosen, and suggestions where a name is not in one."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module, metadata
from typing import Any, TypeVar

from diffdpo.errors import ConfigError

T = TypeVar("T")


@dataclass
class Choice:
    """A part by its name, with its arguments. A configuration may give the bare name instead."""

    name: str = "???"
    args: dict[str, Any] = field(default_factory=dict)


def plural(kind: str) -> str:
    """The plural of the name of a kind of part: models, utilities."""
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


class Table(Mapping[str, T]):
    """The parts of one kind by name: a literal dict of this package, and what others announce as entry points.

    The group of entry points is `diffdpo.` and the kind in the plural, such as `diffdpo.models`; it is read when a
    name is not among the literal entries, or when all names are asked for.
    """

    def __init__(self, kind: str, entries: dict[str, T]) -> None:
        self.kind, self.entries = kind, entries

    @property
    def group(self) -> str:
        """The group of entry points of this kind, such as `diffdpo.models`."""
        return f"diffdpo.{plural(self.kind)}"

    def entry_points(self) -> dict[str, metadata.EntryPoint]:
        """Entry points of other packages, by name. The package's own names cannot be replaced."""
        points = metadata.entry_points(group=self.group)
        return {point.name: point for point in points if point.name not in self.entries}

    def __getitem__(self, name: str) -> T:
        if name in self.entries:
            return self.entries[name]
        point = self.entry_points()[name]
        try:
            return point.load()
        except Exception as error:  # whatever a stranger's module raises while it is imported
            raise ConfigError(
                f"{self.kind} {name!r} of {point.value} cannot be imported ({type(error).__name__}: {error}); "
                "mend or uninstall the package that announces it"
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self.entries or name in self.entry_points()

    def __iter__(self) -> Iterator[str]:
        yield from self.entries
        yield from self.entry_points()

    def __len__(self) -> int:
        return len(self.entries) + len(self.entry_points())


TABLES = {
    "model": "diffdpo.models:MODELS",
    "objective": "diffdpo.objectives:OBJECTIVES",
    "rule": "diffdpo.mining:RULES",
    "rules": "diffdpo.mining:RULES",
    "scorers": "diffdpo.scorers:SCORERS",
    "solver": "diffdpo.sampling.solver:SOLVERS",
    "guidance": "diffdpo.sampling.guidance:GUIDERS",
    "link": "diffdpo.objectives.links:LINKS",
    "utility": "diffdpo.mining.utilities:AXIS_UTILITIES",
    "method": "diffdpo.search:METHODS",
    "features": "diffdpo.extractors:EXTRACTORS",
    "executor": "diffdpo.executors:EXECUTORS",
}
"""Where the table is from which a field of this name chooses; imported when arguments of its parts are read."""


def table_for(field: str) -> Table[Any] | None:
    """The table of parts that a field of this name chooses from; None for another name."""
    if field not in TABLES:
        return None
    module, _, name = TABLES[field].partition(":")
    table: Table[Any] = getattr(import_module(module), name)
    return table


def closest(name: str, names: Iterable[str]) -> str:
    """ " Did you mean 'dpo'?", or "" when no name of `names` is near."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""


def pick(kind: str, table: Mapping[str, T], name: str) -> T:
    """The entry of `table` called `name`; ConfigError with the names of the table if there is none."""
    if name in table:
        return table[name]
    raise ConfigError(f"unknown {kind} {name!r}.{closest(name, table)} Known: {', '.join(sorted(table))}.")


def bind(kind: str, function: Callable[..., T], choice: Choice) -> Callable[..., T]:
    """A function, or a dataclass, with the arguments of a choice as its keyword parameters.

    ConfigError for an argument that the function does not have, with a suggestion; ValueError for a value that is
    no number where a number is needed.
    """
    parameters = inspect.signature(function).parameters
    names = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY or inspect.isclass(function)]
    for name, value in choice.args.items():
        if name not in names:
            raise ConfigError(
                f"{kind} {choice.name!r} has no {name!r}.{closest(name, names)} "
                f"Known: {', '.join(names) or 'none'}."
            )
        if parameters[name].annotation in (int, float) and not _is_number(value):
            raise ValueError(f"{name} of {kind} {choice.name!r} must be a number, got {value!r}")
    return partial(function, **choice.args)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
