"""Soft labels of pairs, and the choice of the strongest where there are too many."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from diffdpo.mining.base import mean_margin
from diffdpo.mining.values import Pair


def strength(pair: Pair, weights: Mapping[str, float]) -> float:
    """The margin on the pair's own axis; where several decided together, the weighted mean over all."""
    return pair.margins[pair.axis] if pair.axis else mean_margin(pair.margins, weights)


def soften(pair: Pair, temperature: float, weights: Mapping[str, float]) -> Pair:
    """The pair with p = σ(strength / temperature), the Bradley-Terry probability that the winner is the better one.

    At least one half, since a pair names its winner. With temperature 0 labels stay hard, p = 1; so do those of
    pairs without margins, whose winner is a song of a data set.
    """
    if temperature == 0 or not pair.margins:
        return pair
    probability = 0.5 * (1 + math.tanh(strength(pair, weights) / temperature / 2))
    return replace(pair, soft_label=max(0.5, probability))


def pick_strongest(pairs: Sequence[Pair], limit: int, weights: Mapping[str, float]) -> list[int]:
    """Places of at most `limit` pairs: the axes take turns, each gives its strongest. 0 keeps all as they are.

    Pairs whose winner is a song of a data set take turns too; without margins, they go by prompt.
    """
    if not limit or len(pairs) <= limit:
        return list(range(len(pairs)))
    ranks = sorted(
        range(len(pairs)),
        key=lambda i: (-strength(pairs[i], weights), pairs[i].prompt_id, pairs[i].winner, i),
    )
    turn: Counter[tuple[str, bool]] = Counter()
    order = []
    for i in ranks:
        kind = (pairs[i].axis, pairs[i].is_real)
        order.append((turn[kind], kind, i))
        turn[kind] += 1
    return [i for _, _, i in sorted(order)[:limit]]
