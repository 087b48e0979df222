"""What the knobs and the steering of sampling name: checked, loaded beside a model, and taken off it again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdpo.errors import ConfigError
from diffdpo.inputs import digest
from diffdpo.parts import build_model, content_of
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.knobs import (
    CONFIG_KEY,
    MODEL,
    NetworkKey,
    VariantKey,
    WeightsKey,
    check_blocks,
    mixtures,
    used_networks,
)
from diffdpo.scorers.axes import check_axis_names

if TYPE_CHECKING:
    from diffdpo.models.base import SongModel
    from diffdpo.sampling.variants import AdaptedNetwork, Interventions


def check_knobs(sampling: SamplingConfig) -> None:
    """ConfigError for a preference axis of a knob that belongs to no scorer: no model was trained on it."""
    check_axis_names(sampling.axes, f"{CONFIG_KEY}: axis")


def interventions_digest(sampling: SamplingConfig) -> str:
    """Identity of knobs, steering and reward guidance and of what they name, by content; "" without any."""
    entries = [asdict(knob) for knob in sampling.active_knobs]
    entries += [asdict(entry) for entry in sampling.active_steering]
    if sampling.reward_guidance is not None and sampling.reward_guidance.weight:
        entries.append(asdict(sampling.reward_guidance))
    return digest(content_of(entries)) if entries else ""


def resolve_knobs(model: Choice, sampling: SamplingConfig) -> tuple[Choice, SamplingConfig]:
    """The same velocity with as few knobs as it takes.

    Where knobs leave a single variant at all times, and it is a model that could have been chosen without them, it
    is chosen: v_ref + 1 (v_policy - v_ref) is the policy, its adapter merged.
    """
    knobs = sampling.active_knobs
    variants = {key for mixture in mixtures(knobs) for key in mixture.cond}
    is_single = len(variants) == 1 and not any(mixture.extra for mixture in mixtures(knobs))
    if not knobs or not is_single:
        return model, replace(sampling, knobs=knobs)
    (key,) = variants
    if key.axis or key.network.skip or any(mixture.cond != {key: 1.0} for mixture in mixtures(knobs)):
        return model, replace(sampling, knobs=knobs)
    return _with_weights(model, key), replace(sampling, knobs=[])


def _with_weights(model: Choice, key: VariantKey) -> Choice:
    """The model with the weights of a variant."""
    if key == MODEL:
        return model
    weights, args = key.network.weights, dict(model.args)
    if weights.network or weights.without_adapters:
        args = _bare_args(args)
    if weights.network:
        args["network"] = weights.network
    if weights.adapter:
        adapter = args.get("adapter") or []
        args["adapter"] = [*([adapter] if isinstance(adapter, str) else adapter), weights.adapter]
    return Choice(model.name, args)


def _bare_args(args: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if name not in ("adapter", "adapters")}


@contextmanager
def load_interventions(
    model: "SongModel", sampling: SamplingConfig, choice: Choice | None = None
) -> "Iterator[Interventions]":
    """What knobs and steering of a configuration name, loaded for a model; taken off it again at the end.

    `choice` is how the model was chosen, if that is known. A UserError for what does not fit the model.
    """
    from diffdpo.models.timed_adapters import remove_switched_adapters
    from diffdpo.sampling.directions import read_direction
    from diffdpo.sampling.reward_guidance import build_reward
    from diffdpo.sampling.steering import load_directions
    from diffdpo.sampling.variants import Interventions

    paths = {entry.direction for entry in sampling.active_steering}
    directions = {path: read_direction(Path(path)) for path in sorted(paths)}
    load_directions(sampling.active_steering, directions, model.network)
    if sampling.reward_guidance is not None and sampling.reward_guidance.weight:
        build_reward(sampling.reward_guidance, model.spec.channels, next(model.network.parameters()).device)
    networks: dict[WeightsKey, AdaptedNetwork] = {}
    bases: dict[WeightsKey, Any] = {WeightsKey(): model.network}
    try:
        for key in used_networks(sampling.active_knobs) if sampling.active_knobs else []:
            _load_variant(model, key, choice, networks, bases)
        yield Interventions(networks=networks, directions=directions)
    finally:
        remove_switched_adapters(model.network)


def _load_variant(
    model: "SongModel",
    key: NetworkKey,
    choice: Choice | None,
    networks: "dict[WeightsKey, AdaptedNetwork]",
    bases: dict[WeightsKey, Any],
) -> None:
    """Load the weights of a variant, unless they are there: a base, and adapters on it."""
    from diffdpo.models.timed_adapters import add_switched_adapters
    from diffdpo.sampling.variants import AdaptedNetwork

    weights = key.weights
    base_key = weights._replace(adapter="")
    if base_key not in bases:
        bases[base_key] = _load_base(model, base_key, choice)
    network = bases[base_key]
    if key.skip:
        check_blocks(network, key.skip, f"{CONFIG_KEY}: skip")
    if weights not in networks:
        names = add_switched_adapters(network, weights.adapter) if weights.adapter else frozenset[str]()
        parameter = next(model.network.parameters())
        network.to(parameter.device)
        networks[weights] = AdaptedNetwork(network, names)


def _load_base(model: "SongModel", key: WeightsKey, choice: Choice | None) -> Any:
    """The network of a variant without adapters that are switched."""
    from diffdpo.models.checkpoints import load_saved

    network = model.network
    if key.network:
        return (
            load_saved(type(network), key.network, next(network.parameters()).dtype)
            .eval()
            .requires_grad_(False)
        )
    if choice is None:
        raise ConfigError(
            f"{CONFIG_KEY}: without_adapters needs to know how the model was loaded; load it without its adapter, "
            "and give that as the adapter of the positive variant"
        )
    if not (choice.args.get("adapter") or choice.args.get("adapters")):
        raise ConfigError(
            f"{CONFIG_KEY}: without_adapters, but the model has no adapter; set model.args.adapter, or leave it out"
        )
    return build_model(Choice(choice.name, _bare_args(dict(choice.args)))).network
