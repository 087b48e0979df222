"""Songs to a dataset: latents, styles and lyric tokens, one file a song. Bad files are recorded and skipped."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.latents import LATENT_DTYPES, write_latents
from diffdpo.data.prompts import in_share
from diffdpo.data.song_embeddings import write_song_embeddings
from diffdpo.data.songs import SONGS, SongRow
from diffdpo.errors import ConfigError, DataError
from diffdpo.lyrics.front_end import is_untimed
from diffdpo.models.base import SongModel, Transcribes, supports
from diffdpo.parts import build_model, check_model
from diffdpo.progress import bar, say
from diffdpo.randomness import generator
from diffdpo.registry import Choice, closest
from diffdpo.run_dir import claim, workers
from diffdpo.runs import finish, read_jsonl
from diffdpo.types import Clip, Embedding, Prompt


@dataclass
class PrepareRun:
    """Songs to latents, styles and lyric tokens."""

    out: str = MISSING
    """The dataset folder to be made."""
    songs: str = MISSING
    """A folder of audio files, or a JSONL manifest (id, audio, text, lyrics, license, attribution, split)."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    loudness_lufs: float = -16.0
    """Songs are brought to this loudness before encoding."""
    style_window_s: float = 10.0
    """A style is computed for every such stretch of a song."""
    captions: int = 0
    """So many styles of each stretch come from captions: part of the song's text, part of what is measured there
    (tempo, brightness, …). A model that is prompted with text should have seen text. 0: the song's text only."""
    dtype: str = "fp16"
    """Of the latents on disk: fp32, fp16 or bf16."""
    valid_share: float = 0.05
    """Share of songs held out of training when the manifest has no splits."""


SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
KEYS = ("id", "audio", "text", "lyrics", "language", "license", "attribution", "split", "group")


@dataclass(frozen=True, kw_only=True)
class Song:
    """One line of a manifest."""

    id: str
    audio: Path
    text: str = ""
    lyrics: str = ""
    language: str = ""
    license: str = ""
    attribution: str = ""
    split: str = ""
    group: str = ""


def check(cfg: PrepareRun) -> None:
    """The parts that are chosen by name, before anything is loaded."""
    check_model(cfg.model)


def run(cfg: PrepareRun) -> Path:
    """Encode the songs that are not there yet."""
    if cfg.dtype not in LATENT_DTYPES:
        raise ConfigError(
            f"unknown dtype {cfg.dtype!r}.{closest(cfg.dtype, LATENT_DTYPES)} Known: {', '.join(LATENT_DTYPES)}."
        )
    songs = read_songs(Path(cfg.songs), cfg.valid_share)
    group = workers()
    out = claim(cfg, group=group)
    done = {row.id for row in tables.read_rows(out, SONGS) if not row.error}
    todo = group.share([song for song in songs if song.id not in done])
    if todo:
        model = build_model(cfg.model)
        with bar("prepare", len(todo), "song", enabled=group.main) as progress:
            for song in todo:
                tables.append(out, SONGS, [_prepare(song, model, cfg, out)], rank=group.rank)
                progress.advance(note=song.id)
    group.barrier()
    if group.main:
        _report(out, songs, cfg, group.count)
    group.barrier()
    return out


def _report(out: Path, songs: list[Song], cfg: PrepareRun, world: int) -> None:
    tables.compact(out, SONGS)
    rows = tables.read_rows(out, SONGS)
    failed = [row for row in rows if row.error]
    for row in failed[:5]:
        say(f"skipped: {row.error}")
    if len(failed) > 5:
        say(f"… and {len(failed) - 5} more; see the column `error` of {out / SONGS.folder}")
    if len(failed) == len(rows):
        raise DataError(
            f"{cfg.songs}: none of {len(songs)} songs could be prepared; first: {failed[0].error}"
        )
    good = [row for row in rows if not row.error]
    finish(
        out,
        songs=len(good),
        failed=len(failed),
        hours=sum(row.duration_s for row in good) / 3600,
        licenses=sorted({row.license for row in good}),
        world=world,
    )


def read_songs(path: Path, valid_share: float) -> list[Song]:
    """The songs of a manifest or of a folder, each with a split."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        songs = [Song(id=_slug(file.relative_to(path)), audio=file) for file in files]
    else:
        songs = [_entry(row, f"{path}:{number}", path.parent) for number, row in read_jsonl(path)]
    if not songs:
        raise DataError(
            f"{path}: no songs here; give a folder with {', '.join(SUFFIXES)} files or a JSONL manifest"
        )
    taken: dict[str, Song] = {}
    for song in songs:
        if song.id in taken:
            raise DataError(f"{path}: the id {song.id!r} is used twice; ids name files and must differ")
        group = song.group or song.id
        split = song.split or ("valid" if in_share(group, valid_share, "split") else "train")
        taken[song.id] = replace(song, group=group, split=split)
    return list(taken.values())


def _slug(path: Path) -> str:
    return "-".join([*path.parent.parts, path.stem])


def _entry(row: dict[str, Any], where: str, folder: Path) -> Song:
    for key in row:
        if key not in KEYS:
            raise DataError(f"{where}: unknown key {key!r}.{closest(key, KEYS)} Known: {', '.join(KEYS)}.")
    for key in ("id", "audio"):
        if not row.get(key):
            raise DataError(f"{where}: a song needs {key!r}")
    known = {key: str(value) for key, value in row.items() if value is not None and key != "audio"}
    return Song(audio=folder / row["audio"], **known)


def _prepare(song: Song, model: SongModel, cfg: PrepareRun, out: Path) -> SongRow:
    """Encode one song and write its files; a row with the reason when that is impossible."""
    row = SongRow(
        id=song.id,
        audio=str(song.audio),
        text=song.text,
        license=song.license,
        attribution=song.attribution,
        split=song.split,
        group=song.group,
    )
    try:
        if model.timed_lyrics and song.lyrics and is_untimed(song.lyrics):
            raise DataError(f"{song.id}: lyrics without [mm:ss.xx] times cannot be aligned with a recording")
        clip = audio.read(song.audio)
        if audio.loudness(clip) < audio.SILENCE_LUFS:
            raise DataError(f"{song.audio}: silent from beginning to end; replace or remove the file")
        clip = audio.normalise(clip, cfg.loudness_lufs)
        latents = model.encode(clip)
        if not torch.isfinite(latents).all():
            raise DataError(f"{song.audio}: its latents are not numbers")
        embeddings = embed_windows(model, clip, song, cfg)
    except DataError as error:
        return replace(row, error=str(error))
    write_song_embeddings(out / "embeddings" / f"{song.id}.safetensors", embeddings)
    write_latents(out / "latents" / f"{song.id}.safetensors", latents.to(LATENT_DTYPES[cfg.dtype]))
    return replace(
        row,
        sha256=hashlib.sha256(song.audio.read_bytes()).hexdigest(),
        frames=len(latents),
        duration_s=clip.seconds,
    )


def embed_windows(model: SongModel, clip: Clip, song: Song, cfg: PrepareRun) -> list[list[Embedding]]:
    """Embeddings of a song, [variant][window]: of its text and sound together, its sound alone, its text alone.

    The variants teach a model to follow prompts that say much and prompts that say little. With `captions` set, so
    many captions of the window stand in for the text alone. A model that embeds no recordings gets the texts only.
    What a model reads off the recording, such as beats, goes into all of them, unless the song has lyrics.
    """
    width = int(cfg.style_window_s * clip.sample_rate)
    count = max(1, clip.samples.shape[1] // width)
    transcript: Embedding = {}
    if not song.lyrics and supports(model, Transcribes):
        transcript = model.transcribe(clip)  # type: ignore[attr-defined]

    def embed(text: str | None, recording: Clip | None) -> Embedding:
        prompt = Prompt(
            id=song.id,
            text=text,
            style_audio=recording,
            lyrics=song.lyrics or None,
            language=song.language or None,
            duration_s=clip.seconds,
        )
        return model.embed(prompt) | transcript

    windows = []
    for number, samples in enumerate(np.array_split(clip.samples, count, axis=1)):
        window = Clip(samples=np.ascontiguousarray(samples), sample_rate=clip.sample_rate)
        texts = _captions(song, window, f"{song.id}:{number}", cfg.captions) or [song.text]
        sounds = [embed(song.text or None, window), embed(None, window)] if model.embeds_audio else []
        variants = sounds + [embed(text, None) for text in texts if text] or [embed(None, None)]
        windows.append([variants[min(i, len(variants) - 1)] for i in range(len(sounds) + len(texts))])
    return [list(variant) for variant in zip(*windows, strict=True)]


def _captions(song: Song, heard: Clip, key: str, count: int) -> list[str]:
    """Texts that each say a random part of a song's labels and of what is measured in a stretch of it."""
    if not count:
        return []
    from diffdpo.encoders.descriptors import THIRDS, measure, measured_words

    parts = [part.strip() for part in song.text.split(",") if part.strip()]
    parts += measured_words(measure(heard), THIRDS)
    captions = []
    for number in range(count):
        draws = torch.rand(len(parts), generator=generator(0, f"{key}:{number}", "caption")).tolist()
        said = sorted(zip(draws, parts, strict=True))[: max(1, sum(draw < 0.5 for draw in draws))]
        captions.append(", ".join(part for _, part in said))
    return captions
