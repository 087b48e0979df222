"""How well a reward model predicts votes on prompts that it has not seen, against how well listeners agree."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from diffdpo.data.licenses import inherit_license
from diffdpo.data.vote_songs import VoteSong
from diffdpo.data.votes import VoteRow
from diffdpo.preferences.bradley_terry import log_loss
from diffdpo.preferences.calibration import calibration_error
from diffdpo.preferences.reward_fit import FittedReward
from diffdpo.preferences.vote_design import VoteDesign
from diffdpo.recipes.reward_votes import Repeat, SongVote, answer_counts
from diffdpo.runs import atomic_write, write_json
from diffdpo.scorers.reward_file import REWARD_FILE, RewardCard, save_reward
from diffdpo.statistics import estimate_mean

MARGIN_PARTS = 4
REPORT_JSON, CARD_FILE = "report.json", "README.md"


@dataclass(frozen=True)
class AccuracyShare:
    """A share of votes with its 95 % interval over prompts."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class HumanAgreement:
    """How well listeners agree, and what a model can reach at most on single votes if their errors are independent:
    (1 + sqrt(2 p - 1)) / 2 of an agreement p."""

    repeat_agreement: float
    """AccuracyShare of decided repeats that were answered alike; NaN without repeats."""
    repeats: int
    rater_agreement: float
    """AccuracyShare of decided pairs of votes of two listeners on the same songs that agree; NaN without any."""
    rater_pairs: int
    accuracy: float
    """What a model can reach, by the agreement of listeners, else by that of repeats."""


@dataclass(frozen=True)
class RewardReport:
    """The report of a reward model."""

    accuracy: AccuracyShare
    """On decided votes on held-out prompts."""
    learned_accuracy: float
    """On the prompts it was fitted to."""
    log_loss: float
    calibration_error: float
    by_margin: dict[str, AccuracyShare]
    by_strength: dict[str, AccuracyShare]
    by_group: dict[str, AccuracyShare]
    agreement: HumanAgreement
    l2: float
    nu: float
    losses: dict[str, float]
    answers: dict[str, int]
    held_out_groups: int
    groups: int
    slopes: dict[str, float] = field(default_factory=dict)


def report_reward(
    result: FittedReward,
    design: VoteDesign,
    held_out: Bool[np.ndarray, " pair"],
    votes: Sequence[SongVote],
    repeats: Sequence[Repeat] = (),
) -> RewardReport:
    """The report on the held-out pairs of a design."""
    utility = result.head.utility(design.rows)
    vote = design.vote
    margins = np.bincount(vote, weights=(utility[design.first] - utility[design.second]) * design.counts)
    first_pair = np.unique(vote, return_index=True)[1]
    targets, groups, is_held_out = design.targets[first_pair], design.groups[first_pair], held_out[first_pair]
    hits = vote_hits(margins, targets)
    is_decided = (targets != 0.5) & is_held_out
    probability = np.clip(result.head.probability(margins), 1e-6, 1 - 1e-6)
    logits = np.log(probability / (1 - probability))
    rows = [entry.row for entry in votes]
    is_learned = (targets != 0.5) & ~is_held_out
    return RewardReport(
        accuracy=share(hits, is_decided, groups),
        learned_accuracy=float(hits[is_learned].mean()) if is_learned.any() else float("nan"),
        log_loss=float(log_loss(logits[is_held_out], targets[is_held_out]).mean()),
        calibration_error=calibration_error(probability[is_held_out], targets[is_held_out]),
        by_margin=_by_margin(hits, margins, is_decided, groups),
        by_strength=_by_label([str(row.strength) for row in rows], hits, is_decided, groups),
        by_group=_by_listeners(rows, hits, is_decided, groups),
        agreement=human_agreement(votes, repeats),
        l2=result.l2,
        nu=result.nu,
        losses=result.losses,
        answers=answer_counts(votes),
        held_out_groups=len(set(groups[is_held_out].tolist())),
        groups=len(set(groups.tolist())),
        slopes=result.slopes,
    )


def vote_hits(
    margins: Float[np.ndarray, " vote"], targets: Float[np.ndarray, " vote"]
) -> Float[np.ndarray, " vote"]:
    """1 where the margin has the sign of the answer, one half where it is 0."""
    agreement = np.sign(margins) * np.sign(targets - 0.5)
    return (agreement + 1) / 2


def share(
    hits: Float[np.ndarray, " vote"], mask: Bool[np.ndarray, " vote"], groups: np.ndarray
) -> AccuracyShare:
    """The mean of some hits with its interval over prompts; NaN without votes."""
    count = int(mask.sum())
    if not count:
        return AccuracyShare(float("nan"), float("nan"), float("nan"), 0)
    interval = estimate_mean(hits[mask], groups[mask].tolist()).interval(0.95)
    low, high = (float(np.clip(end, 0, 1)) for end in (interval.low, interval.high))
    return AccuracyShare(float(hits[mask].mean()), low, high, count)


def _by_margin(
    hits: np.ndarray, margins: np.ndarray, is_decided: np.ndarray, groups: np.ndarray
) -> dict[str, AccuracyShare]:
    """Accuracy in four parts of equal size, from the smallest margin to the largest."""
    if not is_decided.any():
        return {}
    size = np.abs(margins)
    edges = np.quantile(size[is_decided], np.linspace(0, 1, MARGIN_PARTS + 1))
    edges[-1] = np.inf
    shares = {}
    for number, (low, high) in enumerate(pairwise(edges.tolist())):
        inside = is_decided & (size >= low) & (size < high)
        name = f"from {low:.2f}" if np.isinf(high) else f"{low:.2f} to {high:.2f}"
        shares[f"{number + 1}: {name}"] = share(hits, inside, groups)
    return shares


def _by_label(
    labels: Sequence[str], hits: np.ndarray, is_decided: np.ndarray, groups: np.ndarray
) -> dict[str, AccuracyShare]:
    names = np.asarray(labels)
    return {str(name): share(hits, is_decided & (names == name), groups) for name in np.unique(names)}


def _by_listeners(
    rows: Sequence[VoteRow], hits: np.ndarray, is_decided: np.ndarray, groups: np.ndarray
) -> dict[str, AccuracyShare]:
    """Accuracy by what listeners said of themselves, `key=value`."""
    masks: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(rows), bool))
    for place, row in enumerate(rows):
        for key, value in row.rater_group.items():
            masks[f"{key}={value}"][place] = True
    return {name: share(hits, is_decided & mask, groups) for name, mask in sorted(masks.items())}


def human_agreement(votes: Sequence[SongVote], repeats: Sequence[Repeat] = ()) -> HumanAgreement:
    """The agreement of listeners with themselves, from pairs of answers to one question, and with each other."""
    matches = [first == second for first, second in repeats]
    by_pair: dict[frozenset[VoteSong], dict[str, VoteSong]] = defaultdict(dict)
    for vote in votes:
        if vote.row.answer in ("a", "b") and vote.row.rater:
            winner = vote.first if vote.row.answer == "a" else vote.second
            by_pair[frozenset((vote.first, vote.second))][vote.row.rater] = winner
    agreements, count = 0.0, 0
    for winners in by_pair.values():
        songs = list(winners.values())
        sizes = [songs.count(song) for song in set(songs)]
        agreements += sum(size * (size - 1) / 2 for size in sizes)
        count += len(songs) * (len(songs) - 1) // 2
    repeat = float(np.mean(matches)) if matches else float("nan")
    rater = agreements / count if count else float("nan")
    basis = rater if count else repeat
    accuracy = (1 + np.sqrt(max(0.0, 2 * basis - 1))) / 2 if np.isfinite(basis) else float("nan")
    return HumanAgreement(repeat, len(matches), rater, count, float(accuracy))


def write_reward_files(out: Path, result: FittedReward, card: RewardCard, report: RewardReport) -> None:
    """The model, its report and its card."""
    save_reward(out / REWARD_FILE, result.head, card)
    write_json(out / REPORT_JSON, asdict(report))
    atomic_write(out / CARD_FILE, card_text(card, report))


def card_text(card: RewardCard, report: RewardReport) -> str:
    """The card of a reward model in Markdown."""
    sources = [f"* {source or 'unnamed'}: {len(ids)} votes" for source, ids in card.votes.items()]
    features = [
        f"* `{part.name}` {part.fingerprint}: {', '.join(part.licenses) or 'no license needed'}"
        for part in card.extractors
    ]
    question = f"the question `{card.axis}`" if card.axis else "the preference overall"
    lines = [
        "# Reward model",
        f"Fitted by diffdpo {card.version} to votes on {question}; "
        f"{'a song for its prompt' if card.text else 'of the sound alone'}.",
        "## License",
        f"Inherited: {inherit_license(card.licenses)}.",
        f"Votes and songs: {', '.join(card.vote_licenses) or 'unknown'}.",
        "## Votes",
        "\n".join(sources),
        f"Consents: {', '.join(card.consents) or 'none recorded'}.",
        "## Features",
        "\n".join(features),
        "## Held-out prompts",
        accuracy_table(report),
    ]
    if card.offsets:
        lines += ["## Offsets of systems", "\n".join(f"* {k}: {v:+.2f}" for k, v in card.offsets.items())]
    return "\n\n".join(lines) + "\n"


def accuracy_table(report: RewardReport) -> str:
    """Accuracies with their intervals, in Markdown."""
    rows = [("all", report.accuracy)]
    rows += [(f"margin {name}", value) for name, value in report.by_margin.items()]
    rows += [(f"strength {name}", value) for name, value in report.by_strength.items()]
    rows += list(report.by_group.items())
    table = ["| votes | accuracy | 95 % | number |", "| --- | --- | --- | --- |"]
    table += [
        f"| {name} | {v.value:.3f} | {v.low:.3f} to {v.high:.3f} | {v.count} |"
        for name, v in rows
        if v.count or v is report.accuracy
    ]
    text = f"Calibration error {report.calibration_error:.3f}, log-loss {report.log_loss:.3f}."
    return "\n\n".join(["\n".join(table), text, agreement_text(report.agreement)])


def agreement_text(agreement: HumanAgreement) -> str:
    """How well listeners agree, in a sentence; nothing is said of what was not measured."""
    parts = []
    if agreement.rater_pairs:
        parts.append(
            f"with each other on {agreement.rater_agreement:.3f} of {agreement.rater_pairs} pairs of votes"
        )
    if agreement.repeats:
        parts.append(f"with themselves on {agreement.repeat_agreement:.3f} of {agreement.repeats} repeats")
    if not parts:
        return "No two votes on the same songs: how well listeners agree is unknown."
    return f"Listeners agree {', '.join(parts)}; a model can reach {agreement.accuracy:.3f}."
