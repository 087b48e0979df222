"""Compilation of the blocks of a network."""

from typing import Any

import torch

from diffdpo.errors import ConfigError

MAX_GRAPHS = 32
"""Graphs of one block that are compiled: with and without gradients, adapters and a mask, for one row and several.
torch goes on uncompiled beyond its own eight."""


def compile_blocks(network: Any, key: str) -> None:
    """Compile the blocks that a network repeats, each in its place and once: names of parameters stay.

    All blocks share their graphs, and every size of an input is a variable of them: a song of another length
    compiles nothing.

    Diffusers' networks list the classes of such blocks in `_repeated_blocks`. ConfigError, with the configuration
    `key` that is to be changed, for a network without it.
    """
    block_names = getattr(network, "_repeated_blocks", None)
    if not block_names:
        raise ConfigError(f"{key}: {type(network).__name__} names no _repeated_blocks; set it to false")
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, MAX_GRAPHS)
    for block in [module for module in network.modules() if type(module).__name__ in block_names]:
        if getattr(block, "_compiled_call_impl", None) is None:
            block.compile(dynamic=True)
