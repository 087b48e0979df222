"""`diffdpo reward personal`: the taste of one listener, from few votes and the tastes of many; a reward model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from omegaconf import MISSING

from diffdpo.checks import check_range, check_seed
from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.data.licenses import inherit_license
from diffdpo.data.samples import SampleRow, Samples, open_samples
from diffdpo.data.vote_songs import VoteSong
from diffdpo.data.votes import VOTES
from diffdpo.errors import ConfigError, DataError
from diffdpo.extractors.base import Extractor, join_features
from diffdpo.inputs import content_digest, digest
from diffdpo.listen.results import refresh_studies
from diffdpo.preferences.bradley_terry import group_folds
from diffdpo.preferences.pair_choice import PairChoice
from diffdpo.preferences.reward_fit import VoteDesign, principal_basis
from diffdpo.preferences.reward_head import RewardHead
from diffdpo.preferences.tastes import Listener, TasteFit, Tastes, fit_tastes
from diffdpo.progress import log
from diffdpo.recipes.reward_features import song_parts
from diffdpo.recipes.reward_votes import all_songs, build_design, read_song_votes, with_features
from diffdpo.run_dir import open_run
from diffdpo.runs import Metrics, atomic_write, finish, is_finished, write_json
from diffdpo.scorers.reward_file import REWARD_FILE, RewardCard, read_reward_model, reward_path, save_reward

NEXT_PAIRS, REPORT_FILE, PERSONAL_CARD = "next_pairs.jsonl", "report.json", "README.md"
PERSONAL_FOLDS = 5


@dataclass
class PersonalRun:
    """A reward model of one listener: bases of everybody's votes, weighed by the listener's own."""

    out: str = field(default=MISSING, metadata=PATH)
    """Folder of the model; the scorer `reward` takes it as its path."""
    reward: str = field(default=MISSING, metadata=PATH)
    """The folder of `diffdpo reward train` whose features and scaling are used."""
    votes: list[str] = field(default_factory=list, metadata=PATH_LIST)
    """Folders with votes of many listeners, this one's among them."""
    rater: str = MISSING
    """Pseudonym of the listener."""
    components: int = 32
    """Principal components of the features, in which tastes differ."""
    scale_power: float = 0.5
    """Power of its deviation that a component is divided by: 0 leaves all as they are, 1 makes all alike."""
    fit: TasteFit = field(default_factory=TasteFit)
    members: int = 16
    """Members of the model's ensemble, drawn from the posterior of the listener's weights."""
    candidates: list[str] = field(default_factory=list, metadata=PATH_LIST)
    """Samples folders of which pairs are proposed to the listener next."""
    next_pairs: int = 10
    """How many pairs are proposed: those whose answer would say most about the listener."""
    choice: PairChoice = field(default_factory=PairChoice)
    cache: str = field(default="", metadata=PATH)
    """Folder of the table of features, which runs may share; by default OUT/features."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self, "seed")
        check_range(self, "components", "next_pairs", low=1)
        check_range(self, "members", low=2)
        check_range(self, "scale_power", low=0, high=1)

    def check_parts(self) -> None:
        """ConfigError for a configuration that names no votes, before anything is loaded."""
        if not self.votes:
            raise ConfigError("votes: name at least one folder of `diffdpo listen` or `diffdpo store add`")


class ComponentVotePairs(NamedTuple):
    """Votes as differences of principal components."""

    rows: Float[np.ndarray, "vote component"]
    targets: Float[np.ndarray, " vote"]
    raters: np.ndarray
    groups: np.ndarray


def run(cfg: PersonalRun) -> Path:
    """Fit and write the model of the listener, and the pairs to ask about next; a finished folder stays."""
    model = read_reward_model(reward_path(cfg.reward))
    if model.card.text:
        raise ConfigError(f"{cfg.reward}: reads prompts; personal models are of the sound alone")
    refresh_studies(cfg.votes)
    if absent := [name for name in cfg.votes if not (Path(name) / VOTES.folder).is_dir()]:
        raise DataError(f"{absent[0]}: holds no votes; run `diffdpo listen`, or import some")
    digests = [content_digest(Path(name) / VOTES.folder) for name in cfg.votes]
    inputs = {"votes": digest(digests), "reward model": content_digest(reward_path(cfg.reward))}
    with open_run(cfg, free=("cache",), inputs=inputs) as out:
        if is_finished(out):
            log(f"{out}: finished; delete the folder to fit again")
            return out
        votes = read_song_votes(cfg.votes, model.card.axis, {}, "tie")
        cache = Path(cfg.cache) if cfg.cache else out / "features"
        parts = song_parts(all_songs(votes), model.extractors, model.card.crops, cache)
        design = build_design(with_features(votes, parts, text=False), parts, model.card.crops)
        basis, data = component_differences(cfg, model.head, design)
        mask = data.raters == cfg.rater
        if mask.all():
            raise DataError(f"votes: all are of {cfg.rater!r}; bases need other listeners")
        if not mask.any():
            log(
                f"no vote of {cfg.rater!r}: the model is that of all others (raters.json of `votes` names raters)"
            )
        listeners = np.unique(data.raters[~mask], return_inverse=True)[1]
        tastes = fit_tastes(data.rows[~mask], listeners, data.targets[~mask], cfg.fit)
        listener = tastes.listener(data.rows[mask], data.targets[mask])
        head = personal_head(listener, basis, model.head, design.rows, cfg.members, cfg.seed)
        report = {
            "votes": int(mask.sum()),
            "other_listeners": int(listeners.max()) + 1,
            "weights": listener.weights.tolist(),
            "deviations": np.sqrt(np.diag(listener.covariance)).tolist(),
            **held_out_accuracy(tastes, ComponentVotePairs(*(column[mask] for column in data)), cfg.seed),
        }
        card = replace(model.card, votes={}, accuracy=report["personal_accuracy"] or 0.0, seed=cfg.seed)
        save_reward(out / REWARD_FILE, head, card)
        write_json(out / REPORT_FILE, report)
        atomic_write(out / PERSONAL_CARD, _card_text(cfg, card, report))
        Metrics(out, keep_until=-1).write({"step": 0, "votes": report["votes"]})
        _propose(cfg, out, head, basis, listener, model.extractors, card, cache)
        finish(
            out,
            reward=REWARD_FILE,
            rater=cfg.rater,
            licenses=list(card.licenses),
            consents=list(card.consents),
            fit=asdict(cfg.fit),
        )
    return out


def component_differences(
    cfg: PersonalRun, head: RewardHead, design: VoteDesign
) -> tuple[Float[np.ndarray, "feature component"], ComponentVotePairs]:
    """Principal components of the differences between compared songs, and each pair of votes in them."""
    x = head.standardise(design.rows)
    rows = x[design.first] - x[design.second]
    basis = principal_basis(rows, cfg.components, cfg.scale_power)
    return basis, ComponentVotePairs(rows @ basis, design.targets, design.raters, design.groups)


def personal_head(
    listener: Listener,
    basis: Float[np.ndarray, "feature component"],
    pooled: RewardHead,
    rows: Float[np.ndarray, "row feature"],
    members: int,
    seed: int,
) -> RewardHead:
    """A head whose mean is the listener's mode, and whose members are draws from the posterior around it.

    In units of the standard deviation over `rows`.
    """
    sizes, axes = np.linalg.eigh(listener.covariance)
    draws = np.random.default_rng(seed).standard_normal((members, len(sizes)))
    draws = (draws - draws.mean(0)) * np.sqrt(np.maximum(sizes, 0.0) * members / (members - 1))
    weights = (listener.weights + draws @ axes.T) @ listener.tastes.bases @ basis.T
    empty = np.zeros((members, 0))
    head = RewardHead(
        center=pooled.center,
        scale=pooled.scale,
        linear=weights,
        inner=np.zeros((members, 0, weights.shape[1])),
        bias=empty,
        outer=empty,
        limit=pooled.limit,
    )
    return head.in_units_of(rows)


def held_out_accuracy(tastes: Tastes, votes: ComponentVotePairs, seed: int) -> dict[str, float | None]:
    """Share of the listener's decided votes that are predicted by weights from votes on other prompts, and by the
    pooled model. None without decided votes on two prompts."""
    clear = votes.targets != 0.5
    if len(set(votes.groups[clear].tolist())) < 2:
        return {"personal_accuracy": None, "pooled_accuracy": None}
    fold, margins = group_folds(votes.groups, PERSONAL_FOLDS, seed), np.zeros(len(votes.targets))
    for number in np.unique(fold):
        inside = fold == number
        margins[inside] = tastes.listener(votes.rows[~inside], votes.targets[~inside]).margin(
            votes.rows[inside]
        )
    signs = np.sign(votes.targets - 0.5)
    hits = {"personal_accuracy": margins * signs, "pooled_accuracy": (votes.rows @ tastes.pooled) * signs}
    return {name: float((values[clear] > 0).mean()) for name, values in hits.items()}


def _propose(
    cfg: PersonalRun,
    out: Path,
    head: RewardHead,
    basis: Float[np.ndarray, "feature component"],
    listener: Listener,
    extractors: Mapping[str, Extractor],
    card: RewardCard,
    cache: Path,
) -> None:
    """Write the pairs of candidates to ask about next."""
    songs = [
        (samples, row, VoteSong(row.sha256, samples.audio(row.sample_id)))
        for samples in map(open_samples, cfg.candidates)
        for row in samples.rows()
    ]
    if not songs:
        return
    parts = song_parts([song for _, _, song in songs], extractors, card.crops, cache)
    songs = [entry for entry in songs if entry[2] in parts and all(map(len, parts[entry[2]].values()))]
    crops = replace(card.crops, pool="mean")
    rows = np.concatenate([join_features(list(parts[song].values()), crops) for _, _, song in songs])
    components = head.standardise(rows) @ basis
    pairs = [
        (a, b)
        for a, b in combinations(range(len(songs)), 2)
        if songs[a][1].prompt_id == songs[b][1].prompt_id
    ]
    if not pairs:
        raise DataError("candidates: no prompt has two songs; nothing can be compared")
    places = np.array(pairs)
    differences = components[places[:, 0]] - components[places[:, 1]]
    rng, selection = np.random.default_rng(cfg.seed), list[int]()
    for _ in range(min(cfg.next_pairs, len(pairs))):
        selection.append(listener.next_pair(differences, selection, rng, cfg.choice))
    deviation = np.sqrt(listener.variance(differences))
    lines = [_pair_line(songs, pairs[k], float(deviation[k])) for k in selection]
    atomic_write(out / NEXT_PAIRS, "".join(f"{line}\n" for line in lines))
    log(f"{len(lines)} pairs to ask {cfg.rater} about: {out / NEXT_PAIRS}")


def _pair_line(
    songs: Sequence[tuple[Samples, SampleRow, VoteSong]], pair: tuple[int, int], deviation: float
) -> str:
    (folder_a, a, _), (folder_b, b, _) = (songs[place] for place in pair)
    row = {
        "prompt_id": a.prompt_id,
        "samples_a": str(folder_a.folder),
        "song_a": a.sample_id,
        "samples_b": str(folder_b.folder),
        "song_b": b.sample_id,
        "margin_deviation": round(deviation, 4),
    }
    return json.dumps(row, ensure_ascii=False)


def _card_text(cfg: PersonalRun, card: RewardCard, report: dict[str, object]) -> str:
    """The card in Markdown."""
    lines = [
        "# Reward model of one listener",
        f"The taste of `{cfg.rater}`: {report['votes']} own votes on bases of {report['other_listeners']} other "
        "listeners.",
        "It describes a person: publish it with their consent only, and delete it when they delete their votes.",
        "## License",
        f"Inherited: {inherit_license(card.licenses)}.",
        "## Own votes on prompts that were left out",
        f"Predicted by the listener's weights: {report['personal_accuracy']}, by the pooled model: "
        f"{report['pooled_accuracy']}.",
    ]
    return "\n\n".join(lines) + "\n"
