"""The user's mistakes. The command line prints them as one line and exits with code 2."""

import re
from typing import ClassVar


class UserError(Exception):
    """An error of the user: what is wrong, where, and how to mend it, in one line."""

    exit_code: ClassVar[int] = 2
    """Of the command line."""


class ConfigError(UserError):
    """A key, name or value of a configuration that cannot be right."""


class DataError(UserError):
    """A file that is missing, damaged or of another kind than asked for."""


class CheckpointError(UserError):
    """A checkpoint that does not fit the model, or was written by another run."""


class NotPassedError(UserError):
    """A model that did not pass its verdict, where that was required: no mistake, but a reason to stop."""

    exit_code: ClassVar[int] = 1


def ensure(condition: bool, complaint: str) -> None:
    """ValueError unless the condition holds, for values of a configuration: its builder adds the location."""
    if not condition:
        raise ValueError(complaint)


def reason(error: BaseException, length: int = 160) -> str:
    """The first line of an error's message, else its type: plain text of at most `length` characters."""
    lines = plain(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:length]


def plain(text: str) -> str:
    """A text without colours and other characters that a terminal obeys instead of showing; line ends stay."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return "".join(char for char in text if char.isprintable() or char in "\n\r\t")
