"""The command `reference`: real songs through a model's codec to percentiles of every axis, by style.

A utility that saturates has its measure there. Songs go through the codec, since what it loses no model can regain;
they should be none that judge later. A song's styles are what commas divide in its text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffdpo import audio
from diffdpo.checks import check_range
from diffdpo.data.song_manifest import SongEntry, read_songs
from diffdpo.errors import ConfigError, DataError
from diffdpo.faults import song_fault
from diffdpo.mining.reference import (
    ALL_STYLES,
    MIN_STYLE_WINDOWS,
    RealReference,
    build_reference,
    split_styles,
    write_reference,
)
from diffdpo.models.base import SongModel
from diffdpo.parts import build_model, build_scorers, model_choice
from diffdpo.progress import bar, log
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.engine import fingerprints, score_clips
from diffdpo.types import Clip, Prompt

FIRST_PLACE, LAST_PLACE = 0.2, 0.7
"""Where the first and the last window of a song begin, as shares of its length."""
SHORTEST_SHARE = 0.9
"""Windows at the end of a song that are shorter than this share of the others are left out."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """Which windows of songs are scored, by what, after whose codec."""

    scorers: tuple[str, ...] = ("harmony", "rhythm", "structure", "order", "clarity")
    """Names of scorers; judges are refused, for what is aimed at may not look at them."""
    model: str = "tiny"
    model_args: tuple[str, ...] = ()
    """Arguments of the model, each as key=value."""
    windows: int = 3
    """Windows of each song."""
    seconds: float = 10.0
    """Length of a window: that of the songs that are mined."""
    loudness_lufs: float = -16.0
    """Windows are brought to this loudness before encoding."""
    split: str = ""
    """Songs of this split only; empty: all."""

    def __post_init__(self) -> None:
        check_range(self, "windows", low=1, prefix="--")
        check_range(self, "seconds", above=0, prefix="--")
        check_range(self, "loudness_lufs", low=-70, high=0)


def make_reference(path: Path, out: Path, settings: ReferenceSettings) -> str:
    """Write the reference of a folder or manifest of songs; the styles that it has, in one line each."""
    if out.suffix != ".json":
        raise ConfigError(f"{out}: the file must end in .json")
    scorers = build_scorers(settings.scorers)
    for name, scorer in scorers.items():
        if scorer.judge_only:
            raise ConfigError(f"scorers: {name!r} is a judge, which is held out of mining and of its aims")
    songs = [song for song in read_songs(path, 0.0) if settings.split in ("", song.split)]
    if not songs:
        raise DataError(f"{path}: no songs of the split {settings.split!r}")
    model = build_model(model_choice(settings.model, settings.model_args))
    axes = [axis for scorer in scorers.values() for axis in scorer.axes]
    rows: list[list[float]] = []
    styles: list[tuple[str, ...]] = []
    with bar("reference", len(songs), "song") as progress:
        for song in songs:
            values = _score_windows(song, model, scorers, settings)
            rows += [[window[axis] for axis in axes] for window in values]
            styles += [split_styles(song.text)] * len(values)
            progress.advance(note=song.id)
    versions = {name: text for name, text in fingerprints(scorers).items() if name in scorers}
    matrix = np.array(rows, np.float64).reshape(len(rows), len(axes))
    reference = build_reference(matrix, axes, styles, versions)
    write_reference(out, reference)
    return describe_styles(reference)


def describe_styles(reference: RealReference) -> str:
    """A line for each style: how many windows it has."""
    return "\n".join(
        f"{name}: {style.windows} windows"
        for name, style in sorted(reference.styles.items(), key=lambda item: -item[1].windows)
    ) + (
        f"\nno style has {MIN_STYLE_WINDOWS} windows: all prompts are measured by {ALL_STYLES}"
        if len(reference.styles) == 1
        else ""
    )


def _score_windows(
    song: SongEntry, model: SongModel, scorers: Mapping[str, Scorer], settings: ReferenceSettings
) -> list[Mapping[str, float]]:
    """The values of each window of a song; none, and a line in the log, where the song cannot be used."""
    try:
        clips = list(_decoded_windows(song.audio, model, settings))
    except Exception as error:  # whatever one file brings about
        log(f"{song.audio}: left out; {song_fault(error)}")
        return []
    prompts = [Prompt(id="window", text=song.text)] * len(clips)
    return [scores.values for scores in score_clips(clips, scorers, prompts=prompts)]


def _decoded_windows(path: Path, model: SongModel, settings: ReferenceSettings) -> Iterator[Clip]:
    """Windows of a recording as the codec gives them back; silent ones and short ends are left out."""
    length = audio.seconds_of(path)
    middle = (FIRST_PLACE + LAST_PLACE) / 2
    places = np.linspace(FIRST_PLACE, LAST_PLACE, settings.windows) if settings.windows > 1 else [middle]
    for place in places:
        clip = audio.read(path, start_s=round(float(place) * length, 2), seconds=settings.seconds)
        if clip.seconds >= SHORTEST_SHARE * settings.seconds and clip.samples.any():
            yield model.decode(model.encode(audio.normalise(clip, settings.loudness_lufs)))
