"""Parts of a table of training data by prompt: the share that is held out for validation, and what remains.

A prompt falls on the same side in every table and every round, by a hash of its group: what validation measures has
never been trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

from diffdpo.data.prompts import in_share
from diffdpo.errors import DataError

SALT = "validation"
"""What makes the hash another than that of the splits of `prepare`."""


@runtime_checkable
class PromptRow(Protocol):
    """A row of pairs or ratings."""

    @property
    def prompt_id(self) -> str: ...

    @property
    def group(self) -> str: ...


PartRow = TypeVar("PartRow", bound=PromptRow)


@dataclass(frozen=True)
class Part:
    """The rows of some prompts: of those that are held out, of those that are trained on, or of all."""

    side: Literal["all", "train", "validation"]
    fraction: float = 0.0
    """The share of prompts that is held out."""

    def has(self, group: str) -> bool:
        """Whether a group of prompts belongs to the part."""
        return self.side == "all" or in_share(group, self.fraction, SALT) == (self.side == "validation")

    def select(self, rows: Sequence[PartRow], table: str | Path) -> list[PartRow]:
        """The rows that belong to the part. DataError if there are some, but none of them does."""
        selection = [row for row in rows if self.has(group_of(row))]
        if rows and not selection:
            count = len({group_of(row) for row in rows})
            share = "none" if self.side == "validation" else "all"
            raise DataError(
                f"{table}: train.validation.fraction={self.fraction:g} holds out {share} of {count} prompt(s); "
                "choose another, or a folder of its own with train.validation.pairs"
            )
        return selection


ALL_PROMPTS = Part("all")


def group_of(row: PromptRow) -> str:
    """The group of a row's prompt; a prompt without one is a group."""
    return row.group or row.prompt_id
