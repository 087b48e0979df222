"""Measures a style encoder on held-out songs: retrieval, gap between texts and sounds, and directions. JSON out.

    python tools/tiny/eval_style.py MANIFEST STYLE

STYLE is the folder of an encoder in a bundle. Retrieval is the share of texts whose nearest test songs fit the
text, for paraphrases without a word of the training captions, and for captions. The gap is in cosines of matching
and mismatching texts and sounds. A direction is the rank correlation of a measure of test windows with the
difference in similarity to two opposite words, such as "fast" and "slow".
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.encoders.descriptors import MEASURES, measure
from diffdpo.encoders.style import load_style, standard_scores, windows, words_of
from diffdpo.progress import bar
from diffdpo.statistics import estimate_mean
from tools.tiny.style.captions import EDGE, Captioner
from tools.tiny.style.training import labels_of

FOLDER = Path(__file__).parent
GENRES = ("rock", "metal", "electronic", "ambient", "orchestral soundtrack", "science fiction soundtrack")
HELD_OUT = {
    "tempo_bpm": ("unhurried and leisurely", "brisk and swift"),
    "centroid_octaves": ("murky and dim", "glittering and luminous"),
    "onsets_per_s": ("bare and uncluttered", "teeming and cluttered"),
    "punch": ("silky and tender", "thumping and slamming"),
    "mode": ("mournful", "jolly and sunny"),
    "width_db": ("collapsed to one channel", "panoramic and enveloping"),
    "dynamics_db": ("invariable volume", "crescendos and surging volume"),
}
NO_QUALITY = {"a", "an", "and", "at", "in", "it", "its", "of", "the", "with", "without", "to", "from", "time"} | {
    "sound", "music", "piece", "guitar", "frequencies",
}  # fmt: skip


class HeldOutSongs:
    """The windows of the test songs with their styles, standard scores and songs."""

    def __init__(self, manifest: Path, style: Any, thirds: dict[str, list[float]]) -> None:
        rows = [row for row in map(json.loads, manifest.read_text().splitlines()) if row["split"] == "test"]
        self.names = [row["id"] for row in rows]
        self.labels = [labels_of(row["text"]) for row in rows]
        styles, values, song = [], [], []
        with bar("listen", len(rows), "song") as progress:
            for number, row in enumerate(rows):
                clip = audio.read(manifest.parent / row["audio"])
                for window in windows(clip):
                    measures = measure(window)
                    values.append([measures[name] for name in MEASURES])
                    styles.append(style.embed(None, window))
                    song.append(number)
                progress.advance(note=row["id"])
        self.styles, self.song = torch.stack(styles), np.array(song)
        self.scores = standard_scores(np.array(values), thirds)
        mean = [self.styles[torch.from_numpy(self.song == i)].mean(0) for i in range(len(rows))]
        self.song_styles = F.normalize(torch.stack(mean), dim=-1)
        self.song_scores = np.stack([self.scores[self.song == i].mean(0) for i in range(len(rows))])

    def true_songs(self, sides: dict[str, int], words: Sequence[str]) -> np.ndarray:
        """Whether a description fits each song: the mean of each measure is beyond EDGE, all words are labels."""
        true = np.array([set(words) <= set(labels) for labels in self.labels])
        for name, side in sides.items():
            true &= side * self.song_scores[:, list(MEASURES).index(name)] > EDGE
        return true


def text_interval(hits: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a share of hits over texts, cut to 0 and 1."""
    interval = estimate_mean(hits.astype(np.float64), [f"{k:06d}" for k in range(len(hits))]).interval()
    return max(0.0, interval.low), min(1.0, interval.high)


def retrieval(
    held_out: HeldOutSongs, texts: list[str], true: np.ndarray, embed: Callable[[str], torch.Tensor]
) -> dict[str, Any]:
    """The share of texts with a fitting song among the nearest 1, 3 and 5, with intervals, and of random songs.

    `true` [text, song] says which songs fit each text.
    """
    similarity = torch.stack([embed(text) for text in texts]) @ held_out.song_styles.T
    # without a known word the style is zero, and all songs tie: ties are broken at random
    ties = torch.rand(similarity.shape, generator=torch.Generator().manual_seed(0)) * 1e-6
    order = (similarity + ties).argsort(1, descending=True).numpy()
    songs = len(held_out.names)
    result: dict[str, Any] = {"texts": len(texts), "true_songs_mean": round(float(true.sum(1).mean()), 2)}
    for k in (1, 3, 5):
        hits = np.asarray(np.take_along_axis(true, order[:, :k], 1).any(1))
        chance = [1 - comb(songs - int(count), k) / comb(songs, k) for count in true.sum(1)]
        result[f"top{k}"] = {
            "hit": round(float(hits.mean()), 3),
            "interval": [round(bound, 3) for bound in text_interval(hits)],
            "chance": round(float(np.mean(chance)), 3),
        }
    return result


def paraphrase_queries(held_out: HeldOutSongs) -> tuple[list[str], np.ndarray]:
    """The paraphrases, and whether each song fits each of them [text, song]."""
    rows = [json.loads(line) for line in (FOLDER / "style" / "paraphrases.jsonl").read_text().splitlines()]
    true = np.stack([held_out.true_songs(row["sides"], row["words"]) for row in rows])
    songs_per_text = true.sum(1)
    if not songs_per_text.all():
        texts_without_song = [
            row["text"] for row, songs in zip(rows, songs_per_text, strict=True) if not songs
        ]
        raise SystemExit(f"paraphrases that are true of no test song: {texts_without_song}")
    return [row["text"] for row in rows], true


def caption_queries(held_out: HeldOutSongs, count: int) -> tuple[list[str], np.ndarray]:
    """Captions of the test songs as in training, and whether each song fits each of them [text, song]."""
    captioner, draw = Captioner(), random.Random(0)
    texts: list[str] = []
    true = []
    while len(texts) < count:
        song = len(texts) % len(held_out.names)
        caption = captioner.caption(held_out.song_scores[song], held_out.labels[song], draw)
        sides = {name: side for name, side in zip(MEASURES, caption.sides, strict=True) if side}
        texts.append(caption.text)
        true.append(held_out.true_songs(sides, caption.words))
    return texts, np.stack(true)


def gap(held_out: HeldOutSongs, embed: Callable[[str], torch.Tensor]) -> dict[str, float]:
    """Mean cosines of test windows with full captions of the same window and of other songs."""
    captioner, draw = Captioner(), random.Random(0)
    texts = torch.stack(
        [
            embed(captioner.full(score, held_out.labels[song], draw).text)
            for score, song in zip(held_out.scores, held_out.song, strict=True)
        ]
    )
    cosine = (texts @ held_out.styles.T).numpy()
    other_song = held_out.song[:, None] != held_out.song[None, :]
    return {
        "matching": round(float(cosine.diagonal().mean()), 3),
        "mismatching": round(float(cosine[other_song].mean()), 3),
        "sound_with_sound_of_other_songs": round(
            float((held_out.styles @ held_out.styles.T).numpy()[other_song].mean()), 3
        ),
        "text_with_text_of_other_songs": round(float((texts @ texts.T).numpy()[other_song].mean()), 3),
        "distance_of_means": round(float((texts.mean(0) - held_out.styles.mean(0)).norm()), 3),
        "windows": len(texts),
    }


def nearer(held_out: HeldOutSongs, low: str, high: str, embed: Callable[[str], torch.Tensor]) -> np.ndarray:
    """The cosine of each test window with the text `high` less that with the text `low`."""
    return (held_out.styles @ (embed(high) - embed(low))).numpy()


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 0 if an array is constant, as for texts without a known word."""
    return float(spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else 0.0


def directions(held_out: HeldOutSongs, embed: Callable[[str], torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Rank correlation of each measure with the difference in cosine to its high and low word, with intervals.

    These are percentile bootstraps over songs, a little too narrow (docs/theory/evaluation.md).

    `in_context` has the mean and the lowest correlation over genres that follow the words.
    """
    results: dict[str, dict[str, Any]] = {"known": {}, "held_out": {}, "in_context": {}}
    rng, songs = (
        np.random.default_rng(0),
        [np.flatnonzero(held_out.song == i) for i in range(len(held_out.names))],
    )
    draws = [np.concatenate([songs[i] for i in rng.integers(0, len(songs), len(songs))]) for _ in range(400)]
    for column, (name, (low, high)) in enumerate(MEASURES.items()):
        score = held_out.scores[:, column]
        for kind, poles in (("known", (f"{low} music", f"{high} music")), ("held_out", HELD_OUT[name])):
            nearness = nearer(held_out, *poles, embed)
            spread = np.quantile([rank_correlation(nearness[d], score[d]) for d in draws], [0.025, 0.975])
            results[kind][name] = {
                "spearman": round(rank_correlation(nearness, score), 3),
                "interval": spread.round(3).tolist(),
            }
        correlations = [
            rank_correlation(nearer(held_out, f"{low} {genre}", f"{high} {genre}", embed), score)
            for genre in GENRES
        ]
        results["in_context"][name] = {
            "spearman": round(float(np.mean(correlations)), 3),
            "lowest": round(min(correlations), 3),
        }
    return results


def check_held_out() -> None:
    """Exit if a paraphrase or a held-out pole uses a word of the training captions outside NO_QUALITY."""
    lists = json.loads((FOLDER / "style" / "captions.json").read_text())
    phrases = [text for pair in lists["measures"].values() for side in pair for text in side]
    phrases += [text for texts in lists["words"].values() for text in texts]
    training_words = {word for text in phrases for word in words_of(text)} - NO_QUALITY
    lines = (FOLDER / "style" / "paraphrases.jsonl").read_text().splitlines()
    for text in [
        *(json.loads(line)["text"] for line in lines),
        *(t for pair in HELD_OUT.values() for t in pair),
    ]:
        if shared_words := training_words & set(words_of(text)):
            raise SystemExit(f"{text!r} uses words of the training captions: {shared_words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("style", type=Path)
    args = parser.parse_args()
    check_held_out()
    style = load_style(args.style)
    held_out = HeldOutSongs(args.manifest, style, style.thirds)

    def embed(text: str) -> torch.Tensor:
        return style.embed(text, None)

    result = {
        "songs": len(held_out.names),
        "paraphrases": retrieval(held_out, *paraphrase_queries(held_out), embed),
        "captions": retrieval(held_out, *caption_queries(held_out, 100), embed),
        "gap": gap(held_out, embed),
        "directions": directions(held_out, embed),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
