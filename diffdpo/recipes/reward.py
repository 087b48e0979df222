"""`diffdpo reward train`: a reward model from votes, on frozen features; the result is a scorer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import MISSING

from diffdpo import __version__
from diffdpo.checks import check_range, check_seed
from diffdpo.config import as_choice
from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.data.licenses import UNKNOWN_LICENSE
from diffdpo.data.vote_songs import vote_group
from diffdpo.data.votes import VOTES
from diffdpo.errors import ConfigError, DataError
from diffdpo.extractors import DEFAULT_EXTRACTORS, EXTRACTORS
from diffdpo.extractors.base import Crops, Extractor, TextExtractor, extractor_fingerprint
from diffdpo.inputs import content_digest, digest
from diffdpo.listen.results import refresh_studies
from diffdpo.parts import build_extractors
from diffdpo.preferences.calibration import fit_offsets
from diffdpo.preferences.reward_fit import FittedReward, RewardFit, RewardNetwork, fit_reward
from diffdpo.preferences.vote_design import VoteDesign
from diffdpo.progress import log
from diffdpo.recipes.reward_features import SongParts, song_parts
from diffdpo.recipes.reward_report import CARD_FILE, RewardReport, report_reward, write_reward_files
from diffdpo.recipes.reward_votes import (
    SongVote,
    all_songs,
    build_design,
    read_repeats,
    read_song_votes,
    with_features,
)
from diffdpo.registry import Choice
from diffdpo.run_dir import open_run
from diffdpo.runs import Metrics, finish, is_finished
from diffdpo.scorers.reward_file import REWARD_FILE, ExtractorCard, RewardCard

FEWEST_GROUPS = 3


@dataclass
class RewardRun:
    """A reward model from votes."""

    out: str = field(default=MISSING, metadata=PATH)
    """Folder of the model: reward.safetensors, report.json, README.md."""
    votes: list[str] = field(default_factory=list, metadata=PATH_LIST)
    """Folders with tables of votes."""
    features: list[Any] = field(default_factory=lambda: list(DEFAULT_EXTRACTORS))
    """Extractors, as names or {name: …, args: {…}}."""
    crops: Crops = field(default_factory=Crops)
    text: str = ""
    """The extractor, one of `features`, whose text side joins the prompt; empty: the sound alone counts."""
    axis: str = ""
    """The question whose answers are learned, such as `musicality`; empty: the preference overall."""
    listeners: dict[str, str] = field(default_factory=dict)
    """Whose votes count, by what listeners said of themselves: {background: musician}; by default everybody's."""
    both_bad: Literal["tie", "skip"] = "tie"
    """Whether `both bad` is a tie or no preference at all."""
    soft_labels: bool = False
    """Whether a slight preference is a softer target than a clear one."""
    fit: RewardFit = field(default_factory=RewardFit)
    network: RewardNetwork = field(default_factory=RewardNetwork)
    held_out: float = 0.2
    """Share of prompt groups that are held out of the fit, for the report."""
    anchors: list[str] = field(default_factory=list, metadata=PATH_LIST)
    """Folders with votes on songs of newer systems: they only say how much each system is overrated."""
    anchor_votes: int = 100
    """Most anchor votes that are used."""
    anchor_l2: float = 1.0
    """Penalty on the offsets of systems."""
    pinned_system: str = ""
    """The system whose offset is 0; by default the first by name."""
    cache: str = field(default="", metadata=PATH)
    """Folder of the table of features, which runs may share; by default OUT/features."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self, "seed")
        check_range(self, "held_out", above=0, below=1)
        check_range(self, "anchor_votes", low=1)
        check_range(self, "anchor_l2", above=0)

    def check_parts(self) -> None:
        """ConfigError for an extractor or an argument that does not exist, before anything is loaded."""
        parts = build_features(self.features)
        if not self.votes:
            raise ConfigError("votes: name at least one folder of `diffdpo listen` or `diffdpo store add`")
        if self.text and self.text not in parts:
            raise ConfigError(f"text: {self.text!r} is none of the features ({', '.join(parts)})")
        if self.text and not isinstance(parts[self.text], TextExtractor):
            raise ConfigError(f"text: {self.text!r} embeds no texts; style, mulan and clap do")


def build_features(entries: Sequence[Any]) -> dict[str, Extractor]:
    """The extractors of a list of names and {name: …, args: {…}}, by name, their arguments checked."""
    parts = build_extractors(entries, "features")
    if not parts:
        raise ConfigError(f"features: name at least one of {', '.join(EXTRACTORS)}")
    return parts


def feature_choices(entries: Sequence[Any]) -> list[Choice]:
    """The entries as names with arguments."""
    return [as_choice(entry, "features") for entry in entries]


def run(cfg: RewardRun) -> Path:
    """Fit and write the model; a finished folder is left as it is."""
    refresh_studies((*cfg.votes, *cfg.anchors))
    extractors = build_features(cfg.features)
    prints = {name: extractor_fingerprint(part) for name, part in extractors.items()}
    inputs = {"votes": _digest(cfg.votes), "anchors": _digest(cfg.anchors), "features": digest(prints)}
    with open_run(cfg, free=("cache",), inputs=inputs) as out:
        if is_finished(out):
            log(f"{out}: finished; delete the folder to fit again")
            return out
        votes = read_song_votes(cfg.votes, cfg.axis, cfg.listeners, cfg.both_bad)
        anchors = (
            read_song_votes(cfg.anchors, cfg.axis, cfg.listeners, cfg.both_bad)[: cfg.anchor_votes]
            if cfg.anchors
            else []
        )
        cache = Path(cfg.cache) if cfg.cache else out / "features"
        parts = song_parts(all_songs([*votes, *anchors]), extractors, cfg.crops, cache)
        votes = with_features(votes, parts, bool(cfg.text))
        anchors = with_features(anchors, parts, bool(cfg.text)) if anchors else []
        _fit_and_write(cfg, out, extractors, parts, votes, anchors)
    return out


def _digest(folders: Sequence[str]) -> str:
    """Identity of the votes in some folders; "" for none."""
    paths = [Path(name) / VOTES.folder for name in folders]
    if absent := [path for path in paths if not path.is_dir()]:
        raise DataError(f"{absent[0].parent}: holds no votes; run `diffdpo listen`, or import some")
    return digest([content_digest(path) for path in paths]) if paths else ""


def _fit_and_write(
    cfg: RewardRun,
    out: Path,
    extractors: Mapping[str, Extractor],
    parts: SongParts,
    votes: Sequence[SongVote],
    anchors: Sequence[SongVote],
) -> None:
    side = extractors[cfg.text] if cfg.text else None
    text = (cfg.text, side) if isinstance(side, TextExtractor) else None
    design = build_design(votes, parts, cfg.crops, text=text, soft=cfg.soft_labels)
    held_out = held_out_mask(design.groups, cfg.held_out, cfg.seed)
    result = fit_votes(design.take(~held_out), cfg)
    metrics = Metrics(out, keep_until=-1)
    for step, (l2, loss) in enumerate(result.losses.items()):
        metrics.write({"step": step, "l2": float(l2), "held_out_log_loss": loss})
    offsets = anchor_offsets(cfg, result, anchors, parts, text)
    report = report_reward(result, design, held_out, votes, read_repeats(cfg.votes, cfg.axis))
    learned_groups = set(design.groups[~held_out].tolist())
    learned_votes = [vote for vote in votes if vote_group(vote.row) in learned_groups]
    card = make_card(cfg, extractors, learned_votes, report, offsets)
    write_reward_files(out, result, card, report)
    share = report.accuracy
    log(
        f"{len(learned_votes)} votes learned; {share.value:.2f} of {share.count} votes on other prompts predicted "
        f"({share.low:.2f} to {share.high:.2f}): {out / CARD_FILE}"
    )
    finish(
        out,
        reward=REWARD_FILE,
        votes=len(votes),
        learned_votes=len(learned_votes),
        anchors=len(anchors),
        songs=len(all_songs(votes)),
        accuracy=report.accuracy.value,
        licenses=list(card.licenses),
        consents=list(card.consents),
        features={part.name: part.fingerprint for part in card.extractors},
        fit=asdict(cfg.fit),
    )


def fit_votes(design: VoteDesign, cfg: RewardRun) -> FittedReward:
    """The head of a design, linear or with a hidden layer."""
    if not cfg.network.hidden:
        return fit_reward(design, cfg.fit, seed=cfg.seed)
    from diffdpo.training.reward_network import NetworkFit

    return fit_reward(design, cfg.fit, seed=cfg.seed, fit_members=NetworkFit(cfg.network, cfg.seed))


def held_out_mask(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which pairs belong to a held-out prompt group, by a hash of the group: it stays there as votes are added.

    At least one group is held out and two are not. DataError for fewer than three.
    """
    from diffdpo.randomness import seed_for

    names = sorted(set(groups.tolist()))
    if len(names) < FEWEST_GROUPS:
        raise DataError(
            f"votes on {len(names)} prompt groups: {FEWEST_GROUPS} are needed to tell whether anything was learned"
        )
    places = {name: seed_for(seed, name, "reward-split") / 2**63 for name in names}
    order = sorted(names, key=lambda name: places[name])
    count = min(max(1, sum(place < share for place in places.values())), len(names) - 2)
    return np.isin(groups, order[:count])


def anchor_offsets(
    cfg: RewardRun,
    result: FittedReward,
    anchors: Sequence[SongVote],
    parts: SongParts,
    text: tuple[str, TextExtractor] | None,
) -> dict[str, float]:
    """How much each system of the anchor votes is overrated, in utilities; {} without anchors."""
    if not anchors:
        return {}
    if nameless := [vote.row.vote_id for vote in anchors if not (vote.row.system_a and vote.row.system_b)]:
        raise DataError(
            f"anchors: vote {nameless[0]!r} names no system_a or system_b; offsets are of systems"
        )
    crops = replace(cfg.crops, pool="mean")
    design = build_design(anchors, parts, crops, text=text)
    utility = result.head.utility(design.rows)
    temperature = result.head.temperature
    offsets = fit_offsets(
        (utility[design.first] - utility[design.second]) / temperature,
        [vote.row.system_a for vote in anchors],
        [vote.row.system_b for vote in anchors],
        design.targets,
        l2=cfg.anchor_l2,
        pinned_system=cfg.pinned_system,
    )
    return {name: offset * temperature for name, offset in offsets.items()}


def make_card(
    cfg: RewardRun,
    extractors: Mapping[str, Extractor],
    votes: Sequence[SongVote],
    report: RewardReport,
    offsets: Mapping[str, float],
) -> RewardCard:
    """What the model was made from."""
    by_source: dict[str, list[str]] = {}
    for vote in votes:
        by_source.setdefault(vote.row.source, []).append(short_hash(vote.row.vote_id))
    choices = feature_choices(cfg.features)
    songs = {song.sha256[:16] for song in all_songs(votes) if song.sha256}
    return RewardCard(
        extractors=tuple(
            ExtractorCard(
                name=choice.name,
                args=dict(choice.args),
                fingerprint=extractor_fingerprint(extractors[choice.name]),
                licenses=extractors[choice.name].licenses,
            )
            for choice in choices
        ),
        crops=cfg.crops,
        text=cfg.text,
        axis=cfg.axis,
        votes={source: tuple(sorted(ids)) for source, ids in sorted(by_source.items())},
        songs=tuple(sorted(songs)),
        vote_licenses=tuple(sorted({vote.row.license or UNKNOWN_LICENSE for vote in votes})),
        consents=tuple(sorted({vote.row.consent for vote in votes if vote.row.consent})),
        offsets=offsets,
        accuracy=report.accuracy.value,
        seed=cfg.seed,
        version=__version__,
    )


def short_hash(text: str) -> str:
    """The beginning of the hash of an id, as cards hold it."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]
