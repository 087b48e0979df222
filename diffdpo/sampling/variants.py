"""The networks of knobs' variants, and their velocities mixed into those of the two branches of guidance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.errors import ConfigError
from diffdpo.flow import Latents, broadcast
from diffdpo.models.adapter_schedule import by_adapters
from diffdpo.models.base import SongModel
from diffdpo.sampling.conditions import ConditionBatch, prepare_conditions
from diffdpo.sampling.directions import Direction
from diffdpo.sampling.knobs import (
    CONFIG_KEY,
    Knob,
    NetworkKey,
    WeightsKey,
    mixture_at,
    skip_blocks,
    used_networks,
)
from diffdpo.sampling.trajectory import RowTimes, State
from diffdpo.sampling.velocity import (
    BranchValues,
    BranchVelocities,
    Evaluate,
    Index,
    StateRows,
    count_evaluations,
    network_velocity,
    plain_branches,
)

TermTarget = Literal["cond", "uncond", "extra"]


@dataclass(frozen=True, eq=False)
class AdaptedNetwork:
    """A network, and which of the adapters on it that act only where they are named do."""

    network: Any
    adapters: frozenset[str] = frozenset()
    bare_network: Any = None
    """The network without accelerate's wrapper, where it has one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Interventions:
    """What the knobs and the steering of a configuration name, loaded."""

    networks: Mapping[WeightsKey, AdaptedNetwork] = field(default_factory=dict)
    """The weights of variants. The model's own are always there."""
    directions: Mapping[str, Direction] = field(default_factory=dict)
    """Directions of steering, by path."""

    def other_networks(self, network: Any) -> list[Any]:
        """The networks beside the model's own, each once."""
        networks = {id(variant.network): variant.network for variant in self.networks.values()}
        return [value for key, value in networks.items() if key != id(network)]

    def find(self, key: WeightsKey, base: AdaptedNetwork) -> AdaptedNetwork:
        """The weights of a variant, `base` for the model's own; ConfigError for those that nobody loaded."""
        if key == WeightsKey():
            return base
        if key not in self.networks:
            name = key.network or key.adapter or "without_adapters"
            raise ConfigError(
                f"{CONFIG_KEY}: {name} is not loaded here; knobs are for `diffdpo sample` and diffdpo.sample, "
                "leave them out"
            )
        return self.networks[key]


NO_INTERVENTIONS = Interventions()


def network_evaluate(
    model: SongModel,
    conditions: ConditionBatch,
    variant: AdaptedNetwork,
    precision: str,
    skip: Sequence[int] = (),
) -> Evaluate:
    """The velocity of one network, its adapters on and some blocks left out; conditions are prepared by it."""
    device = next(model.network.parameters()).device

    def prepare() -> Evaluate:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            bare_network = variant.bare_network or variant.network
            return network_velocity(
                model, variant.network, prepare_conditions(model, conditions, bare_network)
            )

    evaluate = by_adapters(variant.network, prepare, variant.adapters)

    def evaluate_without(x: Latents, t: RowTimes, rows: Index) -> Latents:
        with skip_blocks(variant.network, skip):
            return evaluate(x, t, rows)

    return evaluate_without if skip else evaluate


class _Term(NamedTuple):
    """An evaluation of a network, and what its velocity is added to."""

    row: int
    """Of the state."""
    place: int
    """Of the condition."""
    weights: dict[tuple[TermTarget, int], float]
    """The weight in each sum, by the sum and the row in it."""


def knob_branches(
    model: SongModel,
    conditions: ConditionBatch,
    knobs: Sequence[Knob],
    interventions: Interventions,
    base: AdaptedNetwork,
    precision: str,
) -> BranchVelocities:
    """Both branches of guidance with knobs, or those of the model's own network, `base`, without any."""
    if not knobs:
        return plain_branches(network_evaluate(model, conditions, base, precision), conditions)
    evaluates = {
        key: network_evaluate(model, conditions, interventions.find(key.weights, base), precision, key.skip)
        for key in used_networks(knobs)
    }
    return mixed_branches(evaluates, conditions, knobs)


def mixed_branches(
    evaluates: Mapping[NetworkKey, Evaluate], conditions: ConditionBatch, knobs: Sequence[Knob]
) -> BranchVelocities:
    """Both branches of guidance with knobs: each network is evaluated once, with all rows that need it."""
    mixture = mixture_at(knobs)

    def branches(
        x: Latents, t: RowTimes, state: State, cond_rows: StateRows, uncond_rows: StateRows
    ) -> BranchValues:
        terms = list_terms(t, state, cond_rows, uncond_rows)
        counts = {"cond": len(cond_rows), "uncond": len(uncond_rows), "extra": len(cond_rows)}
        sums: dict[str, Tensor | None] = dict.fromkeys(counts)
        for key, entries in terms.items():
            rows = torch.tensor([term.row for term in entries])
            places = torch.tensor([term.place for term in entries])
            v = evaluates[key](x[rows.to(x.device)], t[rows], places)
            state = count_evaluations(state, rows)
            for target, count in counts.items():
                sums[target] = _add_terms(sums[target], v, entries, target, count)
        empty = x[:0]
        cond, uncond = (empty if sums[name] is None else sums[name] for name in ("cond", "uncond"))
        assert cond is not None
        assert uncond is not None
        return BranchValues(cond, uncond, sums["extra"], state)

    def list_terms(
        t: RowTimes, state: State, cond_rows: StateRows, uncond_rows: StateRows
    ) -> dict[NetworkKey, list[_Term]]:
        terms: dict[NetworkKey, list[_Term]] = {}
        samples, times, guided_rows = state["row"].tolist(), t.tolist(), set(uncond_rows.tolist())
        for number, row in enumerate(cond_rows.tolist()):
            part_weights = mixture(times[row])
            parts: dict[TermTarget, Any] = {"cond": part_weights.sum}
            if row in guided_rows:
                parts = {"cond": part_weights.cond, "extra": part_weights.extra}
            for key in dict.fromkeys(key for part in parts.values() for key in part):
                places = conditions.axes[key.axis] if key.axis else conditions.cond
                shares = {(name, number): part[key] for name, part in parts.items() if key in part}
                terms.setdefault(key.network, []).append(_Term(row, int(places[samples[row]]), shares))
        for number, row in enumerate(uncond_rows.tolist()):
            place = int(conditions.uncond[samples[row]])
            for network, weight in mixture(times[row]).uncond.items():
                terms.setdefault(network, []).append(_Term(row, place, {("uncond", number): weight}))
        return terms

    return branches


def _add_terms(
    total: Tensor | None, v: Latents, entries: Sequence[_Term], target: str, count: int
) -> Float[Tensor, "target_row frame channel"] | None:
    """A sum of velocities with the terms of one network; None as long as it has no term."""
    shares = [
        (term, row, weight)
        for term, entry in enumerate(entries)
        for (name, row), weight in entry.weights.items()
        if name == target
    ]
    if not shares:
        return total
    terms, rows, weights = zip(*shares, strict=True)
    index, sources = (torch.tensor(column, device=v.device) for column in (rows, terms))
    factors = broadcast(torch.tensor(weights, dtype=torch.float64)).to(v)
    total = v.new_zeros(count, *v.shape[1:]) if total is None else total
    return total.index_add(0, index, factors * v[sources])
