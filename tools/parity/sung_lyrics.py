"""Sing an LRC with hibari-tts and compare where each line is heard with where its tokens stand on the frame axis.

    python tools/parity/sung_lyrics.py [SONG.lrc] [--duration 60] [--vocab vocab.json] [--wav song.wav]

It needs `pip install hibari-tts` (Apache-2.0, its English voice is in the package) and the lyrics extra. This
tool lays every line at its LRC time, on one note, stretched to most of the time until the next; then it looks for
the onsets in the finished song, by loudness alone. So what is checked is the frame axis, not how a model sings.
A token may stand up to one frame (46 ms) before the time in the LRC, never behind it: exit code 1 if one does.
Soft consonants are heard late. Without an LRC a short song is planned and sung.
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
from diffdpo.recipes.lyrics import read

RATE = 24000
NOTES = (220.0, 246.94, 261.63, 293.66)
SHARE = 0.85
"""Of the time until the next line that a line is sung for; the rest is the pause that onsets are found behind."""
OWN = """[verse]
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
        text = read(args.lrc) if args.lrc else to_lrc(plan_lyrics(OWN, args.duration))
        lines = parse_lrc(text, duration_s=args.duration).lines
        if not lines:
            raise DataError("no line can be sung")
        vocabulary = read_vocabulary(args.vocab) if args.vocab else own_vocabulary(lines)
        stands = token_times(text, args.duration, vocabulary)
        song, natural = sing(lines, args.duration)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.wav:
        soundfile.write(args.wav, song, RATE)
    return report(lines, stands, onsets(song, lines), natural, args.duration)


def own_vocabulary(lines: tuple[TimedWords, ...]) -> dict[str, int]:
    """The phonemes of the song, numbered: places on the frame axis do not depend on the numbers."""
    heard = {phone for line in lines for phone in phonemes(line.words)}
    return {phone: number for number, phone in enumerate([*MARKS, "_", *sorted(heard - {*MARKS, "_"})])}


def token_times(text: str, duration_s: float, vocabulary: dict[str, int]) -> np.ndarray:
    """When the first token of each line stands, in seconds: behind the full stop of the line before or silence."""
    front_end = LyricsFrontEnd(vocabulary)
    lines = front_end.encode(text, "en", duration_s).lines
    axis = place_tokens(lines, int(duration_s * LYRICS_FRAMES_PER_SECOND), LYRICS_FRAMES_PER_SECOND).numpy()
    stop = vocabulary["."] + 1
    before = np.concatenate([[stop], axis[:-1]])
    ended = before == stop
    for frame in range(1, len(axis)):  # silence behind a full stop is still the end of that line
        ended[frame] |= ended[frame - 1] and before[frame] == 0
    return np.flatnonzero(ended & (axis > 0)) / LYRICS_FRAMES_PER_SECOND


def sing(lines: tuple[TimedWords, ...], duration_s: float) -> tuple[np.ndarray, list[float]]:
    """The song, and how long each line lasts when it is merely spoken."""
    try:
        from hibari import Hibari
    except ImportError:
        raise UserError("this check sings with hibari-tts: pip install hibari-tts") from None
    voice = Hibari()
    song = np.zeros(round(duration_s * RATE), np.float32)
    ends = [line.start_s for line in lines[1:]] + [duration_s]
    natural = []
    for number, (line, end_s) in enumerate(zip(lines, ends, strict=True)):
        spoken = on_note(voice, line.words, 1.0, NOTES[number % len(NOTES)])
        natural.append(len(spoken) / RATE)
        room = SHARE * (end_s - line.start_s)
        pace = min(2.0, max(0.5, natural[-1] / room))
        sung = on_note(voice, line.words, pace, NOTES[number % len(NOTES)])[: round(room * RATE)]
        first = round(line.start_s * RATE)
        song[first : first + len(sung)] += sung[: len(song) - first]
    return song, natural


def on_note(voice: Any, words: str, pace: float, note_hz: float) -> np.ndarray:
    """A line on one pitch, from its first sound to its last."""
    from hibari import dsp

    rng = np.random.default_rng(0)
    pieces = []
    for phones in voice.phonemize(words):
        ids = np.asarray([voice.ids(phones)], np.int64)
        out = voice.sess.run(None, {"ids": ids, "speed": np.asarray([pace], np.float32)})
        *spectra, pitch = (part[0] for part in out)
        pieces.append(dsp.synth(*spectra, np.where(pitch > 40, note_hz, 0).astype(np.float32), rng))
    sound = np.concatenate(pieces)
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    return sound[loud[0] : loud[-1] + 1]


def onsets(song: np.ndarray, lines: tuple[TimedWords, ...]) -> np.ndarray:
    """The first 5 ms near each line that are louder than -35 dB below the loudest near it, in seconds."""
    hop = RATE // 200
    loudness = np.sqrt(np.mean(np.square(song[: len(song) // hop * hop].reshape(-1, hop)), axis=1))
    starts = [line.start_s for line in lines]
    found = []
    for number, start in enumerate(starts):
        before = 0.5 * (1 - SHARE) * (start - starts[number - 1]) if number else start
        after = starts[number + 1] if number + 1 < len(starts) else len(song) / RATE
        first, last = round((start - min(before, 0.5)) * 200), round((start + 0.5 * (after - start)) * 200)
        near = loudness[first:last]
        found.append((first + np.flatnonzero(near > 10 ** (-35 / 20) * near.max())[0]) / 200)
    return np.array(found)


def report(
    lines: tuple[TimedWords, ...],
    stands: np.ndarray,
    heard: np.ndarray,
    natural: list[float],
    duration_s: float,
) -> int:
    """A row for each line and the deviations; 1 if a token stands more than a frame from its time."""
    if len(stands) != len(lines):
        raise SystemExit(f"{len(stands)} lines stand on the frame axis, {len(lines)} are sung")
    ends = [line.start_s for line in lines[1:]] + [duration_s]
    print("    LRC s   token s   heard s   token-LRC ms   heard-token ms   spoken/room s   words")
    for line, stand, sound, spoken, end_s in zip(lines, stands, heard, natural, ends, strict=True):
        print(
            f"{line.start_s:9.2f} {stand:9.3f} {sound:9.3f} {1000 * (stand - line.start_s):14.1f} "
            f"{1000 * (sound - stand):16.1f} {spoken:8.2f}/{end_s - line.start_s:5.2f}   {line.words}"
        )
    late = 1000 * (heard - stands)
    print(
        f"{len(lines)} lines: heard behind their first token by {late.mean():.1f} ms on average, "
        f"{late.min():.1f} to {late.max():.1f} ms; a frame is {1000 / LYRICS_FRAMES_PER_SECOND:.1f} ms"
    )
    early = np.array([line.start_s for line in lines]) - stands
    wrong = int(((early < -1e-6) | (early > 1 / LYRICS_FRAMES_PER_SECOND)).sum())
    print(
        f"{wrong} tokens more than a frame away from the LRC"
        if wrong
        else "all tokens within a frame of the LRC"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
