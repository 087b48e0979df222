"""The verb `demo`: one round on the model that ships with the package, a longer song, and the report."""

import time
from pathlib import Path

from diffdpo.progress import log
from diffdpo.recipes import round as round_
from diffdpo.recipes.round import RoundRun

__all__ = ["RoundRun", "run"]


def run(cfg: RoundRun) -> Path:
    """Run a round and log how long it took."""
    start_s = time.monotonic()
    out = round_.run(cfg)
    log(f"done in {(time.monotonic() - start_s) / 60:.1f} minutes; open {out / 'report' / 'report.html'}")
    return out
