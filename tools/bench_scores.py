"""Scoring: processor and wall seconds a song by number of threads, beside another program too; values compared.

    python tools/bench_scores.py [--songs FILE ...] [--count 16] [--seconds 10] [--threads 1 2]
                                  [--busy] [--by-scorer] [--scorers NAME ...]
    python tools/bench_scores.py --write values.json      # with one version of the code
    python tools/bench_scores.py --compare values.json    # with another: the largest difference on each axis

The songs are excerpts, end to end, of the test song or of files. What is loaded at the first song is not counted.
`--busy` keeps one core busy by another process meanwhile.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

import torch

from diffdpo import audio
from diffdpo.scorers import DEFAULT_SCORERS, SCORERS
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.engine import ClipScores, score_clips
from diffdpo.types import Clip, Prompt

TEST_SONG = Path(__file__).parents[1] / "tests" / "data" / "galactic_temple.ogg"
PROMPT = Prompt(id="bench", text="slow dark electronic, wide")


def excerpts(files: list[Path], count: int, seconds: float) -> list[Clip]:
    """Clips end to end, as many of each file as fit."""
    clips: list[Clip] = []
    for file in files:
        song = audio.read(file)
        length = round(seconds * song.sample_rate)
        for begin in range(0, song.samples.shape[1] - length + 1, length):
            samples = np.ascontiguousarray(song.samples[:, begin : begin + length])
            clips.append(Clip(samples=samples, sample_rate=song.sample_rate))
    return clips[:count]


def measure(clips: list[Clip], scorers: dict[str, Scorer], threads: int) -> list[ClipScores]:
    """Print a line; the scores."""
    torch.set_num_threads(threads)
    score_clips(clips[:2], scorers, prompts=[PROMPT] * 2)
    processor, wall = time.process_time(), time.perf_counter()
    scores = score_clips(clips, scorers, prompts=[PROMPT] * len(clips))
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    name = " ".join(scorers) if len(scorers) == 1 else f"{len(scorers)} scorers"
    print(
        f"{name:12s} {threads} threads  {processor / len(clips):7.3f} processor s, "
        f"{wall / len(clips):7.3f} s a song"
    )
    return scores


def compare(scores: list[dict[str, float]], reference: list[dict[str, float]]) -> None:
    """Print the largest difference on each axis, in standard deviations of the reference over songs."""
    for axis in reference[0]:
        old, new = (np.array([row[axis] for row in rows]) for rows in (reference, scores))
        print(f"{axis:24s} {np.abs(new - old).max() / (old.std() or 1.0):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--songs", nargs="+", type=Path, default=[TEST_SONG])
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--by-scorer", action="store_true")
    parser.add_argument("--scorers", nargs="+", choices=SCORERS, default=[*DEFAULT_SCORERS, "adherence"])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compare", type=Path)
    args = parser.parse_args()
    clips = excerpts(args.songs, args.count, args.seconds)
    scorers: dict[str, Scorer] = {name: SCORERS[name]() for name in args.scorers}
    competitors = [subprocess.Popen([sys.executable, "-c", "while True: pass"])] if args.busy else []
    try:
        if args.by_scorer:
            for name, scorer in scorers.items():
                measure(clips, {name: scorer}, args.threads[0])
        for threads in args.threads:
            scores = measure(clips, scorers, threads)
    finally:
        for competitor in competitors:
            competitor.kill()
    values = [dict(row.values) for row in scores]
    if args.write:
        args.write.write_text(json.dumps(values))
    if args.compare:
        compare(values, json.loads(args.compare.read_text()))


if __name__ == "__main__":
    main()
