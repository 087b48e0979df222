"""Two contrasted sets of songs, with the conditions that a network's activations are read under."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from diffdpo.data import tables
from diffdpo.data.latents import check_width, read_latents, write_latents
from diffdpo.data.prompts import read_prompts
from diffdpo.data.samples import SampleRow, Samples, open_samples, sample_id, sample_plan
from diffdpo.data.song_embeddings import SongEmbeddings
from diffdpo.data.song_scores import AxisSong, axis_songs, read_scores
from diffdpo.data.songs import SONGS, song_embeddings, song_latents
from diffdpo.errors import DataError
from diffdpo.inputs import rows_digest
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.progress import bar, log
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.probes import half_mask
from diffdpo.sampling.request import Request, plan_candidate, prompt_request
from diffdpo.sampling.sampler import batch_requests, sample_batch
from diffdpo.types import Row

POSITIVE, NEGATIVE = "positive", "negative"


@dataclass(frozen=True, eq=False)
class ContrastSong:
    """A song of one of the two sets, with the condition that its activations are read under."""

    request: Request
    group: str
    latents: Float[Tensor, "frame channel"]


ContrastSets = tuple[list[ContrastSong], list[ContrastSong]]
"""The songs of the first class, and those of the second."""


@dataclass(frozen=True, kw_only=True)
class ContrastOptions:
    """How much of the songs is read, and how those of a file of prompts are sampled."""

    max_songs: int = 0
    """Of each class; 0: all."""
    max_frames: int = 0
    """Of each song; 0: as many as the model takes."""
    per_prompt: int = 1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    songs: Path
    """The folder that keeps songs of prompts, batch by batch, for a run that goes on after a stop."""


def read_contrast(model: SongModel, positive: str, negative: str, options: ContrastOptions) -> ContrastSets:
    """The songs of two sources: a folder of `sample` or `prepare`, or a prompts.jsonl whose songs are sampled now.

    DataError for a source that is none, and for too few prompts before their songs are sampled.
    """
    _check_prompts((positive, negative), options)
    return (
        list(_song_part(model, POSITIVE, positive, _source_songs(model, positive, options), options)),
        list(_song_part(model, NEGATIVE, negative, _source_songs(model, negative, options), options)),
    )


def read_halves(
    model: SongModel, folders: Sequence[str], scores: str, axis: str, options: ContrastOptions
) -> ContrastSets:
    """The better and the worse half of each prompt's songs by an axis; the middle one of an odd number is left out.

    DataError where no songs have a score of the axis, or where none is better than another.
    """
    table, store = read_scores(Path(scores)), EmbeddingStore(model)
    samples = [open_samples(Path(folder)) for folder in folders]
    songs = []
    for number, part in enumerate(samples):
        part_songs = [_NumberedSong(number, song) for song in axis_songs(part, table, axis)]
        if not part_songs:
            raise DataError(
                f"{scores}: no score of {axis} for the songs of {part.folder}; `diffdpo score` makes them"
            )
        if (count := len(part.rows())) > len(part_songs):
            absences = count - len(part_songs)
            log(f"{part.folder}: {absences} of {count} songs have no number on {axis} and are left out")
        songs += part_songs
    better, worse = _halves(songs, options.max_songs)
    if not better:
        raise DataError(
            f"{scores}: no prompt has two songs that differ in {axis}; sample several songs a prompt"
        )

    def read(half: Sequence[_NumberedSong]) -> Iterator[ContrastSong]:
        for number, part in enumerate(samples):
            rows = sorted((s.song.row for s in half if s.folder == number), key=lambda row: row.sample_id)
            for song in _sampled_songs(part, rows, store):
                name = f"{song.request.sample_id}/{number}" if number else song.request.sample_id
                yield replace(song, request=replace(song.request, sample_id=name))

    source = ", ".join(folders)
    return (
        list(_song_part(model, POSITIVE, source, read(better), options)),
        list(_song_part(model, NEGATIVE, source, read(worse), options)),
    )


@dataclass(frozen=True)
class _NumberedSong:
    """A song with the number of its folder."""

    folder: int
    song: AxisSong


def _halves(songs: Sequence[_NumberedSong], limit: int) -> tuple[list[_NumberedSong], list[_NumberedSong]]:
    """The better and the worse half of each prompt's songs, with a `limit` of the first `limit` songs a class.

    Halves are smaller where songs in the middle are alike: every better song is better than every worse one. One
    sound counts once.
    """
    by_prompt: dict[str, list[_NumberedSong]] = {}
    sounds = set()
    for song in songs:
        row = song.song.row
        if (row.prompt_id, row.sha256) not in sounds:
            sounds.add((row.prompt_id, row.sha256))
            by_prompt.setdefault(row.prompt_id, []).append(song)
    better: list[_NumberedSong] = []
    worse: list[_NumberedSong] = []
    for rows in by_prompt.values():
        rows.sort(key=lambda row: row.song.value)
        half = len(rows) // 2
        while half and rows[half - 1].song.value >= rows[-half].song.value:
            half -= 1
        half = min(half, limit - len(better)) if limit else half
        better += rows[len(rows) - half :]
        worse += rows[:half]
    return better, worse


def _song_part(
    model: SongModel, side: str, source: str, songs: Iterator[ContrastSong], options: ContrastOptions
) -> Iterator[ContrastSong]:
    """The beginnings of the first songs of a class, as long as the model takes."""
    limit = min(options.max_frames or model.spec.max_frames, model.spec.max_frames)
    for number, song in enumerate(songs):
        if options.max_songs and number >= options.max_songs:
            return
        check_width(f"{source}: {song.request.sample_id}", song.latents.shape, model.spec.channels)
        row, frames = song.request.row, min(limit, len(song.latents))
        row = replace(row, frames=frames, first_frame=0, song_frames=row.total_frames)
        name = f"{side}/{song.request.sample_id}"
        yield ContrastSong(Request(sample_id=name, row=row), song.group, song.latents[:frames])


def _source_songs(model: SongModel, source: str, options: ContrastOptions) -> Iterator[ContrastSong]:
    path = Path(source)
    if path.is_dir() and (path / SONGS.folder).is_dir():
        return _prepared_songs(path)
    if path.is_dir():
        samples = open_samples(path)
        return _sampled_songs(samples, samples.rows(), EmbeddingStore(model))
    if path.is_file():
        return _new_songs(model, path, options)
    raise DataError(f"{source}: no such folder of songs or file of prompts")


def _prepared_songs(folder: Path) -> Iterator[ContrastSong]:
    for song in tables.read_rows(folder, SONGS):
        if not song.error:
            latents = read_latents(song_latents(folder, song.id))
            embedding = SongEmbeddings(song_embeddings(folder, song.id)).read(0, 0)
            row = Row(embedding=embedding, frames=len(latents))
            yield ContrastSong(Request(sample_id=song.id, row=row), song.group or song.id, latents)


def _sampled_songs(
    samples: Samples, rows: Sequence[SampleRow], store: EmbeddingStore
) -> Iterator[ContrastSong]:
    prompts = {prompt.id: prompt for prompt in samples.prompts()}
    for row in rows:
        prompt, latents = prompts[row.prompt_id], read_latents(samples.latents(row.sample_id))
        plan = sample_plan(samples, row)
        embedding = None if plan is None else store.embed_plan(plan)
        request = prompt_request(prompt, row.sample_id, len(latents), store.embed, embedding)
        yield ContrastSong(request, prompt.group, latents)


def _new_songs(model: SongModel, path: Path, options: ContrastOptions) -> Iterator[ContrastSong]:
    """Songs for prompts, sampled now."""
    store, requests, groups = EmbeddingStore(model), [], {}
    for prompt in read_prompts(path):
        for number in range(options.per_prompt):
            name, frames = sample_id(prompt.id, number), model.spec.frames(prompt.duration_s)
            _, plan = plan_candidate(store, prompt, name, frames, options.seed)
            requests.append(prompt_request(prompt, name, frames, store.embed, plan))
            groups[name] = prompt.group
    requests = requests[: options.max_songs or None]
    folder = options.songs / rows_digest(read_prompts(path))
    with bar("sample", len(requests), "song") as progress:
        for batch in batch_requests(requests, options.sampling.batch):
            files = [folder / f"{request.sample_id}.safetensors" for request in batch]
            if not all(file.is_file() for file in files):
                songs = sample_batch(model, batch, options.sampling, seed=options.seed)
                for file, latents in zip(files, songs, strict=True):
                    write_latents(file, latents)
            progress.advance(len(batch))
            for request, file in zip(batch, files, strict=True):
                yield ContrastSong(request, groups[request.sample_id], read_latents(file))


def _check_prompts(sources: tuple[str, str], options: ContrastOptions) -> None:
    groups: list[list[str]] = []
    for source in sources:
        if not Path(source).is_file():
            return
        names = [prompt.group for prompt in read_prompts(source) for _ in range(options.per_prompt)]
        groups.append(names[: options.max_songs or None])
    half_mask([*groups[0], *groups[1]], [True] * len(groups[0]) + [False] * len(groups[1]), options.seed)
