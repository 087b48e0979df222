"""The pairs table: preferences between two songs of a samples folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from diffdpo.data.schema import TableSpec
from diffdpo.mining.values import Pair


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A preference: of two songs for one prompt, the winner is the better one."""

    prompt_id: str
    """The prompt of both songs."""
    group: str = ""
    """The group of the prompt: prompts of one group never fall on both sides of a split."""
    samples: str
    """The folder of both songs, relative to the table's folder."""
    winner: str
    """Sample id of the better song."""
    loser: str
    """Sample id of the worse song."""
    rule: str = ""
    """The mining rule that chose the pair."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Winner minus loser on every mined axis, in standard deviations within the prompt."""
    soft_label: float = 1.0
    """Probability that the winner really is the better one."""
    axis: str = ""
    """The axis that the pair was chosen on; empty for several axes."""
    spans: tuple[tuple[float, float], ...] = ()
    """Spans (start, stop) in seconds that the preference is about; none for the whole song."""


def _upgrade(table: pa.Table, version: int) -> pa.Table:
    """The table of version 0, which held margins and spans as JSON, with the present columns."""
    for name in ("margins", "spans"):
        if name in table.column_names:
            values = [json.loads(text) for text in table[name].cast(pa.string()).to_pylist()]
            lists = [list(value.items()) if isinstance(value, dict) else value for value in values]
            column = pa.array(lists, PAIRS.schema.field(name).type)
            table = table.set_column(table.column_names.index(name), name, column)
    return table


PAIRS = TableSpec("pairs", PairRow, key=("samples", "winner", "loser"), upgrade=_upgrade)


def pair_columns(pairs: Sequence[Pair], samples: Sequence[str]) -> pa.Table:
    """Mined pairs as columns of the table.

    `samples` is for each pair the folder of its songs, relative to the table's folder.
    """
    ends = np.cumsum([0, *(len(pair.margins) for pair in pairs)])
    margins = pa.MapArray.from_arrays(
        pa.array(ends, pa.int32()),
        pa.array([axis for pair in pairs for axis in pair.margins], pa.string()),
        pa.array([value for pair in pairs for value in pair.margins.values()], pa.float64()),
    )
    columns = {
        column.name: pa.array([getattr(pair, column.name) for pair in pairs], column.type)
        for column in PAIRS.schema
        if column.name not in ("samples", "margins")
    }
    return pa.table({**columns, "samples": list(samples), "margins": margins}).select(PAIRS.columns)
