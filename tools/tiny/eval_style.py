"""Judge a style encoder on held-out songs: `python tools/tiny/eval_style.py MANIFEST STYLE`, JSON out.

STYLE is a bundle's folder: its encoder is what the model is prompted with. Three questions. Do paraphrases with
words that no caption of the training had find a song they describe, among the test songs? Do texts and sounds that
match lie near each other, and the two clouds in one place? Does nearness to "fast" rather than "slow", and so on,
order test windows as the measure does?
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
from diffdpo.encoders.descriptors import MEASURED, measure
from diffdpo.encoders.style import load, standard_scores, windows, words_of
from diffdpo.progress import bar
from tools.tiny.style.captions import EDGE, Captioner
from tools.tiny.style.training import labels_of

HERE = Path(__file__).parent
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
RESAMPLES = 2000
NO_QUALITY = {"a", "an", "and", "at", "in", "it", "its", "of", "the", "with", "without", "to", "from", "time"} | {
    "sound", "music", "piece", "guitar", "frequencies",
}  # fmt: skip


class Heard:
    """The windows of the test songs: styles, standard scores and songs."""

    def __init__(self, manifest: Path, style: Any, thirds: dict[str, list[float]]) -> None:
        rows = [row for row in map(json.loads, manifest.read_text().splitlines()) if row["split"] == "test"]
        self.names = [row["id"] for row in rows]
        self.labels = [labels_of(row["text"]) for row in rows]
        styles, values, song = [], [], []
        with bar("listen", len(rows), "song") as progress:
            for number, row in enumerate(rows):
                clip = audio.read(manifest.parent / row["audio"])
                for heard in windows(clip):
                    found = measure(heard)
                    values.append([found[name] for name in MEASURED])
                    styles.append(style.embed(None, heard))
                    song.append(number)
                progress.advance(note=row["id"])
        self.styles, self.song = torch.stack(styles), np.array(song)
        self.scores = standard_scores(np.array(values), thirds)
        mean = [self.styles[torch.from_numpy(self.song == i)].mean(0) for i in range(len(rows))]
        self.song_styles = F.normalize(torch.stack(mean), dim=-1)
        self.song_scores = np.stack([self.scores[self.song == i].mean(0) for i in range(len(rows))])

    def described(self, sides: dict[str, int], words: Sequence[str]) -> np.ndarray:
        """Which songs a description is true of: beyond the third, on average, in every measure; all style words."""
        true = np.array([set(words) <= set(labels) for labels in self.labels])
        for name, side in sides.items():
            true &= side * self.song_scores[:, list(MEASURED).index(name)] > EDGE
        return true


def retrieval(
    heard: Heard, texts: list[str], true: np.ndarray, embed: Callable[[str], torch.Tensor]
) -> dict[str, Any]:
    """Share of texts with a song they are true of among the nearest 1, 3 and 5; chance draws songs blindly."""
    near = torch.stack([embed(text) for text in texts]) @ heard.song_styles.T
    # an encoder that knows none of the words gives zeros: ties are broken blindly
    ties = torch.rand(near.shape, generator=torch.Generator().manual_seed(0)) * 1e-6
    order = (near + ties).argsort(1, descending=True).numpy()
    songs = len(heard.names)
    result: dict[str, Any] = {"texts": len(texts), "true_songs_mean": round(float(true.sum(1).mean()), 2)}
    drawn = np.random.default_rng(0).integers(0, len(texts), (RESAMPLES, len(texts)))
    for k in (1, 3, 5):
        hit = np.asarray(np.take_along_axis(true, order[:, :k], 1).any(1))
        chance = [1 - comb(songs - int(count), k) / comb(songs, k) for count in true.sum(1)]
        result[f"top{k}"] = {
            "hit": round(float(hit.mean()), 3),
            "interval": np.quantile(hit[drawn].mean(1), [0.025, 0.975]).round(3).tolist(),
            "chance": round(float(np.mean(chance)), 3),
        }
    return result


def paraphrases(heard: Heard) -> tuple[list[str], np.ndarray]:
    rows = [json.loads(line) for line in (HERE / "style" / "paraphrases.jsonl").read_text().splitlines()]
    true = np.stack([heard.described(row["sides"], row["words"]) for row in rows])
    songs_per_text = true.sum(1)
    if not songs_per_text.all():
        missing = [row["text"] for row, songs in zip(rows, songs_per_text, strict=True) if not songs]
        raise SystemExit(f"paraphrases that are true of no test song: {missing}")
    return [row["text"] for row in rows], true


def captions(heard: Heard, count: int) -> tuple[list[str], np.ndarray]:
    """Captions as in training, of the test songs."""
    captioner, draw = Captioner(), random.Random(0)
    texts: list[str] = []
    true = []
    while len(texts) < count:
        song = len(texts) % len(heard.names)
        caption = captioner.caption(heard.song_scores[song], heard.labels[song], draw)
        sides = {name: side for name, side in zip(MEASURED, caption.sides, strict=True) if side}
        texts.append(caption.text)
        true.append(heard.described(sides, caption.words))
    return texts, np.stack(true)


def gap(heard: Heard, embed: Callable[[str], torch.Tensor]) -> dict[str, float]:
    """Cosines of test windows with the text of everything measured there, and with such texts of other songs."""
    captioner, draw = Captioner(), random.Random(0)
    texts = torch.stack(
        [
            embed(captioner.full(score, heard.labels[song], draw).text)
            for score, song in zip(heard.scores, heard.song, strict=True)
        ]
    )
    cosine = (texts @ heard.styles.T).numpy()
    other = heard.song[:, None] != heard.song[None, :]
    return {
        "matching": round(float(cosine.diagonal().mean()), 3),
        "mismatching": round(float(cosine[other].mean()), 3),
        "sound_with_sound_of_other_songs": round(
            float((heard.styles @ heard.styles.T).numpy()[other].mean()), 3
        ),
        "text_with_text_of_other_songs": round(float((texts @ texts.T).numpy()[other].mean()), 3),
        "distance_of_means": round(float((texts.mean(0) - heard.styles.mean(0)).norm()), 3),
        "windows": len(texts),
    }


def nearer(heard: Heard, low: str, high: str, embed: Callable[[str], torch.Tensor]) -> np.ndarray:
    """How much nearer every test window is to one text than to another."""
    return (heard.styles @ (embed(high) - embed(low))).numpy()


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; 0 when one of the two is constant, as between texts of which no word is known."""
    return float(spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else 0.0


def directions(heard: Heard, embed: Callable[[str], torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Rank correlation of a measure with nearness to its high word, not its low one; intervals over songs.

    `in_context`: the mean over genres that the words stand before, and the lowest.
    """
    found: dict[str, dict[str, Any]] = {"known": {}, "held_out": {}, "in_context": {}}
    rng, songs = np.random.default_rng(0), [np.flatnonzero(heard.song == i) for i in range(len(heard.names))]
    draws = [np.concatenate([songs[i] for i in rng.integers(0, len(songs), len(songs))]) for _ in range(400)]
    for column, (name, (low, high)) in enumerate(MEASURED.items()):
        score = heard.scores[:, column]
        for kind, poles in (("known", (f"{low} music", f"{high} music")), ("held_out", HELD_OUT[name])):
            near = nearer(heard, *poles, embed)
            spread = np.quantile([rank_correlation(near[d], score[d]) for d in draws], [0.025, 0.975])
            found[kind][name] = {
                "spearman": round(rank_correlation(near, score), 3),
                "interval": spread.round(3).tolist(),
            }
        each = [
            rank_correlation(nearer(heard, f"{low} {genre}", f"{high} {genre}", embed), score)
            for genre in GENRES
        ]
        found["in_context"][name] = {
            "spearman": round(float(np.mean(each)), 3),
            "lowest": round(min(each), 3),
        }
    return found


def check_held_out() -> None:
    """No paraphrase and no held-out pole may use a word of the training captions, but for what names no quality."""
    lists = json.loads((HERE / "style" / "captions.json").read_text())
    said = [text for pair in lists["measures"].values() for side in pair for text in side]
    said += [text for texts in lists["words"].values() for text in texts]
    trained = {word for text in said for word in words_of(text)} - NO_QUALITY
    lines = (HERE / "style" / "paraphrases.jsonl").read_text().splitlines()
    for text in [
        *(json.loads(line)["text"] for line in lines),
        *(t for pair in HELD_OUT.values() for t in pair),
    ]:
        if both := trained & set(words_of(text)):
            raise SystemExit(f"{text!r} uses words of the training captions: {both}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("style", type=Path)
    args = parser.parse_args()
    check_held_out()
    style = load(args.style)
    heard = Heard(args.manifest, style, style.thirds)

    def embed(text: str) -> torch.Tensor:
        return style.embed(text, None)

    result = {
        "songs": len(heard.names),
        "paraphrases": retrieval(heard, *paraphrases(heard), embed),
        "captions": retrieval(heard, *captions(heard, 100), embed),
        "gap": gap(heard, embed),
        "directions": directions(heard, embed),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
