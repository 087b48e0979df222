"""The page of a samples folder: every song with its prompt, its spectrogram and a player."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float
from jinja2 import Environment, StrictUndefined

from diffdpo import audio
from diffdpo.data.samples import SampleRow, Samples
from diffdpo.faults import song_fault
from diffdpo.progress import log
from diffdpo.report.plots import SPECTRUM_COLUMNS, mask_png, mel_db
from diffdpo.report.text import clock
from diffdpo.runs import atomic_write, write_if_changed
from diffdpo.threads import parallel_map
from diffdpo.types import Prompt

PAGE = "index.html"
GALLERY_TEMPLATE = Path(__file__).with_name("gallery.html.j2")
MAX_SONGS = 200
"""Songs on a page."""


@dataclass(frozen=True)
class GalleryEntry:
    """One song of a page."""

    sample_id: str
    seconds: float
    source: str
    """URL of the sound, relative to the page; empty if there is none."""
    picture: str
    caption: str = ""
    """What is said of the song beside its id."""


@dataclass(frozen=True)
class GallerySection:
    """The songs of one prompt."""

    prompt_id: str
    title: str
    notes: tuple[str, ...]
    """The other properties of the prompt, in a few words each."""
    entries: tuple[GalleryEntry, ...]


def write_gallery(
    samples: Samples,
    rows: Sequence[SampleRow],
    *,
    n_missing: int = 0,
    captions: Mapping[str, str] | None = None,
) -> Path:
    """Write index.html for rows of a samples table, in their order; the first 200 are shown, and `n_missing` songs
    named as still to be made. Pictures and page are written only if they are new: a second call costs nothing.
    `captions` by sample id stand beside the ids.
    """
    songs = [row for row in rows if not row.error]
    prompts = {prompt.id: prompt for prompt in samples.prompts()}
    page = (
        _environment()
        .from_string(GALLERY_TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=samples.folder.resolve().name,
            sections=_sections(samples, songs[:MAX_SONGS], prompts, captions or {}),
            shown=min(MAX_SONGS, len(songs)),
            made=len(songs),
            missing=n_missing,
            failed=[row for row in rows if row.error],
            settings=shared_settings(rows),
        )
    )
    write_if_changed(samples.folder / PAGE, page)
    return samples.folder / PAGE


def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["clock"] = clock
    return environment


def _sections(
    samples: Samples, rows: Sequence[SampleRow], prompts: Mapping[str, Prompt], captions: Mapping[str, str]
) -> list[GallerySection]:
    by_prompt: dict[str, list[SampleRow]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, []).append(row)
    sections = []
    for name, songs in by_prompt.items():
        prompt = prompts.get(name)
        title = (prompt.text if prompt else None) or name
        notes = _notes(prompt, songs[0]) if prompt else ()
        entries = parallel_map(partial(_entry, samples), songs)
        complete_entries = (
            replace(entry, caption=captions.get(row.sample_id, ""))
            for row, entry in zip(songs, entries, strict=True)
        )
        sections.append(GallerySection(name, title, notes, tuple(complete_entries)))
    return sections


def _notes(prompt: Prompt, row: SampleRow) -> tuple[str, ...]:
    edit = json.loads(row.edit or "null")
    notes = [
        f"not {prompt.negative_text}" if prompt.negative_text else "",
        f"style of {Path(prompt.style_audio).name}" if isinstance(prompt.style_audio, str) else "",
        "with lyrics" if prompt.lyrics else "",
        f"edit of {Path(edit['song']).name}" if edit else "",
    ]
    return tuple(note for note in notes if note)


def _entry(samples: Samples, row: SampleRow) -> GalleryEntry:
    name = row.sample_id
    path, image = samples.audio(name), samples.picture(name)
    if not row.sha256 or not path.is_file():
        return GalleryEntry(name, row.duration_s, "", "")
    if not image.is_file() or image.stat().st_mtime_ns < path.stat().st_mtime_ns:
        try:
            atomic_write(image, picture(path))
        except Exception as error:  # a damaged file
            log(
                f"{path}: not on the page ({song_fault(error)}); delete it, and the same command makes it anew"
            )
            return GalleryEntry(name, row.duration_s, "", "")
    links = (quote(str(file.relative_to(samples.folder))) for file in (path, image))
    return GalleryEntry(name, row.duration_s, *links)


def picture(path: Path) -> bytes:
    """The spectrogram of an audio file as a PNG, black with the level as opacity; computed block by block."""
    spectra = [mel_db(clip) for clip in audio.blocks(path)]
    spectrum = reduce_columns(np.concatenate(spectra, axis=1), SPECTRUM_COLUMNS)
    return mask_png(spectrum, float(spectrum.max()))


def reduce_columns(spectrum: Float[np.ndarray, "band column"], columns: int) -> Float[np.ndarray, "band _"]:
    """A spectrum in dB with at most `columns` columns, each the mean power of those that were joined into it."""
    width = spectrum.shape[1]
    if width <= columns:
        return spectrum
    starts = np.linspace(0, width, columns, endpoint=False).astype(int)
    power = np.add.reduceat(10 ** (spectrum / 10), starts, axis=1)
    return np.asarray(10 * np.log10(power / np.diff([*starts, width])))


SETTINGS = (
    ("model", "model", "name"),
    ("steps", "sampling", "steps"),
    ("guidance", "sampling", "guidance_scale"),
)
"""Label on the page, column of the samples table, key in its JSON."""


def shared_settings(rows: Sequence[SampleRow]) -> dict[str, str]:
    """The settings that all songs of a folder share, label to value."""
    songs = [row for row in rows if not row.error]
    settings = {"songs": str(len(songs)), "music": clock(sum(row.duration_s for row in songs))}
    for label, column, key in SETTINGS:
        values = {str(json.loads(getattr(row, column)).get(key)) for row in songs}
        if len(values) == 1:
            settings[label] = values.pop()
    if len(seeds := {row.seed for row in songs}) == 1:
        settings["seed"] = str(seeds.pop())
    return settings
