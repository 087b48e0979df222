"""The commands `store add`, `store export` and `store forget`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffdpo.data.importers import IMPORTERS
from diffdpo.data.licenses import license_kind
from diffdpo.data.store.adding import add_intake
from diffdpo.data.store.exporting import StoreExportOptions, export_store
from diffdpo.data.store.folder import Store, open_store
from diffdpo.data.store.forgetting import ForgetReport, ForgetSelection, ForgottenRows, forget, forget_rows
from diffdpo.data.store.intake import IntakeOptions, read_intake
from diffdpo.data.votes import OpinionRow, VoteRow
from diffdpo.errors import DataError
from diffdpo.listen.results import export_results
from diffdpo.locks import lock_folder
from diffdpo.registry import pick

RUNS = "runs"
"""Folder of run folders in which uses are looked for, where none is named."""


@dataclass(frozen=True, kw_only=True)
class StoreAdd:
    """What is added to which store, and what the user says of it."""

    store: Path
    paths: Sequence[Path]
    layout: str = ""
    """Format of an import: a name of IMPORTERS."""
    license: str = ""
    source: str = ""
    copy: bool = False
    """Whether the store gets its own copy of every sound."""
    scope: Literal["", "share", "train"] = ""
    """What the listeners of the votes agreed to."""
    runs: Sequence[Path] = ()


def add_to_store(settings: StoreAdd) -> list[str]:
    """Add folders and imports one after the other; lines for the terminal.

    Each is added as a whole or not at all. Votes that were deleted in the study that they came from are forgotten.
    """
    if settings.layout:
        pick("format", IMPORTERS, settings.layout)
    store, lines = open_store(settings.store, create=True), list[str]()
    options = IntakeOptions(layout=settings.layout, license=settings.license, source=settings.source)
    if license_kind(settings.license) == "other terms":
        lines.append(f"license {settings.license!r}: none that is known, such as CC-BY-4.0; not exported")
    with lock_folder(store.folder):
        for path in settings.paths:
            _refresh_study(path)
            intake = read_intake(path, options, store)
            summary = add_intake(store, intake, copy=settings.copy, scope=settings.scope)
            lines += [f"{path} ({intake.via}):", *(f"  {line}" for line in summary.lines())]
            if summary.deletions:
                report = _forget_deletions(store, summary.deletions, settings.runs)
                lines += [f"  deleted in {path} since: {line}" for line in report.lines()]
    return lines


def _refresh_study(path: Path) -> None:
    """Bring the tables of a listening test up to date, so that what its listeners deleted is not in them."""
    export_results(path)


def _forget_deletions(
    store: Store, rows: Sequence[VoteRow | OpinionRow], runs: Sequence[Path]
) -> ForgetReport:
    votes = [row for row in rows if isinstance(row, VoteRow)]
    opinions = [row for row in rows if isinstance(row, OpinionRow)]
    identities = [
        *(("vote", row.source, row.vote_id) for row in votes),
        *(("opinion", row.source, row.opinion_id) for row in opinions),
    ]
    forgotten_rows = ForgottenRows(votes=votes, opinions=opinions, songs=[])
    return forget_rows(store, forgotten_rows, identities, run_roots(runs))


def export_from_store(folder: Path, out: Path, options: StoreExportOptions) -> list[str]:
    """Export a store; lines for the terminal."""
    return export_store(open_store(folder), out, options).lines()


def forget_in_store(folder: Path, selection: ForgetSelection, runs: Sequence[Path]) -> list[str]:
    """Forget something, and name all that contained it; lines for the terminal."""
    store = open_store(folder)
    with lock_folder(store.folder):
        return forget(store, selection, run_roots(runs)).lines()


def run_roots(runs: Sequence[Path]) -> list[Path]:
    """The folders in which uses are looked for: the named, else `runs`. DataError for one that is not there."""
    for path in runs:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder of runs")
    return list(runs) or [Path(RUNS)]
