"""Knobs: differences of velocities, added to the velocity of a model while it samples.

    velocity = guided velocity of the model + sum over knobs of weight * (v_positive - v_negative)

Positive and negative are variants of the model: other adapters, other weights, without its adapters, with blocks
left out, or the same network with a preference axis in the prompt. What the sum needs is worked out before anything
is evaluated: equal variants are evaluated once, and those whose weights cancel not at all. So a weight of 0 is the
plain path, and v_ref + w (v_policy - v_ref) at w = 1 is the policy's.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.errors import ConfigError, ensure
from diffdpo.flow import Latents
from diffdpo.models.adapter_config import block_names
from diffdpo.sampling.trajectory import RowTimes

CONFIG_KEY = "sampling.knobs"
_Key = TypeVar("_Key")


class WeightsKey(NamedTuple):
    """Which weights a variant has: another network, adapters on it, and whether the model's own are left out."""

    network: str = ""
    adapter: str = ""
    without_adapters: bool = False


class NetworkKey(NamedTuple):
    """Which network a variant is: its weights, and the blocks that are left out."""

    weights: WeightsKey = WeightsKey()
    skip: tuple[int, ...] = ()


class VariantKey(NamedTuple):
    """Which velocity a variant has: that of a network under the prompt, with an axis if it names one."""

    network: NetworkKey = NetworkKey()
    axis: str = ""


MODEL = VariantKey()
"""The model as it is."""


@dataclass(frozen=True)
class KnobVariant:
    """A velocity beside the model's own. Without any field it is the model as it is."""

    network: str = field(default="", metadata=PATH)
    """Folder with other weights of the same architecture, such as the `export` of a training run: a second network
    in memory."""
    adapter: str = field(default="", metadata=PATH_LIST)
    """LoRA adapters on the network, `a/export@0.5,b/export`, switched on and off: they take the memory of their
    factors."""
    without_adapters: bool = False
    """The model's own network without the adapters that it was loaded with: a second network in memory."""
    skip: list[int] = field(default_factory=list)
    """Numbers of blocks that are left out, from 0: a weaker network without any memory."""
    axis: str = ""
    """The preference axis in the prompt, its control `axis`: for models trained on pairs that name their axis."""

    def __post_init__(self) -> None:
        ensure(
            not (self.network and self.without_adapters),
            f"{CONFIG_KEY}: another network has no adapters of the model; leave without_adapters out",
        )
        ensure(
            all(number >= 0 for number in self.skip),
            f"{CONFIG_KEY}: skip takes numbers of blocks from 0, got {list(self.skip)}",
        )

    @property
    def key(self) -> VariantKey:
        """What tells the variant from others."""
        weights = WeightsKey(self.network, self.adapter, self.without_adapters)
        return VariantKey(NetworkKey(weights, tuple(sorted(set(self.skip)))), self.axis)


@dataclass(frozen=True)
class Knob:
    """weight * (v_positive - v_negative), added to the model's velocity at some times t.

    Both are the model as it is unless they say otherwise. A weight of 0 evaluates nothing.
    """

    weight: float = 1.0
    """Factor on the difference; of any sign."""
    positive: KnobVariant = field(default_factory=KnobVariant)
    negative: KnobVariant = field(default_factory=KnobVariant)
    interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """The times t at which it acts, both ends included: 0 is the song, 1 is noise, so sampling runs from 1 to 0."""
    guided: bool = True
    """Guided velocities are subtracted: both branches of guidance of each variant are evaluated. false: those of
    the prompt's branch, added behind guidance, as skipped layers and preference axes are published."""

    def __post_init__(self) -> None:
        check_range(self, "weight", prefix=f"{CONFIG_KEY}.")
        low_high = list(self.interval)
        ensure(
            len(low_high) == 2 and 0 <= low_high[0] <= low_high[1] <= 1,
            f"{CONFIG_KEY}.interval must be two times t in [0, 1], 0 the song and 1 noise, the lower one first, "
            f"got {low_high}",
        )
        ensure(
            self.positive.key != self.negative.key,
            f"{CONFIG_KEY}: positive and negative are the same velocity; give one of them a network, adapter, "
            "without_adapters, skip or axis",
        )

    def acts_at(self, t: float) -> bool:
        """Whether the knob acts at a time."""
        return self.interval[0] <= t <= self.interval[1]


class Mixture(NamedTuple):
    """The weights of all velocities at some time; what has none is not evaluated."""

    cond: dict[VariantKey, float]
    """In the prompt's branch, before guidance."""
    uncond: dict[NetworkKey, float]
    """In the branch without a prompt."""
    extra: dict[VariantKey, float]
    """In the prompt's branch, behind guidance."""
    sum: dict[VariantKey, float]
    """`cond` and `extra` together: where the branch without a prompt is not needed, both are one."""


def mix(knobs: Iterable[Knob]) -> Mixture:
    """The weights of all velocities where these knobs act."""
    cond: dict[VariantKey, list[float]] = {MODEL: [1.0]}
    extra: dict[VariantKey, list[float]] = {}
    for knob in knobs:
        terms = cond if knob.guided else extra
        for variant, weight in ((knob.positive, knob.weight), (knob.negative, -knob.weight)):
            terms.setdefault(variant.key, []).append(weight)
    uncond: dict[NetworkKey, list[float]] = {}
    for key, weights in cond.items():  # no branch without a prompt depends on what the prompt says
        uncond.setdefault(key.network, []).extend(weights)
    sums = {key: cond.get(key, []) + extra.get(key, []) for key in {**cond, **extra}}
    return Mixture(_totals(cond), _totals(uncond), _totals(extra), _totals(sums))


def _totals(terms: Mapping[_Key, list[float]]) -> dict[_Key, float]:
    """Sums that are not zero but for rounding: 0.1 + 0.2 - 0.3 is zero."""
    return {key: total for key, weights in terms.items() if (total := round(math.fsum(weights), 12))}


def mixtures(knobs: Sequence[Knob]) -> list[Mixture]:
    """The mixture of every part of [0, 1] in which the same knobs act, ends of intervals included."""
    ends = sorted({0.0, 1.0, *(end for knob in knobs for end in knob.interval)})
    middles = [(low + high) / 2 for low, high in pairwise(ends)]
    return [mix(knob for knob in knobs if knob.acts_at(t)) for t in sorted(ends + middles)]


def used_variants(knobs: Sequence[Knob]) -> list[VariantKey]:
    """The variants that are evaluated at some time, each once."""
    keys = [key for mixture in mixtures(knobs) for part in (mixture.cond, mixture.extra) for key in part]
    return list(dict.fromkeys(keys))


def used_networks(knobs: Sequence[Knob]) -> list[NetworkKey]:
    """The networks that are evaluated at some time, in either branch of guidance."""
    prompt_keys = [key.network for key in used_variants(knobs)]
    return list(dict.fromkeys(prompt_keys + [key for mixture in mixtures(knobs) for key in mixture.uncond]))


def mixture_at(knobs: Sequence[Knob]) -> Callable[[float], Mixture]:
    """A function from a time to the mixture there; each is worked out once."""
    mix_active = cache(lambda active: mix(knob for knob, acts in zip(knobs, active, strict=True) if acts))
    return lambda t: mix_active(tuple(knob.acts_at(t) for knob in knobs))


def active_knobs(knobs: Sequence[Knob], t: RowTimes) -> Bool[Tensor, "row knob"]:
    """Which knobs act at the time of each row."""
    return torch.tensor([[knob.acts_at(time) for knob in knobs] for time in t.tolist()], dtype=torch.bool)


@contextmanager
def skip_blocks(network: Any, numbers: Sequence[int]) -> Iterator[None]:
    """The network with some of its blocks left out: what goes into them comes out. ConfigError for a block that it
    does not have."""
    names = block_names(network)
    check_blocks(network, numbers, CONFIG_KEY)
    blocks = [network.get_submodule(names[number]) for number in numbers]
    methods = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = _pass_through
    try:
        yield
    finally:
        for block, method in zip(blocks, methods, strict=True):
            del block.forward
            if method is not None:
                block.forward = method


def _pass_through(*args: Any, **kwargs: Any) -> Latents:
    """A block that does nothing; the first argument of every block is what it changes."""
    h: Tensor = args[0] if args else next(iter(kwargs.values()))
    return h


def check_blocks(network: Any, numbers: Iterable[int], key: str) -> None:
    """ConfigError for the number of a block that a network does not have, and for a network that names none."""
    count, kind = len(block_names(network)), type(network).__name__
    if not count:
        raise ConfigError(
            f"{key}: {kind} names no _repeated_blocks, so that its blocks have no numbers; leave that out"
        )
    for number in numbers:
        if not 0 <= number < count:
            raise ConfigError(f"{key}: {kind} has the blocks 0 to {count - 1}, got {number}")
