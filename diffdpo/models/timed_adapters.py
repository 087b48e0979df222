"""Adapters with a strength, an interval of t and a choice of layers, on the network of a model that samples.

What acts at all times is merged into the weights. What acts in an interval of t stays beside them as peft has it:
it takes the memory of its factors, and outside the interval the network is bit for bit the one without it.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftLora
from peft.tuners.tuners_utils import BaseTunerLayer

from diffdpo.errors import CheckpointError, reason
from diffdpo.models.adapter_config import AdapterConfig, match_layers
from diffdpo.models.adapter_schedule import ATTRIBUTE, NEVER, TimedAdapters, timed_adapters
from diffdpo.models.adapters import (
    MAGNITUDE,
    Adapters,
    adapter_file,
    check_fit,
    check_mergeable,
    check_soup,
    merge_adapter,
    parse_adapters,
    read_adapter,
    supported_config,
)


def apply_adapters(network: Any, adapter: Adapters, adapters: Sequence[AdapterConfig] = ()) -> None:
    """Put adapters on a network: those of the short form, see `parse_adapters`, then those with more to say.

    Those that act at all times are merged. Without the sampler, which switches the others on and off, the network
    is the one without them. CheckpointError for adapters that do not fit, or that cannot act together.
    """
    entries = [AdapterConfig(str(folder), weight) for folder, weight in parse_adapters(adapter)]
    entries += adapters
    check_together(entries)
    for entry in entries:
        if not entry.is_timed:
            merge_adapter(network, Path(entry.path), entry.strength, entry.layers)
    timed_entries = [entry for entry in entries if entry.is_timed]
    for entry in timed_entries:  # before there are peft's layers in the place of the network's
        check_fit(network, read_adapter(Path(entry.path), network)[0], adapter_file(Path(entry.path)))
    intervals = {}
    for number, entry in enumerate(timed_entries):
        name = f"timed_{number}"
        _add_adapter(network, entry, name)
        intervals[name] = (entry.interval[0], entry.interval[1])
    if intervals:
        _schedule(network, intervals)


def add_switched_adapters(network: Any, adapter: Adapters) -> frozenset[str]:
    """Put adapters on a network that act only where they are named, see `by_adapters`; their names.

    The network stays what it was, bit for bit. CheckpointError for adapters that do not fit or cannot act together.
    """
    schedule = timed_adapters(network)
    if schedule is None and any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise CheckpointError(
            f"{adapter}: the network has an adapter of its own that is not merged; export it, and load the model "
            "with adapter=…"
        )
    intervals = dict(schedule.intervals) if schedule is not None else {}
    entries = [AdapterConfig(str(folder), weight) for folder, weight in parse_adapters(adapter)]
    check_sum(entries, is_alone=schedule is None or all(ends == NEVER for ends in intervals.values()))
    names = []
    for entry in entries:
        check_fit(network, read_adapter(Path(entry.path), network)[0], adapter_file(Path(entry.path)))
        names.append(f"switched_{len(intervals)}")
        _add_adapter(network, entry, names[-1])
        intervals[names[-1]] = NEVER
    _schedule(network, intervals)
    return frozenset(names)


def remove_switched_adapters(network: Any) -> None:
    """Take the adapters of `add_switched_adapters` off a network, which is then as it was."""
    schedule = timed_adapters(network)
    if schedule is None:
        return
    intervals = {name: ends for name, ends in schedule.intervals.items() if ends != NEVER}
    names = sorted(schedule.intervals.keys() - intervals.keys())
    if not intervals:
        network.unload_lora()
        delattr(network, ATTRIBUTE)
    elif names:
        network.delete_adapters(names)
        _schedule(network, intervals)


def _schedule(network: Any, intervals: dict[str, tuple[float, float]]) -> None:
    """Write the schedule of a network's adapters into it; none of them acts."""
    layers = [module.eval() for module in network.modules() if isinstance(module, BaseTunerLayer)]
    schedule = TimedAdapters(intervals, layers)
    schedule.switch(frozenset())
    setattr(network, ATTRIBUTE, schedule)


def check_together(entries: Sequence[AdapterConfig]) -> None:
    """CheckpointError for a DoRA in a sum that is none, see `check_soup`; in an interval it is alone and whole."""
    check_soup([(Path(entry.path), entry.strength) for entry in entries])
    if any(entry.is_timed for entry in entries):
        check_sum(entries)


def check_sum(entries: Sequence[AdapterConfig], is_alone: bool = True) -> None:
    """CheckpointError for a DoRA among adapters that are not merged, unless it is alone and whole."""
    is_whole = is_alone and len(entries) == 1 and entries[0].strength == 1
    for entry in entries:
        if not is_whole and any(MAGNITUDE in name for name in read_adapter(Path(entry.path))[0]):
            raise CheckpointError(
                f"{entry.path}: a DoRA among adapters that are not merged: what it changes depends on the "
                "weights below it; use it alone with strength 1, or without an interval"
            )


def _add_adapter(network: Any, entry: AdapterConfig, name: str) -> None:
    """One adapter in peft's layers, with its strength, in the layers that were selected."""
    path = adapter_file(Path(entry.path))
    state, config = read_adapter(Path(entry.path), network)
    config = supported_config(config, path)
    selection = match_layers(network, {key.split(".lora_")[0] for key in state}, entry.layers, path)
    try:
        check_mergeable(PeftLora(**config), path)
        with warnings.catch_warnings():  # peft warns of a second adapter
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            network.load_lora_adapter(
                dict(sorted(state.items())), prefix=None, metadata=config or None, adapter_name=name
            )
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        text = reason(error.__cause__ or error)
        raise CheckpointError(f"{path}: its config does not fit its tensors ({text})") from None
    for layer, module in network.named_modules():
        if not isinstance(module, BaseTunerLayer) or name not in module.lora_A:
            continue
        if layer in selection:
            module.set_scale(name, entry.strength)
        else:
            module.delete_adapter(name)
    network.requires_grad_(False)
