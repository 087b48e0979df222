"""Which trial a listener hears next: training, a pair, a hidden control pair, or a repeat with its sides exchanged.

Nothing here knows of a database or a clock: what was heard comes in, the next trial comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int

from diffdpo.listen.catalog import Catalog
from diffdpo.listen.excerpts import DAMAGES
from diffdpo.listen.study import MushraConfig, Study, TrialConfig
from diffdpo.preferences.pair_choice import (
    PairChoice,
    UtilityPosterior,
    choose_sides,
    fit_utilities,
    next_pair,
    side_balance,
)

TrialKind = Literal["training", "real", "gold", "repeat"]
MIN_REPEAT_DISTANCE = 4
"""Trials between a pair and its repeat, at least."""
MIN_TRIALS_WITH_CONTROLS = 8
"""With fewer trials a small share may round to no control pair."""
SAME_SONG_SHARE = 0.34
"""Of the control pairs, those of a song against itself."""
REFIT_EVERY = 50
"""Votes after which the posterior of the choice of pairs is fitted anew."""


@dataclass(frozen=True, kw_only=True)
class Stimulus:
    """What is played at one place of a trial."""

    song: int
    """Index in the catalog."""
    damage: str = ""
    role: str = ""
    """On a page of MUSHRA: `open` for the reference that is shown as such, `reference` for its hidden copy,
    `anchor-…` for a low-passed copy."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """A trial before it is presented: stimuli in the order of presentation."""

    kind: TrialKind
    stimuli: tuple[Stimulus, ...]
    gold: str = ""
    """The right answer of a control pair or of a training trial."""
    repeat_of: str = ""


@dataclass(frozen=True, kw_only=True)
class PastTrial:
    """A trial that a listener had."""

    trial_id: str
    kind: TrialKind
    songs: tuple[int, ...]
    """Indices of the songs in the order of presentation; empty where a song is no longer in the study."""
    is_vote: bool
    """Whether it was answered, neither skipped nor reported."""
    repeat_of: str = ""


@dataclass
class VoteLog:
    """Votes of all listeners on real pairs, for the choice of the next pair."""

    songs: int
    answers: list[tuple[int, int, float]] = field(default_factory=list)
    posterior: UtilityPosterior | None = None
    n_fitted: int = 0

    def add(self, first: int, second: int, choice: str) -> None:
        """Count a vote on two songs, by their indices in the order of presentation."""
        target = {"a": 1.0, "b": 0.0}.get(choice, 0.5)
        self.answers.append((first, second, target))
        if self.posterior is not None:
            self.posterior = self.posterior.after(self.answers[-1])

    def up_to_date(self, cfg: PairChoice) -> UtilityPosterior:
        """The posterior of all votes: a fit now and then, a step for each vote in between."""
        if self.posterior is None or len(self.answers) - self.n_fitted >= REFIT_EVERY:
            self.posterior = fit_utilities(self.songs, self.answers, cfg.prior_deviation)
            self.n_fitted = len(self.answers)
        return self.posterior

    @property
    def presentations(self) -> list[tuple[int, int]]:
        return [(first, second) for first, second, _ in self.answers]


def share_count(count: int, share: float) -> int:
    """How many of some trials a share is: at least one, where there are enough."""
    number = round(count * share)
    return max(number, 1) if share > 0 and count >= MIN_TRIALS_WITH_CONTROLS else number


def trial_kinds(cfg: TrialConfig, mode: str, items: int, rng: np.random.Generator) -> tuple[TrialKind, ...]:
    """The kinds of all trials of a listener, in order. `items` pairs, songs or pages can be heard at most once.

    Repeats come late enough to have something to repeat; control pairs anywhere.
    """
    gold_share = cfg.gold_share if mode == "pair" else 0.0
    repeat_share = cfg.repeat_share if mode != "mushra" else 0.0
    count = min(cfg.count, round(items / (1 - gold_share - repeat_share)) + 2)
    while count - share_count(count, gold_share) - share_count(count, repeat_share) > items:
        count -= 1
    golds, repeats = share_count(count, gold_share), share_count(count, repeat_share)
    kinds: list[TrialKind] = ["real"] * count
    late_places = rng.permutation(np.arange(min(2 * MIN_REPEAT_DISTANCE, count), count))[:repeats]
    early_places = rng.permutation(np.setdiff1d(np.arange(count), late_places))[:golds]
    for place in late_places:
        kinds[place] = "repeat"
    for place in early_places:
        kinds[place] = "gold"
    training = cfg.training if mode == "pair" else min(1, cfg.training)
    warm_up: list[TrialKind] = ["training"] * training
    return (*warm_up, *kinds)


def plan_trial(
    kind: TrialKind,
    study: Study,
    catalog: Catalog,
    history: Sequence[PastTrial],
    votes: VoteLog,
    rng: np.random.Generator,
    opinions: Int[np.ndarray, " item"],
) -> TrialPlan | None:
    """The next trial of a listener with this history; None when there is nothing new to hear.

    `opinions` counts, for the modes without pairs, how often each song or page was rated by all listeners.
    """
    if study.mode == "mushra":
        return _plan_page(kind, study.mushra, catalog, history, opinions, rng)
    if study.mode == "rating":
        return _plan_rating(kind, catalog, history, opinions, rng)
    if kind == "training":
        damages = list(DAMAGES)
        gold = damages[len(history) % len(damages)] if len(history) != 1 else ""
        return _control_pair(kind, catalog, gold, rng)
    if kind == "gold":
        damage = "" if rng.random() < SAME_SONG_SHARE else str(rng.choice(list(DAMAGES)))
        return _control_pair(kind, catalog, damage, rng)
    if kind == "repeat" and (plan := _repeat(history, rng)):
        return plan
    return _plan_pair(catalog, history, votes, rng)


def _plan_pair(
    catalog: Catalog, history: Sequence[PastTrial], votes: VoteLog, rng: np.random.Generator
) -> TrialPlan | None:
    past_pairs = {frozenset(trial.songs) for trial in history if trial.kind in ("real", "repeat")}
    excluded_pairs = {k for k, pair in enumerate(catalog.pairs) if frozenset(pair) in past_pairs}
    if len(excluded_pairs) == len(catalog.pairs):
        return None
    cfg = PairChoice()
    posterior = votes.up_to_date(cfg)
    number = next_pair(np.array(catalog.pairs), votes.answers, excluded_pairs, rng, cfg, posterior=posterior)
    presentations = [
        (trial.songs[0], trial.songs[1])
        for trial in history
        if trial.kind == "real" and len(trial.songs) == 2
    ]
    sides = choose_sides(
        catalog.pairs[number],
        side_balance(votes.presentations, len(catalog.songs)),
        side_balance(presentations, len(catalog.songs)),
        rng,
    )
    return TrialPlan(kind="real", stimuli=tuple(Stimulus(song=song) for song in sides))


def _repeat(history: Sequence[PastTrial], rng: np.random.Generator) -> TrialPlan | None:
    """An earlier pair, or song, once more: not a recent one, and each only once."""
    repeats = {trial.repeat_of for trial in history}
    candidates = [
        trial
        for trial in history[: len(history) - MIN_REPEAT_DISTANCE + 1]
        if trial.kind == "real" and trial.is_vote and trial.songs and trial.trial_id not in repeats
    ]
    if not candidates:
        return None
    trial = candidates[rng.integers(len(candidates))]
    stimuli = tuple(Stimulus(song=song) for song in reversed(trial.songs))
    return TrialPlan(kind="repeat", stimuli=stimuli, repeat_of=trial.trial_id)


def _control_pair(kind: TrialKind, catalog: Catalog, damage: str, rng: np.random.Generator) -> TrialPlan:
    """A song against its damaged copy, or against itself without damage."""
    song = int(rng.integers(len(catalog.songs)))
    clean, copy = Stimulus(song=song), Stimulus(song=song, damage=damage)
    if not damage:
        return TrialPlan(kind=kind, stimuli=(clean, copy), gold="tie")
    if rng.random() < 0.5:
        return TrialPlan(kind=kind, stimuli=(clean, copy), gold="a")
    return TrialPlan(kind=kind, stimuli=(copy, clean), gold="b")


def _rarest(
    counts: Int[np.ndarray, " item"], excluded_items: set[int], rng: np.random.Generator
) -> int | None:
    """One of the items that were rated least often, other than those excluded."""
    items = [item for item in range(len(counts)) if item not in excluded_items]
    lowest = min((counts[item] for item in items), default=0)
    choices = [item for item in items if counts[item] == lowest]
    return int(rng.choice(choices)) if choices else None


def _plan_rating(
    kind: TrialKind,
    catalog: Catalog,
    history: Sequence[PastTrial],
    opinions: Int[np.ndarray, " item"],
    rng: np.random.Generator,
) -> TrialPlan | None:
    if kind == "repeat" and (plan := _repeat(history, rng)):
        return plan
    past_songs = {song for trial in history if trial.kind == "real" for song in trial.songs}
    song = _rarest(opinions, past_songs, rng)
    if song is None:
        return None
    return TrialPlan(kind="training" if kind == "training" else "real", stimuli=(Stimulus(song=song),))


def _plan_page(
    kind: TrialKind,
    cfg: MushraConfig,
    catalog: Catalog,
    history: Sequence[PastTrial],
    opinions: Int[np.ndarray, " item"],
    rng: np.random.Generator,
) -> TrialPlan | None:
    references = {trial.songs[0] for trial in history if trial.kind == "real" and trial.songs}
    past_pages = {k for k, page in enumerate(catalog.pages) if page.reference in references}
    number = _rarest(opinions, past_pages, rng)
    if number is None:
        return None
    page = catalog.pages[number]
    choices = [Stimulus(song=song) for song in page.songs]
    choices.append(Stimulus(song=page.reference, role="reference"))
    for hertz in cfg.anchors_hz:
        choices.append(Stimulus(song=page.reference, damage=f"lowpass-{hertz:g}", role=f"anchor-{hertz:g}"))
    order = rng.permutation(len(choices))
    stimuli = (Stimulus(song=page.reference, role="open"), *(choices[place] for place in order))
    return TrialPlan(kind=kind, stimuli=stimuli)
