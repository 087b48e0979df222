"""The pairs table: preferences between two songs of a samples folder."""

import json
import os
from pathlib import Path

from diffdpo.data import tables
from diffdpo.types import Pair

TABLE = "pairs.parquet"
KEY = ("samples", "winner", "loser")


def pair_row(pair: Pair, samples: Path, table: Path) -> tables.Row:
    """A pair as a row of a table, which names the samples' folder relative to itself.

    Margins are kept as JSON since axes differ between runs.
    """
    return {
        "prompt_id": pair.prompt_id,
        "group": pair.group,
        "samples": os.path.relpath(samples, table.parent),
        "winner": pair.winner,
        "loser": pair.loser,
        "rule": pair.rule,
        "margins": json.dumps(dict(pair.margins), sort_keys=True),
        "soft_label": pair.soft_label,
        "axis": pair.axis,
        "spans": json.dumps(pair.spans),
    }
