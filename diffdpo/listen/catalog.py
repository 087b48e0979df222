"""The songs of a listening test, the pairs that are compared, and the pages of MUSHRA."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from diffdpo import audio
from diffdpo.data.samples import SAMPLES, Samples, relative_folder
from diffdpo.data.song_manifest import SUFFIXES
from diffdpo.errors import DataError
from diffdpo.listen.study import PairRule

MAX_RATE_HZ = 48000


@dataclass(frozen=True, kw_only=True)
class ListenedSong:
    """A song that listeners can hear."""

    key: str
    """The name of its system and its id: unique in the study, the same when the server starts again."""
    path: str
    """The file, relative to the folder of the study."""
    samples: str = ""
    """Its samples folder, relative to the folder of the study; empty for a plain file."""
    song: str
    """Its id in the samples folder; of a plain file the path, relative to the folder of the study."""
    system: str
    prompt_id: str
    prompt: str = ""
    lyrics: str = ""
    group: str = ""
    sha256: str = ""
    seconds: float
    sample_rate: int

    def row(self) -> dict[str, str | float | int]:
        """The song as plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class MushraPage:
    """The songs that are rated on one page, by their indices in the catalog."""

    reference: int
    songs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All songs, and which of them are heard together. Songs are named by their index."""

    songs: tuple[ListenedSong, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    pages: tuple[MushraPage, ...] = ()

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each song by its key."""
        return {song.key: place for place, song in enumerate(self.songs)}

    @cached_property
    def sample_rate(self) -> int:
        """The rate at which all excerpts are served: that of the songs, so that it tells no system from another."""
        return min(MAX_RATE_HZ, max(song.sample_rate for song in self.songs))


def system_names(folders: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """A name for the songs of each folder: the configured ones, or the folders' own where these differ.

    DataError for a number of names other than that of the folders, and for names that are used twice.
    """
    if names and len(names) != len(folders):
        raise DataError(
            f"systems: {len(names)} names for {len(folders)} folders; name every folder of samples, or none"
        )
    short_names = [Path(folder).resolve().name for folder in folders]
    own_names = short_names if len(set(short_names)) == len(folders) else list(folders)
    chosen_names = tuple(names or own_names)
    if len(set(chosen_names)) != len(chosen_names):
        raise DataError("systems: two folders of samples have the same name; name them apart, systems=[…]")
    return chosen_names


def read_listened_songs(folder: str, system: str, out: Path) -> list[ListenedSong]:
    """The songs of a samples folder, or the audio files of a plain folder, whose prompts are their names.

    DataError for a folder without audio, or for a song whose file is gone.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(
            f"{folder}: no such folder; make songs with `diffdpo sample`, or name a folder of audio"
        )
    if (path / SAMPLES.folder).is_dir():
        songs = list(_sampled_songs(Samples(path), system, out))
    else:
        songs = [
            _plain_song(file, system, out)
            for file in sorted(path.iterdir())
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
    if not songs:
        raise DataError(
            f"{folder}: holds no songs to listen to; make some with `diffdpo sample`, or name a folder of FLAC, "
            "WAV, Ogg, Opus or MP3 files"
        )
    return songs


def _sampled_songs(samples: Samples, system: str, out: Path) -> Iterator[ListenedSong]:
    prompts = {prompt.id: prompt for prompt in samples.prompts()}
    for row in samples.rows():
        path = samples.audio(row.sample_id)
        if not row.sha256 or not path.is_file():
            raise DataError(
                f"{samples.folder}: {row.sample_id} has no audio; sample again with audio=true, or run the command "
                "that made the folder again"
            )
        prompt = prompts.get(row.prompt_id)
        yield ListenedSong(
            key=f"{system}/{row.sample_id}",
            path=relative_folder(path, out),
            samples=relative_folder(samples.folder, out),
            song=row.sample_id,
            system=system,
            prompt_id=row.prompt_id,
            prompt=(prompt.text or "") if prompt else "",
            lyrics=(prompt.lyrics or "") if prompt else "",
            group=row.group,
            sha256=row.sha256,
            seconds=audio.seconds_of(path),
            sample_rate=_sample_rate(path),
        )


def _plain_song(path: Path, system: str, out: Path) -> ListenedSong:
    location = relative_folder(path, out)
    return ListenedSong(
        key=f"{system}/{path.name}",
        path=location,
        song=location,
        system=system,
        prompt_id=path.stem,
        group=path.stem,
        sha256=audio.file_sha256(path),
        seconds=audio.seconds_of(path),
        sample_rate=_sample_rate(path),
    )


def _sample_rate(path: Path) -> int:
    with audio.decode(path) as file:
        return int(file.samplerate)


def song_pairs(songs: Sequence[ListenedSong], rule: PairRule) -> tuple[tuple[int, int], ...]:
    """The pairs of songs of one prompt that a rule names, by indices.

    `across` systems, `within` one, `all` of both, or `matched`: the same id, hence the same noise, in two systems.
    DataError where there are none.
    """
    by_prompt: dict[str, list[int]] = {}
    for place, song in enumerate(songs):
        by_prompt.setdefault(song.prompt_id, []).append(place)

    def is_wanted(first: ListenedSong, second: ListenedSong) -> bool:
        same_system = first.system == second.system
        if rule == "matched":
            return not same_system and Path(first.song).name == Path(second.song).name
        return rule == "all" or same_system == (rule == "within")

    pairs = tuple(
        (first, second)
        for places in by_prompt.values()
        for first, second in combinations(places, 2)
        if is_wanted(songs[first], songs[second]) and songs[first].sha256 != songs[second].sha256
    )
    if not pairs:
        raise DataError(f"pairs={rule}: no two different songs to compare; {PAIR_NEEDS[rule]}")
    return pairs


PAIR_NEEDS = {
    "across": "name two folders of samples with the same prompts, or pairs=within",
    "matched": "name two folders of samples with the same prompts and numbers, or pairs=across",
    "within": "sample several songs for each prompt, or name two folders and pairs=across",
    "all": "sample several songs for each prompt",
}
"""What each rule needs, for a message."""


def mushra_pages(
    songs: Sequence[ListenedSong], references: Sequence[ListenedSong]
) -> tuple[tuple[ListenedSong, ...], tuple[MushraPage, ...]]:
    """All songs with the references behind them, and a page for each prompt that has a reference.

    DataError where no prompt has both songs and a reference.
    """
    all_songs, pages = list(songs), []
    by_prompt: dict[str, list[int]] = {}
    for place, song in enumerate(songs):
        by_prompt.setdefault(song.prompt_id, []).append(place)
    for reference in references:
        places = by_prompt.pop(reference.prompt_id, None)
        if places:
            all_songs.append(reference)
            pages.append(MushraPage(reference=len(all_songs) - 1, songs=tuple(places)))
    if not pages:
        raise DataError(
            "mushra.reference: no song of the samples has the prompt of a reference; references and songs need the "
            "same prompt ids"
        )
    return tuple(all_songs), tuple(pages)
