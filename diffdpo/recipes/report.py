"""The command `report`: the numbers of a finished evaluation as tables for a page or a paper."""

from pathlib import Path

from diffdpo.errors import ConfigError, DataError
from diffdpo.report.tables import TABLE_STYLES, TableStyle, report_tables
from diffdpo.runs import read_json


def print_tables(source: Path, style: str = "markdown") -> str:
    """The tables of a round, of a folder of `diffdpo evaluate`, or of its `report.json`.

    ConfigError for an unknown style, DataError where there is no report of this version.
    """
    path = report_path(source)
    report = read_json(path)
    try:
        return report_tables(report, _style(style))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(
            f"{path}: no report of this version of `diffdpo evaluate`; run it again on the same folders"
        ) from None


def report_path(source: Path) -> Path:
    """The `report.json` of a folder, or of the folder `report` in it, or the file itself."""
    if not source.is_dir():
        return source
    paths = [source / "report.json", source / "report" / "report.json"]
    return next((path for path in paths if path.is_file()), paths[0])


def _style(name: str) -> TableStyle:
    for style in TABLE_STYLES:
        if style == name:
            return style
    raise ConfigError(f"--table must be {' or '.join(TABLE_STYLES)}, got {name!r}")
