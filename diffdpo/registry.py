"""Look a name up in a literal table, and say what was probably meant when it is not there."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from diffdpo.errors import ConfigError

T = TypeVar("T")


def closest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'dpo'?", or nothing when no known name is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""


def pick(kind: str, table: Mapping[str, T], name: str) -> T:
    """The entry of `table` called `name`; a ConfigError that lists the known names otherwise."""
    if name in table:
        return table[name]
    raise ConfigError(f"unknown {kind} {name!r}.{closest(name, table)} Known: {', '.join(sorted(table))}.")
