"""Compares the onsets of lines sung by hibari-tts from an LRC with the times of their tokens on the frame axis.

    python tools/parity/sung_lyrics.py [SONG.lrc] [--duration 60] [--vocab vocab.json] [--wav song.wav]

The tool needs `pip install hibari-tts` (Apache-2.0, with an English voice in the package) and the lyrics extra.
Every line starts at its LRC time, on one note, at a speed that fills most of the time until the next line; onsets
in the song are detected by loudness alone. The comparison checks the frame axis, not the singing of a song model. A
token may precede its LRC time by at most one frame (46 ms) and never follow it; else the exit code is 1. Soft
consonants have late onsets. Without an LRC a short song is planned and sung.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo.errors import DataError, UserError
from diffdpo.lyrics.front_end import (
    LYRICS_FRAMES_PER_SECOND,
    LyricsFrontEnd,
    TimedWords,
    parse_lrc,
    place_tokens,
    read_vocabulary,
)
from diffdpo.lyrics.phonemes import MARKS, phonemes
from diffdpo.lyrics.timing import plan_lyrics, to_lrc
from diffdpo.text_files import read_text

RATE = 24000
NOTES = (220.0, 246.94, 261.63, 293.66)
SHARE = 0.85
"""The share of the time until the next line in which a line is sung; a pause follows, before the next onset."""
DEFAULT_LYRICS = """[verse]
Paper boats along the gutter
Carry what I meant to say
Every corner takes a letter
Till the rain has gone away

[chorus]
Hold the line, I'm nearly there
Hold the line, I'm nearly there
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lrc", nargs="?", help="an English LRC; without, a planned song")
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--vocab", help="a checkpoint's vocab.json; without, one of the phonemes in the song")
    parser.add_argument("--wav", help="write the song here")
    args = parser.parse_args()
    try:
        text = read_text(Path(args.lrc)) if args.lrc else to_lrc(plan_lyrics(DEFAULT_LYRICS, args.duration))
        lines = parse_lrc(text, duration_s=args.duration).lines
        if not lines:
            raise DataError("no line can be sung")
        vocabulary = read_vocabulary(args.vocab) if args.vocab else own_vocabulary(lines)
        token_s = token_times(text, args.duration, vocabulary)
        song, spoken_s = sing_lines(lines, args.duration)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.wav:
        soundfile.write(args.wav, song, RATE)
    return print_report(lines, token_s, onsets(song, lines), spoken_s, args.duration)


def own_vocabulary(lines: tuple[TimedWords, ...]) -> dict[str, int]:
    """A number for each phoneme of the song; places on the frame axis do not depend on the numbers."""
    phones = {phone for line in lines for phone in phonemes(line.words)}
    return {phone: number for number, phone in enumerate([*MARKS, "_", *sorted(phones - {*MARKS, "_"})])}


def token_times(text: str, duration_s: float, vocabulary: dict[str, int]) -> np.ndarray:
    """The time of the first token of each line in seconds: the first after the full stop of the line before."""
    front_end = LyricsFrontEnd(vocabulary)
    lines = front_end.encode(text, "en", duration_s).lines
    axis = place_tokens(lines, int(duration_s * LYRICS_FRAMES_PER_SECOND), LYRICS_FRAMES_PER_SECOND).numpy()
    stop = vocabulary["."] + 1
    left_tokens = np.concatenate([[stop], axis[:-1]])
    line_ends = left_tokens == stop
    for frame in range(1, len(axis)):  # silence behind a full stop is still the end of that line
        line_ends[frame] |= line_ends[frame - 1] and left_tokens[frame] == 0
    return np.flatnonzero(line_ends & (axis > 0)) / LYRICS_FRAMES_PER_SECOND


def sing_lines(lines: tuple[TimedWords, ...], duration_s: float) -> tuple[np.ndarray, list[float]]:
    """The samples of the song, and the seconds of each line at the voice's normal speed."""
    try:
        from hibari import Hibari
    except ImportError:
        raise UserError("this check sings with hibari-tts: pip install hibari-tts") from None
    voice = Hibari()
    song = np.zeros(round(duration_s * RATE), np.float32)
    ends = [line.start_s for line in lines[1:]] + [duration_s]
    spoken_s = []
    for number, (line, end_s) in enumerate(zip(lines, ends, strict=True)):
        speech = on_note(voice, line.words, 1.0, NOTES[number % len(NOTES)])
        spoken_s.append(len(speech) / RATE)
        room = SHARE * (end_s - line.start_s)
        speed = min(2.0, max(0.5, spoken_s[-1] / room))
        sound = on_note(voice, line.words, speed, NOTES[number % len(NOTES)])[: round(room * RATE)]
        first = round(line.start_s * RATE)
        song[first : first + len(sound)] += sound[: len(song) - first]
    return song, spoken_s


def on_note(voice: Any, words: str, speed: float, note_hz: float) -> np.ndarray:
    """The samples of a line on one pitch, without silence at both ends."""
    from hibari import dsp

    rng = np.random.default_rng(0)
    pieces = []
    for phones in voice.phonemize(words):
        ids = np.asarray([voice.ids(phones)], np.int64)
        out = voice.sess.run(None, {"ids": ids, "speed": np.asarray([speed], np.float32)})
        *spectra, pitch = (part[0] for part in out)
        pieces.append(dsp.synth(*spectra, np.where(pitch > 40, note_hz, 0).astype(np.float32), rng))
    sound = np.concatenate(pieces)
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    return sound[loud[0] : loud[-1] + 1]


def onsets(song: np.ndarray, lines: tuple[TimedWords, ...]) -> np.ndarray:
    """The onset of each line in seconds: the first 5 ms near its start above -35 dB of the local maximum."""
    hop = RATE // 200
    loudness = np.sqrt(np.mean(np.square(song[: len(song) // hop * hop].reshape(-1, hop)), axis=1))
    starts = [line.start_s for line in lines]
    onset_times = []
    for number, start in enumerate(starts):
        lead_s = 0.5 * (1 - SHARE) * (start - starts[number - 1]) if number else start
        next_start = starts[number + 1] if number + 1 < len(starts) else len(song) / RATE
        first, last = (
            round((start - min(lead_s, 0.5)) * 200),
            round((start + 0.5 * (next_start - start)) * 200),
        )
        local_loudness = loudness[first:last]
        onset_times.append(
            (first + np.flatnonzero(local_loudness > 10 ** (-35 / 20) * local_loudness.max())[0]) / 200
        )
    return np.array(onset_times)


def print_report(
    lines: tuple[TimedWords, ...],
    token_s: np.ndarray,
    onset_s: np.ndarray,
    spoken_s: list[float],
    duration_s: float,
) -> int:
    """Print a row for each line and the deviations; 1 if a token is more than a frame from its time, else 0."""
    if len(token_s) != len(lines):
        raise SystemExit(f"{len(token_s)} lines stand on the frame axis, {len(lines)} are sung")
    ends = [line.start_s for line in lines[1:]] + [duration_s]
    print("    LRC s   token s   onset s   token-LRC ms   onset-token ms   spoken/room s   words")
    for line, token, onset, speech, end_s in zip(lines, token_s, onset_s, spoken_s, ends, strict=True):
        print(
            f"{line.start_s:9.2f} {token:9.3f} {onset:9.3f} {1000 * (token - line.start_s):14.1f} "
            f"{1000 * (onset - token):16.1f} {speech:8.2f}/{end_s - line.start_s:5.2f}   {line.words}"
        )
    delay_ms = 1000 * (onset_s - token_s)
    print(
        f"{len(lines)} lines: onsets behind their first token by {delay_ms.mean():.1f} ms on average, "
        f"{delay_ms.min():.1f} to {delay_ms.max():.1f} ms; a frame is {1000 / LYRICS_FRAMES_PER_SECOND:.1f} ms"
    )
    early = np.array([line.start_s for line in lines]) - token_s
    wrong = int(((early < -1e-6) | (early > 1 / LYRICS_FRAMES_PER_SECOND)).sum())
    print(
        f"{wrong} tokens more than a frame away from the LRC"
        if wrong
        else "all tokens within a frame of the LRC"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
