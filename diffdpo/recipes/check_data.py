"""The command `check-data`: what is wrong with a folder of songs, before hours are spent on it."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffdpo import audio
from diffdpo.data.song_manifest import SongEntry, read_songs
from diffdpo.encoders.descriptors import MAJOR, MINOR, RATE, estimate_tuning
from diffdpo.faults import song_fault
from diffdpo.lyrics.lrc import is_untimed, parse_lrc
from diffdpo.lyrics.syllables import syllables
from diffdpo.progress import bar
from diffdpo.scorers.gates import failures, gates
from diffdpo.types import Clip

TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
EXCERPT_S = 60.0
"""Length of the excerpt, from the middle of a song, in which tempo and key are estimated."""
SINGABLE = 7.0
"""Syllables a second over a whole song, rests included, beyond which its lyrics are taken for too long."""
TEMPO_TOLERANCE = 0.08
CONFIDENT = 0.6
"""Confidence from which an estimate contradicts what the user wrote."""
SCRIPTS = {"zh": "CJK", "ja": "HIRAGANA KATAKANA CJK", "ko": "HANGUL", "ru": "CYRILLIC", "en": "LATIN",
           "de": "LATIN", "fr": "LATIN", "es": "LATIN", "it": "LATIN", "pt": "LATIN"}  # fmt: skip
"""Scripts that lyrics of a language are written in."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate from the sound, with a confidence from 0 to 1."""

    value: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class SongCheck:
    """The check of one song."""

    id: str
    seconds: float
    sha256: str
    tempo: Estimate | None
    key: Estimate | None
    remarks: tuple[str, ...]
    """What is wrong, one line each; empty if nothing is."""


def check_songs(path: Path) -> list[SongCheck]:
    """A check of every song of a folder or manifest; a song with the sound of an earlier one is said to be so."""
    songs = read_songs(path, 0.0)
    checks = []
    with bar("check", len(songs), "song") as progress:
        for song in songs:
            checks.append(check_song(song))
            progress.advance(note=song.id)
    return list(_mark_duplicates(checks))


def check_song(song: SongEntry) -> SongCheck:
    """The check of one song; a recording that cannot be used is a remark like the others."""
    remarks = [song.fault] if song.fault else []
    try:
        clip = audio.read(song.audio)
    except Exception as error:  # whatever one file brings about
        remarks.append(song_fault(error))
        return SongCheck(id=song.id, seconds=0.0, sha256="", tempo=None, key=None, remarks=tuple(remarks))
    tempo, key = estimate_tempo(clip), estimate_key(clip)
    remarks += [f"fails the gate {name}" for name in failures(gates(clip))]
    remarks += text_remarks(song, clip.seconds) + list(_contradictions(song, tempo, key))
    return SongCheck(
        id=song.id,
        seconds=clip.seconds,
        sha256=audio.pcm_sha256(clip.samples, clip.sample_rate),
        tempo=tempo,
        key=key,
        remarks=tuple(remarks),
    )


def text_remarks(song: SongEntry, seconds: float) -> list[str]:
    """What is wrong with the caption and the lyrics of a song of a length."""
    remarks = [] if song.text.strip() else ["no caption"]
    if not song.lyrics:
        return remarks
    if not song.language:
        remarks.append("lyrics without a language")
    elif script := foreign_script(song.lyrics, song.language):
        remarks.append(f"language {song.language}, but most letters of the lyrics are {script}")
    rate = syllables(song.lyrics) / seconds
    if rate > SINGABLE:
        remarks.append(f"lyrics of {rate:.1f} syllables a second are too long for {seconds:.0f} s")
    if not is_untimed(song.lyrics):
        late = [line for line in parse_lrc(song.lyrics).lines if line[0] > seconds]
        if late:
            remarks.append(f"{len(late)} lines of lyrics begin after the song ends")
    return remarks


def foreign_script(lyrics: str, language: str) -> str:
    """The script of most letters of lyrics, if it is none of the language's; else "", also for other languages."""
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in lyrics if char.isalpha())
    if not scripts or language.split("-")[0] not in SCRIPTS:
        return ""
    script = scripts.most_common(1)[0][0]
    return "" if script in SCRIPTS[language.split("-")[0]].split() else script.capitalize()


def _contradictions(song: SongEntry, tempo: Estimate, key: Estimate) -> Iterator[str]:
    """Remarks where the sound contradicts what the user wrote; the user's words are never replaced."""
    controls = dict(song.controls)
    if "bpm" in controls and tempo.confidence >= CONFIDENT:
        octaves = np.log2(float(tempo.value) / float(controls["bpm"]))  # type: ignore[arg-type]
        if abs(octaves - round(octaves)) > TEMPO_TOLERANCE:
            yield f"bpm {controls['bpm']:g} is written, {tempo.value} is heard ({tempo.confidence:.0%} sure)"
    if "key" in controls and key.confidence >= CONFIDENT and controls["key"] != key.value:
        yield f"key {controls['key']} is written, {key.value} is heard ({key.confidence:.0%} sure)"


def _mono(clip: Clip) -> Float[np.ndarray, " sample"]:
    """The middle of a clip at RATE."""
    excerpt = int(EXCERPT_S * clip.sample_rate)
    start = max(0, (clip.samples.shape[1] - excerpt) // 2)
    mean = clip.samples[:, start : start + excerpt].mean(0, keepdims=True)
    return audio.resample(Clip(samples=mean, sample_rate=clip.sample_rate), RATE).samples[0]


def estimate_tempo(clip: Clip) -> Estimate:
    """The tempo, and as confidence how much of the onsets' energy repeats after one beat (autocorrelation)."""
    import librosa

    onsets = librosa.onset.onset_strength(y=_mono(clip), sr=RATE)
    tempo = float(librosa.feature.tempo(onset_envelope=onsets, sr=RATE)[0])
    centred = onsets - onsets.mean()
    lag = max(1, round(60 / tempo * RATE / 512))
    power = float(centred @ centred)
    repeat = float(centred[lag:] @ centred[:-lag]) / power if power > 0 and lag < len(centred) else 0.0
    return Estimate(value=f"{tempo:.0f}", confidence=max(0.0, min(1.0, repeat)))


def estimate_key(clip: Clip) -> Estimate:
    """The key whose profile fits best (Krumhansl & Kessler 1982); as confidence the lead over the next best key,
    in tenths of a correlation, at most 1."""
    import librosa

    power = np.abs(librosa.stft(_mono(clip), n_fft=4096, hop_length=1024)) ** 2
    chroma = librosa.feature.chroma_stft(S=power, sr=RATE, tuning=estimate_tuning(power)).mean(1)
    if chroma.std() < 1e-9:
        return Estimate(value="C major", confidence=0.0)
    fits = [
        (float(np.corrcoef(chroma, np.roll(profile, tonic))[0, 1]), f"{TONICS[tonic]} {mode}")
        for mode, profile in (("major", MAJOR), ("minor", MINOR))
        for tonic in range(12)
    ]
    best, second = sorted(fits, reverse=True)[:2]
    return Estimate(value=best[1], confidence=max(0.0, min(1.0, 10 * (best[0] - second[0]))))


def _mark_duplicates(checks: Sequence[SongCheck]) -> Iterator[SongCheck]:
    first: dict[str, str] = defaultdict(str)
    for check in checks:
        if check.sha256 and first[check.sha256]:
            yield replace(check, remarks=(*check.remarks, f"the same sound as {first[check.sha256]}"))
        else:
            first[check.sha256] = check.id
            yield check


def table(checks: Sequence[SongCheck]) -> list[str]:
    """Lines for the terminal: songs with remarks, then the estimates' summary."""
    lines = [f"{check.id}: {remark}" for check in checks for remark in check.remarks]
    clean = sum(not check.remarks for check in checks)
    hours = sum(check.seconds for check in checks) / 3600
    return [*lines, f"{len(checks)} songs, {hours:.2f} h; {clean} without a remark"]
