"""Paths as people write them: `~` and environment variables are expanded once, where a value comes in."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from diffdpo.errors import ConfigError

PATH: Mapping[str, Any] = {"path": True}
"""Metadata of a field that names a file or a folder."""
PATH_LIST: Mapping[str, Any] = {"path": True, "separator": ","}
"""Metadata of a field that names several folders in one text, comma-separated."""
INPUT_FILE: Mapping[str, Any] = {"input_file": True, "path": True}
"""Metadata of a field that names a data file, such as prompts: the file may lie beside the preset."""
VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


def expand_path(text: str, keys: Collection[str] = (), separator: str = "") -> str:
    """A path with `~` as the home folder, and $NAME and ${NAME} as the environment has them.

    ${NAME} that is neither a variable nor among `keys`, to which a configuration may refer, is a ConfigError; so is
    the `~` of a user who does not exist. $NAME that is no variable is part of a name and stays.
    """
    if separator:
        return separator.join(expand_path(part, keys) for part in text.split(separator))

    def replace_variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name in os.environ and not (match[1] and name in keys):
            return os.environ[name]
        if match[1] and name not in keys:
            raise ConfigError(
                f"{text!r}: the environment has no variable {name}; set it, or write the path in full"
            )
        return match[0]

    path = VARIABLE.sub(replace_variable, text)
    if not path.startswith("~") or (path[1:2] not in ("", "/") and os.path.lexists(path)):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ConfigError(
            f"{text!r}: no user of this name has a home folder here; write the path out"
        ) from None
