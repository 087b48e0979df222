"""The baseline of tools/bench_mine.py, `best_versus_worst` on rows of dicts; the package does not use this file."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffdpo.data.prompts import read_prompts
from diffdpo.data.samples import PROMPTS, SAMPLES
from diffdpo.data.scores import NO_PROMPT, SCORES, newest_versions, prompt_key
from diffdpo.scorers.gates import LIMITS

Row = dict[str, Any]


def read_rows(path: Path, key: Sequence[str]) -> list[Row]:
    """All rows of a table as dicts; of rows with equal keys the last."""
    rows: dict[tuple[Any, ...], Row] = {}
    for part in sorted(path.glob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            rows[tuple(row[name] for name in key)] = row
    return list(rows.values())


def read_candidates(samples: Path, scores: Path) -> list[Row]:
    """The songs that pass the gates, each with a dict of its scores."""
    versions = newest_versions(scores)
    by_sound: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in read_rows(scores / SCORES.folder, SCORES.key):
        if versions[row["scorer"]] == row["fingerprint"]:
            by_sound[row["sha256"], row["prompt"]][row["axis"]] = row["value"]
    keys = {prompt.id: prompt_key(prompt) for prompt in read_prompts(samples / PROMPTS)}
    songs = []
    for row in read_rows(samples / SAMPLES.folder, SAMPLES.key):
        values = by_sound.get((row["sha256"], NO_PROMPT), {}) | by_sound.get(
            (row["sha256"], keys[row["prompt_id"]]), {}
        )
        if values and all(low <= values[gate] <= high for gate, (low, high) in LIMITS.items()):
            songs.append({**row, "scores": values})
    return songs


def z_scores(group: Sequence[Row], axes: Sequence[str]) -> dict[str, dict[str, float]]:
    """By song and axis, the score in standard deviations within the prompt."""
    z: dict[str, dict[str, float]] = {song["sample_id"]: {} for song in group}
    for axis in axes:
        values = [song["scores"][axis] for song in group]
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        for song, value in zip(group, values, strict=True):
            z[song["sample_id"]][axis] = (value - mean) / std
    return z


def best_pair(
    group: Sequence[Row], axes: Sequence[str], min_margin: float, min_axis_margin: float
) -> list[Row]:
    """The pair of a prompt with the largest mean margin, as a list of at most one row."""
    z, pairs = z_scores(group, axes), []
    for winner, loser in permutations([song["sample_id"] for song in group], 2):
        margins = {axis: z[winner][axis] - z[loser][axis] for axis in axes}
        mean = sum(margins.values()) / len(margins)
        if mean >= min_margin and min(margins.values()) >= min_axis_margin:
            pairs.append({"winner": winner, "loser": loser, "margins": margins, "mean": mean})
    return sorted(pairs, key=lambda pair: (-pair["mean"], pair["winner"], pair["loser"]))[:1]


def advantages(groups: Iterable[Sequence[Row]], axes: Sequence[str]) -> dict[str, float]:
    """The rating of each song, by id."""
    sums = {
        name: math.fsum(values.values()) for group in groups for name, values in z_scores(group, axes).items()
    }
    spread = math.sqrt(math.fsum(value**2 for value in sums.values()) / len(sums))
    return {name: value / spread for name, value in sums.items()}


def mine(samples: Path, scores: Path, out: Path, axes: Sequence[str], args: Mapping[str, float]) -> int:
    """Read, mine and write; returns the number of pairs. Every song needs a score on every axis, without ties."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for song in sorted(read_candidates(samples, scores), key=lambda song: song["sample_id"]):
        groups[song["prompt_id"]].append(song)
    pairs = [
        {**pair, "prompt_id": prompt, "margins": json.dumps(pair["margins"])}
        for prompt, group in sorted(groups.items())
        for pair in best_pair(group, axes, args["min_margin"], args["min_axis_margin"])
    ]
    ratings = [
        {"sample_id": name, "rating": value} for name, value in advantages(groups.values(), axes).items()
    ]
    out.mkdir(parents=True)
    for name, rows in (("pairs", pairs), ("ratings", ratings)):
        pq.write_table(pa.Table.from_pylist(rows), out / f"{name}.parquet")
    return len(pairs)
