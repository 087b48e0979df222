"""The examples that a run trains on, by the data's configuration and the objective's kind of batch."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffdpo.checks import check_range
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.data import tables
from diffdpo.data.datasets.contrasts import Contrasts, contrasts_digest
from diffdpo.data.datasets.generated import Source, generated_songs_digest
from diffdpo.data.datasets.groups import Groups
from diffdpo.data.datasets.pairs import Pairs
from diffdpo.data.datasets.parts import ALL_PROMPTS, Part
from diffdpo.data.datasets.rated import RatedSongs, filter_decisive, select_best
from diffdpo.data.datasets.songs import CropConfig, Songs
from diffdpo.data.datasets.stream import Examples
from diffdpo.data.datasets.winners import winners_digest
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.ratings import RATINGS, read_ratings
from diffdpo.data.sliders import select_slider
from diffdpo.data.songs import SONGS
from diffdpo.errors import ConfigError, ensure
from diffdpo.inputs import digest
from diffdpo.types import BatchKind


@dataclass(frozen=True)
class DataConfig:
    """The training data: songs, mined pairs, or rated songs, as the objective needs."""

    songs: str = field(default="", metadata=PATH)
    """A folder that `prepare` wrote."""
    split: str = "train"
    """Split of the prepared songs that are trained on, also of those that win pairs."""
    crop: CropConfig = field(default_factory=CropConfig)
    pairs: str = field(default="", metadata=PATH)
    """A folder that `mine` wrote."""
    axis_condition: bool = False
    """Condition the policy on the axis that a pair was chosen on; prompts may then name an `axis`."""
    axis_dropout: float = 0.1
    """Share of examples without the axis in their condition."""
    ratings: str = field(default="", metadata=PATH)
    """A folder with ratings: one that `mine` wrote, or `diffdpo import-ratings`."""
    rating_source: str = ""
    """Source of the ratings: `mined`, `people`, or one person (`people/ann`); needed where there are several."""
    rated_margin: float = 0.0
    """Unpaired feedback (KTO): leave out songs rated closer to zero than this."""
    balance: bool = False
    """Unpaired feedback: liked and disliked songs in turn, half of the examples each."""
    group_size: int = 4
    """Songs of a prompt that make up one group (NFT, AWM, DGPO, RWR)."""
    top_share: float = 0.1
    """Flow matching on rated songs: train on this best share of the songs."""
    top_per_prompt: int = 0
    """Flow matching on rated songs: at most so many songs of one prompt; 0 for any number."""
    sliders: str = field(default="", metadata=INPUT_FILE)
    """Sliders: a file of contrasts, one a line: name, plus, minus, neutral, preserve."""
    slider: str = ""
    """Sliders: the one that is trained; needed where the file has several."""
    samples: str = field(default="", metadata=PATH)
    """Sliders: songs of the network itself, a folder that `sample` wrote. Empty: songs of the neutral prompts are
    sampled first."""
    scales: list[float] = field(default_factory=lambda: [-1.0, 1.0])
    """Sliders: the strengths that the adapter is trained at, one drawn for each example. Without a negative one the
    negative half of the slider is left to chance."""

    def __post_init__(self) -> None:
        check_range(self, "axis_dropout", low=0, below=1, prefix="data.")
        check_range(self, "rated_margin", "top_per_prompt", low=0, prefix="data.")
        check_range(self, "group_size", low=2, prefix="data.")
        check_range(self, "top_share", above=0, high=1, prefix="data.")
        ensure(
            bool(self.scales) and all(math.isfinite(scale) and scale != 0 for scale in self.scales),
            f"data.scales must be strengths other than 0, such as [-1, 1], got {self.scales}",
        )


def check_data_config(cfg: DataConfig, kind: BatchKind, objective: str) -> None:
    """ConfigError unless the data for an objective's kind of batch is configured."""
    if kind == "song" and bool(cfg.songs) == bool(cfg.ratings):
        conflict = "both data.songs and data.ratings are set; keep one"
        remedy = "set data.songs to a prepared folder, or data.ratings to train on the best of rated songs"
        raise ConfigError(f"objective {objective!r} trains on songs: {conflict if cfg.songs else remedy}")
    if kind == "pair" and not cfg.pairs:
        raise ConfigError(f"objective {objective!r} trains on pairs: set data.pairs to a mined folder")
    if kind == "contrast" and not cfg.sliders:
        raise ConfigError(
            f"objective {objective!r} trains on contrasts of prompts: set data.sliders to a file of them"
        )
    if kind in ("rated", "group") and not cfg.ratings:
        raise ConfigError(
            f"objective {objective!r} trains on rated songs: set data.ratings to a mined folder, or to one that "
            "`diffdpo import-ratings` wrote"
        )


def data_digest(cfg: DataConfig, kind: BatchKind) -> str:
    """Identity of the training data for a kind of batch, from the tables: which songs, made from what, and what is
    said about them."""
    if kind == "song" and cfg.songs:
        songs = sorted(tables.read_rows(Path(cfg.songs), SONGS), key=lambda row: row.id)
        return digest(
            [(row.id, row.frames, row.sha256, row.inputs, row.split) for row in songs if not row.error]
        )
    if kind == "contrast":
        return contrasts_digest(select_slider(Path(cfg.sliders), cfg.slider), cfg.samples)
    if kind == "pair":
        folder = Path(cfg.pairs)
        pairs = tables.read_rows(folder, PAIRS)
        facts: list[Any] = [
            (row.samples, row.winner, row.loser, row.soft_label, row.axis, row.spans, *_winner_facts(row))
            for row in pairs
        ]
        names = [(row.samples, song) for row in pairs for song in row.generated]
        winners = winners_digest(folder / PAIRS.folder, pairs)
    else:
        folder = Path(cfg.ratings)
        ratings = tables.read_rows(folder, RATINGS)
        facts = [(row.samples, row.sample_id, row.rating, row.source, row.weight) for row in ratings]
        names = [(row.samples, row.sample_id) for row in ratings]
        winners = []
    return digest([sorted(facts), generated_songs_digest(folder, names), *winners])


def _winner_facts(row: PairRow) -> tuple[Any, ...]:
    """What a pair says of a winner from a prepared folder; nothing for pairs of samples, as in older versions."""
    return (row.songs, row.winner_start) if row.songs else ()


def build_examples(
    cfg: DataConfig, kind: BatchKind, objective: str, source: Source, part: Part = ALL_PROMPTS
) -> Examples:
    """The examples for an objective's kind of batch; ConfigError if their data is not configured.

    `part`: those of some prompts alone. Prepared songs have splits of their own and no parts.
    """
    check_data_config(cfg, kind, objective)
    builders = {
        "song": _songs,
        "pair": _pairs,
        "rated": _rated_songs,
        "group": _groups,
        "contrast": _contrasts,
    }
    return builders[kind](cfg, source, part)


def _songs(cfg: DataConfig, source: Source, part: Part) -> Examples:
    if cfg.ratings:
        return _best_songs(cfg, source, part)
    return Songs(
        Path(cfg.songs),
        split=cfg.split,
        crop=cfg.crop,
        seed=source.seed,
        channels=source.channels,
    )


def _pairs(cfg: DataConfig, source: Source, part: Part) -> Examples:
    return Pairs(
        Path(cfg.pairs) / PAIRS.folder,
        source,
        part=part,
        axis_condition=cfg.axis_condition,
        axis_dropout=cfg.axis_dropout,
        split=cfg.split,
    )


def _rated_songs(cfg: DataConfig, source: Source, part: Part) -> Examples:
    folder = Path(cfg.ratings)
    rows = filter_decisive(part.select(read_ratings(folder, cfg.rating_source), folder), cfg.rated_margin)
    n_likes = sum(row.rating > 0 for row in rows)
    source.report(f"{n_likes} liked and {len(rows) - n_likes} disliked songs")
    return RatedSongs(folder, rows, source, balance=cfg.balance)


def _best_songs(cfg: DataConfig, source: Source, part: Part) -> Examples:
    folder = Path(cfg.ratings)
    rows = part.select(read_ratings(folder, cfg.rating_source), folder)
    selection = select_best(rows, cfg.top_share, cfg.top_per_prompt)
    source.report(f"the best {len(selection)} of {len(rows)} ratings, down to {selection[-1].rating:.3g}")
    return RatedSongs(folder, selection, source, balance=False)


def _groups(cfg: DataConfig, source: Source, part: Part) -> Examples:
    folder = Path(cfg.ratings)
    rows = part.select(read_ratings(folder, cfg.rating_source), folder)
    return Groups(folder, rows, source, size=cfg.group_size)


def _contrasts(cfg: DataConfig, source: Source, part: Part) -> Examples:
    slider = select_slider(Path(cfg.sliders), cfg.slider)
    return Contrasts(Path(cfg.samples), slider, source, scales=cfg.scales, part=part)
