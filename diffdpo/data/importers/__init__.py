"""Importers: published data sets of preferences, from local files to rows of votes and opinions.

A new one is a file here and a line in IMPORTERS, or an `Importer` of another package, announced as an entry point
of the group `diffdpo.importers`.
"""

from dataclasses import replace
from pathlib import Path

from diffdpo.data.importers.aime import AIME
from diffdpo.data.importers.base import Importer, PreferenceImport
from diffdpo.data.importers.cmi_pref import CMI_PREF
from diffdpo.data.importers.music_arena import MUSIC_ARENA
from diffdpo.data.importers.musicprefs import MUSICPREFS
from diffdpo.data.importers.opinions import OWN_OPINIONS
from diffdpo.data.importers.songeval import SONGEVAL
from diffdpo.data.importers.trl import TRL
from diffdpo.data.votes import check_opinion, check_vote
from diffdpo.errors import ConfigError, DataError
from diffdpo.registry import Table, pick

IMPORTERS: Table[Importer] = Table(
    "importer",
    {
        "aime": AIME,
        "cmi-pref": CMI_PREF,
        "music-arena": MUSIC_ARENA,
        "musicprefs": MUSICPREFS,
        "opinions": OWN_OPINIONS,
        "songeval": SONGEVAL,
        "trl": TRL,
    },
)


def import_preferences(
    name: str, path: Path, *, source: str = "", license_name: str = ""
) -> PreferenceImport:
    """The rows of a data set in the layout `name`, checked.

    `source` and `license_name` replace what the data set is called and published under; a layout that states no
    license needs one. ConfigError for an unknown layout; DataError with file and line or row for what does not fit,
    and for a data set without a row.
    """
    importer = pick("format", IMPORTERS, name)
    license_name = license_name or importer.license
    if not license_name:
        raise ConfigError(f"format {name} states no license; say the data's with --license (or `unknown`)")
    rows = importer.read(path, license_name)
    if not rows.votes and not rows.opinions:
        raise DataError(f"{path}: holds no votes and no opinions; expected {importer.layout}")
    for vote in rows.votes:
        check_vote(vote, f"{path}, vote {vote.vote_id!r}")
    for opinion in rows.opinions:
        check_opinion(opinion, f"{path}, opinion {opinion.opinion_id!r}")
    if not source:
        return rows
    return replace(
        rows,
        votes=[replace(row, source=source) for row in rows.votes],
        opinions=[replace(row, source=source) for row in rows.opinions],
    )
