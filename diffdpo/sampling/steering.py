"""Steering: directions added to the activations of a network while it samples, and stopped once they have worked.

    h' = h + alpha * weight * vector, at the norm of h

in chosen blocks, at some times t, only in the prompt's branch. What watches a direction is a probe of other songs
than those it was fitted to (SMITIN, Koo et al. 2024): C is the median probability of its best heads, and as long as
C is below the threshold median(acc) - std(acc) the song goes on being steered, at alpha (1 - change of C). Above it
the song is left alone. All of this is a song's own: it depends on no other song of its batch.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.errors import ConfigError
from diffdpo.flow import Latents
from diffdpo.sampling.activations import PooledActivations, hook_blocks, move_along
from diffdpo.sampling.conditions import ConditionBatch
from diffdpo.sampling.directions import Direction, check_direction, direction_blocks
from diffdpo.sampling.steering_config import STEERING_KEY, SteeringConfig
from diffdpo.sampling.trajectory import RowTimes, State
from diffdpo.sampling.velocity import BranchValues, BranchVelocities, StateRows

SiteBlock = tuple[str, int]
"""The site of a direction, and the number of a block."""


class LoadedDirection(NamedTuple):
    """An entry of the configuration with its direction."""

    entry: SteeringConfig
    direction: Direction


def load_directions(
    entries: Sequence[SteeringConfig], directions: Mapping[str, Direction], network: Any
) -> list[LoadedDirection]:
    """The entries with their directions, checked. A UserError for those that nobody loaded or that do not fit."""
    for entry in entries:
        if entry.direction not in directions:
            raise ConfigError(
                f"{STEERING_KEY}: {entry.direction} is not loaded here; steering is for `diffdpo sample` and "
                "diffdpo.sample, leave it out"
            )
        check_direction(directions[entry.direction], network, entry.blocks, entry.direction)
    return [LoadedDirection(entry, directions[entry.direction]) for entry in entries]


def steering_state(entries: Sequence[SteeringConfig], count: int) -> State:
    """What the state of rows at noise holds of steering: the alpha that each entry has left in each row."""
    if not entries:
        return {}
    alpha = torch.tensor([entry.alpha for entry in entries], dtype=torch.float64)
    return {
        "steering.alpha": alpha.repeat(count, 1),
        "steering.calls": torch.zeros(count, dtype=torch.long),
        "steering.agreement": torch.full((count, len(entries)), torch.nan, dtype=torch.float64),
    }


def steered_branches(
    branches: BranchVelocities,
    entries: Sequence[LoadedDirection],
    networks: Sequence[Any],
    conditions: ConditionBatch,
    length: int,
) -> BranchVelocities:
    """Both branches of guidance, that of the prompt steered in all `networks`; the first is watched.

    Rows of equal strength are evaluated together; those without any are evaluated as without steering, together
    with the other branch. `length` are the frames of the network's window.
    """

    def steer(
        x: Latents, t: RowTimes, state: State, cond_rows: StateRows, uncond_rows: StateRows
    ) -> BranchValues:
        looks = _looks(entries, t, state)
        strengths = _strengths(entries, t, state).masked_fill(looks, 0)
        groups = _groups(strengths, looks, t, cond_rows)
        plain = cond_rows[torch.tensor(groups.pop(None, []), dtype=torch.long)]
        parts: list[tuple[StateRows, BranchValues]] = []
        uncond = x[:0]
        if len(plain) or len(uncond_rows):
            values = branches(x, t, state, plain, uncond_rows)
            state, uncond = values.state, values.uncond
            parts.append((plain, values))
        for places in groups.values():
            rows = cond_rows[torch.tensor(places)]
            values, features = evaluate_group(
                x, t, state, rows, strengths[rows[0]], bool(looks[rows[0]].any())
            )
            state = values.state
            if features is not None:
                state = _adapt(entries, t, state, rows, looks, features)
            parts.append((rows, values))
        state = state | {"steering.calls": _count_call(state, cond_rows)}
        return _join(parts, cond_rows, uncond, state)

    def evaluate_group(
        x: Latents, t: RowTimes, state: State, rows: StateRows, strength: Tensor, is_look: bool
    ) -> tuple[BranchValues, dict[SiteBlock, Tensor] | None]:
        with ExitStack() as hooks:
            for site, actions in _moves(entries, strength).items():
                hooks.enter_context(hook_blocks(networks, actions, STEERING_KEY, site))
            if not is_look:
                return branches(x, t, state, rows, rows[:0]), None
            frames = conditions.frames[conditions.cond[state["row"][rows]]]
            readers = {
                site: PooledActivations(blocks, frames, length) for site, blocks in _sites(entries).items()
            }
            for site, reader in readers.items():
                hooks.enter_context(hook_blocks(networks[:1], reader.actions(), STEERING_KEY, site))
            values = branches(x, t, state, rows, rows[:0])
            features = {
                (site, block): column
                for site, reader in readers.items()
                for block, column in zip(reader.parts, reader.features(len(rows)).unbind(1), strict=True)
            }
            return values, features

    return steer


def _strengths(entries: Sequence[LoadedDirection], t: RowTimes, state: State) -> Float[Tensor, "row entry"]:
    """The alpha of each entry in each row, zero outside of its interval."""
    ends = torch.tensor([[float(end) for end in entry.interval] for entry, _ in entries], dtype=torch.float64)
    low, high = ends.unbind(1)
    inside = (t[:, None] >= low) & (t[:, None] <= high)
    return state["steering.alpha"].where(inside, 0)


def _looks(entries: Sequence[LoadedDirection], t: RowTimes, state: State) -> Bool[Tensor, "row entry"]:
    """Which entries the monitor looks at now, row by row: those that act, every so many evaluations."""
    every = torch.tensor([entry.every for entry, _ in entries])
    is_watched = torch.tensor([entry.monitor for entry, _ in entries])
    calls = state["steering.calls"][:, None]
    is_turn = (calls > 0) & (calls % every == 0)
    return is_turn & is_watched & (_strengths(entries, t, state) != 0)


def _groups(
    strengths: Float[Tensor, "row entry"], looks: Bool[Tensor, "row entry"], t: RowTimes, rows: StateRows
) -> dict[Any, list[int]]:
    """Places of rows that are evaluated together; those of no strength and no look are under None.

    Where there is a look, songs at different times are apart, so that their activations come in their order.
    """
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows.tolist()):
        strength, look = tuple(strengths[row].tolist()), tuple(looks[row].tolist())
        key = (strength, look, float(t[row]) if any(look) else None)
        groups.setdefault(key if any(strength) or any(look) else None, []).append(place)
    return groups


def _moves(
    entries: Sequence[LoadedDirection], strength: Float[Tensor, " entry"]
) -> dict[str, dict[int, Any]]:
    """What is done at each site to each block: the sum of all directions there."""
    sums: dict[SiteBlock, Tensor] = {}
    for (entry, direction), alpha in zip(entries, strength.tolist(), strict=True):
        for block, vector in direction_blocks(direction, entry.blocks).items() if alpha else ():
            place = direction.provenance.site, block
            sums[place] = sums.get(place, torch.zeros_like(vector)) + alpha * vector
    moves: dict[str, dict[int, Any]] = {}
    for (site, block), vector in sums.items():
        moves.setdefault(site, {})[block] = move_along(vector, 1.0)
    return moves


def _sites(entries: Sequence[LoadedDirection]) -> dict[str, list[int]]:
    """The blocks that directions are in, by site."""
    blocks: dict[str, set[int]] = {}
    for _, direction in entries:
        blocks.setdefault(direction.provenance.site, set()).update(direction.provenance.blocks)
    return {site: sorted(numbers) for site, numbers in blocks.items()}


def _adapt(
    entries: Sequence[LoadedDirection],
    t: RowTimes,
    state: State,
    rows: StateRows,
    looks: Bool[Tensor, "row entry"],
    features: Mapping[SiteBlock, Float[Tensor, "look_row channel"]],
) -> State:
    """The state after a look: alpha lowered by the change of C, and zero where C has reached the threshold."""
    alphas, agreements = state["steering.alpha"].clone(), state["steering.agreement"].clone()
    for number, (entry, direction) in enumerate(entries):
        if not looks[rows[0], number]:
            continue
        site, blocks = direction.provenance.site, direction.provenance.blocks
        parts = torch.stack([features[site, block] for block in blocks], 1)
        agreement = direction.concentration(parts, t[rows])
        agreement = agreement if entry.alpha > 0 else 1 - agreement
        change = (agreement - agreements[rows, number]).nan_to_num(0.0)
        alpha = alphas[rows, number] * (1 - change)
        alpha = alpha.clamp(-abs(entry.alpha), abs(entry.alpha))
        alphas[rows, number] = alpha.where(agreement < direction.threshold(), 0)
        agreements[rows, number] = agreement
    return state | {"steering.alpha": alphas, "steering.agreement": agreements}


def _count_call(state: State, rows: StateRows) -> Tensor:
    return state["steering.calls"] + torch.bincount(rows, minlength=len(state["steering.calls"]))


def _join(
    parts: Sequence[tuple[StateRows, BranchValues]], cond_rows: StateRows, uncond: Tensor, state: State
) -> BranchValues:
    """The velocities of all groups in the order of `cond_rows`."""
    if len(parts) == 1:
        values = parts[0][1]
        return BranchValues(values.cond, uncond, values.extra, state)
    order = torch.cat([rows for rows, _ in parts]).argsort()
    places = order[cond_rows.argsort().argsort()]
    cond = torch.cat([values.cond for _, values in parts])
    cond = cond[places.to(cond.device)]
    extra = None
    if any(values.extra is not None for _, values in parts):
        extras = [torch.zeros_like(v.cond) if v.extra is None else v.extra for _, v in parts]
        extra = torch.cat(extras)[places.to(cond.device)]
    return BranchValues(cond, uncond, extra, state)
