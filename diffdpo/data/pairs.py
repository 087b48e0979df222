"""The pairs table: preferences between two songs of a samples folder, or of a data set's song over a sample."""

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
    """The samples folder of both songs, or of the loser alone, relative to the table's folder."""
    songs: str = ""
    """The prepared folder of the winner, relative to the table's folder; empty where the winner is a sample."""
    winner: str
    """Sample id of the better song; where `songs` names a folder, the id of its song."""
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
    winner_start: int = 0
    """First frame of the winner's crop, which is as long as the loser; for songs of a prepared folder."""

    @property
    def generated(self) -> tuple[str, ...]:
        """The ids of the songs that are samples: winner and loser, or the loser alone."""
        return (self.loser,) if self.songs else (self.winner, self.loser)


def _upgrade(table: pa.Table, version: int) -> pa.Table:
    """A table of an older version with the present columns: version 0 held margins and spans as JSON, version 1
    only pairs of samples."""
    for name in ("margins", "spans") if version == 0 else ():
        if name in table.column_names:
            values = [json.loads(text) for text in table[name].cast(pa.string()).to_pylist()]
            lists = [list(value.items()) if isinstance(value, dict) else value for value in values]
            column = pa.array(lists, PAIRS.schema.field(name).type)
            table = table.set_column(table.column_names.index(name), name, column)
    return table


PAIRS = TableSpec("pairs", PairRow, key=("samples", "songs", "winner", "loser"), version=2, upgrade=_upgrade)


def pair_columns(pairs: Sequence[Pair], samples: Sequence[str], songs: str = "") -> pa.Table:
    """Mined pairs as columns of the table.

    `samples` is for each pair the folder of its samples, `songs` that of all winners that are songs of a data set;
    both are relative to the table's folder.
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
        if column.name not in ("samples", "songs", "margins")
    }
    folders = {"samples": list(samples), "songs": [songs if pair.is_real else "" for pair in pairs]}
    return pa.table({**columns, **folders, "margins": margins}).select(PAIRS.columns)
