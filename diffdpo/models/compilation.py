"""Compilation of the blocks of a network."""

from typing import Any

from diffdpo.errors import ConfigError


def compile_blocks(network: Any, key: str) -> None:
    """Compile the blocks that a network repeats, each in its place and once: names of parameters stay.

    Diffusers' networks list the classes of such blocks in `_repeated_blocks`. ConfigError, with the configuration
    `key` that is to be changed, for a network without it.
    """
    block_names = getattr(network, "_repeated_blocks", None)
    if not block_names:
        raise ConfigError(f"{key}: {type(network).__name__} names no _repeated_blocks; set it to false")
    for block in [module for module in network.modules() if type(module).__name__ in block_names]:
        if getattr(block, "_compiled_call_impl", None) is None:
            block.compile(dynamic=True)
