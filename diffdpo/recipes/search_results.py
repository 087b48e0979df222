"""What a search shows when it is done: the page of winners, what was gained, and the ranked rows."""

from collections.abc import Sequence
from pathlib import Path

from diffdpo.data import tables
from diffdpo.data.samples import Samples
from diffdpo.progress import log
from diffdpo.report.gallery import write_gallery
from diffdpo.search.engine import choice_gains
from diffdpo.search.store import SEARCH, SearchRow

RUNNERS_UP = 3
"""Songs of a prompt on the page, besides the winners."""


def write_page(samples: Samples, rows: Sequence[SearchRow], winners: int) -> None:
    """The winners and the runners-up of each prompt, with rewards and costs. `rows` are ranked."""
    songs = {row.sample_id: row for row in samples.all_rows()}
    page_rows = [row for row in rows if row.rank <= winners + RUNNERS_UP and row.sample_id in songs]
    captions = {}
    for row in page_rows:
        place = "winner" if row.rank <= winners else f"number {row.rank}"
        fault = "" if not row.violation else f", violates by {row.violation:.2f} sd"
        captions[row.sample_id] = f"{place}, {row.reward:+.2f} sd{fault}"
    write_gallery(samples, [songs[row.sample_id] for row in page_rows], captions=captions)


def report_gains(rows: Sequence[SearchRow], method: str) -> None:
    """Log the winners' mean reward; for best-of-N what each N gains, and at which divergence."""
    best = [row.reward for row in rows if row.rank == 1]
    if not best:
        return
    log(f"winners of {len(best)} prompts: mean reward {sum(best) / len(best):+.2f} sd")
    if method == "best_of_n":
        by_prompt: dict[str, list[float]] = {}
        for row in rows:
            by_prompt.setdefault(row.prompt_id, []).append(row.reward)
        for entry in choice_gains(list(by_prompt.values())):
            log(f"best of {entry.n}: {entry.gain:+.2f} sd over a plain song, KL at most {entry.kl:.2f} nats")


def search_rows(folder: Path) -> list[SearchRow]:
    """The rows of a search with a rank, the best of each prompt first."""
    rows = [row for row in tables.read_rows(folder, SEARCH) if row.rank]
    return sorted(rows, key=lambda row: (row.prompt_id, row.rank))
