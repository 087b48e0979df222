"""The activations of a network's blocks: read, or moved along a direction, by hooks that are gone afterwards."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffdpo.errors import ConfigError
from diffdpo.models.adapter_config import block_names
from diffdpo.sampling.knobs import check_blocks

Activations = Float[Tensor, "batch token channel"]
PROJECTIONS = ("o_proj", "to_out", "to_out.0")
"""Ends of the names of what follows the heads of attention, in this package and in diffusers."""


@contextmanager
def hook_blocks(
    networks: Sequence[Any],
    actions: Mapping[int, Callable[[Activations], Activations | None]],
    key: str,
    site: str = "",
) -> Iterator[None]:
    """Call a function with the activations of each of some blocks, and go on with what it returns, if anything.

    They are what the block puts out, or what a part of it named `site` takes in. The hooks are taken off again,
    also after an error. ConfigError, with the `key` of the configuration, for a block that a network does not have.
    """
    handles = []
    try:
        for network in networks:
            check_blocks(network, actions, key)
            names = block_names(network)
            for number, action in actions.items():
                block = network.get_submodule(names[number])
                if site:
                    handles.append(block.get_submodule(site).register_forward_pre_hook(_input_hook(action)))
                else:
                    handles.append(block.register_forward_hook(_hook(action)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(action: Callable[[Activations], Activations | None]) -> Callable[..., Any]:
    """A forward hook; of a block that puts out several values, the first is its activations."""

    def call(module: Any, inputs: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return action(output)
        h = action(output[0])
        return None if h is None else (h, *output[1:])

    return call


def _input_hook(action: Callable[[Activations], Activations | None]) -> Callable[..., Any]:
    """A hook before a module; its first input are the activations."""

    def call(module: Any, inputs: tuple[Any, ...]) -> Any:
        h = action(inputs[0])
        return None if h is None else (h, *inputs[1:])

    return call


def projection_sites(network: Any) -> list[str]:
    """The parts behind the heads of attention that every block of a network has: the sites of single heads."""
    parts = [
        {part for part in _parts(network.get_submodule(name)) if part.endswith(PROJECTIONS)}
        for name in block_names(network)
    ]
    return sorted(set[str].intersection(*parts)) if parts else []


def check_site(network: Any, site: str, key: str) -> None:
    """ConfigError unless every block of a network has a part of this name; empty is the block itself."""
    for name in block_names(network) if site else ():
        if site not in _parts(network.get_submodule(name)):
            raise ConfigError(
                f"{key}: {name} has no part {site!r}; those behind the heads of its attention are "
                f"{', '.join(projection_sites(network)) or 'not named'}"
            )


def _parts(block: Any) -> set[str]:
    """Names of the parts of a block that compute something, which a list of parts does not."""
    lists = (torch.nn.ModuleList, torch.nn.ModuleDict)
    return {name for name, part in block.named_modules() if name and not isinstance(part, lists)}


def move_along(vector: Float[Tensor, " channel"], strength: float) -> Callable[[Activations], Activations]:
    """A function that adds `strength * vector` to every frame and keeps the frame's norm."""

    def move(h: Activations) -> Activations:
        if h.shape[-1] != len(vector):
            raise ConfigError(
                f"sampling.steering: the direction has {len(vector)} channels, the network {h.shape[-1]}; "
                "fit one with this model"
            )
        values = h.to(torch.promote_types(h.dtype, torch.float32))
        sum_ = values + strength * vector.to(values)
        size = values.norm(dim=-1, keepdim=True) / sum_.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return (sum_ * size).to(h)

    return move


class PooledActivations:
    """The mean over the frames of each row of the activations of some blocks, over all calls of the network.

    The rows of the calls follow each other. A network of patches, or with tokens before the frames, has the share
    of its tokens that the song has of the frames.
    """

    def __init__(self, blocks: Sequence[int], frames: Int[Tensor, " row"], length: int) -> None:
        self.shares = (frames.double() / length).tolist()
        self.parts: dict[int, list[Float[Tensor, "call_row channel"]]] = {block: [] for block in blocks}

    def actions(self) -> dict[int, Callable[[Activations], None]]:
        """What `hook_blocks` calls."""
        return {block: self._append(block) for block in self.parts}

    def _append(self, block: int) -> Callable[[Activations], None]:
        def append(h: Activations) -> None:
            first, tokens = sum(len(part) for part in self.parts[block]), h.shape[1]
            shares = self.shares[first : first + len(h)]
            if len(shares) < len(h):  # windows of songs, which are full
                shares = [1.0] * len(h)
            counts = [max(1, math.ceil(share * tokens - 1e-6)) for share in shares]
            means = [h[row, :count].detach().double().mean(0) for row, count in enumerate(counts)]
            self.parts[block].append(torch.stack(means).cpu())

        return append

    def features(self, rows: int) -> Float[Tensor, "{rows} block channel"]:
        """The features of each row; those of the windows of one song are averaged.

        ConfigError for a block whose activations were never read.
        """
        for block, parts in self.parts.items():
            if not parts:
                raise ConfigError(
                    f"block {block}: the network does not call this part of it; name another site"
                )
        blocks = [torch.cat(parts) for parts in self.parts.values()]
        return torch.stack([block.unflatten(0, (rows, -1)).mean(1) for block in blocks], 1)
