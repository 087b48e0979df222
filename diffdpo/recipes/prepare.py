"""The verb `prepare`: songs to latents and embeddings, a file each. Files that fail are recorded and skipped."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import MISSING
from torch import Tensor

from diffdpo import audio
from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.data import tables
from diffdpo.data.latents import LATENT_DTYPES, write_latents
from diffdpo.data.refresh import recording_state, refresh_songs, song_inputs, song_labels
from diffdpo.data.song_embeddings import write_song_embeddings
from diffdpo.data.song_manifest import SONG_CONTROLS, SongEntry, read_songs
from diffdpo.data.songs import SONGS, SongRow, song_embeddings, song_files, song_latents
from diffdpo.errors import DataError
from diffdpo.faults import song_fault
from diffdpo.lyrics.lrc import is_untimed
from diffdpo.models.base import (
    EncodesSounds,
    SongModel,
    Transcribes,
    TranscribesSounds,
    supports,
)
from diffdpo.parts import build_model, check_model, model_digest
from diffdpo.progress import bar, log
from diffdpo.randomness import generator
from diffdpo.registry import Choice, closest
from diffdpo.run_dir import dist_env, open_run
from diffdpo.runs import finish
from diffdpo.sounds import Sound, open_sound
from diffdpo.types import Clip, Embedding, Prompt


@dataclass
class PrepareRun:
    """Songs to latents, styles and lyric tokens."""

    out: str = field(default=MISSING, metadata=PATH)
    """The dataset folder to be made."""
    songs: str = field(default=MISSING, metadata=PATH)
    """A folder of audio files, or a JSONL manifest (id, audio, text, lyrics, license, attribution, split)."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    loudness_lufs: float = -16.0
    """Songs are brought to this loudness before encoding."""
    style_window_s: float = 10.0
    """Length of the windows of a song; a style is computed for each."""
    style: Literal["auto", "windows", "none"] = "auto"
    """What a model that takes the sound of a reference is shown in training: the window's own sound in two of three
    variants, or no reference. auto: as the model was trained, no reference for ACE-Step and windows for others."""
    captions: int = 0
    """Styles of each window that come from captions: random parts of the song's text and of what is measured in the
    window (tempo, brightness, …). For models that are prompted with text. 0: the song's text only."""
    controls: list[str] = field(default_factory=list)
    """Controls that songs are conditioned on where they have them: bpm, key, metre. The model must know them."""
    dtype: str = "fp16"
    """Precision of the latents on disk: fp32, fp16 or bf16."""
    valid_share: float = 0.05
    """Share of songs held out of training when the manifest has no splits."""

    def __post_init__(self) -> None:
        check_range(self, "loudness_lufs", low=-70, high=0)
        check_range(self, "style_window_s", above=0)
        check_range(self, "captions", low=0)
        check_range(self, "valid_share", low=0, high=1)
        for name in self.controls:
            if name not in SONG_CONTROLS:
                raise ValueError(
                    f"controls: {name!r} is none of {', '.join(SONG_CONTROLS)}.{closest(name, SONG_CONTROLS)}"
                )
        if self.dtype not in LATENT_DTYPES:
            choices = ", ".join(LATENT_DTYPES)
            raise ValueError(
                f"unknown dtype {self.dtype!r}.{closest(self.dtype, LATENT_DTYPES)} Known: {choices}."
            )

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        check_model(self.model)


def run(cfg: PrepareRun) -> Path:
    """Encode the songs that are not there yet."""
    dist = dist_env()
    songs = read_songs(Path(cfg.songs), cfg.valid_share, partial(log, visible=dist.main))
    weights = model_digest(cfg.model)

    def refresh(out: Path) -> None:
        refresh_songs(out, songs, weights, cfg.controls)

    with open_run(cfg, dist=dist, refresh=refresh) as out:
        complete_ids = {row.id for row in tables.read_rows(out, SONGS) if _is_complete(row, out)}
        todo = dist.shard([song for song in songs if song.id not in complete_ids])
        if todo:
            model = build_model(cfg.model)
            with bar("prepare", len(todo), "song", visible=dist.main) as progress:
                for song in todo:
                    state = recording_state(song.audio)
                    row = _prepare(song, model, cfg, out)
                    inputs = "" if row.error else song_inputs(song, row.sha256, weights)
                    tables.append(
                        out, SONGS, [replace(row, audio_state=state, inputs=inputs)], rank=dist.rank
                    )
                    progress.advance(note=song.id)
        dist.barrier()
        if dist.main:
            _report(out, songs, cfg, dist.count)
        dist.barrier()
    return out


def _is_complete(row: SongRow, out: Path) -> bool:
    """Whether a song was prepared and its files are there."""
    return not row.error and all(path.is_file() for path in song_files(out, row.id))


def _report(out: Path, songs: list[SongEntry], cfg: PrepareRun, world: int) -> None:
    tables.compact(out, SONGS)
    rows = tables.read_rows(out, SONGS)
    failures = [row for row in rows if row.error]
    for row in failures[:5]:
        log(f"skipped: {row.error}")
    if len(failures) > 5:
        log(f"… and {len(failures) - 5} more; see the column `error` of {out / SONGS.folder}")
    if len(failures) == len(rows):
        raise DataError(
            f"{cfg.songs}: none of {len(songs)} songs could be prepared; first: {failures[0].error}"
        )
    successes = [row for row in rows if not row.error]
    finish(
        out,
        songs=len(successes),
        failed=len(failures),
        hours=sum(row.duration_s for row in successes) / 3600,
        licenses=sorted({row.license for row in successes}),
        world=world,
    )


def _prepare(song: SongEntry, model: SongModel, cfg: PrepareRun, out: Path) -> SongRow:
    """Encode one song and write its files; its row, with the error if that failed."""
    row = SongRow(id=song.id, audio=str(song.audio), **song_labels(song, cfg.controls))
    try:
        if song.fault:
            raise DataError(song.fault)
        if model.timed_lyrics and song.lyrics and is_untimed(song.lyrics):
            raise DataError(f"{song.id}: lyrics without [mm:ss.xx] times cannot be aligned with a recording")
        with open_sound(song.audio, out) as (file_sound, level):
            if not level >= audio.SILENCE_LUFS:
                raise DataError(f"{song.audio}: silent from beginning to end; replace or remove the file")
            sound = file_sound.scaled(10 ** ((cfg.loudness_lufs - level) / 20))
            latents = _encode(model, sound)
            if not torch.isfinite(latents).all():
                raise DataError(f"{song.audio}: its latents are not numbers")
            embeddings = embed_windows(model, sound, song, cfg)
        with song.audio.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:  # whatever a file or its text brings about
        return replace(row, error=song_fault(error))
    write_song_embeddings(song_embeddings(out, song.id), embeddings)
    write_latents(song_latents(out, song.id), latents.to(LATENT_DTYPES[cfg.dtype]))
    return replace(
        row,
        sha256=sha256,
        frames=len(latents),
        duration_s=sound.seconds,
    )


def _encode(model: SongModel, sound: Sound) -> Float[Tensor, "frame channel"]:
    """The latents of a song, in memory that does not grow with it where the model can."""
    if supports(model, EncodesSounds):
        return model.encode_sound(sound)  # type: ignore[attr-defined]
    return model.encode(sound.clip())


def _transcribe(model: SongModel, sound: Sound) -> Embedding:
    """What a model reads off a recording; {} for a model that reads nothing."""
    if supports(model, TranscribesSounds):
        return model.transcribe_sound(sound)  # type: ignore[attr-defined]
    return model.transcribe(sound.clip()) if supports(model, Transcribes) else {}  # type: ignore[attr-defined]


def embed_windows(model: SongModel, sound: Sound, song: SongEntry, cfg: PrepareRun) -> list[list[Embedding]]:
    """Embeddings of a song, by variant and window: of its text and sound together, its sound alone, its text alone.

    The variants teach a model to follow prompts that say much and prompts that say little. With `captions` set, so
    many captions of the window replace the variant of the text alone. A model that embeds no sound, or is to be
    shown none, gets only the variants of texts. The transcript of a song without lyrics, such as its beats, is in
    all variants.
    """
    width = max(1, int(cfg.style_window_s * sound.sample_rate))
    count = min(max(1, sound.length // width), sound.length)
    has_style = model.embeds_audio and shows_style(model, cfg.style)
    transcript: Embedding = {} if song.lyrics else _transcribe(model, sound)

    def embed(text: str | None, style_clip: Clip | None) -> Embedding:
        prompt = Prompt(
            id=song.id,
            text=text,
            style_audio=style_clip,
            lyrics=song.lyrics or None,
            language=song.language or None,
            duration_s=sound.seconds,
            controls=tuple(pair for pair in song.controls if pair[0] in cfg.controls),
        )
        return model.embed(prompt) | transcript

    windows = []
    ends = np.cumsum(
        [0, *(sound.length // count + (i < sound.length % count) for i in range(count))]
    ).tolist()
    for number, (start, stop) in enumerate(pairwise(ends)):
        window = sound.clip(start, stop)
        texts = _captions(song, window, f"{song.id}:{number}", cfg.captions) or [song.text]
        sounds = [embed(song.text or None, window), embed(None, window)] if has_style else []
        variants = sounds + [embed(text, None) for text in texts if text] or [embed(None, None)]
        windows.append([variants[min(i, len(variants) - 1)] for i in range(len(sounds) + len(texts))])
    return [list(variant) for variant in zip(*windows, strict=True)]


def shows_style(model: SongModel, style: str) -> bool:
    """Whether songs are trained on with their own sound as the style reference; where nothing is said, as the model
    was trained: with it, unless the model has `own_style_reference` false."""
    return style == "windows" or (style == "auto" and bool(getattr(model, "own_style_reference", True)))


def _captions(song: SongEntry, window: Clip, key: str, count: int) -> list[str]:
    """Captions of a window, each of a random part of the song's labels and of the window's descriptors."""
    if not count:
        return []
    from diffdpo.encoders.descriptors import THIRDS, measure, measured_words

    parts = [part.strip() for part in song.text.split(",") if part.strip()]
    parts += measured_words(measure(window), THIRDS)
    captions = []
    for number in range(count):
        draws = torch.rand(len(parts), generator=generator(0, f"{key}:{number}", "caption")).tolist()
        phrases = sorted(zip(draws, parts, strict=True))[: max(1, sum(draw < 0.5 for draw in draws))]
        captions.append(", ".join(part for _, part in phrases))
    return captions
