"""What a mining rule is, and what all rules share: comparisons within a prompt, and which of them become pairs.

Arrays of comparisons are `[axis, winner, loser]`: entry (a, w, l) is about candidate w as winner of a pair and
candidate l as its loser, on an axis. Candidates of a prompt are ordered by id, so an order by place is one by id.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from diffdpo.checks import check_number
from diffdpo.errors import ConfigError
from diffdpo.mining.values import MinedPairs, Pair, PromptCandidates
from diffdpo.registry import closest

Selection = tuple[int, int, str]
"""Places of winner and loser among the candidates of a prompt, and the axis that decided (empty for several)."""


@runtime_checkable
class Rule(Protocol):
    """A frozen dataclass whose fields are its thresholds and whose call is a pure function.

    The call takes all prompts in order of their ids, and the names of the axes. It returns the pairs, and for every
    prompt without a pair the reason.
    """

    def __call__(self, prompts: Sequence[PromptCandidates], axes: Sequence[str]) -> MinedPairs: ...


def mine_prompts(
    prompts: Iterable[PromptCandidates],
    axes: Sequence[str],
    rule: str,
    choose: Callable[[PromptCandidates], Sequence[Selection]],
    *,
    no_pair_reason: str,
) -> MinedPairs:
    """The pairs that `choose` selects in each prompt of two or more candidates that differ.

    `rule` is the name the pairs carry; `no_pair_reason` is the reason where nothing is selected.
    """
    pairs: list[Pair] = []
    reasons: dict[str, str] = {}
    for prompt in prompts:
        size = len(prompt.sample_ids)
        if size < 2:
            reason = f"{size} candidate(s) with a score on every axis, {prompt.count} in all"
        elif not prompt.z.any():
            reason = "all candidates are tied on every axis"
        else:
            selections, reason = choose(prompt), no_pair_reason
            pairs.extend(_pair(prompt, selection, axes, rule) for selection in selections)
            if selections:
                continue
        reasons[prompt.prompt_id] = reason
    return MinedPairs(tuple(pairs), reasons)


def _pair(prompt: PromptCandidates, selection: Selection, axes: Sequence[str], rule: str) -> Pair:
    winner, loser, axis = selection
    margins = (prompt.z[winner] - prompt.z[loser]).tolist()
    return Pair(
        prompt_id=prompt.prompt_id,
        group=prompt.group,
        winner=prompt.sample_ids[winner],
        loser=prompt.sample_ids[loser],
        rule=rule,
        margins=dict(zip(axes, margins, strict=True)),
        axis=axis,
    )


def differences(values: Float[np.ndarray, "candidate axis"]) -> Float[np.ndarray, "axis winner loser"]:
    """Winner minus loser on every axis, for every two candidates each way round."""
    columns = np.ascontiguousarray(values.T)
    return columns[:, :, None] - columns[:, None, :]


def select(
    eligible: Bool[np.ndarray, "axis winner loser"],
    strength: Float[np.ndarray, "axis winner loser"],
    limit: int,
    axes: Sequence[str] = ("",),
) -> list[Selection]:
    """The strongest of the eligible comparisons, at most `limit` on each axis, that do not contradict each other.

    Two contradict each other if they are the same two songs the same way round, or if a song that wins in one loses
    in the other, on one axis. Ties go by axis, then by the ids of winner and loser.
    """
    places, winners, losers = np.nonzero(eligible)
    strengths = (-strength[places, winners, losers]).tolist()
    names = [axes[place] for place in places.tolist()]
    selections: list[Selection] = []
    count, pairs, sides = Counter[str](), set[tuple[int, int]](), set[tuple[str, str, int]]()
    for _, axis, winner, loser in sorted(
        zip(strengths, names, winners.tolist(), losers.tolist(), strict=True)
    ):
        if len(selections) == limit * len(axes):
            break
        contradicts = ("loses", axis, winner) in sides or ("wins", axis, loser) in sides
        if winner != loser and count[axis] < limit and (winner, loser) not in pairs and not contradicts:
            selections.append((winner, loser, axis))
            count[axis] += 1
            pairs.add((winner, loser))
            sides |= {("wins", axis, winner), ("loses", axis, loser)}
    return selections


def contradict(a: Pair, b: Pair) -> bool:
    """Whether two pairs contradict each other, or have the same winner and loser.

    They contradict if, on one axis, a song wins in one and loses in the other. A song of a data set never loses,
    and that it beats an answer says nothing about two answers.
    """
    if a.is_real != b.is_real:
        return False
    if (a.winner, a.loser) == (b.winner, b.loser):
        return True
    if a.is_real:
        return False
    return a.axis == b.axis and (a.winner == b.loser or a.loser == b.winner)


def hold_on_other_axes(holds: Bool[np.ndarray, "axis winner loser"]) -> Bool[np.ndarray, "axis winner loser"]:
    """For each axis, whether `holds` is true on all other axes."""
    fails = ~holds
    return fails.sum(0) == fails


def weighted_mean(
    values: Float[np.ndarray, "axis *place"], axes: Sequence[str], weights: Mapping[str, float]
) -> Float[np.ndarray, "*place"]:
    """Weighted mean over the axes; axes without a weight count 1."""
    weight = [weights.get(axis, 1.0) for axis in axes]
    terms = np.reshape(weight, (-1, *[1] * (values.ndim - 1))) * values
    # Along the slow axis of memory numpy adds one by one: no bit depends on the number of candidates.
    return np.ascontiguousarray(terms).sum(0) / max(1e-9, sum(weight))


def mean_margin(margins: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean of the margins of one pair; axes without a weight count 1."""
    weight = {axis: weights.get(axis, 1.0) for axis in margins}
    return sum(weight[axis] * margins[axis] for axis in margins) / max(1e-9, sum(weight.values()))


def check_axes(names: Iterable[str], axes: Collection[str], location: str) -> None:
    """ConfigError when an axis is named that is not mined."""
    for axis in names:
        if axis not in axes:
            raise ConfigError(
                f"{location}: {axis!r} is not among the mined axes.{closest(axis, axes)} "
                f"Mined: {', '.join(axes)}."
            )


def check_weights(weights: Mapping[str, float]) -> None:
    """ValueError for weights that are negative or not numbers."""
    for axis, weight in weights.items():
        check_number(weight, f"weights.{axis}", low=0)
