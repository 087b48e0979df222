"""The verb `votes`: listeners' votes to a ranking, what raters are like, and pairs and ratings to train on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from diffdpo.checks import check_number, check_range
from diffdpo.config_paths import PATH
from diffdpo.data import tables
from diffdpo.data.datasets.parts import Part, group_of
from diffdpo.data.lineage import data_terms
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.ratings import RATINGS, RatingRow
from diffdpo.data.samples import relative_folder
from diffdpo.data.schema import RowT
from diffdpo.data.vote_arrays import STRENGTH_WEIGHTS, FolderVote, VoteSet, VoteSongs, arrange_votes
from diffdpo.data.votes import MAX_STRENGTH, OPINIONS, VOTES, OpinionRow, read_opinions_table, read_votes
from diffdpo.errors import DataError, ensure
from diffdpo.listen.results import refresh_studies
from diffdpo.preferences.ranking import Ranking, RankingModel, fit_ranking
from diffdpo.progress import log
from diffdpo.recipes.vote_pages import html_page, markdown_page, page_tables
from diffdpo.recipes.vote_reports import agreement_report, group_report, rater_report, song_report
from diffdpo.recipes.vote_tables import (
    LabelKind,
    PairSettings,
    opinion_ratings,
    preference_rows,
    vote_ratings,
)
from diffdpo.registry import closest
from diffdpo.run_dir import open_run
from diffdpo.runs import atomic_write, finish, write_json

HELD_OUT = "held_out"
RANKING, RATERS, AGREEMENT, GROUPS = "ranking.json", "raters.json", "agreement.json", "groups.json"
RANKING_PAGE, RANKING_SITE = "ranking.md", "ranking.html"


@dataclass
class VotesRun:
    """Votes and opinions of listeners to a ranking of songs, and to pairs and ratings to train on."""

    votes: list[str] = field(default=MISSING, metadata=PATH)
    """Folders with votes or opinions: of `listen`, or of imported data sets."""
    out: str = field(default=MISSING, metadata=PATH)
    axis: str = ""
    """What was asked for, such as musicality; empty: the preference overall."""
    sources: list[str] = field(default_factory=list)
    """Studies and data sets to take; empty: all."""
    unit: Literal["song", "system"] = "song"
    """What is ranked. Systems, the generators of the songs, have many votes where every song has few."""
    ranking: RankingModel = field(default_factory=RankingModel)
    """Priors of the ranking."""
    strength_weights: list[float] = field(default_factory=lambda: list(STRENGTH_WEIGHTS))
    """Weights of votes by their strength: not asked for, slightly, clearly, much better."""
    control_margin: float = 3.0
    """Difference of utilities in a control pair, in logits: how easy control pairs are."""
    min_votes: int = 1
    """Raters with fewer votes are left out."""
    min_reliability: float | None = None
    """Raters whose reliability is lower are left out, and the ranking is made again. Without a value all are used:
    one who always means the reverse is as informative as an honest one."""
    pairs: Literal["compared", "prompt"] = "compared"
    """Pairs that are written: of songs that were compared directly, or of any two songs of a prompt."""
    soft_label: LabelKind = "preference"
    """What a pair's probability is: that a listener prefers the winner; that its utility is the higher; or 1."""
    min_probability: float = 0.6
    """Pairs less certain than this are left out."""
    bad_share: float = 0.5
    """A song is bad if at least this share of its votes, and two or more, found both songs bad; it never wins."""
    held_out: float = 0.0
    """Share of prompt groups whose pairs and ratings are written to held_out/ instead."""
    group_keys: list[str] = field(default_factory=list)
    """What listeners said of themselves by which they are also ranked apart; empty: all of it."""
    min_group_raters: int = 3
    """Groups of fewer raters are not shown."""
    level: float = 0.95
    """Of the intervals."""

    def __post_init__(self) -> None:
        check_range(self, "control_margin", above=0)
        check_range(self, "min_votes", low=1)
        if self.min_reliability is not None:
            check_range(self, "min_reliability")
        check_range(self, "min_probability", low=0.5, high=1)
        check_range(self, "bad_share", above=0, high=1)
        check_range(self, "held_out", low=0, below=1)
        check_range(self, "min_group_raters", low=2)
        check_range(self, "level", above=0, below=1)
        for weight in self.strength_weights:
            check_number(weight, "strength_weights", low=0)
        ensure(
            len(self.strength_weights) == MAX_STRENGTH + 1,
            f"strength_weights needs {MAX_STRENGTH + 1} numbers, got {len(self.strength_weights)}",
        )

    def check_parts(self) -> None:
        """Nothing is chosen by name."""


def run(cfg: VotesRun) -> Path:
    """Rank songs by votes and write what can be trained on."""
    votes, opinions = select_votes(cfg, *read_folders_of_votes(cfg.votes))
    songs = VoteSongs()
    with open_run(cfg, free=("votes",)) as out:
        pairs: list[PairRow] = []
        ratings = opinion_ratings(opinions, songs, out)
        summary: dict[str, Any] = {"votes": len(votes), "opinions": len(opinions)}
        if votes:
            vote_set, ranking = rank_votes(cfg, votes, songs)
            report = song_report(vote_set, ranking, songs, level=cfg.level, bad_share=cfg.bad_share)
            write_reports(cfg, out, report, vote_set, ranking, votes)
            summary |= {"songs": len(vote_set.songs), "raters": len(vote_set.raters)}
            if cfg.unit == "song":
                bad = frozenset(key for key, row in zip(vote_set.songs, report, strict=True) if row["bad"])
                settings = PairSettings(
                    closure=cfg.pairs == "prompt",
                    label=cfg.soft_label,
                    min_probability=cfg.min_probability,
                    axis=cfg.axis,
                    bad=bad,
                )
                pairs = preference_rows(vote_set, ranking, songs, out, settings)
                ratings = vote_ratings(vote_set, ranking, songs, out, bad) + ratings
                _report_foreign(vote_set)
        _write_tables(cfg, out, pairs, ratings)
        terms = data_terms([out]).entries()
        finish(out, axis=cfg.axis, unit=cfg.unit, pairs=len(pairs), ratings=len(ratings), **summary, **terms)
        log(f"{len(pairs)} pairs and {len(ratings)} ratings from {len(votes)} votes: {out / RANKING_PAGE}")
    return out


def read_folders_of_votes(
    folders: Sequence[str],
) -> tuple[list[FolderVote], list[tuple[Path, OpinionRow]]]:
    """All votes and opinions of some folders, each with its folder. DataError for a folder without any.

    The tables of listening tests are brought up to date first.
    """
    refresh_studies(folders)
    votes: list[FolderVote] = []
    opinions: list[tuple[Path, OpinionRow]] = []
    for name in folders:
        folder = Path(name)
        rows = read_opinions_table(folder) if (folder / OPINIONS.folder).is_dir() else []
        opinions += [(folder, row) for row in rows]
        if not rows or (folder / VOTES.folder).is_dir():
            votes += [FolderVote(folder, row) for row in read_votes(folder)]
    return votes, opinions


def select_votes(
    cfg: VotesRun, votes: Sequence[FolderVote], opinions: Sequence[tuple[Path, OpinionRow]]
) -> tuple[list[FolderVote], list[tuple[Path, OpinionRow]]]:
    """The votes and opinions of the sources, on the axis, of raters with enough votes. DataError if there are none.

    Control pairs belong to every axis.
    """
    names = sorted({vote.row.source for vote in votes} | {row.source for _, row in opinions})
    for source in cfg.sources:
        if source not in names:
            hint = closest(source, names)
            raise DataError(f"sources: no votes of {source!r}.{hint} There are {', '.join(names)}.")
    votes = [vote for vote in votes if not cfg.sources or vote.row.source in cfg.sources]
    opinions = [entry for entry in opinions if not cfg.sources or entry[1].source in cfg.sources]
    axes = sorted({vote.row.axis for vote in votes} | {row.axis for _, row in opinions})
    votes = [vote for vote in votes if vote.row.axis == cfg.axis or vote.row.gold]
    opinions = [entry for entry in opinions if entry[1].axis == cfg.axis]
    counts = Counter(vote.rater for vote in votes if not vote.row.gold)
    votes = [vote for vote in votes if counts[vote.rater] >= cfg.min_votes]
    if not counts and not opinions:
        spelling = ", ".join(axis or "'' (overall)" for axis in axes)
        if cfg.axis in axes:
            raise DataError(
                f"{', '.join(cfg.votes)}: control pairs only, which are no preferences; collect more votes"
            )
        raise DataError(f"{', '.join(cfg.votes)}: no votes on axis {cfg.axis!r}; there are {spelling}")
    if not votes and not opinions:
        raise DataError(f"no rater has min_votes={cfg.min_votes} votes; lower it")
    return votes, opinions


def rank_votes(cfg: VotesRun, votes: Sequence[FolderVote], songs: VoteSongs) -> tuple[VoteSet, Ranking]:
    """The votes as arrays, and the ranking by them; made again without unreliable raters if there is a limit."""

    def arrange(rows: Sequence[FolderVote]) -> VoteSet:
        vote_set = arrange_votes(
            rows,
            songs,
            by_system=cfg.unit == "system",
            strength_weights=cfg.strength_weights,
            control_margin=cfg.control_margin,
        )
        if not vote_set.rows:
            kind = "two different systems" if cfg.unit == "system" else "two different songs"
            raise DataError(f"{', '.join(cfg.votes)}: no vote is on {kind}")
        return vote_set

    vote_set = arrange(votes)
    ranking = fit_ranking(vote_set.arrays, cfg.ranking)
    if cfg.min_reliability is None:
        return vote_set, ranking
    weak = {r for r, a in zip(vote_set.raters, ranking.reliability, strict=True) if a < cfg.min_reliability}
    if not weak:
        return vote_set, ranking
    if len(weak) == len(vote_set.raters):
        raise DataError(
            f"every rater's reliability is below min_reliability={cfg.min_reliability:g}; lower it"
        )
    log(
        f"left out {len(weak)} of {len(vote_set.raters)} raters below min_reliability={cfg.min_reliability:g}"
    )
    vote_set = arrange([vote for vote in votes if vote.rater not in weak])
    return vote_set, fit_ranking(vote_set.arrays, cfg.ranking)


def write_reports(
    cfg: VotesRun,
    out: Path,
    report: Sequence[Mapping[str, Any]],
    vote_set: VoteSet,
    ranking: Ranking,
    votes: Sequence[FolderVote],
) -> None:
    """The ranking, raters, agreement and groups as JSON, and all together as pages."""
    raters = rater_report(vote_set, ranking, votes, cfg.level)
    agreement = agreement_report(vote_set, votes)
    groups = group_report(
        vote_set, cfg.ranking, cfg.group_keys, min_raters=cfg.min_group_raters, level=cfg.level
    )
    content = {
        "axis": cfg.axis,
        "unit": cfg.unit,
        "level": cfg.level,
        "tie": ranking.tie,
        "notes": notes(ranking, vote_set),
        "songs": report,
    }
    write_json(out / RANKING, content)
    write_json(out / RATERS, raters)
    write_json(out / AGREEMENT, agreement)
    write_json(out / GROUPS, groups)
    tables_of_page = page_tables(content, raters, agreement, groups)
    atomic_write(out / RANKING_PAGE, markdown_page(tables_of_page))
    atomic_write(out / RANKING_SITE, html_page(tables_of_page))


def notes(ranking: Ranking, vote_set: VoteSet) -> list[str]:
    """What the votes leave open, in words."""
    lines = []
    count = int(ranking.component.max(initial=0)) + 1
    if count > 1:
        lines.append(
            f"Votes connect the songs to {count} sets. Utilities are relative to the mean of the set; songs of two "
            "sets cannot be compared."
        )
    hostile = int((ranking.reliability < 0).sum())
    if hostile:
        lines.append(
            f"{hostile} of {len(vote_set.raters)} raters have a negative reliability: their votes count the other "
            "way round. That most raters mean what they say is an assumption which no vote can test."
        )
    return lines


def _report_foreign(vote_set: VoteSet) -> None:
    foreign = [key for key in vote_set.songs if not key.is_sample]
    if foreign:
        log(
            f"{len(foreign)} of {len(vote_set.songs)} songs are in no samples folder, such as {foreign[0].name!r}: "
            "they are ranked, and no pair or rating is written of them"
        )


def _write_tables(cfg: VotesRun, out: Path, pairs: Sequence[PairRow], ratings: Sequence[RatingRow]) -> None:
    """The tables of training, and those of the prompts that are held out."""
    held_out = Part("validation", cfg.held_out)

    def is_in(side: bool, row: PairRow | RatingRow) -> bool:
        return (cfg.held_out > 0 and held_out.has(group_of(row))) is side

    for folder, side in ((out, False), (out / HELD_OUT, True)):
        tables.replace(folder, PAIRS, [_relocate(row, out, folder) for row in pairs if is_in(side, row)])
        tables.replace(folder, RATINGS, [_relocate(row, out, folder) for row in ratings if is_in(side, row)])


def _relocate(row: RowT, out: Path, folder: Path) -> RowT:
    """A row whose samples folder is relative to another folder."""
    samples = relative_folder(out / row.samples, folder)  # type: ignore[attr-defined]
    return replace(row, samples=samples)  # type: ignore[type-var]
