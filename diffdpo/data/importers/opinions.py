"""People's own thumbs and stars, from the CSV or JSON lines that `diffdpo import-ratings` reads.

A song is named by `file`, by `sha256`, or by `sample_id` with the folder in `samples`.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from diffdpo.data.feedback import THUMBS
from diffdpo.data.importers.base import Importer, PreferenceImport, find_tables, root_of, text_digest
from diffdpo.data.importers.records import Record, SoundSource, read_records
from diffdpo.data.samples import SampleRow, Samples, open_samples
from diffdpo.data.votes import OpinionRow
from diffdpo.errors import DataError

OPINIONS_LAYOUT = "a CSV with a header, or JSON lines: docs/howto/feedback.md"
SamplesByName = dict[str, tuple[Samples, Mapping[str, SampleRow]]]


def read_own_opinions(path: Path, license_name: str) -> PreferenceImport:
    """An opinion a line."""
    table = find_tables(path, ("*.csv", "*.jsonl"), OPINIONS_LAYOUT)[0]
    folders: SamplesByName = {}
    opinions: list[OpinionRow] = []
    sounds: dict[str, SoundSource] = {}
    repeats: Counter[str] = Counter()
    for record in read_records(table, ()):
        scale, value = _value(record)
        song, sound = _song(record, root_of(path), folders)
        if sound is not None:
            sounds[song] = sound
        digest = text_digest(song, record.text("rater"), scale)
        repeats[digest] += 1
        opinions.append(
            OpinionRow(
                opinion_id=f"{digest}-{repeats[digest]}",
                source=OWN_OPINIONS.source,
                rater=record.text("rater"),
                song=song,
                sha256=record.text("sha256"),
                scale=scale,
                value=value,
                license=license_name,
                comment=record.text("comment"),
            )
        )
    if not opinions:
        raise DataError(f"{table}: holds no opinions")
    return PreferenceImport(opinions=opinions, sounds=sounds)


def _value(record: Record) -> tuple[str, float]:
    """Scale and value of an opinion."""
    thumb, stars = record.text("thumb").strip().lower(), record.text("stars").strip()
    if bool(thumb) == bool(stars):
        raise DataError(f"{record.location}: needs one of thumb, stars, has {'both' if thumb else 'none'}")
    if stars:
        return "stars", record.number("stars", 1, 5)
    words = {**THUMBS, "1": 1.0, "0": -1.0, "-1": -1.0}
    if thumb not in words:
        raise DataError(f"{record.location}: thumb must be up, down, true, false, 1, 0 or -1, got {thumb!r}")
    return "thumb", words[thumb]


def _song(record: Record, root: Path, folders: SamplesByName) -> tuple[str, SoundSource | None]:
    """The song of an opinion, and its sound if it is at hand."""
    names = [name for name in ("file", "sha256", "sample_id") if record.text(name).strip()]
    if len(names) != 1:
        raise DataError(
            f"{record.location}: needs one of file, sha256, sample_id, has {' and '.join(names) or 'none'}"
        )
    text = record.text(names[0]).strip()
    if names[0] == "sha256":
        return text, None
    if names[0] == "file":
        path = next((path for path in (root / text, Path(text)) if path.is_file()), None)
        if path is None:
            raise DataError(f"{record.location}: file {text!r} is not there")
        return text, path
    folder = record.required_text("samples")
    if folder not in folders:
        samples = open_samples(root / folder if (root / folder).is_dir() else folder)
        folders[folder] = samples, {row.sample_id: row for row in samples.rows()}
    samples, rows = folders[folder]
    if text not in rows:
        raise DataError(f"{record.location}: {folder} has no song {text!r}")
    return f"{folder}/{text}", samples.audio(text)


OWN_OPINIONS = Importer(source="opinions", license="", layout=OPINIONS_LAYOUT, read=read_own_opinions)
